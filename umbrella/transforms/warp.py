"""Moving the pixels of one image, with numbers that are given: what augmentation draws. Floor 2."""

import jax.numpy as jnp
import numpy as np

from umbrella.objective import Array


def displaced(image: Array, rows: Array, columns: Array) -> Array:
    """f32[H, W, C] whose pixel (i, j) is that of `image` at (i + rows[i, j], j + columns[i, j]), bilinearly.

    Args:
      rows, columns: f32[H, W], pixels. Outside of the image everything is 0, and between its border and the outside it
        fades (SciPy's mode "grid-constant").

    >>> image = jnp.array([[1.0, 3.0]])[..., None]
    >>> displaced(image, jnp.zeros((1, 2)), jnp.full((1, 2), 0.5))[..., 0]
    Array([[2. , 1.5]], dtype=float32)
    """
    h, w, channels = image.shape
    i, j = jnp.meshgrid(jnp.arange(h, dtype=jnp.float32), jnp.arange(w, dtype=jnp.float32), indexing="ij")
    i, j = i + rows, j + columns
    top, left = jnp.floor(i), jnp.floor(j)
    flat, out = image.reshape(h * w, channels), jnp.zeros_like(image)
    for row, near_row in ((top, top + 1 - i), (top + 1, i - top)):
        for column, near_column in ((left, left + 1 - j), (left + 1, j - left)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            place = jnp.where(inside, row * w + column, 0).astype(jnp.int32)
            weight = jnp.where(inside, near_row * near_column, 0)
            out = out + flat[place] * weight[..., None]
    return out


def affined(
    image: Array,
    *,
    degrees: Array | float = 0.0,
    shift: Array | tuple[float, float] = (0.0, 0.0),
    scale: Array | float = 1.0,
    shear: Array | float = 0.0,
    slopes: Array | tuple[float, float] = (0.0, 0.0),
) -> Array:
    """f32[H, W, C] sheared along x, then sheared by both slopes, turned, enlarged, all about its centre, and moved.

    Args:
      degrees: of the turn, counter-clockwise as one looks at it (rows go down).
      shift: (down, right), pixels.
      scale: above 1 enlarges.
      shear: degrees along x: what lies below goes right.
      slopes: (y, x): what lies right goes down by y, what lies below goes right by x, for each pixel.

    >>> image = jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None]
    >>> affined(image, shift=(0.0, 1.0))[..., 0]
    Array([[0., 1.],
           [0., 3.]], dtype=float32)
    """
    h, w, _ = image.shape
    angle, lean = jnp.deg2rad(jnp.float32(degrees)), jnp.tan(jnp.deg2rad(jnp.float32(shear)))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    down, right = jnp.asarray(shift, jnp.float32)
    slope_y, slope_x = jnp.asarray(slopes, jnp.float32)
    # Of an output pixel back to where it came from: each step undone, the last one first.
    i, j = jnp.meshgrid(
        jnp.arange(h, dtype=jnp.float32) - (h - 1) / 2, jnp.arange(w, dtype=jnp.float32) - (w - 1) / 2, indexing="ij"
    )
    y, x = (i - down) / scale, (j - right) / scale
    y, x = cos * y + sin * x, cos * x - sin * y
    across = 1 - slope_x * slope_y
    y, x = (y - slope_y * x) / across, (x - slope_x * y) / across
    x = x - lean * y
    return displaced(image, y - i, x - j)


def smoothed(fields: Array, sigma: float) -> Array:
    """f32[..., H, W] under a Gaussian of standard deviation `sigma` pixels, cut at four; zeros outside."""
    reach = int(4 * sigma + 0.5)
    total = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).sum()
    for axis in (-2, -1):
        places = np.arange(fields.shape[axis])
        lag = places[:, None] - places[None, :]
        bell = np.where(np.abs(lag) <= reach, np.exp(-0.5 * (lag / sigma) ** 2), 0) / total
        moved = jnp.tensordot(fields, jnp.asarray(bell, fields.dtype), ((axis,), (1,)), precision="highest")
        fields = jnp.moveaxis(moved, -1, axis)
    return fields
