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


def cutmix(classes: int, *, alpha: NonNegative = 1.0) -> Transform:
    """Pastes a rectangle of another image into each, and mixes the labels by the share of the area. Training only.

    lam ~ Beta(alpha, alpha) and one rectangle for the whole batch, of a share 1 - lam of the area, its centre anywhere
    and what sticks out cut off; partners by a random permutation; alpha 0 is no mixing. The labels' share is the exact
    one of the pixels. A pair with a padded row is itself padding; a row keeps its own weight.

    Source: Yun et al. 2019, section 3.1, algorithm A1.

    Raises (while tracing):
      ValueError: x is no batch of images.
    """

    def mix(batch: Batch, key: Array) -> Batch:
        x, y = pictures(batch, "cutmix"), soft_labels(batch["y"], classes)
        if alpha == 0:  # as in mixup: the limit, with the share that is kept >= 1/2
            return {**batch, "y": y}
        key_lam, key_pair, key_centre = jax.random.split(key, 3)
        sides = jnp.asarray(x.shape[1:3], jnp.float32)
        half = sides * jnp.sqrt(1 - jax.random.beta(key_lam, alpha, alpha)) / 2
        centre = jax.random.randint(key_centre, (2,), 0, jnp.asarray(x.shape[1:3])).astype(jnp.float32)
        low, high = jnp.round(centre - half), jnp.round(centre + half)
        rows, columns = (jnp.arange(n, dtype=jnp.float32) for n in x.shape[1:3])
        down, across = (rows >= low[0]) & (rows < high[0]), (columns >= low[1]) & (columns < high[1])
        box = down[:, None] & across[None, :]
        share = 1 - box.mean(dtype=jnp.float32)
        pair = jax.random.permutation(key_pair, y.shape[0])
        out = {**batch, "x": jnp.where(box[None, ..., None], x[pair], x), "y": share * y + (1 - share) * y[pair]}
        if "mask" in batch:
            out["mask"] = batch["mask"] * batch["mask"][pair]
        return out

    return map_batch(mix, name="cutmix")


def pictures(batch: Batch, name: str) -> Array:
    """The x of a batch, when it is images for the technique of this name.

    Raises (while tracing):
      ValueError: it is not f32[B, H, W, C].
    """
    x = batch["x"]
    if getattr(x, "ndim", 0) != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        told = f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__
        raise ValueError(f"{name}: needs images, x of floats [B, H, W, C]; it is {told}")
    return x


def pixels(scale: float) -> Transform:
    """x / scale in f32 for images stored as u8, so that the set lies in memory as small as on disk. In evaluation,
    too."""

    def to_float(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": batch["x"].astype(jnp.float32) * (1 / scale)}

    return map_batch(to_float, name="pixels", eval=True)


def at_embedding(width: int) -> Transform:
    """Gives texts a place to be attacked at: x i32[B, T] becomes {"tokens": x, "delta": zeros f32[B, T, width]}, which
    models add to what they embed the tokens as. In evaluation, too; an attack is then on="x/delta".

    Source: Miyato et al. 2017, figure 1.
    """

    def room(batch: Batch, key: Array) -> Batch:
        tokens = batch["x"]
        return {**batch, "x": {"tokens": tokens, "delta": jnp.zeros((*tokens.shape, width), jnp.float32)}}

    return map_batch(room, name="at_embedding", eval=True)


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
