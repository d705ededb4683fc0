"""Searches that follow the gradient: PGD, FGSM, Auto-PGD. Floor 2."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from umbrella.attacks.balls import Array, Norm, ball, rows, summed
from umbrella.attacks.climbs import Climb, Name, climb
from umbrella.attacks.climbs import margin as margin_of
from umbrella.attacks.search import Carry, Found, Logits, Search, finite, kept, never

Bounds = tuple[float, float]


def pgd(
    *,
    steps: int = 40,
    step_size: float | None = None,
    norm: Norm = "linf",
    loss: Name = "ce",
    random_start: bool = True,
    target: int | None = None,
    bounds: Bounds = (0.0, 1.0),
    first: bool = True,
) -> Search:
    """Projected gradient ascent.

    Args:
      steps: at least 1.
      step_size: as a share of eps; 2.5 / steps when None, so that the attack can cross the ball.
      loss: what is climbed: "ce", "margin", "dlr" or "targeted".
      target: of a targeted one: 1 for the most probable wrong class of the clean input, 2 for the next...
      bounds: the valid range of an input.
      first: whether a row is done with the first point that fools it; else it climbs to the end. Without one, or to the
        end, the point of the largest margin is kept.

    Source: Madry et al. 2018, section 2.1. Deviation: the best point is kept instead of the last.

    Raises:
      ValueError: no such norm or loss, fewer than one step, a target without a targeted loss or the other way round.
    """
    around, up = ball(norm), climb(loss)
    _check("pgd", steps, loss, target)
    size = 2.5 / steps if step_size is None else step_size

    def start(f: Logits, x: Array, y: Array, eps: Any, key: Array) -> Carry:
        delta = around.sample(key, x, eps) if random_start else jnp.zeros_like(x)
        carry = _opened(f, x, y, eps, target, bounds)
        return carry | {"delta": around.project(delta, eps, carry["low"], carry["high"])}

    def step(f: Logits, carry: Carry, i: Any, key: Array) -> Carry:
        _, g, carry = _look(f, up, dict(carry), first)
        delta = carry["delta"] + rows(size * carry["eps"], g) * around.steepest(g)
        return carry | {"delta": around.project(delta, carry["eps"], carry["low"], carry["high"])}

    closed = partial(_closed, first=first)
    return Search(steps, start, step, closed) if first else Search(steps, start, step, closed, never)


def noise(*, tries: int = 50, norm: Norm = "linf", bounds: Bounds = (0.0, 1.0)) -> Search:
    """Random points of the ball, one after another, the best of all: what an attack must beat.

    Raises:
      ValueError: no such norm, fewer than one try.
    """
    around = ball(norm)
    if tries < 1:
        raise ValueError(f"noise: {tries} tries are none")

    def start(f: Logits, x: Array, y: Array, eps: Any, key: Array) -> Carry:
        return _opened(f, x, y, eps, None, bounds) | {"delta": jnp.zeros_like(x)}

    def step(f: Logits, carry: Carry, i: Any, key: Array) -> Carry:
        delta = around.sample(key, carry["x"], carry["eps"])
        delta = around.project(delta, carry["eps"], carry["low"], carry["high"])
        return _seen(dict(carry) | {"delta": delta}, f(carry["x"] + delta))

    return Search(tries, start, step, lambda f, c: Found(c["x"] + c["best"], c["fooled"], c["margin"]))


def fgsm(*, norm: Norm = "linf", loss: Name = "ce", random_start: bool = False, bounds: Bounds = (0.0, 1.0)) -> Search:
    """One step of size eps from the input itself (Goodfellow et al. 2015), or of 1.25 eps from a random point of the
    ball (Wong et al. 2020)."""
    size = 1.25 if random_start else 1.0
    return pgd(steps=1, step_size=size, norm=norm, loss=loss, random_start=random_start, bounds=bounds)


def apgd(
    *,
    steps: int = 100,
    norm: Norm = "linf",
    loss: Name = "ce",
    target: int | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Search:
    """Auto-PGD: ascent with momentum whose step size halves at checkpoints where it gets nowhere, from the best point.

    With z = P(x_k + eta g(x_k)), x_{k+1} = P(x_k + .75 (z - x_k) + .25 (x_k - x_{k-1})). At the checkpoints w_j =
    ceil(p_j steps), p = 0, .22, then p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06), eta is halved and it goes on from
    the best point if fewer than 3/4 of the steps since the last one climbed, or if neither eta nor the best value
    has changed since then (Croce and Hein 2020, algorithm 1, eq. 3). Deviation: momentum starts anew at such a jump.

    In l1 the direction is the sign of the largest share of the gradient, first a fifth of all coordinates; every 4 % of
    the steps the share becomes 2/3 of that of the best perturbation, eta is eps again if that share fell by more than
    5 %, else 2/3 of itself, a tenth of eps at least (Croce and Hein 2021, section 4.1).

    Args:
      as of `pgd`.

    Raises:
      ValueError: as `pgd`.
    """
    around, up = ball(norm), climb(loss)
    _check("apgd", steps, loss, target)
    stops = checkpoints(steps)

    def start(f: Logits, x: Array, y: Array, eps: Any, key: Array) -> Carry:
        carry = _opened(f, x, y, eps, target, bounds)
        # From the edge of the ball in a random direction.
        delta = around.sample(key, x, 1.0)
        delta = carry["eps_rows"] * delta / jnp.maximum(rows(around.size(delta), x), 1e-12)
        delta = around.project(delta, carry["eps"], carry["low"], carry["high"])
        nothing = jnp.zeros(x.shape[:1], x.dtype)
        return (
            carry
            | {
                "delta": delta,
                "before": delta,
                "eta": (1.0 if norm == "l1" else 2.0) * carry["eps"],
                "value": nothing - jnp.inf,  # at the last point
                "top": nothing - jnp.inf,  # the best value, where it is and the gradient there
                "top_delta": delta,
                "top_slope": jnp.zeros_like(x),
                "climbed": nothing,  # steps since the last checkpoint
                "top_then": nothing - jnp.inf,  # at the last checkpoint
                "halved": jnp.ones(x.shape[:1], bool),
                "share": nothing + 0.2,
                "sparse": nothing + math.prod(x.shape[1:]),
            }
        )

    def step(f: Logits, carry: Carry, i: Any, key: Array) -> Carry:
        value, g, carry = _look(f, up, dict(carry))
        better = value > carry["top"]
        carry["climbed"] = carry["climbed"] + ((value > carry["value"]) & (i > 0)).astype(value.dtype)
        carry["value"] = value
        for name, new in (("top", value), ("top_delta", carry["delta"]), ("top_slope", g)):
            carry[name] = kept(new, carry[name], better)
        here = (carry["delta"], carry["before"], g)
        here, carry = _sparser(carry, i, here, steps) if norm == "l1" else _slower(carry, i, here, stops)
        delta, before, g = here
        way = _sparse(g, carry["share"]) if norm == "l1" else around.steepest(g)

        def inside(d: Array) -> Array:
            return around.project(d, carry["eps"], carry["low"], carry["high"])

        z = inside(delta + rows(carry["eta"], g) * way)
        if norm == "l1":
            following = z
        else:
            weight = jnp.where(jnp.asarray(i) == 0, 1.0, 0.75).astype(g.dtype)
            following = inside(delta + weight * (z - delta) + (1 - weight) * (delta - before))
        return carry | {"delta": following, "before": delta}

    return Search(steps, start, step, _closed)


def checkpoints(steps: int) -> tuple[int, ...]:
    """The steps w_j of Croce and Hein 2020, section 3.3, but the first, 0.

    >>> checkpoints(100)[:5]
    (22, 41, 57, 70, 80)
    """
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    return tuple(w for v in p[1:] if (w := math.ceil(round(v * steps, 6))) < steps)


# -------------------------------------------------------------------------------------------------------------- helpers
def _check(what: str, steps: int, loss: str, target: int | None) -> None:
    if steps < 1:
        raise ValueError(f"{what}: {steps} steps are no attack; the input itself is eps=0")
    if (target is not None) != (loss == "targeted"):
        raise ValueError(f"{what}: target={target} and loss={loss!r}: a target is aimed at by loss='targeted' alone")


def _opened(f: Logits, x: Array, y: Array, eps: Any, target: int | None, bounds: Bounds) -> dict[str, Any]:
    """What every search by gradient carries: the problem, and the best so far, which is the input as it is."""
    z = f(x)
    margin = margin_of(z, y)
    others = jnp.where(jax.nn.one_hot(y, z.shape[1], dtype=bool), -jnp.inf, z)
    rank = min(target or 1, z.shape[1] - 1)
    eps = jnp.broadcast_to(jnp.asarray(eps, x.dtype), x.shape[:1])
    return {
        "x": x,
        "y": y,
        "eps": eps,
        "eps_rows": rows(eps, x),
        "low": bounds[0] - x,
        "high": bounds[1] - x,
        "target": jax.lax.top_k(others, rank)[1][:, rank - 1],
        "best": jnp.zeros_like(x),
        "margin": margin,
        "fooled": margin >= 0,
    }


def _seen(carry: dict[str, Any], z: Array, first: bool = True) -> dict[str, Any]:
    """Takes the point in: the first that fools stays, before that, or without `first`, the one of the largest
    margin."""
    margin = margin_of(z, carry["y"])
    more = margin > carry["margin"]
    take = ~carry["fooled"] & ((margin >= 0) | more) if first else more
    carry["best"] = kept(carry["delta"], carry["best"], take)
    carry["margin"] = jnp.where(take, margin, carry["margin"])
    carry["fooled"] = carry["fooled"] | (margin >= 0)
    return carry


def _look(f: Logits, up: Climb, carry: dict[str, Any], first: bool = True) -> tuple[Array, Array, dict[str, Any]]:
    """(what is climbed f32[B], its gradient, the carry that has seen the point)."""

    def total(delta: Array) -> tuple[Array, tuple[Array, Array]]:
        z = f(carry["x"] + delta)
        value = up(z, carry["y"], carry["target"])
        return value.sum(), (value, z)

    g, (value, z) = jax.grad(total, has_aux=True)(carry["delta"])
    return value, finite(g), _seen(carry, z, first)


def _closed(f: Logits, carry: Carry, first: bool = True) -> Found:
    """The last point is looked at, too."""
    told = _seen(dict(carry), f(carry["x"] + carry["delta"]), first)
    return Found(carry["x"] + told["best"], told["fooled"], told["margin"])


Here = tuple[Array, Array, Array]  # delta, the delta before, the gradient


def _slower(carry: dict[str, Any], i: Any, here: Here, stops: tuple[int, ...]) -> tuple[Here, dict[str, Any]]:
    """At a checkpoint: half the step, from the best point, where the search gets nowhere."""
    if not stops:
        return here, carry
    at = jnp.asarray(stops)
    since = (i - jnp.max(jnp.where(at < i, at, 0))).astype(carry["climbed"].dtype)
    now = (i == at).any()
    few = carry["climbed"] < 0.75 * since
    stuck = ~carry["halved"] & (carry["top"] <= carry["top_then"])
    halve = now & (few | stuck)
    carry["eta"] = jnp.where(halve, carry["eta"] / 2, carry["eta"])
    carry["halved"] = jnp.where(now, halve, carry["halved"])
    carry["top_then"] = jnp.where(now, carry["top"], carry["top_then"])
    carry["climbed"] = jnp.where(now, 0.0, carry["climbed"])
    return kept((carry["top_delta"], carry["top_delta"], carry["top_slope"]), here, halve), carry


def _sparser(carry: dict[str, Any], i: Any, here: Here, steps: int) -> tuple[Here, dict[str, Any]]:
    """The rule of l1, every 4 % of the steps."""
    now = (i > 0) & (i % max(1, int(0.04 * steps)) == 0)
    coordinates = math.prod(carry["x"].shape[1:])
    count = summed((carry["top_delta"] != 0).astype(carry["eta"].dtype))
    fell = count / carry["sparse"] < 0.95
    back = now & fell
    slower = jnp.clip(carry["eta"] / 1.5, carry["eps"] / 10, carry["eps"])
    carry["eta"] = jnp.where(now, jnp.where(fell, carry["eps"], slower), carry["eta"])
    carry["share"] = jnp.where(now, count / coordinates / 1.5, carry["share"])
    carry["sparse"] = jnp.where(now, jnp.maximum(count, 1), carry["sparse"])
    return kept((carry["top_delta"], carry["top_delta"], carry["top_slope"]), here, back), carry


def _sparse(g: Array, share: Array) -> Array:
    """The signs of the largest share f[B] of the coordinates of g, rounded down, one at least, over their number.

    Deviation: the source rounds up, so that two coordinates never become one.
    """
    flat = jnp.sort(jnp.abs(g.reshape(g.shape[0], -1)), 1)
    at = flat.shape[1] - jnp.maximum((share * flat.shape[1]).astype(jnp.int32), 1)
    least = jnp.take_along_axis(flat, at[:, None], 1)[:, 0]
    chosen = jnp.where((jnp.abs(g) >= rows(least, g)) & (g != 0), jnp.sign(g), 0)
    return chosen / jnp.maximum(rows(summed(jnp.abs(chosen)), g), 1)
