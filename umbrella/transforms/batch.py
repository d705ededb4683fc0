"""Techniques that rewrite the batch. Floor 2."""

import math

import jax
import jax.numpy as jnp

from umbrella.objective import Array, Batch, Transform, map_batch
from umbrella.settings import Fraction, NonNegative


def soft_labels(y: Array, classes: int) -> Array:
    """f32[..., C]: i32[...] labels one-hot, soft ones as they are."""
    return y if jnp.issubdtype(y.dtype, jnp.floating) else jax.nn.one_hot(y, classes)


def label_smoothing(classes: int, *, eps: Fraction = 0.1) -> Transform:
    """Mixes the label with the uniform distribution: y (1 - eps) + eps / classes. Training only.

    Source: Szegedy et al. 2016, section 7.
    """

    def smooth(batch: Batch, key: Array) -> Batch:
        return {**batch, "y": soft_labels(batch["y"], classes) * (1 - eps) + eps / classes}

    return map_batch(smooth, name="label_smoothing")


def mixup(classes: int, *, alpha: NonNegative = 0.2) -> Transform:
    """Trains on convex combinations of pairs: lam x_i + (1 - lam) x_j, and the same of y. Training only.

    One lam ~ Beta(alpha, alpha) for the whole batch, partners by a random permutation; alpha 0 is no mixing. A pair
    with a padded row is itself padding. Deviation from the paper: lam = max(lam, 1 - lam), so that the row that keeps
    the larger share keeps its place (and its mask and weight); the distribution of pairs is the same.

    Source: Zhang et al. 2018, eq. 2.
    """

    def mix(batch: Batch, key: Array) -> Batch:
        x, y = batch["x"], soft_labels(batch["y"], classes)
        if alpha == 0:  # Beta(0, 0) has no density; its limit with lam >= 1/2 is lam = 1
            return {**batch, "y": y}
        key_lam, key_pair = jax.random.split(key)
        lam = jax.random.beta(key_lam, alpha, alpha)
        lam = jnp.maximum(lam, 1 - lam)
        pair = jax.random.permutation(key_pair, y.shape[0])
        out = {**batch, "x": lam * x + (1 - lam) * x[pair], "y": lam * y + (1 - lam) * y[pair]}
        if "mask" in batch:
            out["mask"] = batch["mask"] * batch["mask"][pair]
        return out

    return map_batch(mix, name="mixup")


def pixels(scale: float) -> Transform:
    """x / scale in f32 for images stored as u8, so that the set lies in memory as small as on disk. In evaluation,
    too."""

    def to_float(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": batch["x"].astype(jnp.float32) * (1 / scale)}

    return map_batch(to_float, name="pixels", eval=True)


def reconstruct() -> Transform:
    """Makes the input the target: y = x. In evaluation as well."""
    return map_batch(lambda batch, key: {**batch, "y": batch["x"]}, name="reconstruct", eval=True)


def binarise() -> Transform:
    """Draws every pixel anew from Bernoulli(x), x in [0, 1], and makes it the target, too. In evaluation as well.

    Dynamic binarisation makes grey images into data that a Bernoulli likelihood is a likelihood of; in evaluation the
    draw is fixed by the evaluation's key.

    Deviation: 16 random bits decide a pixel, so its probability is right to 2^-16 (0 and 1 are exact). That halves the
    bits, which are a sixth of the time of a small VAE's step.

    Source: Salakhutdinov and Murray 2008; Burda et al. 2016, section 5.
    """

    def draw(batch: Batch, key: Array) -> Batch:
        p = batch["x"]
        words = jax.random.bits(key, (p.shape[0], -(-math.prod(p.shape[1:]) // 2)), jnp.uint32)
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(p.shape[0], -1)
        bits = bits[:, : math.prod(p.shape[1:])].reshape(p.shape)
        x = (bits.astype(jnp.float32) < p.astype(jnp.float32) * 2**16).astype(p.dtype)
        return {**batch, "x": x, "y": x}

    return map_batch(draw, name="binarise", eval=True)
