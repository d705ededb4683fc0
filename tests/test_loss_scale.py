"""The loss scale: gradients that fp16 loses, steps that it undoes, and what it must leave to the bit."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import umbrella as um
from tests.faults import kit
from tests.faults.kit import lines
from tests.helpers import bits, classifier, context, copy, fresh, rows, tmap
from tests.test_hlo import instructions
from tests.test_step import LR, at, go, written
from umbrella import losses, parallel, pipelines
from umbrella.gradients import grad_of, in_order, microbatch
from umbrella.loop import Diverged
from umbrella.loss_scale import LARGEST, loss_scaled
from umbrella.models import GPT
from umbrella.objective import Aux, Batch, Ctx, Objective, Params, State, chain, supervised
from umbrella.step import Step, alternate, ema, guard, program, then, train_step, update
from umbrella.train_state import TrainState, create
from umbrella.transforms import adversarial, pgd, sam

Array = jax.Array


def halved(c: float) -> Objective:
    """c (w - x)^2 / 2 per row, the square in fp16: what flows back into fp16 is c / rows, times the loss's scale."""

    def of(p: Params, b: Batch) -> Array:
        low = p["model"]["w"].astype(jnp.float16) - b["x"].astype(jnp.float16)
        return c * jax.lax.reduce_precision(0.5 * low * low, 5, 10).astype(jnp.float32)

    return written(of, model=2.0)


def one(x: float) -> dict[str, Array]:
    return {"x": jnp.asarray([x])}


def step_of(o: Objective, initial: float = 2.0**15, every: int = 2000, policy: Any = "halt") -> Step:
    inner = then(update(grad_of(o), optax.adam(LR)), ema(0.9))
    return guard(loss_scaled(inner, initial, every=every), policy)


def slot(ts: TrainState) -> tuple[float, int, int]:
    s = ts.opt_state["loss_scale"]
    return float(s["scale"]), int(s["good"]), int(s["overflows"])


# ---- what it is for
def test_a_gradient_below_the_smallest_number_is_lost_without_and_found_with_a_scale() -> None:
    """The smallest number of fp16 is 2^-24 = 6e-8, and 2^-26 is nearer to 0. With c = 2^-26, w = 2, x = 1: the
    gradient is 2^-26. Scaled by 2^15 it passes as 2^-11, exactly: w <- 2 - 2^26 * 2^-26 = 1."""
    o, tx = halved(2.0**-26), optax.sgd(2.0**26)
    lost, told = go(o, update(grad_of(o), tx), one(1.0))
    assert at(lost) == 2.0
    assert told[0]["grad_norm"].compute() == 0.0
    found, told = go(o, loss_scaled(update(grad_of(o), tx), 2.0**15), one(1.0))
    assert at(found) == 1.0
    assert told[0]["grad_norm"].compute() == 2.0**-26
    assert told[0]["objective"].compute() == 2.0**-27  # of the loss itself
    assert told[0]["loss_scale"].compute() == 2.0**15


@pytest.mark.parametrize("scale", [2.0, 2.0**15, 2.0**60])
def test_in_f32_a_power_of_two_changes_no_bit(scale: float) -> None:
    """Dropout, BatchNorm, a mask: twenty updates by Adam."""
    o = classifier("batch")
    scaled = step_of(o, scale)
    plain = guard(then(update(grad_of(o), optax.adam(LR)), ema(0.9)), "halt")
    a, b = fresh(o, plain), fresh(o, scaled)
    run_a, run_b = train_step(plain), train_step(scaled)
    for i in range(20):
        a, _ = run_a(a, {}, {}, rows(seed=i))
        b, told = run_b(b, {}, {}, rows(seed=i))
    assert slot(b) == (scale, 20, 0)
    assert bits((a.params, a.state, a.ema, a.opt_state["all"]), (b.params, b.state, b.ema, b.opt_state["all"]))


def test_a_small_gpt_learns_as_in_f32() -> None:
    """Thirty steps on sequences that repeat. In fp16 the loss ends within 5 % of that of f32 (2.7 % was found,
    where it falls by 6 % a step), and no step is lost."""
    r = np.random.default_rng(0)
    text = np.tile(r.integers(0, 11, (16, 4)), (1, 4))
    batch = {"x": jnp.asarray(text[:, :-1], jnp.int32), "y": jnp.asarray(text[:, 1:], jnp.int32)}
    end = {}
    for precision in ("f32", "fp16"):
        net = GPT(words=11, length=16, width=16, layers=2, heads=2, precision=precision)
        o = supervised(net, losses.cross_entropy)
        step = guard(loss_scaled(update(grad_of(o), optax.adam(1e-2))), "halt")
        ts, run = create(o.init, step, jax.random.key(0), batch), train_step(step)
        told = []
        for _ in range(30):
            ts, m = run(ts, {}, {}, batch)
            told.append(m["loss"].compute())
        assert slot(ts) == (2.0**15, 30, 0)
        assert {x.dtype for x in jax.tree.leaves(ts.params)} == {jnp.dtype("float32")}
        end[precision] = (told[0], told[-1])
    assert end["f32"][1] < 0.5 * end["f32"][0]
    np.testing.assert_allclose(end["fp16"], end["f32"], rtol=5e-2)


# ---- the scale
def test_an_overflow_leaves_all_as_it_was_to_the_bit_and_halves_the_scale() -> None:
    """c = 1, one row: what flows into fp16 is the scale, at most 65,504. 2^17 and 2^16 overflow, 2^15 = 32,768 does
    not; times w - x = 1. So the first two steps change nothing, and the third is Adam's first."""
    o = halved(1.0)
    step = step_of(o, 2.0**17)
    start = create(o.init, step, jax.random.key(0), one(1.0))
    ts, run, seen = copy(start), jax.jit(program(step)), []
    for wanted in ((2.0**16, 0, 1), (2.0**15, 0, 2)):
        ts, told = run(ts, {}, {}, one(1.0))
        seen.append(told)
        assert slot(ts) == wanted
        for name in ("params", "state", "ema", "key"):
            assert bits(getattr(ts, name), getattr(start, name)), name
        for name in ("all", "ema", "guard"):
            assert bits(ts.opt_state[name], start.opt_state[name]), name
    assert int(ts.step) == 2
    assert int(ts.opt_state["all"][0].count) == 0
    assert [float(m["skipped"].total) for m in seen] == [0, 0]  # no fault
    assert [m["loss_scale"].compute() for m in seen] == [2.0**17, 2.0**16]  # those that the steps were made with
    assert [m["loss"].compute() for m in seen] == [0.5, 0.5]
    assert [float(m["grad_norm"].count) for m in seen] == [0, 0]
    ts, told = run(ts, {}, {}, one(1.0))
    assert slot(ts) == (2.0**15, 1, 2)
    assert told["grad_norm"].compute() == 1.0
    assert at(ts) == pytest.approx(2 - LR)
    assert int(ts.opt_state["all"][0].count) == int(ts.opt_state["ema"]["count"]) == 1


def test_it_doubles_after_so_many_finite_steps_in_a_row() -> None:
    """Of three: 2^12 twice, doubled by the third to 2^13, by the sixth to 2^14, the ninth to 2^15, the twelfth to 2^16,
    whose first step overflows; then three more at 2^15."""
    o = written(lambda p, b: halved(1.0).apply(p, {}, b, context())[1].per_example, model=2.0)
    ts, told = go(o, guard(loss_scaled(update(grad_of(o), optax.sgd(0.0)), 2.0**12, every=3)), *[one(1.0)] * 16)
    scales = [m["loss_scale"].compute() for m in told]
    assert [np.log2(s) for s in scales] == [12] * 3 + [13] * 3 + [14] * 3 + [15] * 3 + [16] + [15] * 3
    assert slot(ts) == (2.0**16, 0, 1)


def test_an_overflow_ends_the_row() -> None:
    """Two good steps, an overflow, two good steps: none doubles, of three. x = 30: 2^12 (2 - 30) is beyond 65,504."""
    o = halved(1.0)
    step = loss_scaled(update(grad_of(o), optax.sgd(0.0)), 2.0**12, every=3)
    ts, told = go(o, step, *map(one, (1.0, 1.0, 30.0, 1.0, 1.0)))
    assert [m["loss_scale"].compute() for m in told] == [2.0**12] * 3 + [2.0**11] * 2
    assert slot(ts) == (2.0**11, 2, 1)


@pytest.mark.parametrize("policy", ["skip", "halt"])
def test_below_one_it_does_not_go_and_the_guard_sees_what_is_left(policy: Any) -> None:
    """An infinite slope at a finite loss: 6 halves to 3, 1.5 and 1, not .75; the fourth step is a fault."""

    @jax.custom_jvp
    def steep(w: Array) -> Array:
        return w

    steep.defjvp(lambda p, t: (p[0], t[0] * jnp.inf))
    o = written(lambda p, b: steep(p["model"]["w"]) * b["x"], model=2.0)
    step = step_of(o, 6.0, policy=policy)
    ts, told = go(o, step, *[one(1.0)] * 4)
    assert [m["loss_scale"].compute() for m in told[:3]] == [6.0, 3.0, 1.5]
    assert [float(m["skipped"].total) for m in told] == [0, 0, 0, 1]
    assert slot(ts) == (1.0, 0, 3)
    if policy == "skip":
        assert at(ts) == 2.0
        assert int(ts.opt_state["guard"]["skipped"]) == 1
    else:
        assert int(ts.opt_state["guard"]["bad_step"]) == 3


def test_a_loss_that_is_not_finite_is_a_fault_at_once() -> None:
    """The forward pass knows no scale, so a smaller one would not mend it."""
    o = halved(1.0)
    ts, told = go(o, step_of(o, 2.0**10), one(1.0), one(np.nan), one(1.0))
    assert int(ts.opt_state["guard"]["bad_step"]) == 1
    assert [float(m["skipped"].total) for m in told] == [0, 1, 1]
    skipping, told = go(o, step_of(o, 2.0**10, policy="skip"), one(1.0), one(np.nan), one(1.0))
    assert slot(skipping) == (2.0**10, 2, 0)
    assert int(skipping.opt_state["all"][0].count) == 2


def test_it_grows_no_further_than_its_reciprocal_can_be_told() -> None:
    o = halved(2.0**-126)
    step = loss_scaled(update(grad_of(o), optax.sgd(0.0)), LARGEST / 2, every=1)
    ts, _ = go(o, step, one(1.0), one(1.0), one(1.0))
    assert slot(ts) == (LARGEST, 0, 0)


# ---- what it works with
def test_every_lane_has_its_own_scale() -> None:
    """From 2^16, which overflows: x = 1, 3 and 30 are w - x = 1, -1 and -28. 2^15 passes for the first two; times 28
    it does not until 2^11 = 2,048, which makes 57,344."""
    o = halved(1.0)
    step = guard(loss_scaled(update(grad_of(o), optax.sgd(0.0)), 2.0**16, every=2000))
    keys = jax.vmap(jax.random.key)(jnp.arange(3, dtype=jnp.uint32))
    ts = jax.vmap(lambda k: create(o.init, step, k, one(1.0)))(keys)
    run = jax.jit(program(step, lanes="own"))
    for _ in range(8):
        ts, told = run(ts, {}, {}, {"x": jnp.asarray([[1.0], [3.0], [30.0]])})
    kept = ts.opt_state["loss_scale"]
    np.testing.assert_array_equal(kept["scale"], [2.0**15, 2.0**15, 2.0**11])
    np.testing.assert_array_equal(kept["overflows"], [1, 1, 5])
    np.testing.assert_array_equal(kept["good"], [7, 7, 3])
    np.testing.assert_array_equal(told["loss_scale"].total, [2.0**15, 2.0**15, 2.0**11])


def test_microbatches_are_scaled_each() -> None:
    """Four rows, x = 1, 1, 1, 3 in two slices (rows 0 and 2, 1 and 3), c = 2^-26: gradients 2^-26 and 0, mean 2^-27.
    Without a scale what flows into fp16 is 2^-27 a row: nothing. One slice that overflows undoes the step."""
    o = halved(2.0**-26)
    batch = {"x": jnp.asarray([1.0, 1.0, 1.0, 3.0])}
    fn = microbatch(2)(grad_of(o))
    _, told = go(o, loss_scaled(update(fn, optax.sgd(LR)), 2.0**20), batch)
    assert told[0]["grad_norm"].compute() == 2.0**-27
    assert go(o, update(fn, optax.sgd(LR)), batch)[1][0]["grad_norm"].compute() == 0.0
    steep = halved(1.0)
    step = guard(loss_scaled(update(microbatch(2)(grad_of(steep)), optax.sgd(LR)), 2.0**15))
    ts, told = go(steep, step, {"x": jnp.asarray([1.0, 30.0, 1.0, 1.0])})
    assert slot(ts) == (2.0**14, 0, 1)
    assert at(ts) == 2.0
    assert float(told[0]["skipped"].total) == 0


@pytest.mark.parametrize("how", ["over", "in_order"])
def test_devices_agree_on_an_overflow(how: str) -> None:
    """Device 1 alone overflows: both undo the step and halve. Then the gradient is that of one device.

    Two devices, two rows each. "over": what flows into fp16 is the scale / 4 a row; 2^14 (2 - 30) / 4 overflows, 2^13 *
    28 / 4 = 57,344 does not. "in_order", two slices: the scale / 2; 2^12 does not overflow."""
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    o = halved(1.0)
    fn = grad_of(o, over="data") if how == "over" else in_order(2, "data")(grad_of(o))
    step = guard(loss_scaled(update(fn, optax.sgd(LR)), 2.0**14))
    mesh = parallel.mesh(2)
    specs = (P(), P(), P(), P("data"))
    run = jax.jit(jax.shard_map(program(step), mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False))
    batch = {"x": jnp.asarray([1.0, 1.0, 1.0, 30.0])}
    ts, seen = create(o.init, step, jax.random.key(0), batch), []
    for _ in range(3):
        ts, told = run(ts, {}, {}, batch)
        seen.append(float(told["grad_norm"].count))
    # w - mean(x) = 2 - 33 / 4 = -6.25
    lost = {"over": 1, "in_order": 2}[how]
    assert slot(ts) == (2.0 ** (14 - lost), 3 - lost, lost)
    assert seen == [0.0] * lost + [1.0] * (3 - lost)
    w = 2.0
    for _ in range(3 - lost):
        w -= LR * (w - 8.25)
    assert at(ts) == pytest.approx(w, rel=1e-3)  # of fp16


def test_what_differentiates_inside_sees_no_scale() -> None:
    """An attack and SAM are what they are without a scale, to the bit; and no objective finds one in its context."""

    def looking(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        assert ctx.scale is None
        return base.apply(params, state, batch, ctx)

    base = classifier()
    o = chain(sam(rho=0.1), adversarial(pgd(eps=0.1, steps=2)))(base._replace(apply=looking))
    params, state = o.init(rows(), context())
    run = jax.jit(lambda ctx: grad_of(o)(params, {}, state, rows(), ctx))
    plain, scaled = run(context()), run(context(scale=jnp.float32(2.0**20)))
    assert bits(plain[:2], scaled[:2])


def test_off_it_is_the_program_that_it_was() -> None:
    """Not an instruction more than the gradient by hand, and none of the scale in what a config without one makes."""
    o = classifier("batch")
    params, state = o.init(rows(), context())

    def by_hand(p: Any, s: Any, b: Any, ctx: Ctx) -> Any:
        (loss, aux), g = jax.value_and_grad(lambda p: o.apply(p, s, b, ctx), has_aux=True)(p)
        return g, loss, aux

    made = jax.jit(lambda p, s, b, ctx: grad_of(o)(p, {}, s, b, ctx))
    both = [jax.jit(f).lower(params, state, rows(), context()).compile() for f in (made, by_hand)]
    assert instructions(both[0]).total() > 50
    assert instructions(both[0]) == instructions(both[1])


def test_what_it_refuses() -> None:
    o = halved(1.0)
    one_update = update(grad_of(o), optax.sgd(LR))
    for scale in (0.5, 0.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="it is 1 to 2\\^100"):
            loss_scaled(one_update, scale)
    with pytest.raises(ValueError, match="every 0 steps is never"):
        loss_scaled(one_update, every=0)
    with pytest.raises(ValueError, match="already keeps a loss scale"):
        go(o, loss_scaled(loss_scaled(one_update)), one(1.0))
    with pytest.raises(ValueError, match="an update called 'loss_scale'"):
        update(grad_of(o), optax.sgd(LR), name="loss_scale")
    two = alternate(*[update(grad_of(o), optax.sgd(LR), name=n) for n in ("a", "b")])
    with pytest.raises(ValueError, match="reports 'objective' 2 times; it must be of one update"):
        go(o, loss_scaled(two), one(1.0))
    ts, told = go(o, loss_scaled(update(grad_of(o), optax.sgd(LR), name="a")), one(1.0))
    assert told[0].keys() == {"a/loss", "a/objective", "a/grad_norm", "loss_scale"}


# ---- runs
def config(**more: Any) -> dict[str, Any]:
    """A ViT of digits in fp16, whose first scales, from 2^32 down to about 2^20, are too large."""
    plain = {k: v for k, v in kit.config().items() if k not in ("mixup", "techniques")}
    net = dict(name="vit", patch=4, width=16, layers=1, heads=2, precision="fp16")
    own = dict(model=net, loss_scale=2.0**32, ema=0.9, log_every="5 steps", checkpoint_every="10 steps")
    return {**plain, **own, "train_for": "24 steps", **more}


RUNS = [
    pytest.param({}, id="jit"),
    pytest.param({"microbatches": 2, "seeds": 2}, id="lanes of slices"),
    pytest.param({"compile": "pmap"}, id="pmap", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("more", RUNS)
def test_a_run_resumes_to_the_bit(more: dict[str, Any], tmp_path: Path) -> None:
    """Stopped among the overflows, and after them, at which no run ends."""
    whole = um.run(config(**more), workdir=tmp_path / "whole", quiet=True)
    for stop in (7,) if more else (7, 20):
        um.run(config(**more, train_for=f"{stop} steps"), workdir=tmp_path / str(stop), quiet=True)
        resumed = um.run(config(**more), workdir=tmp_path / str(stop), quiet=True)
        assert bits(resumed.ts, whole.ts)
    kept = tmap(np.asarray, whole.ts.opt_state["loss_scale"])
    assert (kept["overflows"] > 7).all()
    assert (kept["scale"] == 2.0 ** (32 - kept["overflows"])).all()
    assert (np.asarray(whole.ts.opt_state["all"][0].count) == 24 - kept["overflows"]).all()
    assert whole.summary["status"] == "finished"
    told = [np.mean(r["loss_scale"]) for r in lines(whole.workdir) if r["split"] == "train"]
    assert told[0] > 2**27 > told[-1] > 2**10


def test_a_run_whose_loss_is_not_finite_ends_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(um.transforms.TABLE, "poison", lambda *, at: kit.poison(at=at))
    spoiled = config(techniques=("poison",), poison=dict(at=(17,)))
    with pytest.raises(Diverged, match="not finite at step 17; first bad leaf: outputs"):
        um.run(spoiled, workdir=tmp_path, quiet=True)


def test_configs() -> None:
    """fp16 without a scale is allowed and said; a scale below 1 is none; without one there is no slot."""
    for scale, said in ((0.0, True), (1.0, False)):
        ex = pipelines.build(config(loss_scale=scale))
        assert any("small gradients are lost" in note for note in ex.notes) == said
        slots = jax.eval_shape(lambda ex=ex: create(ex.init, ex.step, jax.random.key(0), _batch(ex))).opt_state
        assert ("loss_scale" in slots) == (not said)
    low = config(loss_scale=0.0, model={**config()["model"], "precision": "bf16"})
    assert not any("fp16" in note for note in pipelines.build(low).notes)
    with pytest.raises(um.SettingsError, match="config.loss_scale: .*must be 0, for none, or 1 to 2\\^100"):
        pipelines.build(config(loss_scale=0.5))


def _batch(ex: Any) -> Any:
    return ex.train_data.fetch(ex.train_data.resident, ex.train_data.slot(0, 0))
