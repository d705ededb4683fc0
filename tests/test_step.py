"""Gradients and steps: updates by hand, slices and shards against the whole, averages against NumPy, guards."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers import bits, context, copy, gap, rows, tmap
from tests.test_objective import Recall, filled
from umbrella import losses, metrics, parallel, placement
from umbrella.gradients import grad_of, microbatch
from umbrella.metrics import Mean
from umbrella.models import MLP
from umbrella.objective import Aux, Batch, Ctx, Objective, Params, State, measure, supervised
from umbrella.step import Step, alternate, ema, gather, guard, program, repeat, stream, swa, then, train_step, update
from umbrella.train_state import TrainState, create

Array = jax.Array
LR = 0.1


def written(rows_of: Callable[[Params, Batch], Array], **start: float) -> Objective:
    """An objective from a formula for the rows' losses; one scope with one number for each of `start`."""

    def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
        return {k: {"w": jnp.float32(v)} for k, v in start.items()}, {}

    def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        rows, mask = rows_of(params, batch), batch.get("mask", jnp.ones(batch["x"].shape[0]))
        total, count = jnp.sum(mask * rows), jnp.sum(mask)
        return total / jnp.maximum(count, 1), Aux({}, None, rows, count, {"loss": Mean(total, count)})

    return Objective(init, apply)


def quadratic() -> Objective:
    """(w - x)^2 / 2 per row: the gradient is w - mean(x)."""
    return written(lambda p, b: 0.5 * jnp.square(p["model"]["w"] - b["x"]), model=2.0)


def sgd(o: Objective, **kw: Any) -> Step:
    return update(grad_of(o), optax.sgd(LR), **kw)


def go(o: Objective, step: Step, *batches: Batch) -> tuple[TrainState, list[dict[str, Any]]]:
    ts, told = create(o.init, step, jax.random.key(0), batches[0]), []
    run = jax.jit(program(step))
    for batch in batches:
        ts, m = run(ts, {}, {}, batch)
        told.append(m)
    return ts, told


def at(ts: TrainState, scope: str = "model") -> float:
    return float(ts.params[scope]["w"])


X = {"x": jnp.asarray([1.0, 5.0])}  # mean 3


# ---- update
def test_an_update_by_hand() -> None:
    """w = 2, mean 3: loss ((2 - 1)^2 + (2 - 5)^2) / 4 = 2.5, gradient -1, w <- 2 + .1 = 2.1, then 2.1 + .09 = 2.19."""
    ts, told = go(quadratic(), sgd(quadratic()), X, X)
    assert at(ts) == pytest.approx(2.19)
    assert told[0].keys() == {"loss", "objective", "grad_norm"}
    assert told[0]["objective"].compute() == told[0]["loss"].compute() == 2.5
    assert told[0]["grad_norm"].compute() == 1.0
    assert told[1]["grad_norm"].compute() == pytest.approx(0.9)
    assert int(ts.step) == 2
    assert ts.opt_state.keys() == {"all"}


def game() -> tuple[Objective, Objective]:
    """Two players. gen minimises d g x + g^2 / 2: gradient d m + g, m = mean x. disc (d - g x)^2 / 2: d - g m."""
    start = {"gen": 1.0, "disc": -2.0}
    gen = written(lambda p, b: p["disc"]["w"] * p["gen"]["w"] * b["x"] + 0.5 * p["gen"]["w"] ** 2, **start)
    disc = written(lambda p, b: 0.5 * jnp.square(p["disc"]["w"] - p["gen"]["w"] * b["x"]), **start)
    return gen, disc


def test_wrt_trains_its_scopes_and_leaves_the_others_to_the_bit() -> None:
    """gen alone, m = 3: gradient -2 * 3 + 1 = -5, g = 1 + .5. disc is not even in the optimiser's state, where a zero
    gradient would still move it."""
    gen, _ = game()
    ts, told = go(gen, update(grad_of(gen), optax.adam(LR), wrt=("gen",), name="gen"), X, X)
    assert bits(ts.params["disc"]["w"], jnp.float32(-2.0))
    assert at(ts, "gen") != 1.0
    assert ts.opt_state["gen"][0].mu.keys() == {"gen"}
    assert told[0].keys() == {"gen/loss", "gen/objective", "gen/grad_norm"}
    ts, _ = go(gen, sgd(gen, wrt=("gen",)), X)
    assert at(ts, "gen") == pytest.approx(1.5)


def test_slots_and_prefixes() -> None:
    gen, disc = game()
    make = lambda *steps: create(gen.init, alternate(*steps), jax.random.key(0), X)  # noqa: E731
    both = sgd(gen, wrt=("gen", "disc"))
    assert make(both).opt_state.keys() == {"gen+disc"}
    assert make(sgd(gen, name="slow"), both).opt_state.keys() == {"slow", "gen+disc"}
    assert go(gen, sgd(gen, name="slow"), X)[1][0].keys() == {"slow/loss", "slow/objective", "slow/grad_norm"}
    with pytest.raises(ValueError, match="two updates share the slot 'gen'"):
        make(sgd(gen, wrt=("gen",)), sgd(disc, wrt=("gen",)))
    with pytest.raises(ValueError, match=r"wrt names \['dics'\], the parameters have the scopes \['disc', 'gen'\]"):
        make(sgd(gen, wrt=("dics", "gen")))


# ---- microbatch
class Tokens(nn.Module):
    """Logits for every row or position: [..., 6] -> [..., 3]."""

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        return nn.Dense(3)(jnp.tanh(nn.Dense(5)(x)))


def uneven(n: int = 8) -> dict[str, Array]:
    """Masks that leave 1, 0, 1 and 2 rows in the four slices (i, i + 4) of eight, and weights."""
    mask = jnp.asarray([1, 0, 1, 1, 0, 0, 0, 1], jnp.float32)
    return rows(n, mask=False) | {"mask": mask, "weight": jnp.linspace(0.5, 2.0, n)}


def uneven_tokens() -> dict[str, Array]:
    r = np.random.default_rng(1)
    x, y = r.normal(size=(8, 4, 6)), r.integers(0, 3, (8, 4))
    mask = np.arange(4) < np.array([4, 1, 0, 2, 0, 0, 3, 1])[:, None]
    return {
        "x": jnp.asarray(x, jnp.float32),
        "y": jnp.asarray(y, jnp.int32),
        "mask": jnp.asarray(mask, jnp.float32),
        "weight": jnp.linspace(0.5, 2.0, 8),
    }


def gradient(grad_fn: Any, params: Any, state: Any, batch: Any) -> Any:
    return jax.jit(lambda p, s, b: grad_fn(p, {}, s, b, context()))(params, state, batch)


@pytest.mark.parametrize("problem", ["rows", "tokens"])
def test_microbatches_give_the_gradient_of_the_whole(problem: str) -> None:
    """Under uneven masks (one slice is all padding) and weights: gradient, loss, count, metrics and rows."""
    batch = uneven() if problem == "rows" else uneven_tokens()
    o = supervised(Tokens(), losses.cross_entropy)
    params, state = filled(o, batch)
    run = jax.jit(lambda *a: [microbatch(k)(grad_of(o))(a[0], {}, a[1], a[2], context()) for k in (1, 4)])
    (g, loss, aux), (g_4, loss_4, aux_4) = run(params, state, batch)
    assert gap(g, g_4) < 1e-6
    assert gap(loss, loss_4) < 1e-6
    assert gap((aux.count, aux.metrics, aux.per_example), (aux_4.count, aux_4.metrics, aux_4.per_example)) < 1e-5
    assert (aux_4.outputs, aux_4.features) == (None, {})


def test_one_microbatch_is_the_function_itself() -> None:
    fn = grad_of(quadratic())
    assert microbatch(1)(fn) is fn


def test_microbatches_must_divide_the_batch() -> None:
    step = update(microbatch(3)(grad_of(quadratic())), optax.sgd(LR))
    with pytest.raises(ValueError, match="3 microbatches do not divide a batch of 2"):
        go(quadratic(), step, X)


def test_microbatches_thread_the_state_in_order() -> None:
    """BatchNorm over two slices: .9 (.9 r + .1 m1) + .1 m2; an average would be .9 r + .05 (m1 + m2)."""
    o, batch = supervised(Coupled(), losses.cross_entropy), rows(8, mask=False)
    params, state = filled(o, batch)
    _, _, aux = gradient(microbatch(2)(grad_of(o)), params, state, batch)
    hidden = np.asarray(batch["x"]) @ np.asarray(params["model"]["Dense_0"]["kernel"])
    before, after = (np.asarray(t["model"]["batch_stats"]["BatchNorm_0"]["mean"]) for t in (state, aux.state))
    wanted = 0.81 * before + 0.09 * hidden[::2].mean(0) + 0.1 * hidden[1::2].mean(0)
    np.testing.assert_allclose(after, wanted, rtol=1e-4, atol=1e-6)


def cutting(how: str) -> Step:
    """A step of a wide net that sees its batch in four parts, one after the other."""
    o = supervised(MLP(out=10, hidden=(256,)), losses.cross_entropy)
    whole = update(grad_of(o), optax.sgd(LR))
    other = update(grad_of(o), optax.sgd(LR), name="other")
    return {
        "whole": whole,
        "microbatch": update(microbatch(4)(grad_of(o)), optax.sgd(LR)),
        "repeat": repeat(whole, 4, split=True),
        "alternate": alternate(whole, other, whole, other, split=True),
    }[how]


@pytest.mark.parametrize("how", ["whole", "microbatch", "repeat", "alternate"])
def test_every_device_computes_its_share_of_a_part(how: str) -> None:
    """On two devices each does half of one device's work. Parts of neighbouring rows would lie on one of the devices,
    and both would compute all of them: twice as much."""
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    o, step = supervised(MLP(out=10, hidden=(256,)), losses.cross_entropy), cutting(how)
    batch = {"x": np.zeros((256, 64), np.float32), "y": np.zeros(256, np.int32)}
    ts, work = create(o.init, step, jax.random.key(0), batch), []
    for n in (1, 2):
        place = placement.Placement(parallel.mesh(n))
        run = train_step(step, jit=place.jit(ts))
        work.append(run.lower(ts, {}, {}, batch).compile().cost_analysis()["flops"])
    assert work[0] > 1e6  # so there is something to share
    assert work[1] < 0.65 * work[0]  # the optimiser's part is done by both


def test_rows_that_are_collected_stay_out_of_training() -> None:
    """Added up over slices or steps they would be rows that nobody saw. In evaluation they are there."""
    auc = metrics.auc_exact(lambda out: out[:, 1])
    o = measure(auc=auc, accuracy=metrics.accuracy)(supervised(MLP(out=2, hidden=(4,)), losses.cross_entropy))
    batch = rows(8, mask=False) | {"y": jnp.arange(8, dtype=jnp.int32) % 2}
    ts = create(o.init, sgd(o), jax.random.key(0), batch)
    assert "auc" in o.apply(ts.params, ts.state, batch, context().eval())[1].metrics
    for step in (sgd(o), repeat(sgd(o), 2), update(microbatch(2)(grad_of(o)), optax.sgd(LR))):
        told = jax.eval_shape(program(step), ts, {}, {}, batch)[1]
        assert told.keys() == {"loss", "accuracy", "objective", "grad_norm"}


def test_microbatches_slice_the_carry_with_the_batch() -> None:
    o = supervised(Recall(), lambda out, y: jnp.square(out - y))
    r = np.random.default_rng(0)
    batch = {k: jnp.asarray(r.normal(size=(4, 3)), jnp.float32) for k in ("x", "y")}
    state = {"carry": {"model": {"h": jnp.asarray(r.normal(size=4), jnp.float32)}}}
    params, _ = filled(o, batch)
    whole = gradient(grad_of(o), params, state, batch)
    cut = gradient(microbatch(2)(grad_of(o)), params, state, batch)
    assert gap((whole[0], whole[1], whole[2].state), (cut[0], cut[1], cut[2].state)) < 1e-6


# ---- shards
class Coupled(nn.Module):
    """A net whose rows depend on each other: BatchNorm over the whole batch, over `axis` when it is cut."""

    axis: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = nn.Dense(4, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis)(x)
        return nn.Dense(3)(jnp.tanh(x))


def by_shards(o: Objective, how: str) -> Callable[..., Any]:
    """(params, state, batch) -> (gradients, loss, count, metrics, state), by two devices."""

    def run(params: Any, state: Any, batch: Any) -> Any:
        g, loss, aux = grad_of(o, over="data")(params, {}, state, batch, context())
        return g, loss, aux.count, aux.metrics, aux.state

    if how == "pmap":
        mapped = jax.pmap(run, axis_name="data", in_axes=(None, None, 0))
        cut = lambda b: tmap(lambda v: v.reshape(2, -1, *v.shape[1:]), b)  # noqa: E731
        return lambda p, s, b: tmap(lambda v: v[0], mapped(p, s, cut(b)))
    specs = (P(), P(), P("data"))
    return jax.jit(
        jax.shard_map(run, mesh=parallel.mesh(2), in_specs=specs, out_specs=P(), check_vma=how == "shard_map, checked")
    )


@pytest.mark.parametrize("how", ["shard_map", "shard_map, checked", "pmap"])
def test_shards_give_the_gradient_of_the_whole(how: str) -> None:
    """On two devices, with 4 rows and 1 row that count and BatchNorm over both: the weight goes in before the gradient.

    "checked" is shard_map's own default.
    """
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    batch = uneven() | {"mask": jnp.asarray([1, 1, 1, 1, 0, 1, 0, 0], jnp.float32)}
    one, two = (supervised(Coupled(axis), losses.cross_entropy) for axis in (None, "data"))
    params, state = filled(one, batch)
    g, loss, aux = gradient(grad_of(one), params, state, batch)
    assert gap((g, loss, aux.count, aux.metrics, aux.state), by_shards(two, how)(params, state, batch)) < 1e-5


def test_shards_keep_the_dtype_of_a_counter() -> None:
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    o = quadratic()

    def counting(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        loss, aux = o.apply(params, state, batch, ctx)
        return loss, aux.replace(state={"n": {"passes": state["n"]["passes"] + 1}})

    params, _ = o.init(X, context())
    state = {"n": {"passes": jnp.int32(3)}}
    *_, after = by_shards(o._replace(apply=counting), "shard_map")(params, state, X)
    assert bits(after["n"]["passes"], jnp.int32(4))


# ---- ema
def placing() -> tuple[Objective, Step]:
    """A step that puts the batch's number into the parameters: what an average of them must be is then plain."""

    def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
        start = {"bn": {"mean": jnp.float32(50.0), "count": jnp.int32(0)}, "carry": {"a": jnp.float32(0.0)}}
        return {k: {"w": jnp.float32(100.0)} for k in ("gen", "disc")}, start

    def apply(ts: TrainState, batch: Batch, ctx: Ctx) -> tuple[TrainState, dict[str, Any]]:
        x, finite = batch["x"], Mean(batch["x"], jnp.ones(()))
        state = {"bn": {"mean": 2 * x, "count": ts.state["bn"]["count"] + 1}, "carry": {"a": x}}
        new = ts.replace(params={k: {"w": x} for k in ts.params}, state=state)
        return new, {"objective": finite, "grad_norm": finite}

    return quadratic()._replace(init=init), Step(lambda ts: ts, apply)


SEQUENCE = np.random.default_rng(0).normal(size=40)


def averages(decay: float, xs: np.ndarray, policy: Any = None, **kw: Any) -> list[TrainState]:
    o, step = placing()
    step = then(step, ema(decay, **kw))
    step = step if policy is None else guard(step, policy)
    run, out = jax.jit(program(step)), []
    ts = create(o.init, step, jax.random.key(0), {"x": jnp.float32(0.0)})
    for x in xs:
        ts, _ = run(ts, {}, {}, {"x": jnp.float32(x)})
        out.append(ts)
    return out


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.999, 0.99999])
def test_the_average_is_the_weighted_mean_of_the_updates(decay: float) -> None:
    """sum_i d^(t-i) x_i / sum_i d^(t-i): the start (100) has no weight at all, and the first average is the first x."""
    for t, ts in enumerate(averages(decay, SEQUENCE), 1):
        weights = decay ** np.arange(t - 1, -1, -1.0)
        wanted = (weights * SEQUENCE[:t]).sum() / weights.sum()
        assert ts.ema is not None
        assert float(ts.ema.params["gen"]["w"]) == pytest.approx(wanted, abs=2e-4)
        assert float(ts.ema.state["bn"]["mean"]) == pytest.approx(2 * wanted, abs=4e-4)


def test_integers_are_copied_and_carry_is_not_averaged() -> None:
    ts = averages(0.9, SEQUENCE[:5])[-1]
    assert ts.ema is not None
    assert bits(ts.ema.state["bn"]["count"], jnp.int32(5))
    assert ts.ema.state.keys() == {"bn"}
    assert bits(ts.eval_view().state["carry"], ts.state["carry"])


def test_an_average_of_some_scopes() -> None:
    """eval_view lays the averaged scopes over the raw ones."""
    ts = averages(0.9, SEQUENCE[:3], only=("gen",))[-1]
    assert ts.ema is not None
    assert (ts.ema.params.keys(), ts.ema.state.keys()) == ({"gen"}, set())
    view = ts.eval_view()
    assert bits(view.params["gen"], ts.ema.params["gen"])
    assert bits(view.params["disc"], ts.params["disc"])
    assert bits(view.state, ts.state)
    assert not bits(view.params["gen"], ts.params["gen"])


def test_a_skipped_step_does_not_count() -> None:
    """With bad steps between, the average is that of the good ones, to the bit."""
    bad = np.insert(SEQUENCE[:6], [0, 2, 2, 6], np.nan)
    with_bad, without = averages(0.9, bad, "skip")[-1], averages(0.9, SEQUENCE[:6], "skip")[-1]
    assert bits(with_bad.ema, without.ema)
    assert (int(with_bad.step), int(without.step)) == (10, 6)


def test_averages_that_make_no_sense() -> None:
    o, step = placing()
    make = lambda s: create(o.init, s, jax.random.key(0), {"x": jnp.float32(0.0)})  # noqa: E731
    with pytest.raises(ValueError, match="already keeps an average"):
        make(then(step, ema(0.9), ema(0.5)))
    with pytest.raises(ValueError, match=r"ema of \['gne'\]"):
        make(then(step, ema(0.9, only=("gne",))))
    squats = step._replace(init=lambda ts: ts.replace(opt_state={"ema": jnp.zeros(())}))
    with pytest.raises(ValueError, match="the slot 'ema' of opt_state is taken"):
        make(then(squats, ema(0.9)))


def test_the_average_reaches_the_objective() -> None:
    """ctx.ema is the average so far. The loss is (w - x)^2 / 2 + w e with e the average, the start at first.

    w = 2, x = 3: gradient w - 3 + e. e = 2: w <- 2 - .1 * 1 = 1.9, e <- 1.9, the first; then .8: w <- 1.82.
    """
    o = quadratic()

    def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        loss, aux = o.apply(params, state, batch, ctx)
        assert ctx.ema is not None
        return loss + params["model"]["w"] * ctx.ema.params["model"]["w"], aux

    leaning = o._replace(apply=apply)
    ts, _ = go(leaning, then(sgd(leaning), ema(0.9)), X, X)
    assert at(ts) == pytest.approx(1.82, abs=1e-5)


# ---- alternate, repeat
def test_two_players_take_turns() -> None:
    """Each on what the other left, for three rounds, by hand."""
    gen, disc = game()
    ts, told = go(gen, alternate(sgd(disc, wrt=("disc",), name="disc"), sgd(gen, wrt=("gen",), name="gen")), X, X, X)
    g, d, m = 1.0, -2.0, 3.0
    for _ in range(3):
        d -= LR * (d - g * m)
        g -= LR * (d * m + g)
    assert at(ts, "disc") == pytest.approx(d, rel=1e-5)
    assert at(ts, "gen") == pytest.approx(g, rel=1e-5)
    assert told[0].keys() == {f"{s}/{k}" for s in ("gen", "disc") for k in ("loss", "objective", "grad_norm")}
    assert int(ts.step) == 3


def test_alternate_split_gives_every_turn_its_own_slice() -> None:
    """disc sees rows 0 and 2, the mean 1, gen rows 1 and 3, the mean 3:
    d = -2 - .1 (-2 - 1) = -1.7, g = 1 - .1 (-1.7 * 3 + 1) = 1.41."""
    gen, disc = game()
    batch = {"x": jnp.asarray([0.0, 1.0, 2.0, 5.0])}
    ts, _ = go(
        gen, alternate(sgd(disc, wrt=("disc",), name="disc"), sgd(gen, wrt=("gen",), name="gen"), split=True), batch
    )
    assert at(ts, "disc") == pytest.approx(-1.7)
    assert at(ts, "gen") == pytest.approx(1.41)


def test_the_same_step_twice_owns_one_slot() -> None:
    """w <- w - .1 (w - 3) twice: 2.1, 2.19; its metrics are merged: the norms 1 and .9, a mean of .95."""
    one = sgd(quadratic())
    ts, told = go(quadratic(), alternate(one, one), X)
    assert at(ts) == pytest.approx(2.19)
    assert ts.opt_state.keys() == {"all"}
    assert told[0]["grad_norm"].compute() == pytest.approx(0.95)
    assert float(told[0]["loss"].count) == 4


def test_repeat_by_hand() -> None:
    """The distance to the mean shrinks by .9 a turn: 3 - .9^5; metrics are sums over the turns."""
    ts, told = go(quadratic(), repeat(sgd(quadratic()), 5), X)
    assert at(ts) == pytest.approx(3 - 0.9**5, rel=1e-6)
    assert told[0]["grad_norm"].compute() == pytest.approx(np.mean(0.9 ** np.arange(5)), rel=1e-6)
    assert float(told[0]["loss"].count) == 10
    assert int(ts.step) == 1


def test_a_repeated_step_may_appear_again_outside_of_the_repetition() -> None:
    """alternate(repeat(step, 2), step) is one update made three times: the distance to the mean is .9^3; one slot."""
    one = sgd(quadratic())
    ts, told = go(quadratic(), alternate(repeat(one, 2), one), X)
    assert at(ts) == pytest.approx(3 - 0.9**3, rel=1e-6)
    assert ts.opt_state.keys() == {"all"}
    assert told[0]["grad_norm"].compute() == pytest.approx((1 + 0.9 + 0.81) / 3, rel=1e-6)


def test_repeating_not_at_all_is_no_step() -> None:
    with pytest.raises(ValueError, match="repeat: 0 times is no step"):
        repeat(sgd(quadratic()), 0)


@pytest.mark.parametrize("slot", ["ema", "guard"])
def test_slots_that_no_update_may_have(slot: str) -> None:
    with pytest.raises(ValueError, match=f"an update called '{slot}': that slot of opt_state is {slot}'s own"):
        sgd(quadratic(), name=slot)


def test_repeat_split_gives_every_turn_its_own_slice() -> None:
    """Means 1 (rows 0 and 2), then 3: 2 - .1 (2 - 1) = 1.9; 1.9 - .1 (1.9 - 3) = 2.01."""
    ts, _ = go(quadratic(), repeat(sgd(quadratic()), 2, split=True), {"x": jnp.asarray([0.0, 1.0, 2.0, 5.0])})
    assert at(ts) == pytest.approx(2.01)


def test_five_turns_of_one_player_to_one_of_the_other() -> None:
    gen, disc = game()
    five = repeat(update(grad_of(disc), optax.adam(LR), wrt=("disc",), name="disc"), 5)
    step = alternate(five, update(grad_of(gen), optax.adam(LR), wrt=("gen",), name="gen"))
    ts, _ = go(gen, step, X, X)
    assert (int(ts.opt_state["disc"][0].count), int(ts.opt_state["gen"][0].count)) == (10, 2)


def test_turns_must_divide_the_batch_and_have_no_carry() -> None:
    one = sgd(quadratic())
    for step in (alternate(one, one, one, split=True), repeat(one, 3, split=True)):
        with pytest.raises(ValueError, match="3 turns do not divide a batch of 2"):
            go(quadratic(), step, X)
        ts = create(quadratic().init, step, jax.random.key(0), X).replace(state={"carry": {"a": jnp.zeros(2)}})
        with pytest.raises(ValueError, match="split=True does not slice the per-example scope 'carry'"):
            step.apply(ts, {"x": jnp.ones(3)}, context())


def test_turns_draw_from_streams_of_their_own() -> None:
    """In alternate and in repeat: the noise of no two turns is the same."""

    def noisy(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        draw = jax.random.uniform(ctx.rng("noise"))
        loss, aux = quadratic().apply(params, state, batch, ctx)
        seen = jnp.where(jnp.arange(100) == (draw * 100).astype(jnp.int32), 1.0, 0.0)
        return loss, aux.replace(metrics={"seen": Mean(seen, jnp.ones(()))})

    one = sgd(quadratic()._replace(apply=noisy))
    for step in (alternate(one, one, one), repeat(one, 3)):
        _, told = go(quadratic(), step, X)
        assert int((told[0]["seen"].total > 0).sum()) == 3


# ---- guard
def bad(x: float = np.nan) -> Batch:
    return {"x": jnp.asarray([1.0, x])}


def test_halt_names_the_first_bad_step_and_undoes_nothing() -> None:
    """The flag stays through the good steps that follow, none of which is counted or averaged in."""
    step = guard(sgd(quadratic()), "halt")
    before, _ = go(quadratic(), step, X, X)
    assert int(before.opt_state["guard"]["bad_step"]) == -1
    assert bits(before.params, go(quadratic(), sgd(quadratic()), X, X)[0].params)
    ts, told = go(quadratic(), step, X, X, bad(), X, bad(np.inf), X)
    assert int(ts.opt_state["guard"]["bad_step"]) == 2
    assert not np.isfinite(at(ts))
    assert int(ts.step) == 6
    assert [float(m["skipped"].total) for m in told] == [0, 0, 1, 1, 1, 1]
    assert [float(m["loss"].count) for m in told] == [2, 2, 0, 0, 0, 0]


def test_skip_goes_on_after_a_bad_step() -> None:
    """As if the bad batches had not been: 3 - .9^3, and the optimiser has counted 3."""
    step = guard(update(grad_of(quadratic()), optax.chain(optax.scale_by_schedule(lambda n: 1.0), optax.sgd(LR))))
    ts, told = go(quadratic(), step, X, bad(), X, bad(-np.inf), X)
    assert at(ts) == pytest.approx(3 - 0.9**3, rel=1e-6)
    assert int(ts.opt_state["all"][0].count) == 3
    assert [float(m["skipped"].total) for m in told] == [0, 1, 0, 1, 0]


def test_a_gradient_that_overflows_is_a_bad_step() -> None:
    """The loss is finite (3e38 * 1e-3 * 1e-3), the norm is not: (3e35)^2 overflows, and clipping would divide by it."""
    steep = written(lambda p, b: b["x"] * p["model"]["w"] * p["other"]["w"], model=1e-3, other=1e-3)
    step = guard(update(grad_of(steep), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(LR))))
    ts, told = go(steep, step, {"x": jnp.asarray([3e38, 3e38])})
    assert float(told[0]["skipped"].total) == 1
    assert at(ts) == np.float32(1e-3)


def test_a_bad_turn_undoes_the_round() -> None:
    gen, disc = game()
    broken = gen._replace(apply=lambda p, s, b, c: (lambda out: (out[0] * jnp.nan, out[1]))(gen.apply(p, s, b, c)))
    step = guard(alternate(sgd(disc, wrt=("disc",), name="disc"), sgd(broken, wrt=("gen",), name="gen")))
    ts, told = go(gen, step, X)
    assert (at(ts, "disc"), at(ts, "gen")) == (-2.0, 1.0)
    assert float(told[0]["skipped"].total) == 1


@pytest.mark.parametrize("policy", ["skip", "halt"])
def test_lanes_are_guarded_one_by_one(policy: Any) -> None:
    """Lane 1 meets a bad batch at step 1; lanes 0 and 2 are what they are without it."""
    step = guard(sgd(quadratic()), policy)
    keys = jax.vmap(jax.random.key)(jnp.arange(3, dtype=jnp.uint32))
    ts = jax.vmap(lambda k: create(quadratic().init, step, k, X))(keys)
    run = jax.jit(program(step, lanes="own"))
    for i in range(3):
        each = [bad() if (i, k) == (1, 1) else {"x": X["x"] + k} for k in range(3)]
        ts, _ = run(ts, {}, {}, tmap(lambda *v: jnp.stack(v), *each))
    middle = {"skip": 4 - 2 * 0.9**2, "halt": np.nan}[policy]
    wanted = [3 - 0.9**3, middle, 5 - 3 * 0.9**3]  # towards 3, 4, 5 from 2
    np.testing.assert_allclose(ts.params["model"]["w"], wanted, rtol=1e-6)
    if policy == "halt":
        np.testing.assert_array_equal(ts.opt_state["guard"]["bad_step"], [-1, 1, -1])


# ---- program
def test_a_program_makes_the_key_of_a_step_from_the_run_and_the_step() -> None:
    """fold_in(ts.key, ts.step); the state's own key stays as it is."""
    seen = []

    def apply(ts: TrainState, batch: Batch, ctx: Ctx) -> tuple[TrainState, dict[str, Any]]:
        seen.append((jax.random.key_data(ctx.key), ctx.step, ctx.frozen))
        return ts, {}

    ts = create(quadratic().init, Step(lambda ts: ts, apply), jax.random.key(7), X).replace(step=jnp.int32(5))
    after, _ = program(Step(lambda ts: ts, apply))(ts, {"teacher": 1}, {}, X)
    assert bits(seen[0][0], jax.random.key_data(jax.random.fold_in(jax.random.key(7), 5)))
    assert (int(seen[0][1]), seen[0][2]) == (5, {"teacher": 1})
    assert int(after.step) == 6
    assert bits(after.key, jax.random.key(7))


@pytest.mark.parametrize("lanes", [None, "own", "shared"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_shapes_of_a_program(steps: int, lanes: Any) -> None:
    """Slots are [lanes, steps, B], without what is not there; w approaches each lane's own mean, or the shared one."""
    step, resident = sgd(quadratic()), {"x": jnp.arange(10.0)}
    own = lanes == "own"
    shape = (*((2,) if own else ()), *((steps,) if steps > 1 else ()), 4)
    idx = np.broadcast_to(np.array([0, 1, 2, 3]), shape) + (
        np.array([0, 4]).reshape(2, *(1,) * (len(shape) - 1)) if own else 0
    )
    make = lambda key: create(quadratic().init, step, key, X)  # noqa: E731
    keys = jax.vmap(jax.random.key)(jnp.arange(2, dtype=jnp.uint32))
    ts = make(jax.random.key(0)) if lanes is None else jax.vmap(make)(keys)
    after, told = jax.jit(program(step, fetch=gather, steps=steps, lanes=lanes))(
        ts, {}, resident, {"idx": jnp.asarray(idx, jnp.int32)}
    )
    goal = np.array([1.5, 5.5]) if own else np.array([1.5] * (1 if lanes is None else 2))
    wanted = goal + (2 - goal) * 0.9**steps
    np.testing.assert_allclose(np.atleast_1d(after.params["model"]["w"]), wanted, rtol=1e-6)
    lead = () if lanes is None else (2,)
    assert told["loss"].count.shape == after.step.shape == lead
    np.testing.assert_array_equal(told["loss"].count, np.full(lead, 4.0 * steps))
    np.testing.assert_array_equal(after.step, np.full(lead, steps))


def test_gather_and_stream_make_a_batch_of_a_slot() -> None:
    resident = {"x": jnp.arange(5.0), "y": jnp.arange(10).reshape(5, 2)}
    slot = {"idx": jnp.asarray([4, 0, 0], jnp.int32), "mask": jnp.asarray([1.0, 1.0, 0.0])}
    batch = gather(resident, slot)
    np.testing.assert_array_equal(batch["x"], [4, 0, 0])
    np.testing.assert_array_equal(batch["y"], [[8, 9], [0, 1], [0, 1]])
    assert batch["mask"] is slot["mask"]
    assert batch.keys() == {"x", "y", "mask"}
    assert stream({}, slot) is slot


def test_a_train_step_donates_the_state_and_nothing_else() -> None:
    step = sgd(quadratic())
    ts, batch, frozen = create(quadratic().init, step, jax.random.key(0), X), copy(X), {"t": jnp.ones(3)}
    after, _ = train_step(step)(ts, frozen, {}, batch)
    assert ts.params["model"]["w"].is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after.params, batch, frozen)))


def test_a_typo_does_not_choose_another_step() -> None:
    """guard(step, "Skip") was "halt", program(lanes="Own") was "shared"."""
    wrong: Any = "Skip"
    with pytest.raises(ValueError, match=r"guard: policy: 'Skip' is not one of the choices \(did you mean 'skip'\?\)"):
        guard(sgd(quadratic()), wrong)
    wrong = "Own"
    with pytest.raises(ValueError, match=r"program: lanes: 'Own' is not one of the choices \(did you mean 'own'\?\)"):
        program(sgd(quadratic()), lanes=wrong)


@pytest.mark.parametrize("policy", ["skip", "halt"])
def test_a_guard_with_nothing_to_watch(policy: Any) -> None:
    silent = guard(Step(lambda ts: ts, lambda ts, batch, ctx: (ts, {})), policy)
    with pytest.raises(ValueError, match="guard: the step reports none of"):
        go(quadratic(), silent, X)


def test_two_players_must_not_share_the_names_of_their_metrics() -> None:
    gen, disc = game()
    step = alternate(sgd(disc, wrt=("disc",)), sgd(gen, wrt=("gen",)))
    with pytest.raises(ValueError, match="give their updates names"):
        go(gen, step, X)


# ---- swa
def test_swa_is_the_plain_average_of_the_states_that_it_names() -> None:
    """The weight after step t is 3 - .9^t (mean 3, from 2); averaged after steps 3, 5 and 7, the last state before."""
    o = quadratic()
    for steps, named in ((2, [2]), (3, [3]), (4, [3]), (5, [3, 5]), (8, [3, 5, 7])):
        ts, _ = go(o, then(sgd(o), swa(3, 2)), *[X] * steps)
        assert ts.ema is not None
        assert float(ts.ema.params["model"]["w"]) == pytest.approx(np.mean([3 - 0.9**t for t in named]), rel=1e-6)
        assert at(ts) == pytest.approx(3 - 0.9**steps)


def test_a_second_average_is_refused() -> None:
    o = quadratic()
    for pair in ((ema(0.9), swa(1, 1)), (swa(1, 1), ema(0.9))):
        with pytest.raises(ValueError, match="average"):
            go(o, then(sgd(o), *pair), X)
    with pytest.raises(ValueError, match="never"):
        swa(1, 0)
