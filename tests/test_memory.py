"""Gradients over the time lag, on recurrences whose gradients are known by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umbrella.memory import input_gradients, lag_curves, single_steps, state_gains
from umbrella.models import Recurrent

X = np.random.default_rng(0).normal(size=(2, 5, 1)).astype(np.float32)
KEY = jax.random.key(0)


def test_a_rotation_shrinks_every_direction_alike() -> None:
    """h' = .5 R h + x with a rotation R: |v (.5 R)^k| = .5^k |v| for every v."""
    c, s = np.cos(1.0), np.sin(1.0)
    matrix = (0.5 * np.asarray([[c, -s], [s, c]])).astype(np.float32)
    got = jax.jit(lambda x: state_gains(lambda h, x: h @ matrix + x, jnp.ones((2, 2)), x, KEY))(X)
    np.testing.assert_allclose(got, 0.5 ** np.arange(6), rtol=1e-5)


def test_a_plain_network_of_one_unit_by_the_chain_rule() -> None:
    """h_t = tanh(a x_t + b + u h_{t-1}): dh_T / dh_{T-k} is the product of u (1 - h_t^2) over the last k steps."""
    p = {"input": np.float32([[0.7]]), "bias": np.float32([0.1]), "state": np.float32([[1.3]])}
    h, factors = 0.0, []
    for t in range(5):
        h = np.tanh(0.7 * X[0, t, 0] + 0.1 + 1.3 * h)
        factors.append(1.3 * (1 - h * h))
    model = Recurrent(1, "rnn", stateful=True)
    step = single_steps(model.apply, {"layer_0": p})
    got = jax.jit(lambda x: state_gains(step, {"layer_0": {"h": jnp.zeros((1, 1))}}, x, KEY))(X[:1])
    np.testing.assert_allclose(got, np.cumprod([1, *factors[::-1]]), rtol=1e-4)


def test_the_gradient_of_a_weighted_sum_is_its_weights() -> None:
    """loss = sum over t of .5^(T - 1 - t) (3 x_t0 + 4 x_t1): 5 .5^k is the norm k steps back."""
    weights = 0.5 ** np.arange(4)[::-1, None].astype(np.float32) * np.float32([3, 4])
    x = np.ones((2, 8), np.float32)
    steps = lambda g: g.reshape(2, 4, 2)  # noqa: E731
    got = input_gradients(lambda x: jnp.sum(steps(x) * weights[None], (1, 2)), x, steps)
    np.testing.assert_allclose(got, 5 * 0.5 ** np.arange(4), rtol=1e-6)


def test_curves_are_means_of_logarithms() -> None:
    """Norms of 10 and 1000 have the mean 10^2 on the scale that is drawn; 0 is drawn at 1e-20, NaN is not."""
    norms: Any = {"two": [np.float32([10, 0, 1]), np.float32([1000, 0, np.nan])], "one": [np.float32([1, 1, 1])]}
    curves = lag_curves(norms, "what", what="the norm")
    np.testing.assert_allclose(curves.series["two"][1], [2, -20, 0], atol=1e-6)
    np.testing.assert_array_equal(curves.series["two"][0], [0, 1, 2])
    # Student's t of two values: half = t(.975, 1 degree) * sd / sqrt 2 = 12.706 * sqrt 2 / sqrt 2.
    assert curves.bands["two"][1][0] - 2 == pytest.approx(12.706, rel=1e-4)
    assert "one" not in curves.bands
