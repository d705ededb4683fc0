"""Training on what is true of every input in a ball, and measuring it. Floor 2."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from umbrella import bounds as boxes
from umbrella.choices import one_of
from umbrella.metrics import Mean, mask_of
from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, stop_gradient
from umbrella.settings import Cadence, Fraction, NonNegative
from umbrella.transforms.adversarial import labels_of, put, take

How = Literal["interval", "crown"]


def certified(
    *,
    eps: float,
    train_eps: float | None = None,
    how: How = "interval",
    kappa: float = 0.5,
    ramp: int = 0,
    bounds: tuple[float, float] | None = None,
    on: str = "x",
) -> Transform:
    """Adds to the loss of the clean input the loss of the worst logits that a bound allows within eps (l-infinity).

    With m_j the lower bound of z_y - z_j, the worst logits are -m, and no input in the ball has a larger cross-entropy.
    Over `ramp` steps the radius grows from 0, the share of the clean loss falls from 1 to kappa, and, for "crown", the
    bounds turn from CROWN's, which are tighter, into intervals, which train better in the end: all linearly.

    In evaluation the loss is the clean one, and "verified" is measured: the share of rows where no input within eps is
    classified wrongly, by the bound of `how` at its full strength.

    Args:
      eps: the radius that is measured, in units of the input.
      train_eps: the one that is trained for; eps when None. Somewhat more than eps helps.
      how: "interval" (IBP) or "crown" (CROWN-IBP).
      kappa: the share of the clean loss in the end.
      bounds: the valid range of an input.

    Source: Gowal et al. 2018, eq. 12 (IBP); Zhang et al. 2020, eq. 12 (CROWN-IBP).

    Raises:
      ValueError: no such bound; while tracing, y are no labels.
      UnknownOperation: while tracing, the network uses what has no bound, such as BatchNorm in training.
    """
    one_of("certified: how", how, How)

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            loss, aux = o.apply(params, state, batch, ctx)
            if getattr(aux.outputs, "ndim", 0) != 2:
                raise ValueError("certified is about logits f32[B, C], which this objective's outputs are not")
            x, y = stop_gradient(take(batch, on)), labels_of(batch, "certified")

            def logits(v: Array) -> Array:
                out: Array = o.apply(params, state, put(batch, on, v), ctx)[1].outputs
                return out

            def box(radius: Array | float) -> tuple[Array, Array]:
                low, high = x - radius, x + radius
                return (low, high) if bounds is None else (jnp.clip(low, *bounds), jnp.clip(high, *bounds))

            def below(radius: Array | float, by: How) -> Array:
                return boxes.differences(logits, *box(radius), y, how=by)

            with jax.named_scope("certified"):
                if not ctx.train:
                    verified = boxes.proved(logits, *box(eps), y, how=how).astype(jnp.float32)
                    told = Mean.of(verified, mask_of(batch, verified))
                    return loss, aux.replace(metrics={**aux.metrics, "verified": told})
                share = jnp.minimum((ctx.step + 1) / ramp, 1.0) if ramp else jnp.float32(1.0)
                radius = (eps if train_eps is None else train_eps) * share
                m = below(radius, "interval")
                if how == "crown":
                    tighter = jax.lax.cond(share < 1, lambda: below(radius, "crown"), lambda: m)
                    m = share * m + (1 - share) * tighter
                worst = jax.nn.logsumexp(-m, axis=-1)
                term = Mean.of(worst, mask_of(batch, worst)).total / jnp.maximum(aux.count, 1)
                kept = 1 - (1 - kappa) * share
                told = Mean(stop_gradient(term) * aux.count, aux.count)
            return kept * loss + (1 - kept) * term, aux.replace(metrics={**aux.metrics, "worst_loss": told})

        return o._replace(apply=apply)

    return wrap


def certified_of(
    bounds: tuple[float, float] | None,
    to_steps: Callable[[str], int],
    *,
    eps: NonNegative,
    train_eps: NonNegative | None = None,
    how: How = "interval",
    kappa: Fraction = 0.5,
    ramp: Cadence = "50%",
) -> Transform:
    """`certified(...)` from settings."""
    return certified(eps=eps, train_eps=train_eps, how=how, kappa=kappa, ramp=to_steps(ramp), bounds=bounds)
