"""TrainState: arrays only, all that a run needs to go on. Floor 3."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct

from umbrella.objective import Array, Batch, Ctx, Init, Params, PyTree, State, View

if TYPE_CHECKING:
    from umbrella.step import Step

INIT_STEP = 2**31 - 1  # folded into the key for initialisation: a step number that no run reaches


class TrainState(struct.PyTreeNode):
    """Every leaf is an array with a buffer of its own, since the compiled step donates them all.

    `step` counts batches consumed, skipped ones included, so it is also the position in the data; how many updates were
    made is optax's count. `key` never advances: the key of a step is fold_in(key, step).
    """

    step: Array  # i32[]
    key: Array  # typed PRNG key
    params: Params
    state: State
    # What Steps own, by slot: {"all"} | {"gen", "disc"} | + {"ema"} | + {"loss_scale"} | + {"guard"}
    opt_state: dict[str, PyTree]
    ema: View | None = None  # the debiased averages of the scopes that were asked for

    def view(self) -> View:
        """The raw parameters and state."""
        return View(self.params, self.state)

    def eval_view(self) -> View:
        """The averaged scopes laid over the raw ones; the raw view where nothing is averaged."""
        if self.ema is None:
            return self.view()
        return View({**self.params, **self.ema.params}, {**self.state, **self.ema.state})


def create(init: Init, step: "Step", key: Array, batch: Batch, frozen: PyTree | None = None) -> TrainState:
    """A fresh TrainState: parameters from `init`, then the slots that `step` needs.

    Args:
      init: an objective's.
      key: a typed key (`jax.random.key`); vmap over keys makes lanes.
      batch: one batch (any number of rows): shapes come from it.
      frozen: what ctx.frozen will be.

    Every leaf is copied at the end: the step donates the state, never the caller's key or two leaves in one buffer.
    """
    ctx = Ctx(jax.random.fold_in(key, INIT_STEP), jnp.int32(0), {} if frozen is None else frozen, train=False)
    params, state = init(batch, ctx)
    ts = step.init(TrainState(jnp.int32(0), key, params, state, {}))
    return jax.tree.map(jnp.copy, ts)


def parameter_count(params: Any) -> int:
    """How many numbers the leaves hold.

    >>> parameter_count({"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)})
    16
    """
    return sum(int(x.size) for x in jax.tree.leaves(params))
