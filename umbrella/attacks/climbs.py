"""What an attack climbs: numbers per example that are large where a classifier errs. Floor 2.

All: (logits f32[B, C], y i32[B], target i32[B]) -> f32[B]. `target`, a wrong class, is read by those that aim at one.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from umbrella.choices import one_of

Array = jax.Array
Climb = Callable[[Array, Array, Array], Array]
Name = Literal["ce", "margin", "dlr", "targeted"]


def climb(name: Name) -> Climb:
    """By name: "ce", "margin", "dlr" or "targeted" (the targeted dlr).

    Raises:
      ValueError: no such one.
    """
    return _TABLE[one_of("loss of an attack", name, Name)]


def of_class(z: Array, y: Array) -> Array:
    """z f32[B, C], y i32[B] -> f32[B], the logit of that class."""
    return jnp.take_along_axis(z, y[:, None], 1)[:, 0]


def best_other(z: Array, y: Array) -> Array:
    """f32[B], the largest logit of another class."""
    return jnp.where(jax.nn.one_hot(y, z.shape[1], dtype=bool), -jnp.inf, z).max(1)


def margin(z: Array, y: Array) -> Array:
    """max_{j != y} z_j - z_y f32[B]: at least 0 where the prediction is wrong. A tie is wrong, as nothing says which
    class is meant; so are logits that are not all finite, with an infinite margin: they say nothing."""
    out: Array = jnp.where(jnp.isfinite(z).all(1), best_other(z, y) - of_class(z, y), jnp.inf)
    return out


def cross_entropy(z: Array, y: Array, target: Array) -> Array:
    """-log p_y. Its gradient is zero where p_y rounds to 1."""
    return jax.nn.logsumexp(z, axis=1) - of_class(z, y)


def margin_climbed(z: Array, y: Array, target: Array) -> Array:
    """max_{j != y} z_j - z_y: positive where the prediction is wrong (Carlini and Wagner 2017, f6)."""
    return best_other(z, y) - of_class(z, y)


def dlr(z: Array, y: Array, target: Array) -> Array:
    """The difference of logits ratio: (max_{j != y} z_j - z_y) / (z_(1) - z_(3)), z_(k) the k-th largest. It does not
    change when logits are shifted or scaled (Croce and Hein 2020, eq. 6). Of two classes, without a third: the margin.
    """
    if z.shape[1] < 3:
        return margin_climbed(z, y, target)
    top = jax.lax.top_k(z, 3)[0]
    return margin_climbed(z, y, target) / jnp.maximum(top[:, 0] - top[:, 2], 1e-12)


def targeted_dlr(z: Array, y: Array, target: Array) -> Array:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) (Croce and Hein 2020, eq. 7). Below four classes: z_t - z_y."""
    gap = of_class(z, target) - of_class(z, y)
    if z.shape[1] < 4:
        return gap
    top = jax.lax.top_k(z, 4)[0]
    return gap / jnp.maximum(top[:, 0] - (top[:, 2] + top[:, 3]) / 2, 1e-12)


_TABLE: dict[str, Climb] = {"ce": cross_entropy, "margin": margin_climbed, "dlr": dlr, "targeted": targeted_dlr}
