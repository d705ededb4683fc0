"""Fast adaptive boundary attack: the nearest input that is of another class. Floor 2."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from umbrella.attacks.balls import Array, Norm, ball, largest, rows, solved, summed
from umbrella.attacks.climbs import margin as margin_of
from umbrella.attacks.climbs import of_class
from umbrella.attacks.search import Carry, Found, Logits, Search, finite, kept
from umbrella.choices import one_of

OVER = 1.05  # how far beyond the boundary a step goes
BACK = 0.9  # what is left of a perturbation after a success
MIXED = 0.1  # the most of the pull to the input


class Plane(NamedTuple):
    """Where slope . delta = need, for delta within low <= delta <= high; slope f32[B, ...], need f32[B] >= 0."""

    slope: Array
    need: Array
    low: Array
    high: Array


def nearest(norm: Norm, plane: Plane) -> Array:
    """The shortest delta f32[B, ...] on the plane and in the box; where they do not meet, the box's nearest to it.

    linf: every coordinate as far as r, or its room, with the least r; l2: clip(t slope) with the least t; l1: rooms are
    used up in the order of |slope| (Croce and Hein 2020b, section 3.1; halving and sorting in the place of their
    algorithm).

    Raises:
      ValueError: no such norm.
    """
    return {"linf": _nearest_linf, "l2": _nearest_l2, "l1": _nearest_l1}[one_of("fab: norm", norm, Norm)](plane)


def _nearest_linf(p: Plane) -> Array:
    def reached(r: Array) -> Array:
        return jnp.clip(jnp.sign(p.slope) * rows(r, p.slope), p.low, p.high)

    room = largest(jnp.maximum(p.high, -p.low))
    return reached(solved(lambda r: p.need - summed(p.slope * reached(r)), jnp.zeros_like(room), room))


def _nearest_l2(p: Plane) -> Array:
    def reached(t: Array) -> Array:
        return jnp.clip(p.slope * rows(t, p.slope), p.low, p.high)

    free = p.need / jnp.maximum(summed(jnp.square(p.slope)), 1e-20)  # without a box
    return reached(solved(lambda t: p.need - summed(p.slope * reached(t)), free, free * 2.0**20))


def _nearest_l1(p: Plane) -> Array:
    shape = p.slope.shape
    slope, low, high = (jnp.broadcast_to(v, shape).reshape(shape[0], -1) for v in (p.slope, p.low, p.high))
    room = jnp.where(slope > 0, high, -low)
    order = jnp.argsort(-jnp.abs(slope), 1)
    steep, far = (jnp.take_along_axis(v, order, 1) for v in (jnp.abs(slope), room))
    got = jnp.cumsum(steep * far, 1)
    missing = jnp.clip(p.need[:, None] - (got - steep * far), 0, steep * far)
    moved = jnp.where(steep > 0, missing / jnp.where(steep > 0, steep, 1), 0)
    back = jnp.argsort(order, 1)
    return (jnp.sign(slope) * jnp.take_along_axis(moved, back, 1)).reshape(shape)


def fab(*, steps: int = 100, norm: Norm = "linf", target: int = 1, bounds: tuple[float, float] = (0.0, 1.0)) -> Search:
    """FAB towards one class: steps to the linearised boundary, pulled to the input, a tenth of the way
    back after a success.

    What it looks for does not depend on eps, which only says which of the finds count; a row is fooled when the nearest
    point that was found lies within eps.

    Args:
      steps: at least 1.
      target: 1 for the most probable wrong class of the clean input, 2 for the next...

    Source: Croce and Hein 2020b, algorithm 1, with the targets of Croce and Hein 2020, section 5. Deviation: no final
    search between the input and what was found, which changes how near, hardly ever whether within eps.

    Raises:
      ValueError: no such norm, fewer than one step, bounds that are not finite.
    """
    around = ball(norm)
    if steps < 1:
        raise ValueError(f"fab: {steps} steps are no attack")
    if not all(map(math.isfinite, bounds)):
        raise ValueError(f"fab: bounds {bounds}: it looks for planes in a box; give it a finite one")

    def start(f: Logits, x: Array, y: Array, eps: Any, key: Array) -> Carry:
        z = f(x)
        others = jnp.where(jax.nn.one_hot(y, z.shape[1], dtype=bool), -jnp.inf, z)
        rank = min(target, z.shape[1] - 1)
        margin = margin_of(z, y)
        wrong = margin >= 0
        return {
            "x": x,
            "y": y,
            "eps": jnp.broadcast_to(jnp.asarray(eps, x.dtype), x.shape[:1]),
            "target": jax.lax.top_k(others, rank)[1][:, rank - 1],
            "delta": jnp.zeros_like(x),
            "best": jnp.zeros_like(x),
            "length": jnp.where(wrong, 0.0, jnp.inf).astype(x.dtype),
            "margin": margin,
        }

    def step(f: Logits, carry: Carry, i: Any, key: Array) -> Carry:
        x, y, target_, delta = carry["x"], carry["y"], carry["target"], carry["delta"]

        def gap(d: Array) -> tuple[Array, Array]:
            z = f(x + d)
            value = of_class(z, target_) - of_class(z, y)
            return value.sum(), value

        slope, value = jax.grad(gap, has_aux=True)(delta)
        slope, value = finite(slope), finite(value)
        # The plane value + slope . move = 0, from the point and from the input, both as moves in the box around them.
        low, high = bounds[0] - x, bounds[1] - x
        to_point = _across(norm, slope, -value, low - delta, high - delta)
        to_input = _across(norm, slope, -value + summed(slope * delta), low, high)
        one, two = around.size(to_point), around.size(to_input)
        pull = rows(jnp.minimum(one / jnp.maximum(one + two, 1e-12), MIXED), x)
        new = (1 - pull) * (delta + OVER * to_point) + pull * OVER * to_input
        new = jnp.clip(new, low, high)
        z = f(x + new)
        margin = margin_of(z, y)
        length, fools = around.size(new), margin >= 0
        nearer = fools & (length < carry["length"])
        return dict(carry) | {
            "best": kept(new, carry["best"], nearer),
            "length": jnp.where(nearer, length, carry["length"]),
            "margin": jnp.where(nearer, margin, carry["margin"]),
            "delta": kept(BACK * new, new, fools),
        }

    def best(f: Logits, carry: Carry) -> Found:
        # A perturbation on the edge counts: what is longer by rounding is brought back to it, and looked at again.
        room = (bounds[0] - carry["x"], bounds[1] - carry["x"])
        within = carry["length"] <= carry["eps"] * (1 + 1e-6)
        delta = around.project(kept(carry["best"], jnp.zeros_like(carry["x"]), within), carry["eps"], *room)
        z = f(carry["x"] + delta)
        margin = margin_of(z, carry["y"])
        return Found(carry["x"] + delta, margin >= 0, margin)

    return Search(steps, start, step, best, lambda carry: carry["length"] <= carry["eps"] * (1 + 1e-6))


def _across(norm: Norm, slope: Array, need: Array, low: Array, high: Array) -> Array:
    """The shortest move with slope . move = need, of either sign."""
    sign = jnp.where(need < 0, -1.0, 1.0).astype(slope.dtype)
    return nearest(norm, Plane(rows(sign, slope) * slope, jnp.abs(need), low, high))
