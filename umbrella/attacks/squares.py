"""Square attack: a random search that asks for logits alone, so no masked gradient deceives it. Floor 2."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from umbrella.attacks.balls import Array, rows
from umbrella.attacks.climbs import best_other, of_class
from umbrella.attacks.search import Carry, Found, Logits, Search, kept

# After so many of 10,000 queries the share of the area is half of what it was (Andriushchenko et al. 2020, section 4).
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    *, steps: int = 5000, norm: Literal["linf"] = "linf", share: float = 0.8, bounds: tuple[float, float] = (0.0, 1.0)
) -> Search:
    """Of images x f32[B, H, W, C]: every step sets a square at a random place, in each channel, to +eps or -eps, and
    keeps it if the margin grew. It starts from vertical stripes.

    Args:
      steps: queries, at least 1.
      norm: "linf", the only one there is.
      share: of the area that the first squares cover.

    Source: Andriushchenko et al. 2020, algorithms 1 and 2.

    Raises:
      ValueError: another norm, fewer than one step, x without height, width and channels.
    """
    if norm != "linf":
        raise ValueError(f"square: norm {norm!r}: it is written for 'linf'")
    if steps < 1:
        raise ValueError(f"square: {steps} steps are no attack")

    def start(f: Logits, x: Array, y: Array, eps: Any, key: Array) -> Carry:
        if x.ndim != 4:
            raise ValueError(f"square: x is {list(x.shape)}; it draws squares on images [B, H, W, C]")
        eps = jnp.broadcast_to(jnp.asarray(eps, x.dtype), x.shape[:1])
        z = f(x)
        margin = best_other(z, y) - of_class(z, y)
        stripes = jax.random.rademacher(key, (x.shape[0], 1, x.shape[2], x.shape[3]), x.dtype)
        delta = jnp.clip(rows(eps, x) * stripes, bounds[0] - x, bounds[1] - x)
        new = f(x + delta)
        grown = best_other(new, y) - of_class(new, y)
        take = (margin < 0) & (grown > margin)
        return {
            "x": x,
            "y": y,
            "eps": eps,
            # Squares go on from the stripes, as in the source, though the input itself may be the best so far.
            "delta": delta,
            "value": grown,
            "best": kept(delta, jnp.zeros_like(x), take),
            "margin": jnp.where(take, grown, margin),
        }

    def step(f: Logits, carry: Carry, i: Any, key: Array) -> Carry:
        x, y = carry["x"], carry["y"]
        b, h, w, c = x.shape
        halvings = (jnp.asarray(HALVED, x.dtype) < jnp.asarray(i, x.dtype) * (10_000 / steps)).sum().astype(x.dtype)
        side = jnp.round(jnp.sqrt(share * 0.5**halvings * h * w))
        side = jnp.clip(side, 1, min(h, w) - 1 if min(h, w) > 1 else 1).astype(jnp.int32)
        key_top, key_left, key_sign = jax.random.split(key, 3)
        top = jax.random.randint(key_top, (b, 1, 1, 1), 0, h - side + 1)
        left = jax.random.randint(key_left, (b, 1, 1, 1), 0, w - side + 1)
        at_row, at_column = jnp.arange(h).reshape(1, h, 1, 1), jnp.arange(w).reshape(1, 1, w, 1)
        inside = (at_row >= top) & (at_row < top + side) & (at_column >= left) & (at_column < left + side)
        sign = jax.random.rademacher(key_sign, (b, 1, 1, c), x.dtype)
        new = jnp.where(inside, rows(carry["eps"], x) * sign, carry["delta"])
        new = jnp.clip(new, bounds[0] - x, bounds[1] - x)
        z = f(x + new)
        value = best_other(z, y) - of_class(z, y)
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
