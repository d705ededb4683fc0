"""Sharpness-aware minimisation. Floor 2."""

import jax
import jax.numpy as jnp
import optax

from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, stop_gradient
from umbrella.settings import NonNegative


def sam(*, rho: NonNegative = 0.05) -> Transform:
    """The loss at the worst parameters within rho of the current ones, to first order. Training only.

    Both passes see the same random numbers; the second, at the perturbed parameters, is the one whose state, outputs
    and metrics count. As in the paper, the gradient does not go through the perturbation. All scopes are perturbed.

    Source: Foret et al. 2021, eq. 2 and algorithm 1.
    """

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            if not ctx.train:
                return o.apply(params, state, batch, ctx)
            with jax.named_scope("sam"):
                at = stop_gradient(params)
                g = jax.grad(lambda q: o.apply(q, state, batch, ctx)[0])(at)
                scale = rho / jnp.maximum(optax.tree.norm(g), 1e-12)
                worse = jax.tree.map(lambda w, d: w + stop_gradient(scale.astype(d.dtype) * d), params, g)
            return o.apply(worse, state, batch, ctx)

        return o._replace(apply=apply)

    return wrap
