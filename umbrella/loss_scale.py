"""A loss scale, for gradients that are computed in fp16: as large as they let it be. Floor 3.

step = guard(loss_scaled(then(update(grad_of(objective), tx), ema(0.999))))
"""

import jax
import jax.numpy as jnp

from umbrella.metrics import Mean
from umbrella.objective import Array, Batch, Ctx
from umbrella.step import WATCHED, Metrics, Step, unless
from umbrella.train_state import TrainState

FIRST = 2.0**15
LARGEST = 2.0**100  # XLA flushes subnormal numbers to 0, and 1 / scale must be none


def loss_scaled(step: Step, initial: float = FIRST, *, every: int = 2000) -> Step:
    """The step, whose gradients are those of scale * loss, divided by the scale: inside of `guard`, outside of `then`.

    The numbers of fp16 end at 65,504 and at 6e-8, and gradients are mostly small. A power of two moves them up without
    rounding anything. How far is found out: the scale doubles after `every` good steps in a row, and halves, down to 1,
    at each whose gradients are not finite though its loss is: an overflow. Such a step leaves parameters, state,
    optimiser and averages as they were, to the bit: the optimiser's count, which its schedules follow, does not
    advance, while ts.step does. Its metrics are counted but for the norm of its gradients, so a guard outside does not
    see it.

    What no scale mends is left as it is, for that guard to see: a loss that is not finite, since the forward pass knows
    no scale, and gradients that are not at a scale of 1.

    Keeps opt_state["loss_scale"] = {"scale": f32[], "good": i32[], steps since it changed, "overflows": i32[], of all
    steps}. Reports "loss_scale", the scale that the step was made with. With lanes each has its own. It reads the whole
    state once more, as `guard` by "skip" does.

    Args:
      step: of one update; a player of a game cannot be told from another, and what is repeated is to be scaled inside
        of `repeat`, which else would go on from what overflowed.
      initial: the first scale, 1 to 2^100; anything but a power of two rounds.
      every: so many good steps; at 2^100 they change nothing.

    Raises:
      ValueError: no such scale, every < 1; at init: there is a scale already; while tracing: the step is not of one
        update.

    Source: Micikevicius et al. 2018, section 3.2, whose scale doubles after 2,000 steps. Deviations: their overflow is
    any gradient that is not finite; and there is a largest scale.
    """
    if not 1 <= initial <= LARGEST:
        raise ValueError(f"loss_scaled: a scale of {initial}; it is 1 to 2^100")
    if every < 1:
        raise ValueError(f"loss_scaled: every {every} steps is never")

    def init(ts: TrainState) -> TrainState:
        ts = step.init(ts)
        if "loss_scale" in ts.opt_state:
            raise ValueError("the state already keeps a loss scale: one is enough")
        slot = {"scale": jnp.float32(initial), "good": jnp.int32(0), "overflows": jnp.int32(0)}
        return ts.replace(opt_state={**ts.opt_state, "loss_scale": slot})

    def apply(ts: TrainState, batch: Batch, ctx: Ctx) -> tuple[TrainState, Metrics]:
        was = ts.opt_state["loss_scale"]
        scale = was["scale"]
        new, told = step.apply(ts, batch, ctx.replace(scale=scale))
        objective, norm = (_only(told, name) for name in WATCHED)
        with jax.named_scope("loss_scale"):
            sound, found = jnp.isfinite(told[objective].total), jnp.isfinite(told[norm].total)
            overflow = sound & ~found & (scale > 1)
            good = jnp.where(sound & found, was["good"] + 1, 0)
            grown = good >= every
            now = {
                "scale": jnp.where(overflow, _half(scale), jnp.where(grown, _double(scale), scale)),
                "good": jnp.where(grown, 0, good),
                "overflows": was["overflows"] + overflow.astype(jnp.int32),
            }
            new = unless(overflow, ts, new)
            told = {**told, norm: jax.tree.map(lambda x: jnp.where(overflow, jnp.zeros_like(x), x), told[norm])}
        new = new.replace(opt_state={**new.opt_state, "loss_scale": now})
        return new, {**told, "loss_scale": Mean(scale, jnp.ones_like(scale))}

    return Step(init, apply)


def _half(scale: Array) -> Array:
    return jnp.maximum(scale / 2, 1)


def _double(scale: Array) -> Array:
    return jnp.where(2 * scale <= LARGEST, 2 * scale, scale)


def _only(told: Metrics, name: str) -> str:
    """The one metric of this name, with or without the prefix of an update."""
    found = [k for k in told if k.split("/")[-1] == name]
    if len(found) != 1:
        raise ValueError(f"loss_scaled: the step reports {name!r} {len(found)} times; it must be of one update")
    return found[0]
