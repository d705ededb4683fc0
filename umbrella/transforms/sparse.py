"""Codes of which few are active at a time. Floor 2."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax.numpy as jnp

from umbrella.choices import one_of
from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, add_term
from umbrella.settings import NonNegative, Range

Penalty = Literal["l1", "kl"]
Share = Annotated[float, Range(lambda v: 0 < v < 1, "must be in (0, 1)")]
LEAST = 1e-6  # activities nearer to 0 or 1 count as so near: their divergence is infinite


def sparse(
    code: Callable[[Any], Array], *, weight: NonNegative, penalty: Penalty = "l1", target: Share = 0.05
) -> Transform:
    """Adds weight * how active the code is to the training loss; reported, before its weight, as "sparse".

    l1: sum_j |code_j|, averaged over rows: every row has few active codes. It shrinks the active ones, too, and what
    the code loses in size the decoder can make good; an l2 penalty beside it stops that.
    kl: sum_j KL(target || mean activity of j) between Bernoulli variables, the mean being over the rows of the batch:
    every code is active in few rows. It wants codes in (0, 1). Not exact under microbatches.

    Args:
      code: outputs -> f32[B, L]; the pipeline provides it.
      target: the mean activity that "kl" asks for; "l1" does not use it.

    Raises:
      ValueError: no such penalty.

    Source: l1 is that of sparse coding (Olshausen and Field 1996, eq. 2); kl is Ng 2011 (CS294A lecture notes, section
    3), and Hinton 2010 (practical guide, section 11) with the mean of the batch instead of a running one.
    """
    one_of("sparse: penalty", penalty, Penalty)

    def term(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Aux) -> Array:
        z = code(aux.outputs)
        mask = jnp.ones(z.shape[:1], z.dtype) if "mask" not in batch else batch["mask"].astype(z.dtype)
        count = jnp.sum(mask)
        rows = jnp.where(mask[:, None] > 0, mask[:, None] * z, 0)
        if penalty == "l1":
            return jnp.sum(jnp.abs(rows)) / jnp.maximum(count, 1)
        active = jnp.clip(jnp.sum(rows, 0) / jnp.maximum(count, 1), LEAST, 1 - LEAST)
        kl = target * jnp.log(target / active) + (1 - target) * jnp.log((1 - target) / (1 - active))
        return jnp.where(count > 0, jnp.sum(kl), 0)

    return add_term(term, weight=weight, name="sparse")
