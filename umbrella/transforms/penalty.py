"""Terms added to the training loss. Floor 2."""

import jax
import jax.numpy as jnp

from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, add_term
from umbrella.settings import NonNegative


def l2(*, weight: NonNegative, scope: str = "model") -> Transform:
    """weight * 1/2 * the sum of squares of every matrix and kernel of a scope (of what has two axes or more).

    Not weight decay: under Adam the two differ (Loshchilov and Hutter 2019). Here the penalty is part of the loss.
    """

    def term(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Aux) -> Array:
        squares = [jnp.sum(jnp.square(w)) for w in jax.tree.leaves(params[scope]) if w.ndim > 1]
        return 0.5 * sum(squares, start=jnp.zeros(()))

    return add_term(term, weight=weight, name="l2")
