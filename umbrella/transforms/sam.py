"""The loss at the worst parameters nearby: sharpness-aware minimisation, adversarial weight perturbation. Floor 2."""

from collections.abc import Callable

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

    def move(at: Params, g: Params) -> Params:
        scale = rho / jnp.maximum(optax.tree.norm(g), 1e-12)
        return jax.tree.map(lambda d: scale.astype(d.dtype) * d, g)

    return _worse("sam", move, only)


def awp(*, gamma: NonNegative = 5e-3, only: tuple[str, ...] = ()) -> Transform:
    """Adversarial weight perturbation: the loss at weights moved along their gradient, every matrix and kernel by gamma
    times its own norm. Training only; put it to the left of an attack, whose inputs it is then worst for.

    The attack is made at the weights as they are for the perturbation, and again at the moved ones. Deviation: one
    gradient step of full length, where the paper's code takes one of SGD on a copy and rescales.

    Args:
      gamma: the relative size; the paper has 5e-3.
      only: the scopes to move, those that are trained; all when empty.

    Raises (while tracing):
      ValueError: `only` names a scope that does not exist.

    Source: Wu et al. 2020, eq. 8 to 10 and algorithm 1.
    """

    def move(at: Params, g: Params) -> Params:
        def one(w: Array, d: Array) -> Array:
            length = gamma * jnp.linalg.norm(w.ravel()) if w.ndim > 1 else 0.0
            return (length / jnp.maximum(jnp.linalg.norm(d.ravel()), 1e-12) * d).astype(d.dtype)

        return jax.tree.map(one, at, g)

    return _worse("awp", move, only)


def _worse(name: str, move: Callable[[Params, Params], Params], only: tuple[str, ...]) -> Transform:
    """The objective at params + move(params, gradient), of the scopes `only` or all, in training."""

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            if not ctx.train:
                return o.apply(params, state, batch, ctx)
            if missing := sorted(set(only) - set(params)):
                raise ValueError(f"{name}: only names {missing}, the parameters have the scopes {sorted(params)}")
            with jax.named_scope(name):
                at = stop_gradient(params)
                moved = {k: v for k, v in params.items() if not only or k in only}
                free = {k: at[k] for k in moved}
                g = jax.grad(lambda q: o.apply({**at, **q}, state, batch, ctx)[0])(free)
                worse = jax.tree.map(lambda w, d: w + stop_gradient(d), moved, move(free, g))
            return o.apply({**params, **worse}, state, batch, ctx)

        return o._replace(apply=apply)

    return wrap


def sam_of_trainable(trainable: tuple[str, ...], *, rho: NonNegative = 0.05) -> Transform:
    """`sam(...)` from settings; it perturbs the scopes that the pipeline trains."""
    return sam(rho=rho, only=trainable)


def awp_of_trainable(trainable: tuple[str, ...], *, gamma: NonNegative = 5e-3) -> Transform:
    """`awp(...)` from settings; it moves the scopes that the pipeline trains."""
    return awp(gamma=gamma, only=trainable)
