"""States that a layer keeps from one batch to the next, in the collection "carry". Floor 1."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
States = dict[str, Array]  # f32[B, ...] each


def carried(module: nn.Module, zero: States, fresh: Array | None) -> tuple[States, Callable[[States], None]]:
    """(the states to begin with, what keeps those at the end); inside of a compact method.

    Without a carry, in a prediction of a row by itself, they are zero and nothing is kept. Initialisation keeps
    nothing.

    Args:
      zero: what they are at first.
      fresh: f32[B], 1 for rows that begin at zero whatever is in the carry; None for no such rows.
    """
    if not (module.is_mutable_collection("carry") or module.has_variable("carry", next(iter(zero)))):
        return zero, lambda states: None
    kept = {k: module.variable("carry", k, lambda v=v: v) for k, v in zero.items()}
    states = {k: v.value for k, v in kept.items()}
    if fresh is not None:
        begin = {k: (fresh > 0).reshape((-1,) + (1,) * (v.ndim - 1)) for k, v in zero.items()}
        states = {k: jnp.where(begin[k], zero[k], v) for k, v in states.items()}

    def keep(new: States) -> None:
        if module.is_mutable_collection("carry") and not module.is_initializing():
            for k, v in kept.items():
                v.value = new[k]

    return states, keep
