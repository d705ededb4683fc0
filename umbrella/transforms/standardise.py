"""Inputs on the scale of the training set. Floor 2."""

import jax
import jax.numpy as jnp
import numpy as np

from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform

SCOPE = "input"  # of the state


def standardise(shift: np.ndarray, spread: np.ndarray) -> Transform:
    """The model sees (x - shift) / spread, and both numbers are part of the state, in state["input"].

    So a saved model takes inputs as they come; what perturbs or mixes inputs around it does so on their own scale.
    Innermost by rule, and in evaluation, too. Nothing trains or changes the two.

    Args:
      shift, spread: f32[...], broadcast against a row of x; as `umbrella.data.scaling.fit` gives them for train.

    Raises (at init):
      ValueError: there is a scope of that name already.
    """

    def wrap(o: Objective) -> Objective:
        def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
            own = {"shift": jnp.asarray(shift, jnp.float32), "spread": jnp.asarray(spread, jnp.float32)}
            params, state = o.init({**batch, "x": scaled(own, batch["x"])}, ctx)
            if SCOPE in state:
                raise ValueError(f"standardise: the state has a scope {SCOPE!r} already; standardise once")
            return params, {**state, SCOPE: own}

        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            with jax.named_scope("standardise"):
                batch = {**batch, "x": scaled(state[SCOPE], batch["x"])}
            return o.apply(params, state, batch, ctx)

        return o._replace(init=init, apply=apply)

    return wrap


def scaled(own: dict[str, Array], x: Array) -> Array:
    """x f[B, ...] on the scale of state["input"]."""
    lead = (1,) * (x.ndim - own["shift"].ndim)
    shift, spread = (own[k].reshape(lead + own[k].shape) for k in ("shift", "spread"))
    return (x - shift.astype(x.dtype)) / spread.astype(x.dtype)
