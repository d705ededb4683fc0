"""Augmentation of images on the device, in training only. Floor 2.

All of x f32[B, H, W, C] with pixels in [0, 1], where they stay. Row i draws from fold_in(key, i): what it becomes
depends on its own pixels and its place, never on the other rows or on how many there are. Under microbatches a row has
another place, and another draw.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from umbrella.objective import Array, Batch, Objective, Transform, map_batch
from umbrella.settings import Fraction, Natural, NonNegative, Positive
from umbrella.transforms.batch import pictures
from umbrella.transforms.warp import affined, displaced, smoothed

GREY = (0.299, 0.587, 0.114)  # the luma of red, green and blue, ITU-R BT.601
# Grey, and two axes of colour around it that are orthogonal to grey in RGB, of length one.
AXES = ((3**-0.5,) * 3, (2**-0.5, -(2**-0.5), 0.0), (6**-0.5, 6**-0.5, -2 * 6**-0.5))


def each(fn: Callable[[Array, Array], Array], *, name: str) -> Transform:
    """A technique that rewrites every image by itself: `fn(f32[H, W, C], key) -> f32[H, W, C]`.

    Raises (while tracing):
      ValueError: x is no batch of images of floating point.
    """

    def rewrite(batch: Batch, key: Array) -> Batch:
        x = pictures(batch, name)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
        return {**batch, "x": jax.vmap(fn)(x.astype(jnp.float32), keys).astype(x.dtype)}

    return map_batch(rewrite, name=name)


# --------------------------------------------------------------------------------------------------- mirrors and places
def flip(*, probability: Fraction = 0.5) -> Transform:
    """Mirrors an image left to right with this probability. Training only.

    Source: Krizhevsky et al. 2012, section 4.1.
    """

    def one(image: Array, key: Array) -> Array:
        return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)

    return each(one, name="flip")


def alternating_flip() -> Transform:
    """Mirrors half of the images in even epochs and the other half in odd ones: whoever trains for two epochs sees
    every image both ways. Training only.

    Reads the batch's columns "id" i32[B], which example a row is, and "epoch" i32[B], which are there when a training
    stream is made with `named=True`. Deviation from the source: which half begins is decided by a hash of the id, not
    by a draw, so it is the same for every seed.

    Source: Jordan 2024 (airbench), section 3.6.

    Raises (while tracing):
      ValueError: a training batch without these columns.
    """

    def mirror(batch: Batch, key: Array) -> Batch:
        x = pictures(batch, "alternating_flip")
        if not {"id", "epoch"} <= batch.keys():
            raise ValueError("alternating_flip: the batch has no columns 'id' and 'epoch': make its stream named=True")
        first = mixed(batch["id"].astype(jnp.uint32)) & 1
        now = (first + batch["epoch"].astype(jnp.uint32)) & 1 == 1
        return {**batch, "x": jnp.where(now.reshape(-1, 1, 1, 1), x[:, :, ::-1], x)}

    def wrap(o: Objective) -> Objective:
        return map_batch(mirror, name="alternating_flip")(o)._replace(init=o.init)  # rows for shapes have no id

    return wrap


def mixed(v: Array) -> Array:
    """u32[...] -> u32[...], a bijection whose every bit depends on every bit (the end of MurmurHash3).

    >>> [int(mixed(jnp.uint32(i))) & 1 for i in range(8)]
    [0, 1, 0, 1, 1, 1, 0, 0]
    """
    v = (v ^ (v >> 16)) * jnp.uint32(0x85EBCA6B)
    v = (v ^ (v >> 13)) * jnp.uint32(0xC2B2AE35)
    return v ^ (v >> 16)


def crop(*, pad: Natural = 4, mode: Literal["reflect", "zero"] = "reflect") -> Transform:
    """Pads by `pad` pixels on every side and cuts the old size out at a random place. Training only.

    Source: He et al. 2016, section 4.2 (with zeros); reflected borders as in Jordan 2024.
    """

    def one(image: Array, key: Array) -> Array:
        edges = ((pad, pad), (pad, pad), (0, 0))
        wide = jnp.pad(image, edges, mode="reflect") if mode == "reflect" else jnp.pad(image, edges)
        top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(wide, (top, left, jnp.zeros_like(top)), image.shape)

    return each(one, name="crop")


def affine(
    *,
    rotate: NonNegative = 10.0,
    translate: Fraction = 0.1,
    scale: tuple[Positive, Positive] = (0.9, 1.1),
    shear: NonNegative = 0.0,
) -> Transform:
    """Turns, moves, enlarges and shears an image about its centre, bilinearly, black outside. Training only.

    Args:
      rotate: degrees; uniform in +- rotate.
      translate: share of the height and of the width; uniform in +- translate for each.
      scale: smallest and largest factor, uniform; above 1 enlarges.
      shear: degrees along x; uniform in +- shear.

    Source: Simard et al. 2003, section 2.

    Raises:
      ValueError: the factors are the wrong way round, or a shear of 90 degrees or more.
    """
    if scale[0] > scale[1]:
        raise ValueError(f"affine: scale {scale} goes from the smaller factor to the larger")
    if shear >= 90:
        raise ValueError(f"affine: shear {shear:g} must be below 90 degrees")

    def one(image: Array, key: Array) -> Array:
        if not (rotate or translate or shear or scale != (1.0, 1.0)):
            return image
        angle, slant, factor, move = jax.random.split(key, 4)
        sides = jnp.asarray(image.shape[:2], jnp.float32)
        return affined(
            image,
            degrees=_within(angle, rotate),
            shear=_within(slant, shear),
            scale=jax.random.uniform(factor, (), minval=scale[0], maxval=scale[1]),
            shift=jax.random.uniform(move, (2,), minval=-translate, maxval=translate) * sides,
        )

    return each(one, name="affine")


def elastic(*, alpha: NonNegative = 34.0, sigma: Positive = 4.0) -> Transform:
    """Moves every pixel by a smooth random field: uniform noise in +- 1, blurred, times alpha. Training only.

    Args:
      alpha: pixels, before the blur, which leaves displacements of a standard deviation of .163 alpha / sigma.
      sigma: standard deviation of the Gaussian, pixels.

    Source: Simard et al. 2003, section 2, whose alpha 34 and sigma 4 are for 28 x 28.
    """

    def one(image: Array, key: Array) -> Array:
        if not alpha:
            return image
        noise = jax.random.uniform(key, (2, *image.shape[:2]), minval=-1.0, maxval=1.0)
        rows, columns = alpha * smoothed(noise, sigma)
        return displaced(image, rows, columns)

    return each(one, name="elastic")


def cutout(*, size: Natural = 8, fill: Fraction = 0.0) -> Transform:
    """Covers a square whose centre is any pixel; at the borders a part of it lies outside. Training only.

    Args:
      size: side in pixels; of an even one the centre is the pixel below and to the right of the middle.
      fill: what the square is filled with. The source fills with the mean, since its images are centred.

    Source: DeVries and Taylor 2017, section 3.
    """

    def one(image: Array, key: Array) -> Array:
        h, w = image.shape[:2]
        top, left = jax.random.randint(key, (2,), 0, jnp.asarray([h, w])) - size // 2
        rows, columns = jnp.arange(h), jnp.arange(w)
        down, across = (rows >= top) & (rows < top + size), (columns >= left) & (columns < left + size)
        return jnp.where((down[:, None] & across[None, :])[..., None], jnp.float32(fill), image)

    return each(one, name="cutout")


# --------------------------------------------------------------------------------------------------------------- colour
def colour(
    *, brightness: Fraction = 0.2, contrast: Fraction = 0.2, saturation: Fraction = 0.0, hue: Fraction = 0.0
) -> Transform:
    """Changes brightness, contrast, saturation and hue by random amounts, in this order, clipped. Training only.

    Args:
      brightness: the pixels times a factor, uniform in 1 +- brightness.
      contrast: the distance from the mean grey of the image times a factor in 1 +- contrast.
      saturation: the distance of a pixel from its own grey times a factor in 1 +- saturation.
      hue: a turn of the colours about the axis of greys, uniform in +- hue of a full turn.

    Deviations from the source: the order is fixed; hue is a rotation of RGB, which keeps the mean of the channels,
    instead of a shift in HSV.

    Source: Howard 2013; the kinds of factors as in Chen et al. 2020, appendix A.

    Raises (while tracing):
      ValueError: saturation or hue of images without three channels.
    """

    def one(image: Array, key: Array) -> Array:
        if (saturation or hue) and image.shape[-1] != 3:
            raise ValueError(f"colour: saturation and hue need images of 3 channels, these have {image.shape[-1]}")
        bright, far, full, turn = jax.random.split(key, 4)
        if brightness:
            image = jnp.clip(image * (1 + _within(bright, brightness)), 0, 1)
        if contrast:
            image = away(image, grey(image).mean(), 1 + _within(far, contrast))
        if saturation:
            image = away(image, grey(image), 1 + _within(full, saturation))
        return turned(image, _within(turn, hue)) if hue else image

    return each(one, name="colour")


def grey(image: Array) -> Array:
    """f32[H, W, C] -> f32[H, W, 1]: the luma of three channels, the mean of another number."""
    if image.shape[-1] != 3:
        return image.mean(-1, keepdims=True)
    return jnp.sum(image * jnp.asarray(GREY).reshape(1, 1, 3), -1, keepdims=True)


def away(image: Array, base: Array, factor: Array) -> Array:
    """The image `factor` times as far from `base`, clipped to [0, 1]."""
    return jnp.clip(base + factor * (image - base), 0, 1)


def turned(image: Array, turns: Array) -> Array:
    """f32[H, W, 3] with its colours rotated about the axis of greys, clipped: a third of a turn makes red green."""
    angle, axes = 2 * jnp.pi * turns, jnp.asarray(AXES)
    cos, sin, one, zero = jnp.cos(angle), jnp.sin(angle), jnp.ones(()), jnp.zeros(())
    rotation = jnp.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos]).reshape(3, 3)
    matrix = jnp.einsum("ki,kl,lj->ij", axes, rotation, axes, precision="highest")
    return jnp.clip(jnp.einsum("hwj,ij->hwi", image, matrix, precision="highest"), 0, 1)


def _within(key: Array, most: float) -> Array:
    """f32[], uniform in +- most."""
    return jax.random.uniform(key, (), minval=-most, maxval=most)
