"""The laws of a technique, tested once over one table. Adding a technique adds a row to TABLE.

A row says how to make the transform at full and at zero strength, which problem it is for, and where it is an exception
by its nature: `eval` (what it does in evaluation), `microbatch` (whether slices are exact), `cost` (the FLOPs it
promises).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import (
    C,
    D,
    Net,
    adam,
    autoencoder,
    bits,
    classifier,
    context,
    copy,
    fresh,
    gap,
    pictures,
    rows,
    slow_but,
    tmap,
)
from umbrella import attacks, losses, metrics, parallel, placement, transforms
from umbrella.checkpoint import Checkpoints
from umbrella.gradients import grad_of, microbatch
from umbrella.models import MLP, VAE, Autoencoder
from umbrella.objective import Objective, Transform, chain, measure, supervised
from umbrella.step import Step, ema, gather, guard, program, repeat, then, train_step, update
from umbrella.train_state import create


@dataclasses.dataclass(frozen=True)
class Row:
    full: Callable[[Objective], Transform]  # from what a "base" probe attacks
    zero: Callable[[Objective], Transform] | None  # None: it has no strength that could be zero
    batch: Callable[..., dict[str, Any]] = rows
    objective: Callable[[], Objective] = classifier
    eval: Literal["inert", "acts", "reports"] = "inert"  # "acts": it makes the task or the attack of the evaluation
    microbatch: bool = True  # whether slices give the whole batch's gradient, noise aside
    cost: Callable[[float, float], float] = lambda grad, attack: grad
    adds: tuple[str, ...] = ()  # scopes that it adds to the parameters


def photos(n: int = 16) -> dict[str, Any]:
    """A batch of images x f32[n, 8, 8, 3] that says which examples they are."""
    r = np.random.default_rng(4)
    named = {"id": jnp.arange(n, dtype=jnp.int32), "epoch": jnp.ones(n, jnp.int32)}
    return {**rows(n), "x": jnp.asarray(r.random((n, 8, 8, 3)), jnp.float32), **named}


def drawing(name: str, zero: dict[str, Any] | None, cost: float = 1.0, **full: Any) -> Row:
    """A row of an augmentation: rows of a slice have other places, and draw other numbers."""
    make = getattr(transforms, name)
    none = None if zero is None else lambda o: make(**zero)
    return Row(lambda o: make(**full), none, photos, microbatch=False, cost=lambda grad, attack: cost * grad)


def unnormed() -> Objective:
    """A classifier whose rows do not meet in a norm."""
    return measure(accuracy=metrics.accuracy)(supervised(MLP(out=C, hidden=(8,)), losses.cross_entropy))


def coder(hidden: int = 8) -> Objective:
    """An autoencoder whose codes are in (0, 1)."""
    net = Autoencoder(shape=(D,), code=4, hidden=(hidden,), code_activation="sigmoid")
    return supervised(net, lambda out, y: losses.squared_error(out["output"], y))


def sparse(penalty: Literal["l1", "kl"]) -> Row:
    """Of the mean over rows, one penalty is linear and the other is not."""

    def make(weight: float) -> Transform:
        return transforms.sparse(lambda out: out["code"], weight=weight, penalty=penalty)

    return Row(lambda o: make(0.1), lambda o: make(0.0), pictures, coder, microbatch=penalty == "l1")


def attack(eps: float, **kw: Any) -> Transform:
    return transforms.adversarial(transforms.pgd(eps=eps, **kw))


TABLE = {
    "label_smoothing": Row(
        lambda o: transforms.label_smoothing(C, eps=0.2), lambda o: transforms.label_smoothing(C, eps=0.0)
    ),
    # Partners are drawn within the slice, so a slice mixes other pairs.
    "mixup": Row(lambda o: transforms.mixup(C, alpha=0.4), lambda o: transforms.mixup(C, alpha=0.0), microbatch=False),
    "cutmix": Row(
        lambda o: transforms.cutmix(C, alpha=1.0), lambda o: transforms.cutmix(C, alpha=0.0), photos, microbatch=False
    ),
    "flip": drawing("flip", dict(probability=0.0)),
    "alternating_flip": Row(lambda o: transforms.alternating_flip(), None, photos),  # by id, wherever the row is
    "crop": drawing("crop", dict(pad=0), pad=2),
    "affine": drawing("affine", dict(rotate=0.0, translate=0.0, scale=(1.0, 1.0)), shear=10.0),
    "elastic": drawing("elastic", dict(alpha=0.0), alpha=8.0, sigma=2.0),
    "colour": drawing("colour", dict(brightness=0.0, contrast=0.0), saturation=0.2, hue=0.1),
    "cutout": drawing("cutout", dict(size=0), size=4),
    "diffaugment": drawing(
        "diffaugment",
        dict(brightness=0.0, saturation=0.0, contrast=0.0, translation=0.0, cutout=0.0),
        cutout=0.5,
    ),
    "randaugment": drawing("randaugment", dict(operations=0)),
    "corruption": Row(
        lambda o: transforms.corruption(kind="gaussian_noise"), None, photos, eval="acts", microbatch=False
    ),
    "binarise": Row(lambda o: transforms.binarise(), None, pictures, autoencoder, eval="acts"),
    "pixels": Row(
        lambda o: transforms.pixels(2.0), lambda o: transforms.pixels(1.0), pictures, autoencoder, eval="acts"
    ),
    "fgsm": Row(
        lambda o: transforms.adversarial(transforms.fgsm(eps=0.1)),
        lambda o: transforms.adversarial(transforms.fgsm(eps=0.0)),
        eval="acts",
        cost=lambda grad, attack: grad + attack,
    ),
    "pgd": Row(
        lambda o: attack(0.1, steps=2),
        lambda o: attack(0.0, steps=2),
        eval="acts",
        cost=lambda grad, attack: grad + 2 * attack,
        microbatch=False,  # the random start depends on the row's place in its slice
    ),
    "pgd_l2_fixed_start": Row(
        lambda o: attack(0.1, steps=2, norm="l2", random_start=False),
        lambda o: attack(0.0, steps=2, norm="l2", random_start=False),
        eval="acts",
        cost=lambda grad, attack: grad + 2 * attack,
    ),
    # The plain input's pass as well, forward and backward.
    "pgd_beside_clean": Row(
        lambda o: transforms.adversarial(transforms.pgd(eps=0.1, steps=2, random_start=False), clean=0.5),
        lambda o: transforms.adversarial(transforms.pgd(eps=0.0, steps=2, random_start=False), clean=0.5),
        eval="acts",
        cost=lambda grad, attack: 2 * grad + 2 * attack,
    ),
    "noise": Row(
        lambda o: transforms.adversarial(transforms.random_noise(eps=0.5, norm="l2")),
        lambda o: transforms.adversarial(transforms.random_noise(eps=0.0, norm="l2")),
        eval="acts",
        microbatch=False,  # it depends on the row's place in its slice
    ),
    "apgd": Row(
        lambda o: transforms.adversarial(transforms.searched(attacks.apgd(steps=2, bounds=(-9.0, 9.0)), eps=0.1)),
        lambda o: transforms.adversarial(transforms.searched(attacks.apgd(steps=2, bounds=(-9.0, 9.0)), eps=0.0)),
        eval="acts",
        cost=lambda grad, attack: grad + 3 * attack,
        microbatch=False,
    ),
    "pgd_on_base": Row(
        lambda o: chain(
            transforms.label_smoothing(C, eps=0.1),
            transforms.adversarial(transforms.pgd(eps=0.1, steps=2, random_start=False), probe=o),
        ),
        lambda o: transforms.adversarial(transforms.pgd(eps=0.0, steps=2), probe=o),
        eval="acts",
        cost=lambda grad, attack: grad + 2 * attack,
    ),
    # Its perturbation is that of the slice's gradient, and the norm is not linear.
    "sam": Row(
        lambda o: transforms.sam(rho=0.1),
        lambda o: transforms.sam(rho=0.0),
        microbatch=False,
        cost=lambda grad, attack: 2 * grad,
    ),
    "awp": Row(
        lambda o: transforms.awp(gamma=0.05),
        lambda o: transforms.awp(gamma=0.0),
        microbatch=False,
        cost=lambda grad, attack: 2 * grad,
    ),
    # Beside the step: the clean pass and the attack's, in evaluation mode, and a second pass that is trained through.
    "trades": Row(
        lambda o: transforms.trades(eps=0.1, steps=2),
        lambda o: transforms.trades(eps=0.1, steps=2, beta=0.0),
        microbatch=False,
        cost=lambda grad, attack: 2 * grad + 2.5 * attack,
    ),
    "vat": Row(
        lambda o: transforms.vat(eps=0.5),
        lambda o: transforms.vat(eps=0.5, weight=0.0),
        microbatch=False,
        cost=lambda grad, attack: 2 * grad + 1.5 * attack,
    ),
    # Bounds forward and, for what is linear at the end, backward; their gradient is as much again and more.
    "certified": Row(
        lambda o: transforms.certified(eps=0.05),
        lambda o: transforms.certified(eps=0.05, kappa=1.0),
        objective=unnormed,
        eval="reports",
        cost=lambda grad, attack: 8 * grad,
    ),
    "l1": Row(lambda o: transforms.l1(weight=1e-2), lambda o: transforms.l1(weight=0.0)),
    "l2": Row(lambda o: transforms.l2(weight=1e-2), lambda o: transforms.l2(weight=0.0)),
    "sparse": sparse("l1"),
    "sparse_kl": sparse("kl"),
    "lora": Row(
        lambda o: transforms.lora(rank=2), lambda o: transforms.lora(rank=2, alpha=0.0), eval="acts", adds=("lora",)
    ),
    # Every slice draws its own noise for its samples. Four samples in chunks of two: the encoder once a chunk.
    "importance_weighted": Row(
        lambda o: transforms.importance_weighted(losses.log_importance_weight, samples=4, chunk=2),
        None,
        pictures,
        autoencoder,
        eval="acts",
        microbatch=False,
        cost=lambda grad, attack: 4 * grad,
    ),
    # A pass whose rows cancel, p's and q's for every sample; p's and q's forward passes are the same.
    "importance_weighted_dreg": Row(
        lambda o: transforms.importance_weighted(
            losses.log_importance_weight, VAE.POSTERIOR, samples=4, gradient="dreg"
        ),
        None,
        pictures,
        autoencoder,
        eval="acts",
        microbatch=False,
        cost=lambda grad, attack: 9 * grad,
    ),
    "kl": Row(
        lambda o: transforms.kl(losses.kl_of_each, int, beta=4.0, ramp="8"),
        lambda o: transforms.kl(losses.kl_of_each, int, beta=1.0, ramp="0"),
        pictures,
        autoencoder,
    ),
    # The least of a batch's mean is not the mean of the slices' least.
    "kl_free_bits": Row(
        lambda o: transforms.kl(losses.kl_of_each, int, ramp="0", free_bits=0.5),
        lambda o: transforms.kl(losses.kl_of_each, int, ramp="0", free_bits=0.0),
        pictures,
        autoencoder,
        microbatch=False,
    ),
}
NAMES = sorted(TABLE)
# Augmentations share their lift and their streams, attacks their steps: in `make test` the laws of one stand for all.
LATER = (
    "apgd",
    "awp",
    "certified",
    "fgsm",
    "importance_weighted",
    "importance_weighted_dreg",
    "kl",
    "kl_free_bits",
    "l1",
    "l2",
    "mixup",
    "noise",
    "pixels",
    "sparse",
    "sparse_kl",
    "trades",
    "vat",
)  # which have a near relative among the first
FIRST = tuple(n for n in NAMES if n == "flip" or not (TABLE[n].batch is photos or n.startswith("pgd_") or n in LATER))


def of_rows(names: list[str]) -> Any:
    return pytest.mark.parametrize("name", slow_but(names, FIRST))


every_row = of_rows(NAMES)


def step_of(objective: Objective, policy: Literal["skip", "halt"] = "skip") -> Step:
    return guard(then(update(grad_of(objective), adam()), ema(0.9)), policy)


def seen(name: str) -> Objective:
    row = TABLE[name]
    return row.full(row.objective())(row.objective())


def grads(objective: Objective, params: Any, state: Any, batch: Any, ctx: Any) -> Any:
    return jax.jit(lambda p, s, b, c: grad_of(objective)(p, {}, s, b, c))(params, state, batch, ctx)


def test_the_table_has_every_technique() -> None:
    """Whatever a config can name has a row under its own name or under one that uses it."""
    covered = {*TABLE, "adversarial"}  # "adversarial" is pgd with settings
    assert set(transforms.TABLE) <= covered


@of_rows([n for n in NAMES if TABLE[n].zero is not None])
def test_zero_strength_is_the_identity_to_the_bit(name: str) -> None:
    row = TABLE[name]
    base = row.objective()
    assert row.zero is not None
    zero = row.zero(base)(base)
    params, state = zero.init(row.batch(), context())
    plain = {k: v for k, v in params.items() if k not in row.adds}
    assert bits(plain, base.init(row.batch(), context())[0])
    g, loss, aux = grads(zero, params, state, row.batch(), context())
    g0, loss0, aux0 = grads(base, plain, state, row.batch(), context())
    assert bits(loss, loss0)
    assert bits({k: v for k, v in g.items() if k not in row.adds}, g0)
    assert bits(aux.state, aux0.state)
    assert bits(aux.metrics["loss"], aux0.metrics["loss"])


@of_rows([n for n in NAMES if TABLE[n].zero is not None and n != "lora"])
def test_full_strength_is_not_the_identity(name: str) -> None:
    """So that the law above is not kept by doing nothing. (LoRA starts as the identity: see test_transforms.)"""
    row = TABLE[name]
    base, full = row.objective(), seen(name)
    params, state = base.init(row.batch(), context())
    assert (
        gap(
            grads(full, params, state, row.batch(), context())[0], grads(base, params, state, row.batch(), context())[0]
        )
        > 1e-6
    )


@every_row
def test_traces_once(name: str) -> None:
    """A second trace raises: other values, masks and steps are the same program."""
    row = TABLE[name]
    objective = seen(name)
    step = step_of(objective)
    ts = fresh(objective, step, batch=row.batch())
    chex.clear_trace_counter()  # chex counts by the source of a function: the rows share theirs
    run = jax.jit(chex.assert_max_traces(program(step), n=1))
    for seed in range(3):
        batch = row.batch() | {"mask": jnp.asarray(np.arange(16) < 16 - seed, jnp.float32)}
        ts, _ = run(ts, {}, {}, batch)
    assert int(ts.step) == 3


@every_row
def test_leaves_the_batch_untouched(name: str) -> None:
    batch = TABLE[name].batch()
    objective, before = seen(name), dict(batch)
    params, state = objective.init(batch, context())
    objective.apply(params, state, batch, context())
    assert batch.keys() == before.keys()
    assert all(batch[k] is before[k] for k in batch)


@every_row
def test_in_evaluation_it_is_inert_or_says_that_it_acts(name: str) -> None:
    row = TABLE[name]
    base, full = row.objective(), seen(name)
    params, state = full.init(row.batch(), context())
    if name == "lora":
        params["lora"] = tmap(lambda x: x + jax.random.normal(jax.random.key(1), x.shape), params["lora"])
    ctx = context().eval()
    same = bits(full.apply(params, state, row.batch(), ctx)[0], base.apply(params, state, row.batch(), ctx)[0])
    assert same == (row.eval != "acts" or name == "binarise")  # these pictures are binary already


@every_row
def test_a_lane_equals_its_solo_run(name: str) -> None:
    row = TABLE[name]
    objective = seen(name)
    step = step_of(objective)
    keys = jax.vmap(jax.random.key)(jnp.arange(3, dtype=jnp.uint32))
    make = lambda key: create(objective.init, step, key, row.batch())  # noqa: E731
    lanes, solo = jax.vmap(make)(keys), [make(k) for k in keys]
    run_lanes, run = train_step(step, lanes="own"), train_step(step)
    for i in range(6):
        each = [row.batch() | {"x": row.batch()["x"] * (1 + 0.1 * k + 0.05 * i)} for k in range(3)]
        if row.batch is pictures:
            each = [row.batch() for _ in range(3)]
        lanes, _ = run_lanes(lanes, {}, {}, tmap(lambda *x: jnp.stack(x), *each))
        solo = [run(ts, {}, {}, batch)[0] for ts, batch in zip(solo, each, strict=True)]
    for k in range(3):
        one = lanes.eval_view().lane(k)
        assert gap(one, solo[k].eval_view()) < 1e-5


@every_row
def test_k_steps_a_call_equal_k_calls_to_the_bit(name: str) -> None:
    row = TABLE[name]
    objective = seen(name)
    step = step_of(objective)
    resident = {k: v for k, v in row.batch(16).items() if k != "mask"}
    slots = [{"idx": jnp.asarray(np.random.default_rng(i).permutation(16)[:8], jnp.int32)} for i in range(3)]
    start = fresh(objective, step, batch=row.batch())
    one, many = train_step(step, fetch=gather), train_step(step, fetch=gather, steps=3)
    stacked = tmap(lambda *x: jnp.stack(x), *slots)
    b, total = many(copy(start), {}, resident, stacked)
    a, told = copy(start), []
    for slot in slots:
        a, m = one(a, {}, resident, slot)
        told.append(m)
    assert bits(a, b)
    assert gap(total, tmap(lambda *x: sum(x), *told)) < 1e-5


@every_row
def test_microbatches_are_exact_or_said_not_to_be(name: str) -> None:
    row = TABLE[name]
    base = supervised(Net(drop=0.0), losses.cross_entropy) if row.objective is classifier else row.objective()
    objective = row.full(base)(base)
    if row.objective is autoencoder:
        pytest.skip("a latent's noise is drawn by slice")
    params, state = objective.init(row.batch(), context())
    whole = grads(objective, params, state, row.batch(), context())
    cut = jax.jit(lambda p, s, b, c: microbatch(4)(grad_of(objective))(p, {}, s, b, c))(
        params, state, row.batch(), context()
    )
    exact = gap(whole[0], cut[0]) < 1e-6 and gap(whole[1], cut[1]) < 1e-6
    assert exact == row.microbatch
    assert gap(whole[2].count, cut[2].count) == 0


@every_row
def test_a_skipped_step_is_untouched_to_the_bit(name: str) -> None:
    row = TABLE[name]
    objective = seen(name)
    step = step_of(objective)
    ts = fresh(objective, step, batch=row.batch())
    poisoned = objective._replace(
        apply=lambda p, s, b, c: (lambda out: (out[0] * b["poison"], out[1]))(objective.apply(p, s, b, c))
    )
    run = jax.jit(program(step_of(poisoned)))
    after, told = run(ts, {}, {}, row.batch() | {"poison": jnp.float32(jnp.nan)})
    assert int(after.step) == int(after.opt_state["guard"]["skipped"]) == 1  # it counts, and that is all
    assert bits(after.replace(step=ts.step, opt_state={**after.opt_state, "guard": ts.opt_state["guard"]}), ts)
    assert float(told["skipped"].total) == 1
    assert float(told["loss"].count) == 0


@every_row
def test_finite_on_a_batch_that_is_all_padding(name: str) -> None:
    row = TABLE[name]
    objective = seen(name)
    batch = row.batch() | {"mask": jnp.zeros(16)}
    params, state = objective.init(batch, context())
    g, loss, _ = grads(objective, params, state, batch, context())
    assert np.isfinite(float(loss))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(g)))
    assert name in ("l1", "l2") or float(loss) == 0


@every_row
def test_costs_the_flops_it_promises(name: str) -> None:
    row = TABLE[name]
    wide = supervised(Net(width=512, drop=0.0), losses.cross_entropy)
    if row.objective is autoencoder:
        wide = autoencoder(hidden=512)
    elif row.objective is coder:
        wide = coder(hidden=512)
    elif row.objective is unnormed:
        wide = supervised(MLP(out=C, hidden=(512,)), losses.cross_entropy)
    big = tmap(lambda x: jnp.concatenate([x] * 8), row.batch())
    if row.batch is rows:
        big["x"] = jnp.tile(big["x"], (1, 16))  # [128, 96]: the matrix products outweigh the rest

    def flops(fn: Callable[..., Any], *args: Any) -> float:
        return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]

    params, state = wide.init(big, context())
    full = row.full(wide)(wide)
    full_params, _ = full.init(big, context())
    plain = flops(lambda p: jax.grad(lambda q: wide.apply(q, state, big, context())[0])(p), params)
    on_x = flops(lambda x: jax.grad(lambda x: wide.apply(params, state, big | {"x": x}, context())[0])(x), big["x"])
    made = flops(lambda p: jax.grad(lambda q: full.apply(q, state, big, context())[0])(p), full_params)
    assert made <= 1.15 * row.cost(plain, on_x)


@every_row
def test_keeps_dtypes(name: str) -> None:
    row = TABLE[name]
    objective = seen(name)
    step = step_of(objective)
    ts = fresh(objective, step, batch=row.batch())
    after, _ = jax.eval_shape(program(step), ts, {}, {}, row.batch())
    assert tmap(lambda x: x.dtype, after) == tmap(lambda x: x.dtype, ts)
    assert tmap(lambda x: x.shape, after) == tmap(lambda x: x.shape, ts)


@every_row
def test_two_devices_equal_one(name: str) -> None:
    row = TABLE[name]
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    objective = seen(name)
    step = step_of(objective)
    start = fresh(objective, step, batch=row.batch())
    ends = []
    for n in (1, 2):
        place = placement.Placement(parallel.mesh(n))
        ts = place.state(copy(start))
        run = train_step(step, jit=place.jit(ts))
        for _ in range(3):
            ts, _ = run(ts, place.replicated({}), place.replicated({}), place.slot(row.batch()))
        ends.append(jax.device_get(ts.params))
    assert gap(*ends) < 1e-5


@every_row
def test_resume_equals_going_on_to_the_bit(name: str, tmp_path: Path) -> None:
    row = TABLE[name]
    objective = seen(name)
    step = step_of(objective, "halt")
    run = train_step(step)
    ts = fresh(objective, step, batch=row.batch())
    for _ in range(2):
        ts, _ = run(ts, {}, {}, row.batch())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, ts, {})
        for _ in range(2):
            ts, _ = run(ts, {}, {}, row.batch())
        checkpoints.wait()
        template = jax.eval_shape(lambda: fresh(objective, step, batch=row.batch()))
        found = checkpoints.restore(template)
    assert found is not None
    again = found[0]
    for _ in range(2):
        again, _ = run(again, {}, {}, row.batch())
    assert bits(ts, again)


@every_row
def test_create_shares_no_buffer(name: str) -> None:
    row = TABLE[name]
    objective = seen(name)
    key = jax.random.key(0)
    ts = create(objective.init, step_of(objective), key, row.batch())
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(ts.replace(key=jax.random.key_data(ts.key)))]
    assert len(set(places)) == len(places)
    train_step(step_of(objective))(ts, {}, {}, row.batch())
    assert not key.is_deleted()


def test_resolve_gives_what_the_counted_pass_used() -> None:
    """lora: applying the plain objective to the resolved parameters is applying the transformed one to the raw."""
    base = classifier(drop=0.0)
    full = transforms.lora(rank=2, alpha=3.0)(base)
    params, state = full.init(rows(), context())
    params["lora"] = tmap(lambda x: x + jax.random.normal(jax.random.key(1), x.shape), params["lora"])
    loss, _ = full.apply(params, state, rows(), context())
    plain, _ = base.apply(full.resolve(params, state), state, rows(), context())
    raw, _ = base.apply(params, state, rows(), context())
    assert bits(loss, plain)
    assert gap(loss, raw) > 1e-3


def test_repeat_is_a_scan_of_the_step() -> None:
    step = step_of(classifier())
    ts = fresh(classifier(), step)
    twice, _ = jax.jit(repeat(step, 2).apply)(ts, rows(), context())
    one, _ = jax.jit(lambda t, i: step.apply(t, rows(), context().fork("repeat", i)))(ts, jnp.int32(0))
    two, _ = jax.jit(lambda t, i: step.apply(t, rows(), context().fork("repeat", i)))(one, jnp.int32(1))
    assert gap(twice, two) < 1e-6


def test_what_an_evaluation_would_not_notice_is_listed() -> None:
    for name in set(TABLE) & set(transforms.TABLE):
        assert (TABLE[name].eval == "inert") == (name in transforms.TRAINING_ONLY), name
    assert set(transforms.TRAINING_ONLY) <= set(transforms.TABLE)
