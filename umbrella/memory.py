"""How far back a recurrent network can learn: gradients over the time lag. Floor 4.

A state's part in a loss k steps later is a product of k Jacobians. Where these shrink vectors, the gradient of what is
far away vanishes beside that of what is near (Hochreiter 1991; Bengio et al. 1994; Pascanu et al. 2013).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umbrella.artifacts import Curves
from umbrella.scores import interval

Array = jax.Array
PyTree = Any
FLOOR = -20.0  # log10; below it a norm is drawn as this


def state_gains(
    step: Callable[[PyTree, Array], PyTree], start: PyTree, x: Array, key: Array, *, probes: int = 4
) -> Array:
    """The root mean square of |v J_k| / |v| over rows and directions v, at every lag k from 0 to T: f32[T + 1].

    J_k is the Jacobian of the last state with respect to that k steps before, and v is drawn from a normal
    distribution, so this is the Frobenius norm of J_k over the square root of the state's size, in expectation.

    Args:
      step: (states, x_t f32[B, D]) -> states, every leaf f32[B, ...]; rows must not depend on each other.
      start: the states before the first step.
      x: f32[B, T, D].
      probes: directions for every row.
    """

    def ahead(state: PyTree, now: Array) -> tuple[PyTree, PyTree]:
        return step(state, now), state

    steps = jnp.swapaxes(x, 0, 1)
    end, before = jax.lax.scan(ahead, start, steps)

    def back(v: PyTree, now: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        state, x = now
        pull = jax.vjp(lambda s: step(s, x), state)[1]
        v = jax.vmap(lambda u: pull(u)[0])(v)
        return v, _square(v)

    keys = jax.random.split(key, len(jax.tree.leaves(end)))
    each = jax.tree.unflatten(jax.tree.structure(end), list(keys))
    v = jax.tree.map(lambda leaf, k: jax.random.normal(k, (probes, *leaf.shape), leaf.dtype), end, each)
    squares = jax.lax.scan(back, v, (before, steps), reverse=True)[1]
    return jnp.sqrt(jnp.concatenate([jnp.ones(1), squares[::-1] / _square(v)]))


def _square(v: PyTree) -> Array:
    return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(v)), jnp.zeros(()))


def input_gradients(loss: Callable[[Array], Array], x: Array, steps: Callable[[Array], Array] = lambda g: g) -> Array:
    """f32[T]: the norm of the gradient of a row's loss with respect to its input k steps before the last, k = 0 first;
    the root mean square over rows.

    Args:
      loss: f32[B, ...] -> f32[B], of every row by itself.
      x: f32[B, T, D], or whatever `steps` makes steps of.
      steps: f32[B, ...] -> f32[B, T, D], in the order of reading; moves numbers and changes none.
    """
    g = steps(jax.grad(lambda x: jnp.sum(loss(x)))(x))
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(g), -1), 0))[::-1]


def single_steps(apply: Callable[..., Any], params: PyTree) -> Callable[[PyTree, Array], PyTree]:
    """(carry, x_t f32[B, D]) -> carry: one step of a stateful `umbrella.models.Recurrent` with these parameters.

    Args:
      apply: the module's own.
    """

    def step(carry: PyTree, x: Array) -> PyTree:
        return apply({"params": params, "carry": carry}, x[:, None], train=False, mutable=["carry"])[1]["carry"]

    return step


def lag_curves(
    norms: Mapping[str, Sequence[np.ndarray]], caption: str, *, what: str, dashed: tuple[str, ...] = ()
) -> Curves:
    """Norms over the lag on a logarithmic scale, a line for each name: its mean over seeds, with a 95 % interval.

    Args:
      norms: name -> f[T] of each seed; those of a name are equally long. What is below 1e-20 is drawn there, and what
        is not finite is not.
      what: whose norm.
    """
    series, bands = {}, {}
    for name, each in norms.items():
        logs = np.log10(np.maximum(np.stack([np.asarray(v, np.float64) for v in each]), 10.0**FLOOR))
        mean, half = interval(logs)
        lag = np.arange(len(mean), dtype=np.float64)
        series[name] = (lag, mean)
        if np.isfinite(half).any():
            bands[name] = (mean - half, mean + half)
    return Curves(series, "lag in steps", f"log10 of {what}", caption, bands, dashed)
