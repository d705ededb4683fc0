"""What was not finite first: the step that went wrong, made again with everything in it to look at. Floor 4."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from umbrella.experiment import Experiment
from umbrella.objective import Ctx, PyTree
from umbrella.train_state import TrainState

PARTS = ("batch", "outputs", "loss", "gradient", "norm of the gradient")  # in the order in which they are computed


def first_bad_leaf(
    ex: Experiment, ts: TrainState, resident: PyTree, step: int, seeds: Sequence[int] | None, *, shared: bool = False
) -> str | None:
    """The path of the first leaf that is not finite when step `step` is made on `ts`, the state before it.

    Args:
      resident: what the data keeps on the device.
      seeds: of the lanes of `ts`, each looked at in turn; None for a state without lanes.
      shared: whether all lanes see the data of the first.

    Returns:
      "outputs/mean", with several seeds "outputs/mean of seed 3"; None when `ts` is older than the step.
    """
    if int(np.max(jax.device_get(ts.step))) < step:
        return None

    def looked_at(params: Any, ts: TrainState, batch: Any) -> tuple[Any, Any]:
        ctx = Ctx(jax.random.fold_in(ts.key, step), jnp.int32(step), ex.frozen, ema=ts.ema)
        loss, aux = ex.objective.apply(params, ts.state, batch, ctx)
        return loss, {"batch": dict(batch), "outputs": aux.outputs, "loss": loss}

    look = jax.jit(jax.grad(looked_at, has_aux=True))
    for k, seed in enumerate(seeds or (ex.run.seed,)):
        lane = ts if seeds is None else jax.tree.map(lambda x, k=k: x[k], ts)
        slot = ex.train_data.slot(seeds[0] if seeds and shared else seed, step)
        gradient, seen = look(lane.params, lane, ex.train_data.fetch(resident, slot))
        seen |= {"gradient": gradient, "norm of the gradient": optax.tree.norm(gradient)}
        for part in PARTS:
            for path, leaf in jax.tree_util.tree_leaves_with_path({part: seen[part]}):
                if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(jax.device_get(leaf)).all():
                    name = jax.tree_util.keystr(path, simple=True, separator="/")
                    return name if seeds is None else f"{name} of seed {seed}"
    return "none when the step is made again alone"
