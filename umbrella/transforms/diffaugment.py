"""Differentiable augmentation, for the images of both players of a game. Floor 2."""

from typing import Annotated

import jax
import jax.numpy as jnp

from umbrella.objective import Array, Transform
from umbrella.settings import Fraction, NonNegative, Range
from umbrella.transforms.augment import each

Share = Annotated[float, Range(lambda v: 0 <= v <= 1, "must be in [0, 1]")]


def diffaugment(
    *,
    brightness: NonNegative = 0.25,
    saturation: Share = 1.0,
    contrast: Share = 0.5,
    translation: Fraction = 0.125,
    cutout: Fraction = 0.5,
    fill: Share = 0.5,
) -> Transform:
    """Changes the colours, the place and a square of every image, by random amounts with a slope everywhere: nothing
    is clipped. Training only.

    In a game it stands to the right of `discriminate` and of `deceive`, so that real images and samples, in both
    players' passes, go through the same kinds of change, each image through draws of its own. The generator then learns
    the images as they are: it is only ever looked at through changes that would show if the images were others.

    Args:
      brightness: what is added to all pixels is uniform in +- brightness. (The paper's .5 is of pixels in [-1, 1].)
      saturation: the distance of a pixel from its own mean over channels is multiplied by 1 +- saturation; no
        change of a single channel.
      contrast: the distance from the mean of the whole image is multiplied by 1 +- contrast.
      translation: share of the height and of the width; moved by whole pixels, uniform in +- that many.
      cutout: share of the sides of the rectangle that is covered, whose centre is any pixel.
      fill: what comes in from outside and what the rectangle is filled with; the middle of the range as in the paper.

    Source: Zhao et al. 2020, section 3.2, with the authors' ranges.
    """

    def one(image: Array, key: Array) -> Array:
        bright, full, far, move, hole = jax.random.split(key, 5)
        if brightness:
            image = image + _within(bright, brightness)
        if saturation and image.shape[-1] > 1:
            image = _away(image, image.mean(-1, keepdims=True), 1 + _within(full, saturation))
        if contrast:
            image = _away(image, image.mean(keepdims=True), 1 + _within(far, contrast))
        if translation:
            image = _moved(image, move, translation, fill)
        return _covered(image, hole, cutout, fill) if cutout else image

    return each(one, name="diffaugment")


def _within(key: Array, most: float) -> Array:
    """f32[], uniform in +- most."""
    return jax.random.uniform(key, (), minval=-most, maxval=most)


def _away(image: Array, base: Array, factor: Array) -> Array:
    return base + factor * (image - base)


def _moved(image: Array, key: Array, share: float, fill: float) -> Array:
    """By matrices of zeros and ones: exact, and with a gradient that is a product, too, where that of a gather would
    be a scatter."""
    sides = image.shape[:2]
    shifts = [
        jax.random.randint(k, (), -m, m + 1)
        for k, m in zip(jax.random.split(key), (round(share * side) for side in sides), strict=True)
    ]
    rows, columns = (
        (jnp.arange(n)[:, None] == jnp.arange(n)[None, :] + s).astype(image.dtype)
        for n, s in zip(sides, shifts, strict=True)
    )
    moved = jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision="highest")
    inside = rows.sum(1)[:, None, None] * columns.sum(1)[None, :, None]
    return jnp.where(inside > 0, moved, fill)


def _covered(image: Array, key: Array, share: float, fill: float) -> Array:
    inside = []
    for k, side in zip(jax.random.split(key), image.shape[:2], strict=True):
        size = round(share * side)
        start = jax.random.randint(k, (), 0, side + 1 - size % 2) - size // 2
        at = jnp.arange(side)
        inside.append((at >= start) & (at < start + size))
    return jnp.where((inside[0][:, None] & inside[1][None, :])[..., None], fill, image)
