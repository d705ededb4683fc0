"""Small problems, and comparisons to the bit, that several tests share."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from umbrella import losses, metrics
from umbrella.models import VAE
from umbrella.objective import Ctx, Objective, measure, supervised
from umbrella.step import Step
from umbrella.train_state import TrainState, create

tmap = jax.tree.map
N, D, C = 64, 6, 3


class Net(nn.Module):
    """Two layers with a norm and dropout: whatever a technique could disturb."""

    norm: str = "layer"
    drop: float = 0.2
    width: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(self.width, use_bias=False, name="hidden")(x.reshape((x.shape[0], -1)))
        if self.norm == "batch":
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        else:
            x = nn.LayerNorm(name="norm")(x)
        x = nn.Dropout(self.drop, deterministic=not train)(nn.tanh(x))
        return nn.Dense(C, name="head")(x)


def rows(n: int = 16, *, seed: int = 0, mask: bool = True) -> dict[str, Any]:
    """A batch: x f32[n, D], y i32[n], and a mask whose last two rows are padding."""
    r = np.random.default_rng(seed)
    out = {
        "x": jnp.asarray(r.normal(size=(n, D)), jnp.float32),
        "y": jnp.asarray(r.integers(0, C, n), jnp.int32),
    }
    return {**out, "mask": jnp.asarray(np.arange(n) < n - 2, jnp.float32)} if mask else out


def classifier(norm: str = "layer", drop: float = 0.2) -> Objective:
    return measure(accuracy=metrics.accuracy)(supervised(Net(norm, drop), losses.cross_entropy))


def autoencoder(hidden: int = 8) -> Objective:
    return supervised(VAE(shape=(D,), latent=2, hidden=(hidden,)), losses.negative_elbo)


def pictures(n: int = 16) -> dict[str, Any]:
    """A batch of binary x f32[n, D] with y = x."""
    x = jnp.asarray(np.random.default_rng(3).random((n, D)) < 0.4, jnp.float32)
    return {"x": x, "y": x, "mask": jnp.asarray(np.arange(n) < n - 2, jnp.float32)}


def fresh(objective: Objective, step: Step, *, seed: int = 0, batch: Any = None) -> TrainState:
    return create(objective.init, step, jax.random.key(seed), rows() if batch is None else batch)


def context(seed: int = 5, **kw: Any) -> Ctx:
    return Ctx(jax.random.key(seed), jnp.int32(0), **kw)


def adam() -> optax.GradientTransformation:
    return optax.adam(1e-2)


def raw(tree: Any) -> list[np.ndarray]:
    def one(x: Any) -> np.ndarray:
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return [one(x) for x in jax.tree.leaves(tree)]


def bits(a: Any, b: Any) -> bool:
    """Equal in structure, dtype and every bit."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in zip(raw(a), raw(b), strict=True)
    )


def gap(a: Any, b: Any) -> float:
    """The largest absolute difference of any leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    both = zip(raw(a), raw(b), strict=True)
    return max(float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max(initial=0)) for x, y in both)


def copy(tree: Any) -> Any:
    return tmap(jnp.copy, tree)


def slow_but(cases: Iterable[str], first: Iterable[str]) -> list[Any]:
    """The cases as parameters of a test, those that are not among the first marked slow: `make test-slow` runs them."""
    quick = set(first)
    return [c if c in quick else pytest.param(c, marks=pytest.mark.slow) for c in cases]
