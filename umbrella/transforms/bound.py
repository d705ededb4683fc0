"""Tighter bounds on the log-likelihood of latent-variable models. Floor 2."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from umbrella.metrics import Mean
from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, stop_gradient
from umbrella.settings import Count
from umbrella.unroll import unroll


def importance_weighted(
    log_weight: Callable[[Any, Array], Array], *, samples: Count, chunk: Count | None = None
) -> Transform:
    """The negative log of the mean of `samples` importance weights: IWAE's bound in training, an estimate of -log p(x)
    in evaluation (with 5,000 samples, the field's convention for the NLL).

    The wrapped objective is run once per sample with its own noise, `chunk` samples at a time under vmap, so what does
    not depend on the noise (the encoder) is computed once per chunk. Reports the bound as "nll"; one sample is the
    wrapped objective's single-sample bound.

    Args:
      log_weight: (outputs, y) -> f32[B], log p(y, z) - log q(z | y) at the z of the pass.
      samples: how many; chunk must divide it.
      chunk: samples in memory at once; all of them up to 50 when None.

    Raises:
      ValueError: chunk does not divide samples.

    Source: Burda et al. 2016, eq. 8; Cremer et al. 2017 on what it bounds.
    """
    size = _chunk_of(samples) if chunk is None else chunk
    if samples % size:
        raise ValueError(f"importance_weighted: chunk={size} does not divide samples={samples}")

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            if "y" not in batch:
                raise ValueError("importance_weighted needs y: put it inside (to the right of) what makes the target")

            def weigh(i: Array) -> tuple[Array, Aux]:
                _, aux = o.apply(params, state, batch, ctx.fork("sample", i))
                return log_weight(aux.outputs, batch["y"]), aux

            def turn(total: Array, indices: Array) -> tuple[Array, None]:
                logs, _ = jax.vmap(weigh)(indices)
                return jnp.logaddexp(total, jax.nn.logsumexp(logs, axis=0)), None

            with jax.named_scope("importance_weighted"):
                indices = jnp.arange(samples).reshape(-1, size)
                first, aux = weigh(indices[0, 0])  # gives state, outputs and count
                total = jnp.full(first.shape, -jnp.inf, first.dtype)
                total, _ = jax.lax.scan(turn, total, indices, unroll=unroll(indices.shape[0]))
                losses = jnp.log(jnp.asarray(samples, total.dtype)) - total
            mask = batch["mask"] if "mask" in batch else jnp.ones(losses.shape, losses.dtype)
            kept = jnp.where(mask > 0, mask * losses, 0)
            weighted = kept * batch["weight"] if "weight" in batch else kept
            told = {**aux.metrics, "nll": Mean(stop_gradient(jnp.sum(kept)), jnp.sum(mask))}
            loss = jnp.sum(weighted) / jnp.maximum(aux.count, 1)
            return loss, aux.replace(per_example=jnp.where(mask > 0, losses, 0), metrics=told)

        return o._replace(apply=apply)

    return wrap


def _chunk_of(samples: int) -> int:
    return max(d for d in range(1, min(samples, 50) + 1) if samples % d == 0)
