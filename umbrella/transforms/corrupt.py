"""Images as they come out of a bad camera, a bad cable or a bad file: corruptions at five severities. Floor 2.

Kinds and the order of the strengths are those of CIFAR-10-C (Hendrycks and Dietterich 2019), without weather; what JPEG
does is done by its steps (discrete cosines of 8 x 8, rounded by the standard's table of luminance) in every channel.
"""

from collections.abc import Callable
from typing import Annotated, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from umbrella.choices import one_of
from umbrella.objective import Array, Batch, Transform, map_batch
from umbrella.settings import Range
from umbrella.transforms.batch import pictures
from umbrella.transforms.warp import affined, smoothed

Kind = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "blur",
    "motion_blur",
    "contrast",
    "brightness",
    "rotate",
    "translate",
    "pixelate",
    "jpeg",
]
KINDS: tuple[str, ...] = get_args(Kind)
SEVERITIES = 5
Severity = Annotated[int, Range(lambda v: 1 <= v <= SEVERITIES, f"must be 1 to {SEVERITIES}")]

STRENGTH: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of black or white pixels
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation, in pixels of a side of 32
    "motion_blur": (2, 3, 4, 5, 6),  # pixels of a side of 32
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # what is left of the distance to the mean
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added
    "rotate": (6, 12, 18, 24, 30),  # degrees, either way
    "translate": (0.03, 0.06, 0.09, 0.12, 0.15),  # of the sides, in any of four directions
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # of the side that is kept
    "jpeg": (80, 65, 58, 50, 40),  # quality
}
# Table K.1 of the standard (ITU-T T.81), for luminance.
LUMINANCE = np.asarray(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)


def corrupted(x: Array, key: Array, kind: Kind, severity: int) -> Array:
    """x f32[B, H, W, C] in [0, 1] -> the same, worse; row i draws from fold_in(key, i).

    Raises:
      ValueError: no such kind, or a severity that is not 1 to 5.
    """
    one_of("corruption: kind", kind, Kind)
    if not 1 <= severity <= SEVERITIES:
        raise ValueError(f"corruption: severity {severity} is not 1 to {SEVERITIES}")
    made, strength = _TABLE[kind], STRENGTH[kind][severity - 1]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
    out: Array = jnp.clip(jax.vmap(lambda image, k: made(image, k, strength))(x.astype(jnp.float32), keys), 0, 1)
    return out.astype(x.dtype)


def corruption(*, kind: Kind, severity: Severity = 3) -> Transform:
    """Corrupts the input, in training and in evaluation. Several are told apart by their kinds."""

    def rewrite(batch: Batch, key: Array) -> Batch:
        return {**batch, "x": corrupted(pictures(batch, "corruption"), key, kind, severity)}

    return map_batch(rewrite, name=f"corruption_{kind}", eval=True)


# ------------------------------------------------------------------------------------------------------------ the kinds
def _gaussian(image: Array, key: Array, sd: float) -> Array:
    return image + sd * jax.random.normal(key, image.shape)


def _shot(image: Array, key: Array, photons: float) -> Array:
    return jax.random.poisson(key, image * photons, image.shape).astype(jnp.float32) / photons


def _impulse(image: Array, key: Array, share: float) -> Array:
    u = jax.random.uniform(key, image.shape)
    return jnp.where(u < share / 2, 0.0, jnp.where(u < share, 1.0, image))


def _by_channel(fn: Callable[[Array], Array], image: Array) -> Array:
    return jnp.moveaxis(fn(jnp.moveaxis(image, -1, 0)), 0, -1)


def _edged(fn: Callable[[Array], Array], image: Array, pad: int) -> Array:
    """fn of an image with its border repeated outwards, without that border: no shadow falls in from outside."""
    h, w, _ = image.shape
    wide = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    return _by_channel(fn, wide)[pad : pad + h, pad : pad + w]


def _blur(image: Array, key: Array, sd: float) -> Array:
    sd = sd * max(image.shape[:2]) / 32
    return _edged(lambda v: smoothed(v, sd), image, int(4 * sd + 0.5) + 1)


def _motion(image: Array, key: Array, length: float) -> Array:
    """The mean along a line in a random direction."""
    count = max(2, round(length * max(image.shape[:2]) / 32))
    angle = jax.random.uniform(key, maxval=2 * jnp.pi)
    pad = count
    wide = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    at = [i - (count - 1) / 2 for i in range(count)]
    moved = [affined(wide, shift=a * jnp.stack([jnp.sin(angle), jnp.cos(angle)])) for a in at]
    return (sum(moved[1:], moved[0]) / count)[pad:-pad, pad:-pad]


def _contrast(image: Array, key: Array, share: float) -> Array:
    mean = image.mean((0, 1), keepdims=True)
    return (image - mean) * share + mean


def _brightness(image: Array, key: Array, more: float) -> Array:
    return image + more


def _rotate(image: Array, key: Array, degrees: float) -> Array:
    return affined(image, degrees=degrees * jax.random.rademacher(key, (), jnp.float32))


def _translate(image: Array, key: Array, share: float) -> Array:
    way = jnp.asarray([(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])[jax.random.randint(key, (), 0, 4)]
    return affined(image, shift=way * share * jnp.asarray(image.shape[:2], jnp.float32))


def _pixelate(image: Array, key: Array, share: float) -> Array:
    """Made smaller by means over boxes, and as large again by repeating."""
    for axis in (0, 1):
        n = image.shape[axis]
        small = max(1, int(n * share))
        edge = np.linspace(0, n, small + 1)
        # Row r of `down` holds how much of each pixel lies in box r; `up` picks the box of each pixel's centre.
        low, high = edge[:-1, None], edge[1:, None]
        cover = np.clip(np.minimum(high, np.arange(1, n + 1)) - np.maximum(low, np.arange(n)), 0, None)
        down = cover / cover.sum(1, keepdims=True)
        up = np.clip(((np.arange(n) + 0.5) * small / n).astype(int), 0, small - 1)
        image = jnp.moveaxis(jnp.tensordot(jnp.asarray(down[up], jnp.float32), image, ((1,), (axis,))), 0, axis)
    return image


def _jpeg(image: Array, key: Array, quality: float) -> Array:
    h, w, c = image.shape
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    table = np.clip(np.floor((LUMINANCE * scale + 50) / 100), 1, 255)
    k, n = np.arange(8)[:, None], np.arange(8)[None]
    basis = np.cos(np.pi * (2 * n + 1) * k / 16) * np.sqrt(np.where(k == 0, 1, 2) / 8)
    cosines = jnp.asarray(basis, jnp.float32)
    high, wide = -(-h // 8), -(-w // 8)
    full = jnp.pad(image, ((0, high * 8 - h), (0, wide * 8 - w), (0, 0)), mode="edge") * 255 - 128
    blocks = full.reshape(high, 8, wide, 8, c)
    waves = jnp.einsum("ki,aibjc,lj->akblc", cosines, blocks, cosines, precision="highest")
    step = jnp.asarray(table, jnp.float32).reshape(1, 8, 1, 8, 1)
    waves = jnp.round(waves / step) * step
    back = jnp.einsum("ki,akblc,lj->aibjc", cosines, waves, cosines, precision="highest")
    return (jnp.round(back.reshape(high * 8, wide * 8, c)[:h, :w]) + 128) / 255


_TABLE: dict[str, Callable[[Array, Array, float], Array]] = {
    "gaussian_noise": _gaussian,
    "shot_noise": _shot,
    "impulse_noise": _impulse,
    "blur": _blur,
    "motion_blur": _motion,
    "contrast": _contrast,
    "brightness": _brightness,
    "rotate": _rotate,
    "translate": _translate,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
