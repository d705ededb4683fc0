"""RandAugment: a few operations of a fixed set, drawn for each image. Floor 2."""

from typing import Annotated

import jax
import jax.numpy as jnp

from umbrella.objective import Array, Transform
from umbrella.settings import Natural, Range
from umbrella.transforms.augment import away, each, grey
from umbrella.transforms.warp import affined

Magnitude = Annotated[float, Range(lambda v: 0 <= v <= 30, "must be in [0, 30]")]
OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
)


def randaugment(*, operations: Natural = 2, magnitude: Magnitude = 10.0) -> Transform:
    """So many operations in turn, each drawn from a fixed set, all of one magnitude, with random signs. Training only.

    The set, at magnitude 30: identity; shear_x, shear_y by a slope of .3; translate_x, translate_y by 150/331 of the
    side; rotate by 30 degrees; brightness, contrast, saturation, sharpness by a factor of 1 +- .9; posterize to 4 bits;
    solarize above 0; autocontrast. Smaller magnitudes are proportionally weaker.

    Args:
      operations: how many, N in the source; 0 for none.
      magnitude: M in the source.

    Deviations from the source: no equalize, which needs a histogram of every image; geometry is bilinear and black
    outside, about the centre. Saturation does nothing to images that are grey.

    Source: Cubuk et al. 2020, figure 2.
    """

    def one(image: Array, key: Array) -> Array:
        for i in range(operations):
            which, sign = jax.random.split(jax.random.fold_in(key, i))
            drawn = jax.random.randint(which, (), 0, len(OPERATIONS))
            image = operated(image, drawn, jax.random.rademacher(sign, (), jnp.float32), magnitude / 30)
        return image

    return each(one, name="randaugment")


def operated(image: Array, which: Array, sign: Array, strength: float) -> Array:
    """f32[H, W, C] after OPERATIONS[which], i32[].

    Which one is traced, so all are computed; those of geometry are one warp and those of colour one blend.

    Args:
      sign: f32[], +-1, for those operations that have one.
      strength: in [0, 1].
    """
    at = OPERATIONS.index
    h, w, _ = image.shape

    def only(name: str, amount: float) -> Array:
        return jnp.where(which == at(name), sign * (strength * amount), 0.0)

    warped = affined(
        image,
        degrees=only("rotate", 30.0),
        shift=jnp.stack([only("translate_y", h * 150 / 331), only("translate_x", w * 150 / 331)]),
        slopes=jnp.stack([only("shear_y", 0.3), only("shear_x", 0.3)]),
    )
    base = {
        "brightness": jnp.zeros_like(image),
        "contrast": jnp.broadcast_to(grey(image).mean(), image.shape),
        "saturation": jnp.broadcast_to(grey(image), image.shape),
        "sharpness": blurred(image),
    }
    first = at("brightness")
    toward = jnp.stack([base[name] for name in OPERATIONS[first : first + 4]])[jnp.clip(which - first, 0, 3)]
    blend = away(image, toward, 1 + sign * (strength * 0.9))
    step = 2.0 ** round(4 * strength)
    level = jnp.round(image * 255)
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    flat = high <= low
    made = {
        "posterize": (level - level % step) / 255,
        "solarize": jnp.where(image > 1 - strength, 1 - image, image),
        "autocontrast": jnp.where(flat, image, (image - low) / jnp.where(flat, 1.0, high - low)),
    }
    out = jnp.where(which < first, warped, blend)
    for name, other in made.items():
        out = jnp.where(which == at(name), other, out)
    return jnp.where(which == at("identity"), image, out)


def blurred(image: Array) -> Array:
    """f32[H, W, C], every pixel the mean of its 3 x 3, the middle five times; borders stay (as PIL's SMOOTH)."""
    h, w, _ = image.shape
    if min(h, w) < 3:
        return image
    around = sum(image[i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3))
    inner = (around + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(inner)
