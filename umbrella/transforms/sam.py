"""Sharpness-aware minimisation. Floor 2."""

import jax
import jax.numpy as jnp
import optax

from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, stop_gradient
from umbrella.settings import NonNegative


def sam(*, rho: NonNegative = 0.05, only: tuple[str, ...] = ()) -> Transform:
    """The loss at the worst parameters within rho of the current ones, to first order. Training only.

    Both passes see the same random numbers; the second, at the perturbed parameters, is the one whose state, outputs
    and metrics count. As in the paper, the gradient does not go through the perturbation. Under `grad_of(o, over=...)`
    every shard perturbs by its own gradient (m-SAM, section 4.1 of the paper).

    Args:
      rho: the radius, of the norm over all scopes that are perturbed.
      only: the scopes to perturb, those that are trained; all when empty. A fixed base under low-rank updates would
        take most of rho, though nothing can be done about its sharpness.

    Raises (while tracing):
      ValueError: `only` names a scope that does not exist.

    Source: Foret et al. 2021, eq. 2 and algorithm 1.
    """

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            if not ctx.train:
                return o.apply(params, state, batch, ctx)
            if missing := sorted(set(only) - set(params)):
                raise ValueError(f"sam: only names {missing}, the parameters have the scopes {sorted(params)}")
            with jax.named_scope("sam"):
                at = stop_gradient(params)
                moved = {k: v for k, v in params.items() if not only or k in only}
                free = {k: at[k] for k in moved}
                g = jax.grad(lambda q: o.apply({**at, **q}, state, batch, ctx)[0])(free)
                scale = rho / jnp.maximum(optax.tree.norm(g), 1e-12)
                worse = jax.tree.map(lambda w, d: w + stop_gradient(scale.astype(d.dtype) * d), moved, g)
            return o.apply({**params, **worse}, state, batch, ctx)

        return o._replace(apply=apply)

    return wrap


def sam_of_trainable(trainable: tuple[str, ...], *, rho: NonNegative = 0.05) -> Transform:
    """`sam(...)` from settings; it perturbs the scopes that the pipeline trains."""
    return sam(rho=rho, only=trainable)
