"""Attention and Transformers: against NumPy, and what must not change what."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umbrella.models.attention import Additive, Dot, MultiHead, attend, rotate, sinusoids
from umbrella.models.transformer import Transformer, stacked, unstacked
from umbrella.settings import SettingsError

KEY = jax.random.key(0)


def softmax(s: np.ndarray) -> np.ndarray:
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_attend_is_the_formula() -> None:
    q, k, v = (np.asarray(jax.random.normal(jax.random.fold_in(KEY, i), (2, 5, 3, 4))) for i in range(3))
    got = attend(q, k, v, causal=True)
    for b, h in np.ndindex(2, 3):
        scores = q[b, :, h] @ k[b, :, h].T / 2  # sqrt(4)
        scores[np.triu_indices(5, 1)] = -np.inf
        np.testing.assert_allclose(got[b, :, h], softmax(scores) @ v[b, :, h], atol=1e-5)
    nothing = attend(q, k, v, mask=jnp.zeros((1, 1, 1, 5), bool))
    np.testing.assert_allclose(nothing, np.broadcast_to(v.mean(1, keepdims=True), v.shape), atol=1e-5)


def test_attend_in_blocks_is_the_formula() -> None:
    """A causal pass over 192 positions multiplies three blocks of queries with no more keys than they may see."""
    q, k, v = (np.asarray(jax.random.normal(jax.random.fold_in(KEY, i), (2, 192, 2, 4))) for i in range(3))
    mask = np.random.default_rng(0).random((2, 1, 192, 192)) < 0.7
    mask |= np.eye(192, dtype=bool)
    keys = mask[:, :, :1].copy()  # of padding: the same for all queries, of which each sees the first position
    keys[..., 0] = True
    for given in (mask, keys):
        got = attend(q, k, v, causal=True, mask=jnp.asarray(given))
        scores = np.einsum("bthd,bshd->bhts", q, k) / 2
        want = softmax(np.where(np.tril(np.ones((192, 192), bool)) & given, scores, -np.inf))
        np.testing.assert_allclose(got, np.einsum("bhts,bshd->bthd", want, v), atol=1e-5)
    # Rates are the bytes' (see layers.drop); the mean of many draws is what there is without.
    keys = jax.random.split(KEY, 400)
    mean = jax.vmap(lambda key: attend(q, k, v, causal=True, dropout=0.25, key=key))(keys).mean(0)
    plain = attend(q, k, v, causal=True)
    assert float(jnp.abs(mean - plain).max()) < 0.35  # sd of the mean is at most max|v| sqrt(.25 / .75 / 400) = .13
    assert float(jnp.abs(mean - plain).mean()) < 0.02


def test_additive_and_dot_are_the_papers() -> None:
    keys, query = jax.random.normal(KEY, (2, 4, 3)), jax.random.normal(KEY, (2, 3))
    there = jnp.array([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    for module in (Additive(6), Dot()):
        params = module.init(KEY, keys, query, there=there)
        mean, weights = module.apply(params, keys, query, there=there)
        p, k, q = (jax.tree.map(np.asarray, v) for v in (params["params"], keys, query))
        if isinstance(module, Additive):
            h = np.tanh(k @ p["keys"]["kernel"] + p["keys"]["bias"] + (q @ p["query"]["kernel"])[:, None])
            scores = (h @ p["score"]["kernel"])[..., 0]
        else:
            scores = np.einsum("bsd,bd->bs", k, q @ p["query"]["kernel"]) / math.sqrt(3)
        want = softmax(np.where(np.asarray(there) > 0, scores, -np.inf))
        np.testing.assert_allclose(weights, want, atol=1e-6)
        np.testing.assert_allclose(mean, np.einsum("bs,bsd->bd", want, k), atol=1e-6)


def test_rotary_scores_know_distances_alone() -> None:
    q, k = jax.random.normal(KEY, (1, 1, 1, 8)), jax.random.normal(jax.random.key(1), (1, 1, 1, 8))
    at = [(3, 1), (10, 8), (103, 101)]
    scores = [float(jnp.sum(rotate(q, jnp.array([[i]])) * rotate(k, jnp.array([[j]])))) for i, j in at]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-4)
    assert abs(scores[0] - float(jnp.sum(q * k))) > 1e-3
    with pytest.raises(SettingsError, match="odd one"):
        rotate(jnp.zeros((1, 1, 1, 3)), jnp.zeros((1, 1), jnp.int32))


def test_sinusoids_by_hand() -> None:
    """Position 2, width 4: sin 2, cos 2, sin(2 / 100), cos(2 / 100)."""
    np.testing.assert_allclose(
        sinusoids(3, 4)[2], [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)], atol=1e-6
    )


SHAPES = [("learned", "pre"), ("rotary", "pre"), ("sinusoidal", "post")]


@pytest.mark.parametrize(("positions", "norm"), SHAPES)
def test_cached_decoding_is_the_full_pass(positions: Any, norm: Any) -> None:
    """In pieces of four, one and three positions; and what comes later changes nothing before it."""
    net = Transformer(width=16, layers=2, heads=2, length=12, causal=True, positions=positions, norm=norm)
    x = jax.random.normal(KEY, (2, 8, 16))
    params = net.init(KEY, x, train=False)
    full = net.apply(params, x, train=False)
    cache: dict[str, Any] = {}
    pieces = []
    for cut in (slice(0, 4), slice(4, 5), slice(5, 8)):
        out, cache = net.apply({**params, **cache}, x[:, cut], decode=True, train=False, mutable=["cache"])
        pieces.append(out)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), full, atol=1e-5)
    other = net.apply(params, x.at[:, 5:].set(7.0), train=False)
    np.testing.assert_array_equal(other[:, :5], full[:, :5])
    assert float(jnp.abs(other[:, 5:] - full[:, 5:]).max()) > 1e-3


def test_padding_of_a_memory_and_of_an_input_changes_nothing() -> None:
    net = Transformer(width=8, layers=1, heads=2, length=6, cross=True)
    x, memory = jax.random.normal(KEY, (2, 4, 8)), jax.random.normal(KEY, (2, 5, 8))
    there, beyond = jnp.array([[1.0, 1, 1, 0]] * 2), jnp.array([[1.0, 1, 0, 0, 0]] * 2)
    params = net.init(KEY, x, memory=memory, train=False)

    def run(x: Any, memory: Any) -> Any:
        return net.apply(params, x, there=there, memory=memory, memory_there=beyond, train=False)[:, :3]

    np.testing.assert_array_equal(run(x, memory), run(x.at[:, 3].set(9.0), memory.at[:, 2:].set(-9.0)))
    assert float(jnp.abs(run(x, memory) - run(x, memory.at[:, 1].set(-9.0))).max()) > 1e-4
    with pytest.raises(ValueError, match="needs a memory"):
        net.apply(params, x, train=False)


def test_remat_and_sixteen_bits_are_the_same_function() -> None:
    """Rematerialised to rounding, also its gradient; in bf16 within its eight bits, in fp16 within its eleven."""
    x = jax.random.normal(KEY, (2, 6, 16))
    make = {"width": 16, "layers": 2, "heads": 2, "length": 6, "causal": True}
    plain = Transformer(**make)
    params = plain.init(KEY, x, train=False)

    def loss(net: Transformer) -> Any:
        return jax.value_and_grad(lambda p: jnp.square(net.apply(p, x, train=False)).sum())(params)

    want = loss(plain)
    for remat in (True, "dots", "dots_no_batch"):
        again = loss(Transformer(**make, remat=remat))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), again, want)
    full = plain.apply(params, x, train=False)
    for precision, bound in (("bf16", 0.05), ("fp16", 0.05 / 8)):
        low = Transformer(**make, precision=precision).apply(params, x, train=False)
        assert low.dtype == jnp.float32
        assert not np.array_equal(low, full)
        np.testing.assert_allclose(low, full, atol=bound)


@pytest.mark.parametrize("remat", [False, True, "dots_no_batch"])
def test_blocks_in_a_loop_are_the_blocks_one_after_the_other(remat: Any) -> None:
    """Outputs and gradients, with a mask and a memory; there is one program of a block whatever their number."""
    make = {"width": 16, "heads": 2, "length": 6, "causal": True, "cross": True, "remat": remat}
    x, memory = jax.random.normal(KEY, (2, 6, 16)), jax.random.normal(KEY, (2, 5, 16))
    there = jnp.array([[1.0, 1, 1, 1, 1, 0]] * 2)
    plain, loop = (Transformer(layers=3, scan=scan, **make) for scan in (False, True))
    params = plain.init(KEY, x, memory=memory, train=False)["params"]
    joined = stacked(params, 3)
    made = jax.eval_shape(lambda: loop.init(KEY, x, memory=memory, train=False)["params"])
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, joined)
    jax.tree.map(np.testing.assert_array_equal, unstacked(joined, 3), params)

    def loss(net: Transformer, params: Any) -> Any:
        out = net.apply({"params": params}, x, there=there, memory=memory, train=False)
        return jnp.square(out).sum(), out

    (_, want), g = jax.value_and_grad(partial(loss, plain), has_aux=True)(params)
    (_, got), scanned = jax.value_and_grad(partial(loss, loop), has_aux=True)(joined)
    np.testing.assert_allclose(got, want, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), scanned, stacked(g, 3))
    equations = {}
    for layers in (2, 6):
        for scan in (False, True):
            net = Transformer(layers=layers, scan=scan, **make)
            about = jax.eval_shape(lambda net=net: net.init(KEY, x, memory=memory, train=False))
            equations[layers, scan] = len(
                str(jax.make_jaxpr(lambda p, net=net: net.apply(p, x, memory=memory, train=False))(about))
            )
    assert equations[6, True] < 1.1 * equations[2, True] and equations[6, False] > 2 * equations[2, False]


def test_dropout_differs_from_block_to_block_of_a_loop() -> None:
    """Two blocks of the same parameters give, with the second one's noise, not what the first one's twice would."""
    x = jax.random.normal(KEY, (1, 4, 16))
    net = Transformer(16, layers=2, heads=2, positions="none", dropout=0.5, scan=True)
    params = net.init(KEY, x, train=False)
    kernels = params["params"]["blocks"]["block"]["in"]["kernel"]
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 0.01  # each is drawn anew
    a, b = (net.apply(params, x, train=True, rngs={"dropout": jax.random.key(k)}) for k in (1, 2))
    assert float(jnp.abs(a - b).max()) > 0.01
    with pytest.raises(ValueError, match="does not decode"):
        net.clone(length=4).apply(params, x, decode=True, train=False, mutable=["cache"])


def test_remat_keeps_what_it_says() -> None:
    """Between the passes, of two layers: True their inputs; "dots_no_batch" what dense layers give, too, 3 + 1 + 4 + 1
    widths a position and layer; "dots" scores and what is mixed by them as well; False everything."""
    x = jnp.ones((2, 128, 16))
    params = Transformer(16, layers=2, heads=2, causal=True, positions="none").init(KEY, x, train=False)
    kept = {}
    for remat in (True, "dots_no_batch", "dots", False):
        net = Transformer(16, layers=2, heads=2, causal=True, positions="none", remat=remat)
        _, back = jax.vjp(lambda p, net=net: net.apply(p, x, train=False), params)
        kept[remat] = [v.shape for v in jax.tree.leaves(back)]
    rows = {k: sum(math.prod(s) for s in v) for k, v in kept.items()}
    assert rows[True] < rows["dots_no_batch"] < rows["dots"] < rows[False]
    # The last product, whose gradient needs its inputs alone, may go.
    assert 2 * 128 * 16 * 8 * 2 <= rows["dots_no_batch"] - rows[True] <= 2 * 128 * 16 * 9 * 2
    scores = (2, 2, 64, 128)  # of the second block of queries
    assert [scores in kept[k] for k in (True, "dots_no_batch", "dots", False)] == [False, False, True, True]


def test_refusals() -> None:
    x = jnp.zeros((1, 4, 6))
    with pytest.raises(SettingsError, match="4 heads do not divide a width of 6"):
        MultiHead(6, 4).init(KEY, x, train=False)
    with pytest.raises(ValueError, match="at most 3"):
        Transformer(width=6, heads=2, length=3).init(KEY, x, train=False)
    with pytest.raises(ValueError, match="need the transformer's length"):
        Transformer(width=6, heads=2).init(KEY, x, train=False)
