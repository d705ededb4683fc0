"""Terms added to the training loss. Floor 2."""

import jax
import jax.numpy as jnp

from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, add_term
from umbrella.settings import NonNegative, near


def l2(*, weight: NonNegative, scope: str = "model") -> Transform:
    """weight * 1/2 * the sum of squares of every matrix and kernel of a scope (of what has two axes or more).

    Not weight decay: under Adam the two differ (Loshchilov and Hutter 2019). Here the penalty is part of the loss.
    Reported, before its weight, as "l2"; of another scope than the model's as "l2_SCOPE", so that two penalties are
    told apart.

    Raises (while tracing):
      ValueError: there is no such scope, or it is penalised twice.
    """

    def term(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Aux) -> Array:
        if scope not in params:
            raise ValueError(f"l2: no scope {scope!r}{near(scope, params)}")
        squares = [jnp.sum(jnp.square(w)) for w in jax.tree.leaves(params[scope]) if w.ndim > 1]
        return 0.5 * sum(squares, start=jnp.zeros(()))

    return add_term(term, weight=weight, name="l2" if scope == "model" else f"l2_{scope}")
