"""Randomised smoothing: a classifier that is certain within a radius, because it asks under noise. Floor 4.

Source: Cohen et al. 2019.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella.attacks.balls import solved
from umbrella.objective import Array, View


class Smoothed(NamedTuple):
    """Of N rows; a row is abstained from where the vote is too close."""

    label: np.ndarray  # i32[N], -1 where abstained
    radius: np.ndarray  # f32[N], in l2: within it the smoothed classifier says the same, with probability 1 - alpha
    votes: np.ndarray  # i32[N], for the label


def clopper_pearson(k: Array, n: int, alpha: float) -> Array:
    """The lower end of the one-sided 1 - alpha interval of a share, from k f[...] hits of n (Clopper and Pearson 1934).

    The p where P(at least k of n) is alpha: the alpha quantile of Beta(k, n - k + 1); 0 for no hit.
    """
    hits = jnp.asarray(k, jnp.float32)
    zero, one = jnp.zeros_like(hits), jnp.ones_like(hits)
    inside = jnp.maximum(hits, 1)
    found = solved(lambda p: alpha - jax.scipy.special.betainc(inside, n - inside + 1, jnp.clip(p, 0, 1)), zero, one)
    return jnp.where(hits > 0, found, 0)


def certify(
    f: Callable[[View, Array], Array],
    view: View,
    x: np.ndarray,
    key: Array,
    *,
    sigma: float,
    first: int = 100,
    samples: int = 1000,
    alpha: float = 1e-3,
    size: int = 250,
) -> Smoothed:
    """What the classifier argmax f(x + sigma * noise) says most often, and how far around x that holds.

    The label is guessed by `first` draws, and its share p bounded from below by `samples` others; the radius is sigma
    Phi^-1(p) where p > 1/2, else the row is abstained from. Every row's chance of a wrong radius is alpha.

    Args:
      f: (view, x f32[B, ...]) -> logits f32[B, C].
      x: f32[N, ...]. Noise is not clipped into any bounds: the network sees it as it is.
      sigma: of the noise, in units of x.

    Source: Cohen et al. 2019, algorithm CERTIFY.
    """
    classes = jax.eval_shape(f, view, x[:1]).shape[-1]

    @jax.jit
    def votes(view: Any, x: Array, key: Array, count: Array) -> Array:
        """i32[B, C], by one draw after another."""

        def draw(i: Array, total: Array) -> Array:
            noise = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
            z = f(view, x + sigma * noise)
            said = jnp.isfinite(z).all(-1, keepdims=True)  # what is not finite votes for nothing
            return total + jnp.where(said, jax.nn.one_hot(z.argmax(-1), classes, dtype=jnp.int32), 0)

        return jax.lax.fori_loop(0, count, draw, jnp.zeros((x.shape[0], classes), jnp.int32))

    @jax.jit
    def told(guess: Array, again: Array) -> tuple[Array, Array, Array]:
        label = guess.argmax(-1)
        hits = jnp.take_along_axis(again, label[:, None], 1)[:, 0]
        p = clopper_pearson(hits, samples, alpha)
        sure = p > 0.5
        radius = jnp.where(sure, sigma * jax.scipy.special.ndtri(jnp.where(sure, p, 0.5)), 0)
        return jnp.where(sure, label, -1), radius, hits

    parts = []
    for i in range(0, len(x), size):
        part = x[i : i + size]
        filled = part[np.arange(size) % len(part)]
        one, two = jax.random.split(jax.random.fold_in(key, i))
        found = told(votes(view, filled, one, first), votes(view, filled, two, samples))
        parts.append([np.asarray(v)[: len(part)] for v in found])
    return Smoothed(*(np.concatenate([p[k] for p in parts]) for k in range(3)))
