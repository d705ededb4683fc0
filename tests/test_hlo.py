"""Composition costs nothing: a composed step and one written out by hand are the same program."""

import re
import zlib
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.helpers import C, Net, bits, copy, gap, rows
from tests.test_objective import filled
from umbrella import losses, metrics
from umbrella.gradients import grad_of
from umbrella.metrics import Mean
from umbrella.objective import Ctx, Objective, chain, measure, supervised
from umbrella.step import ema, program, then, update
from umbrella.train_state import TrainState, create
from umbrella.transforms import adversarial, label_smoothing, pgd

Array = jax.Array
SMOOTH, EPS, DECAY = 0.1, 0.1, 0.9
NET, TX = Net("batch", 0.2), optax.adam(1e-2)


def composed(attack: bool) -> Objective:
    """Label smoothing over BatchNorm, dropout and a metric; an attack of two steps on the plain loss between them."""
    base = measure(accuracy=metrics.accuracy)(supervised(NET, losses.cross_entropy))
    robust = [adversarial(pgd(eps=EPS, steps=2), probe=base)] if attack else []
    return chain(label_smoothing(C, eps=SMOOTH), *robust)(base)


def smooth(y: Array) -> Array:
    return jax.nn.one_hot(y, C) * (1 - SMOOTH) + SMOOTH / C


def loss_by_hand(params: Any, stats: Any, x: Array, y: Array, mask: Array, key: Array, *, train: bool) -> Any:
    """(mean loss over the rows that count, (outputs, new statistics, sum of losses)). Padding may hold NaN."""
    x, y = (jnp.where((mask > 0)[:, None] | jnp.isfinite(v), v, 0) for v in (x, y))
    variables = {"params": params, **stats}
    if train:
        dropout = jax.random.fold_in(key, zlib.crc32(b"model/dropout"))
        out, new = NET.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": dropout})
    else:
        out, new = NET.apply(variables, x, train=False), {}
    losses_of = -jnp.sum(jnp.where(y == 0, 0, y * jax.nn.log_softmax(out)), -1)
    total = jnp.sum(mask * jnp.where(mask > 0, losses_of, 0))
    return total / jnp.maximum(jnp.sum(mask), 1), (out, dict(new), total)


def gradient_by_hand(params: Any, stats: Any, batch: Any, key: Array, attack: bool) -> Any:
    """((loss, (outputs, statistics, sum)), gradient) on smooth labels, at the attacked inputs if `attack`."""
    x, y, mask = batch["x"], smooth(batch["y"]), batch["mask"]
    if attack:
        still = jax.lax.stop_gradient(params)
        climb = jax.grad(lambda d: loss_by_hand(still, stats, x + d, y, mask, key, train=False)[0])
        noise = jax.random.fold_in(key, zlib.crc32(b"pgd"))
        d = jnp.clip(EPS * jax.random.uniform(noise, x.shape, x.dtype, -1, 1), -EPS, EPS)
        for _ in range(2):
            d = jnp.clip(d + 2.5 * EPS / 2 * jnp.sign(climb(d)), -EPS, EPS)
        x = jax.lax.stop_gradient(x + d)
    return jax.value_and_grad(lambda p: loss_by_hand(p, stats, x, y, mask, key, train=True), has_aux=True)(params)


def step_by_hand(attack: bool) -> Any:
    """A program, (ts, frozen, resident, batch) -> (ts, metrics), in one piece.

    Only the average is the library's: how its gain is computed is no matter of composition.
    """

    def run(ts: TrainState, frozen: Any, resident: Any, batch: Any) -> tuple[TrainState, Any]:
        key, mask = jax.random.fold_in(ts.key, ts.step), batch["mask"]
        (loss, (out, new, total)), g = gradient_by_hand(ts.params["model"], ts.state["model"], batch, key, attack)
        norm = optax.tree.norm(g)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = TX.update({"model": g}, ts.opt_state["all"], ts.params)
            params = optax.apply_updates(ts.params, updates)
        hit = (out.argmax(-1) == smooth(batch["y"]).argmax(-1)).astype(jnp.float32)
        n = jnp.sum(mask)
        told = {
            "loss": Mean(total, n),
            "accuracy": Mean(jnp.sum(jnp.where(mask > 0, mask * hit, 0)), n),
            "objective": Mean(loss * n, n),
            "grad_norm": Mean(norm, jnp.ones(())),
        }
        slots = {**ts.opt_state, "all": opt}
        new_ts = ts.replace(step=ts.step + 1, params=params, state={"model": new}, opt_state=slots)
        return ema(DECAY).apply(ts, new_ts, Ctx(key, ts.step)), told

    return run


def instructions(compiled: Any) -> Counter[str]:
    """The operations of the optimised program, counted; without bitcasts, which are free: they move nothing."""
    found = re.findall(r"^\s+(?:ROOT )?%?\S+ = (?:\(.*?\)|\S+) ([\w\-]+)\(", compiled.as_text(), re.M)
    return Counter(op for op in found if op != "bitcast")


@pytest.mark.parametrize("attack", [False, True], ids=["smoothing", "smoothing and attack"])
def test_a_composed_step_is_the_program_that_a_person_would_write(attack: bool) -> None:
    """Equal gradients, states and metrics, and not one instruction more."""
    objective, batch = composed(attack), rows()
    params, state = filled(objective, batch)
    step = then(update(grad_of(objective), TX), ema(DECAY))
    ts = create(lambda b, c: (params, state), step, jax.random.key(0), batch)
    lowered = [jax.jit(f, donate_argnums=0).lower(ts, {}, {}, batch) for f in (program(step), step_by_hand(attack))]
    made, hand = (low.compile() for low in lowered)
    counts = instructions(made), instructions(hand)
    assert counts[0].total() > 100  # so the reader does read
    assert counts[0].total() == counts[1].total(), counts[0] - counts[1]
    assert made.cost_analysis()["flops"] == hand.cost_analysis()["flops"]
    (after, told), (by_hand, told_by_hand) = made(copy(ts), {}, {}, batch), hand(copy(ts), {}, {}, batch)
    # Adam's first average is a tenth of the gradient, so these are equal gradients to 1e-6.
    assert gap(after.opt_state["all"][0].mu, by_hand.opt_state["all"][0].mu) < 1e-7
    assert gap(after, by_hand) < 1e-6
    assert gap(told, told_by_hand) < 1e-5
    assert int(after.step) == 1
    assert not bits(after.params, ts.params)
