"""Balls around an input, in the norms that attacks are measured in. Floor 2.

delta is f32[B, ...], one row per example; eps is f32[] or f32[B]; low <= 0 <= high, broadcast against delta, are the
room that an input's valid range leaves to it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from umbrella.choices import one_of

Array = jax.Array
Norm = Literal["linf", "l2", "l1"]
HALVINGS = 40  # of an interval: to 1e-12 of its length, beyond what f32 holds


class Ball(NamedTuple):
    """What an attack needs to know of a norm."""

    project: Callable[[Array, Any, Array, Array], Array]  # (delta, eps, low, high) -> the nearest in ball and box
    steepest: Callable[[Array], Array]  # gradient -> the direction of length one that climbs most; 0 of a zero row
    sample: Callable[[Array, Array, Any], Array]  # (key, like, eps) -> a random start in the ball
    size: Callable[[Array], Array]  # delta -> its norm f32[B]


def ball(norm: Norm) -> Ball:
    """The ball of a norm over all axes of an example: "linf", "l2" or "l1".

    Raises:
      ValueError: no such norm.
    """
    return _BALLS[one_of("norm", norm, Norm)]


def rows(v: Any, like: Array) -> Array:
    """f[] or f[B] -> broadcast against f[B, ...]."""
    v = jnp.asarray(v, like.dtype)
    return v.reshape(v.shape + (1,) * (like.ndim - 1)) if v.ndim else v


def summed(x: Array) -> Array:
    """f[B, ...] -> f[B], over all axes of an example."""
    return x.sum(tuple(range(1, x.ndim)))


def largest(x: Array) -> Array:
    """f[B, ...] -> f[B], over all axes of an example."""
    return x.max(tuple(range(1, x.ndim)))


def solved(fn: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The smallest v f[B] in [low, high] with fn(v) <= 0, for a falling fn, row by row; high where there is none."""

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        lo, hi = ends
        middle = (lo + hi) / 2
        done = fn(middle) <= 0
        return jnp.where(done, lo, middle), jnp.where(done, middle, hi)

    ends = jax.lax.fori_loop(0, HALVINGS, halve, (low, high))
    return jnp.where(fn(low) <= 0, low, ends[1])


# ----------------------------------------------------------------------------------------------------------------- linf
def _project_linf(delta: Array, eps: Any, low: Array, high: Array) -> Array:
    r = rows(eps, delta)
    return jnp.clip(delta, jnp.maximum(-r, low), jnp.minimum(r, high))


def _sample_linf(key: Array, like: Array, eps: Any) -> Array:
    return rows(eps, like) * jax.random.uniform(key, like.shape, like.dtype, -1, 1)


# ------------------------------------------------------------------------------------------------------------------- l2
def _project_l2(delta: Array, eps: Any, low: Array, high: Array) -> Array:
    """Onto the ball, then into the box, which never makes a delta longer. Not the nearest point of both when both hold
    it back, but in both; the nearest is not needed by an ascent that comes back to the ball's edge by itself."""
    length = rows(_size_l2(delta), delta)
    return jnp.clip(delta * jnp.minimum(1, rows(eps, delta) / jnp.maximum(length, 1e-12)), low, high)


def _steepest_l2(g: Array) -> Array:
    top = rows(largest(jnp.abs(g)), g)
    g = g / jnp.where(top > 0, top, 1)  # a confident prediction's gradient is tiny, its direction is not
    return g / jnp.maximum(rows(_size_l2(g), g), 1e-12)


def _sample_l2(key: Array, like: Array, eps: Any) -> Array:
    """Uniform in direction and in radius: nearer to the centre than uniform in the ball, whose mass is at its edge."""
    key_way, key_radius = jax.random.split(key)
    way = _steepest_l2(jax.random.normal(key_way, like.shape, like.dtype))
    return rows(eps, like) * way * rows(jax.random.uniform(key_radius, like.shape[:1], like.dtype), like)


def _size_l2(delta: Array) -> Array:
    return jnp.sqrt(summed(jnp.square(delta)))


# ------------------------------------------------------------------------------------------------------------------- l1
def _project_l1(delta: Array, eps: Any, low: Array, high: Array) -> Array:
    """The nearest point of ball and box: clip(soft threshold), with the least threshold that makes it short enough.

    The box holds 0, so the problem falls apart into coordinates under a multiplier of the length (Croce and Hein 2021,
    section 3, who sort where this halves an interval).
    """
    limit = jnp.broadcast_to(jnp.asarray(eps, delta.dtype), delta.shape[:1])

    def shrunk(threshold: Array) -> Array:
        kept = jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - rows(threshold, delta), 0)
        return jnp.clip(kept, low, high)

    top = largest(jnp.abs(delta))
    return shrunk(solved(lambda t: summed(jnp.abs(shrunk(t))) - limit, jnp.zeros_like(top), top))


def _steepest_l1(g: Array, share: float = 0.01) -> Array:
    """Equal steps along the largest hundredth of the coordinates, one at least (Tramer and Boneh 2019, who found the
    single steepest one too slow)."""
    flat = jnp.abs(g.reshape(g.shape[0], -1))
    count = max(1, math.ceil(share * flat.shape[1]))
    least = jax.lax.top_k(flat, count)[0][:, -1]
    chosen = jnp.where((jnp.abs(g) >= rows(least, g)) & (g != 0), jnp.sign(g), 0)
    return chosen / jnp.maximum(rows(summed(jnp.abs(chosen)), g), 1)


def _sample_l1(key: Array, like: Array, eps: Any) -> Array:
    """Uniform on the faces (exponential numbers over their sum, with signs), uniform in radius."""
    key_way, key_sign, key_radius = jax.random.split(key, 3)
    way = jax.random.exponential(key_way, like.shape, like.dtype)
    way = way / rows(summed(way), like) * jax.random.rademacher(key_sign, like.shape, like.dtype)
    return rows(eps, like) * way * rows(jax.random.uniform(key_radius, like.shape[:1], like.dtype), like)


_BALLS: dict[str, Ball] = {
    "linf": Ball(_project_linf, jnp.sign, _sample_linf, lambda d: largest(jnp.abs(d))),
    "l2": Ball(_project_l2, _steepest_l2, _sample_l2, _size_l2),
    "l1": Ball(_project_l1, _steepest_l1, _sample_l1, lambda d: summed(jnp.abs(d))),
}
