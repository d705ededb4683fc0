"""Terms that ask the outputs to stay as they are around an input. Floor 2.

For classifiers: the outputs are logits f32[B, C].
"""

import jax
import jax.numpy as jnp

from umbrella.attacks.balls import ball
from umbrella.metrics import Mean, mask_of
from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, add_term, stop_gradient
from umbrella.settings import Count, NonNegative, Positive
from umbrella.transforms.adversarial import put, take
from umbrella.unroll import unroll

Bounds = tuple[float, float] | None


def trades(
    *,
    eps: float,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float | None = None,
    bounds: Bounds = None,
    on: str = "x",
) -> Transform:
    """Adds beta * KL(p(x) || p(x')), x' being the input within eps (l-infinity) where p differs most. Training only.

    The loss of the labels stays that of the clean input, so accuracy and robustness are traded by beta. x' is looked
    for in evaluation mode, from the input plus noise of .001: at the input itself the divergence has no gradient.
    Reported, before beta, as "trades".

    Args:
      eps: the radius, in units of the input.
      beta: 1 / lambda of the paper, which has 1 and 6.
      step_size: in units of the input; 2.5 eps / steps when None.
      bounds: the valid range of an input.

    Source: Zhang et al. 2019, eq. 5 and algorithm 1.
    """
    around, size = ball("linf"), 2.5 * eps / steps if step_size is None else step_size

    def term(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Aux) -> Array:
        x, at, looking = take(batch, on), stop_gradient(params), ctx.eval()
        least, most = (-jnp.inf, jnp.inf) if bounds is None else bounds
        low, high = least - x, most - x

        def logits(p: Params, delta: Array, ctx: Ctx) -> Array:
            return _outputs(o, p, state, put(batch, on, x + delta), ctx)

        clean = logits(at, jnp.zeros_like(x), looking)

        def climb(_: int, delta: Array) -> Array:
            g = jax.grad(lambda d: divergence(clean, logits(at, d, looking)).sum())(delta)
            return around.project(delta + size * around.steepest(g), eps, low, high)

        delta = 1e-3 * jax.random.normal(ctx.rng("trades"), x.shape, x.dtype)
        delta = jax.lax.fori_loop(0, steps, climb, around.project(delta, eps, low, high), unroll=unroll(steps))
        apart = divergence(aux.outputs, logits(params, stop_gradient(delta), ctx))
        return _mean(apart, batch, aux)

    return add_term(term, weight=beta, name="trades")


def vat(*, eps: float, weight: float = 1.0, xi: float = 1e-2, steps: int = 1, on: str = "x") -> Transform:
    """Adds weight * KL(p(x) || p(x + r)), r the l2 perturbation of length eps where p turns fastest. Training only.

    It reads no labels, but is about the rows of the loss alone: what the mask leaves out is left out here, too. r is
    the first eigenvector of the divergence's second derivative, by `steps` of power iteration with finite differences
    of length xi; p(x) is a constant. Reported, before its weight, as "vat".

    Source: Miyato et al. 2018, eq. 5 to 8 and algorithm 1.
    """
    around = ball("l2")

    def term(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Aux) -> Array:
        x, at, looking = take(batch, on), stop_gradient(params), ctx.eval()

        def logits(p: Params, r: Array, ctx: Ctx) -> Array:
            return _outputs(o, p, state, put(batch, on, x + r), ctx)

        clean = logits(at, jnp.zeros_like(x), looking)

        def turn(_: int, way: Array) -> Array:
            return around.steepest(jax.grad(lambda r: divergence(clean, logits(at, r, looking)).sum())(xi * way))

        way = around.steepest(jax.random.normal(ctx.rng("vat"), x.shape, x.dtype))
        way = jax.lax.fori_loop(0, steps, turn, way, unroll=unroll(steps))
        apart = divergence(stop_gradient(aux.outputs), logits(params, eps * stop_gradient(way), ctx))
        return _mean(apart, batch, aux)

    return add_term(term, weight=weight, name="vat")


def divergence(z: Array, other: Array) -> Array:
    """KL(softmax(z) || softmax(other)), logits f32[B, C] -> f32[B], in nats."""
    p, q = jax.nn.log_softmax(z), jax.nn.log_softmax(other)
    return jnp.sum(jnp.exp(p) * (p - q), -1)


def trades_of(
    bounds: Bounds,
    on: str,
    *,
    eps: NonNegative,
    beta: NonNegative = 6.0,
    steps: Count = 10,
    step_size: Positive | None = None,
) -> Transform:
    """`trades(...)` from settings."""
    return trades(eps=eps, beta=beta, steps=steps, step_size=step_size, bounds=bounds, on=on)


def vat_of(on: str, *, eps: NonNegative, weight: NonNegative = 1.0, xi: Positive = 1e-2, steps: Count = 1) -> Transform:
    """`vat(...)` from settings."""
    return vat(eps=eps, weight=weight, xi=xi, steps=steps, on=on)


def _outputs(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx) -> Array:
    z: Array = o.apply(params, state, batch, ctx)[1].outputs
    if z is None or z.ndim != 2:
        raise ValueError("trades and vat are about logits f32[B, C], which this objective's outputs are not")
    return z


def _mean(apart: Array, batch: Batch, aux: Aux) -> Array:
    """Over the rows that count, by the loss's own denominator."""
    return Mean.of(apart, mask_of(batch, apart)).total / jnp.maximum(aux.count, 1)
