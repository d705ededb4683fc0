"""Recurrent layers against NumPy with the same weights, and what padding, carrying over and reading backwards mean."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from umbrella.models.linear import linear_scan
from umbrella.models.recurrent import KINDS, Recurrent, ends, last

B, T, D, W = 3, 6, 4, 5
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
LENGTHS = np.asarray([6, 3, 1])
THERE = (np.arange(T)[None] < LENGTHS[:, None]).astype(np.float32)


def drawn(model: Recurrent, x: Any = X) -> Any:
    """Parameters by NumPy, so that no bias is zero and no scale one."""
    r = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x))["params"]
    return jax.tree.map(lambda v: (0.5 * r.normal(size=v.shape)).astype(np.float32), shapes)


@partial(jax.jit, static_argnums=0)
def start(model: Recurrent, x: Any = X) -> Any:
    return model.init(jax.random.key(0), x)


@partial(jax.jit, static_argnums=0)
def run(model: Recurrent, params: Any, x: Any, there: Any = None) -> Any:
    return model.apply({"params": params}, x, there=there)


def normed(v: np.ndarray) -> np.ndarray:
    return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)


def cell(kind: str, p: Any, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A step as torch's documentation writes it (RNN, LSTM, GRU), Ba et al. 2016 eq. 20 to 22, Gers et al. 2002."""
    p = {k: np.asarray(v, np.float64) for k, v in p.items()}
    wx, wh = x @ p["input"], h @ p["state"]
    if kind == "rnn":
        return np.tanh(wx + p["bias"] + wh), c
    if kind == "gru":
        xr, xz, xn = np.split(wx + p["bias"], 3, -1)
        hr, hz, hn = np.split(wh, 3, -1)
        z = expit(xz + hz)
        return (1 - z) * np.tanh(xn + expit(xr + hr) * (hn + p["candidate_bias"])) + z * h, c
    if kind == "layernorm_lstm":
        wx, wh = normed(wx) * p["input_scale"], normed(wh) * p["state_scale"]
    i, f, g, o = np.split(wx + wh + p["bias"], 4, -1)
    peep = np.split(p["peephole"], 3) if kind == "peephole_lstm" else (0, 0, 0)
    new = expit(f + peep[1] * c) * c + expit(i + peep[0] * c) * np.tanh(g)
    seen = normed(new) * p["cell_scale"] + p["cell_bias"] if kind == "layernorm_lstm" else new
    return expit(o + peep[2] * new) * np.tanh(seen), new


def by_hand(kind: str, p: Any, x: np.ndarray, length: int, back: bool) -> np.ndarray:
    """One direction of a layer over the first `length` steps of one row f[T, D]; NaN at padding."""
    h, c = np.zeros((2, W))
    out = np.full((len(x), W), np.nan)
    for t in reversed(range(length)) if back else range(length):
        h, c = cell(kind, p, x[t], h, c)
        out[t] = h
    return out


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_stacked_both_ways_and_padded_by_numpy(kind: str) -> None:
    model = Recurrent(W, kind, layers=2, bidirectional=True)  # type: ignore[arg-type]
    params = drawn(model)
    got = run(model, params, X, THERE)
    for row, length in enumerate(LENGTHS):
        x = X[row].astype(np.float64)
        for i in range(2):
            halves = [by_hand(kind, params[f"layer_{i}{b}"], x, length, bool(b)) for b in ("", "_back")]
            x = np.concatenate(halves, -1)
        np.testing.assert_allclose(got[row, :length], x[:length], atol=1e-5)
    np.testing.assert_allclose(
        ends(got, THERE)[1], np.concatenate([got[1, 2, :W], got[1, 0, W:]]), atol=0
    )  # row 1 has three steps: forwards its end is the third, backwards the first


@pytest.mark.parametrize("kind", [*sorted(KINDS), "linear"])
def test_padding_changes_nothing(kind: str) -> None:
    """Rows of 6, 3 and 1 steps: whatever stands behind them, states and gradients of what is there are the same."""
    width = 6
    model = Recurrent(width, kind, layers=2, bidirectional=True)  # type: ignore[arg-type]
    params = drawn(model)
    garbage = np.where(THERE[..., None] > 0, X, 1e3 * X[::-1, ::-1]).astype(np.float32)

    def told(params: Any, x: Any) -> Any:
        h = model.apply({"params": params}, x, there=THERE)
        return jnp.sum(jnp.square(h) * THERE[..., None]), ends(h, THERE)

    both = jax.jit(jax.value_and_grad(told, has_aux=True))
    one, other = both(params, X), both(params, garbage)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), one, other)
    alone = run(model, params, X[1:2, :3])
    np.testing.assert_allclose(ends(alone)[0], one[0][1][1], atol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru", "linear"])
def test_pieces_are_the_whole_and_fresh_rows_forget(kind: str) -> None:
    model = Recurrent(6, kind, layers=2, stateful=True)  # type: ignore[arg-type]
    variables = start(model, X[:, :2])
    assert all(not np.any(v) for v in jax.tree.leaves(variables["carry"]))  # to make it is no step
    params, carry = drawn(model), variables["carry"]
    apply = jax.jit(lambda carry, x, there, fresh: model.apply(
        {"params": params, "carry": carry}, x, there=there, fresh=fresh, mutable=["carry"]
    ))  # fmt: skip
    whole, pieces = run(model, params, X), []
    ones, none = np.ones((B, 2), np.float32), np.zeros(B, np.float32)
    for t in range(0, T, 2):
        h, new = apply(carry, X[:, t : t + 2], ones, none)
        pieces.append(h)
        carry = new["carry"]
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, atol=1e-5)  # without a carry it starts at zero
    # Row 1 starts anew; row 2 is padding, which leaves its carry to the bit.
    h, new = apply(carry, X[:, :2], ones * np.asarray([[1], [1], [0]], np.float32), np.asarray([0, 1, 0], np.float32))
    np.testing.assert_allclose(h[1], whole[1, :2], atol=1e-5)
    assert np.abs(h[0] - whole[0, :2]).max() > 1e-3
    jax.tree.map(lambda old, kept: np.testing.assert_array_equal(old[2], kept[2]), carry, new["carry"])


@pytest.mark.parametrize("back", [False, True])
def test_the_linear_scan_is_its_loop_and_numpys(back: bool) -> None:
    """h_t = a h_{t-1} + b_t in complex128; three rows of 6, 3 and 1 steps of two numbers."""
    r = np.random.default_rng(2)
    a, before, b = (r.normal(size=s) + 1j * r.normal(size=s) for s in ((2,), (B, 2), (T, B, 2)))
    a /= 1.1 * np.abs(a)
    want, h = np.zeros((T, B, 2), complex), before
    for t in reversed(range(T)) if back else range(T):
        h = np.where(THERE[:, t, None] > 0, a * h + b[t], h)
        want[t] = h
    parts = [(v.real.astype(np.float32), v.imag.astype(np.float32)) for v in (a, b, before)]

    @partial(jax.jit, static_argnums=0)
    def both(how: Any, parts: Any) -> Any:
        def total(parts: Any) -> Any:
            h = linear_scan(*parts, real=THERE.T[..., None] > 0, back=back, how=how)
            return jnp.sum(jnp.sin(h[0]) + h[1] ** 2), h

        return jax.value_and_grad(total, has_aux=True)(parts)

    loop, scan = both("loop", parts), both("scan", parts)
    np.testing.assert_allclose(np.asarray(scan[0][1][0]) + 1j * np.asarray(scan[0][1][1]), want, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-5), loop, scan)
    plain = [linear_scan(*parts, back=back, how=how) for how in ("loop", "scan")]
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), *plain)


@pytest.mark.parametrize("kind", ["rnn", "layernorm_lstm", "linear"])
def test_the_gradient_is_finite_after_500_steps(kind: str) -> None:
    model = Recurrent(8, kind)  # type: ignore[arg-type]
    x = np.random.default_rng(3).normal(size=(2, 500, 1)).astype(np.float32)
    params = start(model, x[:, :1])["params"]
    g = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(last(model.apply({"params": p}, x))))))(params)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(g))
    assert max(np.abs(v).max() for v in jax.tree.leaves(g)) > 0


def test_the_last_step_that_is_there() -> None:
    h = np.arange(B * T * 2, dtype=np.float32).reshape(B, T, 2)
    np.testing.assert_array_equal(last(h, THERE), h[np.arange(B), LENGTHS - 1])
    np.testing.assert_array_equal(last(h), h[:, -1])
    np.testing.assert_array_equal(last(h, np.zeros_like(THERE)), h[:, 0])


def test_it_starts_orthogonal_and_remembering() -> None:
    p = start(Recurrent(4, "lstm"))["params"]["layer_0"]
    np.testing.assert_array_equal(p["bias"], np.repeat([0, 1, 0, 0], 4))  # input, forget, cell, output
    for matrix in np.split(np.asarray(p["state"]), 4, 1):
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(4), atol=1e-5)
    size = np.exp(-np.exp(start(Recurrent(64, "linear"))["params"]["layer_0"]["nu"]))
    assert 0.9 <= size.min() < 0.93 and 0.97 < size.max() <= 0.9991


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(ValueError, match="reads the future first"):
        Recurrent(4, stateful=True, bidirectional=True).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="needs an even one"):
        Recurrent(5, "linear").init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="lstmm"):
        Recurrent(4, "lstmm").init(jax.random.key(0), X)  # type: ignore[arg-type]
