"""Steps that act in a part of training alone, and what is kept of the way. Floor 3.

step = alternate(during(likelihood, 0, 700), during(disc, 650), during(gen, 700))
step = then(step, snapshot("gen", to="start", at=700))
"""

import jax
import jax.numpy as jnp

from umbrella.objective import Batch, Ctx
from umbrella.step import After, Metrics, Step
from umbrella.train_state import TrainState

tmap = jax.tree.map


def during(step: Step, start: int, stop: int | None = None) -> Step:
    """The step from batch `start` to the one before `stop` (to the end when None); before and after nothing happens.

    Outside of it nothing is computed and its metrics count nothing. With several seeds side by side (`vmap`) it is
    computed throughout and thrown away; one after the other (`lanes="unroll"`) it is not.

    Raises:
      ValueError: it would never act.
    """
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"during: from step {start} to {stop} is never")
    if start == 0 and stop is None:
        return step

    def apply(ts: TrainState, batch: Batch, ctx: Ctx) -> tuple[TrainState, Metrics]:
        def act(ts: TrainState) -> tuple[TrainState, Metrics]:
            return step.apply(ts, batch, ctx)

        def idle(ts: TrainState) -> tuple[TrainState, Metrics]:
            told = jax.eval_shape(act, ts)[1]
            return ts, tmap(lambda m: jnp.zeros(m.shape, m.dtype), told)

        now = ctx.step >= start
        if stop is not None:
            now &= ctx.step < stop
        return jax.lax.cond(now, act, idle, ts)

    return Step(step.init, apply)


def snapshot(scope: str, *, to: str, at: int) -> After:
    """Keeps the parameters of a scope as they are after `at` steps, in another scope.

    Until then the copy is the last state's, so every checkpoint has one. No update may train it: say `wrt`.

    Raises:
      ValueError: at < 1; at init: no such scope, or the other one is taken.
    """
    if at < 1:
        raise ValueError(f"snapshot: after {at} steps there is nothing to keep")

    def init(ts: TrainState) -> TrainState:
        if scope not in ts.params or to in ts.params:
            raise ValueError(f"snapshot of {scope!r} to {to!r}: the parameters have the scopes {sorted(ts.params)}")
        return ts.replace(params={**ts.params, to: tmap(jnp.copy, ts.params[scope])})

    def apply(old: TrainState, new: TrainState, ctx: Ctx) -> TrainState:
        follows = ctx.step < at
        kept = tmap(lambda a, b: jnp.where(follows, b, a), old.params[to], new.params[scope])
        return new.replace(params={**new.params, to: kept})

    return After(init, apply)
