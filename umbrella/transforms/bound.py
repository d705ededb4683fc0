"""Tighter bounds on the log-likelihood of latent-variable models. Floor 2."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from umbrella.metrics import Mean, mask_of
from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, harmless, stop_gradient
from umbrella.settings import Count
from umbrella.unroll import unroll


def importance_weighted(
    log_weight: Callable[[Any, Array], Array], *, samples: Count, chunk: Count | None = None
) -> Transform:
    """The negative log of the mean of `samples` importance weights: IWAE's bound in training, an estimate of -log p(x)
    in evaluation (with 5,000 samples, the field's convention for the NLL).

    The wrapped objective is run once per sample with its own noise, `chunk` samples at a time under vmap, so what does
    not depend on the noise (the encoder) is computed once per chunk. Reports the bound as "nll"; one sample is the
    wrapped objective's single-sample bound. State, outputs and metrics are those of the first sample's pass.

    It takes the place of the wrapped objective's rows and of nothing else: what a technique to the right has added to
    the loss, such as a penalty, stays. A weight inside of the rows, a beta of the KL term, has no meaning here and goes
    with them.

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

            y = harmless(batch)["y"]

            def weigh(i: Array) -> tuple[Array, tuple[Array, Aux]]:
                told = o.apply(params, state, batch, ctx.fork("sample", i))
                return log_weight(told[1].outputs, y), told

            def turn(total: Array, indices: Array) -> tuple[Array, None]:
                logs, _ = jax.vmap(weigh)(indices)
                return jnp.logaddexp(total, jax.nn.logsumexp(logs, axis=0)), None

            with jax.named_scope("importance_weighted"):
                indices = jnp.arange(samples).reshape(-1, size)
                logs, told = jax.vmap(weigh)(indices[0])
                first, aux = jax.tree.map(lambda x: x[0], told)
                total = jax.nn.logsumexp(logs, axis=0)
                if len(indices) > 1:
                    total, _ = jax.lax.scan(turn, total, indices[1:], unroll=unroll(len(indices) - 1))
                losses = jnp.log(jnp.asarray(samples, total.dtype)) - total
            mask = mask_of(batch, losses)

            def mean(rows: Array) -> Array:
                kept = jnp.where(mask > 0, mask * rows, 0)
                kept = jnp.where(mask > 0, kept * batch["weight"], 0) if "weight" in batch else kept
                return jnp.sum(kept) / jnp.maximum(aux.count, 1)

            kept = jnp.where(mask > 0, mask * losses, 0)
            metrics = {**aux.metrics, "nll": Mean(stop_gradient(jnp.sum(kept)), jnp.sum(mask))}
            loss = mean(losses) + (first - mean(aux.per_example))
            return loss, aux.replace(per_example=jnp.where(mask > 0, losses, 0), metrics=metrics)

        return o._replace(apply=apply)

    return wrap


def _chunk_of(samples: int) -> int:
    return max(d for d in range(1, min(samples, 50) + 1) if samples % d == 0)
