"""Bounds on the log-likelihood of latent-variable models: tighter ones, and other weights of their KL. Floor 2."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from umbrella.choices import one_of
from umbrella.metrics import Mean, mask_of
from umbrella.objective import (
    Array,
    Aux,
    Batch,
    Ctx,
    Objective,
    Params,
    State,
    Transform,
    add_term,
    harmless,
    stop_gradient,
)
from umbrella.settings import Cadence, Count, NonNegative
from umbrella.unroll import unroll


def importance_weighted(
    log_weight: Callable[..., Array],
    posterior: tuple[str, ...] = (),
    *,
    samples: Count,
    chunk: Count | None = None,
    gradient: Literal["standard", "dreg"] = "standard",
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
      log_weight: (outputs, y) -> f32[B], log p(y, z) - log q(z | y) at the z of the pass; for "dreg" with a keyword
        `path`: the same, whose gradient knows q's parameters by z alone.
      posterior: the modules of the scope "model" whose parameters are q's; for "dreg".
      samples: how many; chunk must divide it.
      chunk: samples in memory at once; all of them up to 50 when None.
      gradient: "standard", whose signal for q fades against its noise the more samples there are (Rainforth et al.
        2018), or "dreg": p's is the same, q's is sum_i w_i^2 dlog_weight_i/dz_i dz_i/dq with the normalised weights w
        (Tucker et al. 2019, eq. 8): of the same mean and less noise, by one more pass forward and backward.

    Raises:
      ValueError: chunk does not divide samples; no such gradient; "dreg" without `posterior`, or in chunks. While
        tracing: "dreg" of other parameters than the model's.

    Source: Burda et al. 2016, eq. 8; Cremer et al. 2017 on what it bounds.
    """
    size = _chunk_of(samples) if chunk is None else chunk
    if samples % size:
        raise ValueError(f"importance_weighted: chunk={size} does not divide samples={samples}")
    doubly = one_of("importance_weighted: gradient", gradient, Literal["standard", "dreg"]) == "dreg"
    if doubly and (not posterior or chunk is not None):
        raise ValueError("importance_weighted: gradient='dreg' is of all samples at once, and of q's own parameters")

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            if "y" not in batch:
                raise ValueError("importance_weighted needs y: put it inside (to the right of) what makes the target")

            y = harmless(batch)["y"]

            def weigh(i: Array) -> tuple[Array, tuple[Array, Aux]]:
                told = o.apply(params, state, batch, ctx.fork("sample", i))
                return log_weight(told[1].outputs, y), told

            def of(live: Params, **how: Any) -> Array:
                """log_weight f32[S, B] of every sample."""

                def one(i: Array) -> Array:
                    return log_weight(o.apply(live, state, batch, ctx.fork("sample", i))[1].outputs, y, **how)

                return jax.vmap(one)(jnp.arange(samples))

            def turn(total: Array, indices: Array) -> tuple[Array, None]:
                logs, _ = jax.vmap(weigh)(indices)
                return jnp.logaddexp(total, jax.nn.logsumexp(logs, axis=0)), None

            with jax.named_scope("importance_weighted"):
                if doubly and ctx.train:
                    first, aux = o.apply(params, state, batch, ctx.fork("sample", 0))
                    p, q = _apart(params, posterior)
                    logs, paths = of(p), of(q, path=True)
                    w = stop_gradient(jax.nn.softmax(logs, axis=0))
                    bound = jnp.log(jnp.asarray(samples, logs.dtype)) - jax.nn.logsumexp(logs, axis=0)
                    slope = -(w * logs + jnp.square(w) * paths).sum(0)
                    losses = stop_gradient(bound - slope) + slope
                else:
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


def _apart(params: Params, posterior: tuple[str, ...]) -> tuple[Params, Params]:
    """The parameters with a gradient for p's alone, and for q's alone."""
    if set(params) != {"model"}:
        more = ", ".join(sorted(set(params) - {"model"}))
        raise ValueError(f"importance_weighted: gradient='dreg' cannot tell whose {more} is, p's or q's")

    def live(of_q: bool) -> Params:
        own = params["model"].items()
        return {"model": {k: v if (k in posterior) == of_q else stop_gradient(v) for k, v in own}}

    return live(False), live(True)


def kl(
    kl_of_each: Callable[[Any], Array],
    to_steps: Callable[[str], int],
    *,
    beta: NonNegative = 1.0,
    ramp: Cadence = "never",
    free_bits: NonNegative = 0.0,
) -> Transform:
    """Weighs the KL term of a negative ELBO anew: in training beta sum_j max(KL_j, free_bits) instead of sum_j KL_j,
    KL_j being the batch's mean of latent variable j. What is evaluated is the bound itself.

    Args:
      kl_of_each: outputs -> f32[B, L], the KL of every latent variable in nats, which the wrapped loss holds in full.
      beta: the weight; above 1 for factors apart (Higgins et al. 2017).
      ramp: over so many steps the weight grows linearly from 0 to beta (Bowman et al. 2016, section 3.1).
      free_bits: nats per latent variable that cost nothing (Kingma et al. 2016, eq. 15, each variable a group of its
        own).
    """
    steps = to_steps(ramp)
    if beta == 1 and not steps and not free_bits:
        return lambda o: o

    def more(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Aux) -> Array:
        of_each = kl_of_each(aux.outputs)
        rows = mask_of(batch, of_each[:, 0])
        rows = rows if "weight" not in batch else rows * batch["weight"]
        means = jnp.where((rows != 0)[:, None], rows[:, None] * of_each, 0).sum(0) / jnp.maximum(aux.count, 1)
        share = beta * jnp.minimum((ctx.step + 1) / steps, 1.0) if steps else jnp.float32(beta)
        least = jnp.where(aux.count > 0, free_bits, 0).astype(means.dtype)  # a batch of padding costs nothing
        kept = jnp.maximum(means, least) if free_bits else means
        return share.astype(kept.dtype) * kept.sum() - means.sum()

    return add_term(more, weight=1.0, name="kl_weight")


def _chunk_of(samples: int) -> int:
    return max(d for d in range(1, min(samples, 50) + 1) if samples % d == 0)
