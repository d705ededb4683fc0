"""Square attack: a random search that asks for logits alone, so no masked gradient deceives it. Floor 2."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from umbrella.attacks.balls import Array, Norm, rows
from umbrella.attacks.climbs import margin as margin_of
from umbrella.attacks.search import Carry, Found, Logits, Search, kept
from umbrella.choices import one_of

# After so many of 10,000 queries the share of the area is half of what it was (Andriushchenko et al. 2020, section 4).
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
Known = Literal["linf", "l2"]
Key = Array


def square(
    *, steps: int = 5000, norm: Norm = "linf", share: float | None = None, bounds: tuple[float, float] = (0.0, 1.0)
) -> Search:
    """Of images x f32[B, H, W, C]: every step changes a square at a random place, and keeps it if the margin grew.

    "linf": each channel of the square is set to +eps or -eps; it starts from vertical stripes. "l2": a bump, half of it
    up and half down, is put into the square with the length that another square gives up for it; it starts from bumps
    all over.

    Args:
      steps: queries, at least 1.
      norm: "linf" or "l2"; there is none for "l1".
      share: of the area that the first squares cover: .8 of "linf" and .1 of "l2" when None.

    Source: Andriushchenko et al. 2020, algorithms 1 to 3. Deviation: the two squares of a step in l2 are as large as
    the image at most, and at least 3 wide where it is.

    Raises:
      ValueError: another norm, fewer than one step, x without height, width and channels.
    """
    one_of("square: norm", norm, Known)
    if steps < 1:
        raise ValueError(f"square: {steps} steps are no attack")
    area = {"linf": 0.8, "l2": 0.1}[norm] if share is None else share
    first, change = (_stripes, _squares) if norm == "linf" else (_tiles, _bumps)

    def start(f: Logits, x: Array, y: Array, eps: Any, key: Key) -> Carry:
        if x.ndim != 4:
            raise ValueError(f"square: x is {list(x.shape)}; it draws squares on images [B, H, W, C]")
        eps = jnp.broadcast_to(jnp.asarray(eps, x.dtype), x.shape[:1])
        z = f(x)
        margin = margin_of(z, y)
        delta = jnp.clip(first(x, eps, key), bounds[0] - x, bounds[1] - x)
        new = f(x + delta)
        grown = margin_of(new, y)
        take = (margin < 0) & (grown > margin)
        return {
            "x": x,
            "y": y,
            "eps": eps,
            # Squares go on from the first pattern, as in the source, though the input itself may be the best so far.
            "delta": delta,
            "value": grown,
            "best": kept(delta, jnp.zeros_like(x), take),
            "margin": jnp.where(take, grown, margin),
        }

    def step(f: Logits, carry: Carry, i: Any, key: Key) -> Carry:
        x, y = carry["x"], carry["y"]
        halvings = (jnp.asarray(HALVED, x.dtype) < jnp.asarray(i, x.dtype) * (10_000 / steps)).sum().astype(x.dtype)
        side = jnp.round(jnp.sqrt(area * 0.5**halvings * x.shape[1] * x.shape[2]))
        new = change(carry["delta"], carry["eps"], side, key)
        new = jnp.clip(new, bounds[0] - x, bounds[1] - x)
        z = f(x + new)
        value = margin_of(z, y)
        better = (value > carry["value"]) & (carry["margin"] < 0)
        take = better & (value > carry["margin"])
        return dict(carry) | {
            "delta": kept(new, carry["delta"], better),
            "value": jnp.where(better, value, carry["value"]),
            "best": kept(new, carry["best"], take),
            "margin": jnp.where(take, value, carry["margin"]),
        }

    def best(f: Logits, carry: Carry) -> Found:
        return Found(carry["x"] + carry["best"], carry["margin"] >= 0, carry["margin"])

    return Search(steps, start, step, best)


# ----------------------------------------------------------------------------------------------------------------- linf
def _stripes(x: Array, eps: Array, key: Key) -> Array:
    return rows(eps, x) * jax.random.rademacher(key, (x.shape[0], 1, x.shape[2], x.shape[3]), x.dtype)


def _squares(delta: Array, eps: Array, side: Array, key: Key) -> Array:
    """Algorithm 2, the side being that of equation 3, rounded."""
    b, h, w, c = delta.shape
    side = jnp.clip(side, 1, max(1, min(h, w) - 1)).astype(jnp.int32)
    key_place, key_sign = jax.random.split(key)
    inside = _window(*_place(key_place, delta, side), side, delta)[0]
    sign = jax.random.rademacher(key_sign, (b, 1, 1, c), delta.dtype)
    return jnp.where(inside, rows(eps, delta) * sign, delta)


# ------------------------------------------------------------------------------------------------------------------- l2
def _tiles(x: Array, eps: Array, key: Key) -> Array:
    """Bumps side by side, five in a row of the image's smaller side, each with a sign of its own in each channel."""
    b, h, w, c = x.shape
    side = max(1, min(h, w) // 5)
    key_sign, key_turn = jax.random.split(key)
    down, across = -(-h // side), -(-w // side)
    sign = jax.random.rademacher(key_sign, (b, down, across, c), x.dtype)
    turned = jax.random.bernoulli(key_turn, 0.5, (b, down, across, 1))
    at = jnp.arange(h).reshape(1, h, 1, 1), jnp.arange(w).reshape(1, 1, w, 1)

    def spread(v: Array) -> Array:
        """Of a tile to its pixels."""
        return jnp.repeat(jnp.repeat(v, side, 1), side, 2)[:, :h, :w]

    bump = _bump(at[0] % side, at[1] % side, jnp.int32(side), spread(turned), side)
    delta = bump * spread(sign)
    return rows(eps, x) * delta / _length(delta)


def _bumps(delta: Array, eps: Array, side: Array, key: Key) -> Array:
    """Algorithm 3: what is not used of the length, and what the second square has of it, goes to a bump in the first.

    The bump is added to what the first square has, each channel's with a sign of its own.
    """
    b, h, w, c = delta.shape
    most = min(h, w)
    side = jnp.clip(side, min(3, most), most).astype(jnp.int32)
    side = jnp.maximum(side - (side + 1) % 2, 1)  # odd, as in the source's code, so that a bump has a middle
    key_one, key_two, key_sign, key_turn = jax.random.split(key, 4)
    one, down, across = _window(*_place(key_one, delta, side), side, delta)
    two = _window(*_place(key_two, delta, side), side, delta)[0]
    turned = jax.random.bernoulli(key_turn, 0.5, (b, 1, 1, 1))
    bump = jnp.where(one, _bump(down, across, side, turned, most), 0)
    bump = bump / jnp.maximum(jnp.sqrt(jnp.square(bump).sum((1, 2), keepdims=True)), 1e-12)
    old = jnp.where(one, delta, 0)
    old = old / (jnp.sqrt(jnp.square(old).sum((1, 2), keepdims=True)) + 1e-10)
    new = bump * jax.random.rademacher(key_sign, (b, 1, 1, c), delta.dtype) + old
    spare = jnp.maximum(jnp.square(rows(eps, delta)) - jnp.square(_length(delta)), 0) / c
    given = jnp.square(jnp.where(one | two, delta, 0)).sum((1, 2), keepdims=True)
    new = new / jnp.maximum(jnp.sqrt(jnp.square(new).sum((1, 2), keepdims=True)), 1e-12) * jnp.sqrt(spare + given)
    out = jnp.where(one, new, jnp.where(two, 0, delta))
    return rows(eps, delta) * out / jnp.maximum(_length(out), 1e-12)


def _bump(down: Array, across: Array, side: Array, turned: Array, most: int) -> Array:
    """Two pyramids, one up and one down, that fill a square of this side between them: equation 4 and its figure.

    Args:
      down, across: i32, the place in the square, from 0; outside of it the result is of no use.
      side: i32[], at most `most`.
      turned: bool, whether they lie side by side and not on top of each other.
    """
    i, j = jnp.where(turned, across, down), jnp.where(turned, down, across)
    half = side // 2
    upper = i < half
    height = jnp.where(upper, half, side - half)
    row = jnp.where(upper, i, i - half)
    middle = height // 2, side // 2
    far = jnp.maximum(jnp.abs(row - middle[0]), jnp.abs(j - middle[1]))
    total = jnp.asarray(np.cumsum([0.0, *(1 / k**2 for k in range(1, most + 3))]), jnp.float32)
    levels = jnp.maximum(middle[0], middle[1]) + 1  # of squares around the middle, the k-th raised by 1 / k^2
    raised = total[levels] - total[jnp.minimum(far, levels)]
    return jnp.where(upper, raised / _norm(half, side, total, most), -raised / _norm(side - half, side, total, most))


def _norm(height: Array, width: Array, total: Array, most: int) -> Array:
    """The l2 norm of one pyramid over a rectangle."""
    i, j = jnp.arange(most).reshape(-1, 1), jnp.arange(most).reshape(1, -1)
    middle = height // 2, width // 2
    levels = jnp.maximum(middle[0], middle[1]) + 1
    far = jnp.maximum(jnp.abs(i - middle[0]), jnp.abs(j - middle[1]))
    raised = jnp.where((i < height) & (j < width), total[levels] - total[jnp.minimum(far, levels)], 0)
    return jnp.maximum(jnp.sqrt(jnp.square(raised).sum()), 1e-12)


# -------------------------------------------------------------------------------------------------------------- helpers
def _place(key: Key, like: Array, side: Array) -> tuple[Array, Array]:
    """A corner i32[B, 1, 1, 1] twice, of a square of this side in the image."""
    b, h, w, _ = like.shape
    key_top, key_left = jax.random.split(key)
    shape = (b, 1, 1, 1)
    return jax.random.randint(key_top, shape, 0, h - side + 1), jax.random.randint(key_left, shape, 0, w - side + 1)


def _window(top: Array, left: Array, side: Array, like: Array) -> tuple[Array, Array, Array]:
    """(inside bool[B, H, W, 1], the row in the square [B, H, 1, 1], the column [B, 1, W, 1])."""
    _, h, w, _ = like.shape
    down, across = jnp.arange(h).reshape(1, h, 1, 1) - top, jnp.arange(w).reshape(1, 1, w, 1) - left
    return (down >= 0) & (down < side) & (across >= 0) & (across < side), down, across


def _length(delta: Array) -> Array:
    """f32[B, 1, 1, 1]."""
    return jnp.sqrt(jnp.square(delta).sum((1, 2, 3), keepdims=True))
