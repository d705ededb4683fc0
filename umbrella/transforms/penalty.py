"""Terms added to the training loss. Floor 2."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, add_term
from umbrella.settings import NonNegative, near


def l1(*, weight: NonNegative, scope: str = "model") -> Transform:
    """weight * the sum of absolute values of every matrix and kernel of a scope (of what has two axes or more).

    It drives weights towards zero, and by plain gradients none to zero exactly. Reported as in `l2`, as "l1".

    Raises (while tracing):
      ValueError: there is no such scope, or it is penalised twice.

    Source: Tibshirani 1996.
    """
    return _penalty("l1", lambda w: jnp.sum(jnp.abs(w)), weight, scope)


def l2(*, weight: NonNegative, scope: str = "model") -> Transform:
    """weight * 1/2 * the sum of squares of every matrix and kernel of a scope (of what has two axes or more).

    Not weight decay: under Adam the two differ (Loshchilov and Hutter 2019). Here the penalty is part of the loss.
    Reported, before its weight, as "l2"; of another scope than the model's as "l2_SCOPE", so that two penalties are
    told apart.

    Raises (while tracing):
      ValueError: there is no such scope, or it is penalised twice.
    """
    return _penalty("l2", lambda w: 0.5 * jnp.sum(jnp.square(w)), weight, scope)


def _penalty(name: str, of: Callable[[Array], Array], weight: float, scope: str) -> Transform:
    def term(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Aux) -> Array:
        if scope not in params:
            raise ValueError(f"{name}: no scope {scope!r}{near(scope, params)}")
        return sum([of(w) for w in jax.tree.leaves(params[scope]) if w.ndim > 1], start=jnp.zeros(()))

    return add_term(term, weight=weight, name=name if scope == "model" else f"{name}_{scope}")
