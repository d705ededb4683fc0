"""How far back a network that reads images step by step has learnt to look. Floor 5."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import losses
from umbrella.memory import input_gradients, lag_curves
from umbrella.models import Rows
from umbrella.objective import Array, View
from umbrella.pipelines._standard import Resolve

ROWS = 64  # of test


def figure(
    net: Rows,
    logits: Callable[[Resolve, View, Array], Array],
    resolve: Resolve,
    views: View,
    rows: tuple[np.ndarray, np.ndarray],
    key: Array,
) -> Iterator[tuple[str, Any]]:
    """("memory", the gradient of the loss with respect to what was read k steps before the end, before and after).

    Args:
      logits: (resolve, view, x f32[B, H, W, C]) -> f32[B, C].
      views: leaves with a leading seed axis.
      rows: x and y.
      key: of other starting points than those that were trained, which are not kept.
    """
    x, y = map(jnp.asarray, rows)
    # Behind convolutions a step is no part of the image; a row of pixels still has its place.
    steps = (net.clone(permutation=None, reads="rows") if net.front else net).steps

    def norms(resolve: Resolve, view: View) -> Array:
        return input_gradients(lambda x: losses.cross_entropy(logits(resolve, view, x), y), x, steps)

    def before(view: View, key: Array) -> Array:
        made = net.init(key, x[:1], train=False)
        fresh = View({**view.params, "model": made["params"]}, view.state)
        return norms(lambda params, state: params, fresh)

    lanes = len(jax.tree.leaves(views)[0])
    told = {
        "before training": jax.jit(lambda v, k: jax.lax.map(lambda a: before(*a), (v, k)))(
            views, jax.random.split(key, lanes)
        ),
        "after training": jax.jit(lambda v: jax.lax.map(lambda view: norms(resolve, view), v))(views),
    }
    what = "row of the image" if net.front or net.reads == "rows" else "pixel"
    caption = (
        f"The gradient of the loss with respect to the {what} that was read so many steps before the end "
        f"({len(x)} test images, root mean square); {net.cell}{', bidirectional' * net.bidirectional}."
        + ("" if lanes == 1 else f" Mean over {lanes} seeds, with a 95 % interval.")
    )
    each = {name: list(np.asarray(v)) for name, v in told.items()}
    yield "memory", lag_curves(each, caption, what="the gradient's norm", dashed=("before training",))
