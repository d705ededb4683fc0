"""TRADES, virtual adversarial training, perturbed weights: by hand on linear models of two classes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import umbrella as um
from umbrella import transforms
from umbrella.objective import Ctx, Objective, Transform
from umbrella.transforms.smooth import divergence

W = np.asarray([0.5, -1.0, 2.0], np.float32)
X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
BATCH = {"x": jnp.asarray(X), "y": jnp.asarray([0, 1, 1, 0]), "mask": jnp.asarray([1.0, 1.0, 1.0, 0.0])}
CTX = Ctx(jax.random.key(0), jnp.int32(0), {})


class Two(nn.Module):
    """Logits 0 and w . x."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        w = self.param("w", lambda key: jnp.asarray(W).reshape(3, 1))
        return jnp.concatenate([jnp.zeros((x.shape[0], 1)), x @ w], 1)


def base() -> Objective:
    return um.supervised(Two(), um.losses.cross_entropy)


def told(transform: Transform, name: str) -> tuple[float, float, float]:
    """(the loss, the base's, the term that is reported)."""
    o = transform(base())
    params, state = o.init(BATCH, CTX)
    loss, aux = o.apply(params, state, BATCH, CTX)
    return float(loss), float(base().apply(params, state, BATCH, CTX)[0]), float(aux.metrics[name].compute())


def kl(z: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of two classes, from the second's logit."""
    p, q = special.expit(np.stack([-z, z])), special.expit(np.stack([-other, other]))
    return special.rel_entr(p, q).sum(0)


def test_the_divergence_is_scipys() -> None:
    z, other = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    wanted = special.rel_entr(special.softmax(z, -1), special.softmax(other, -1)).sum(-1)
    np.testing.assert_allclose(divergence(jnp.asarray(z), jnp.asarray(other)), wanted, rtol=1e-4)


def test_trades_of_a_linear_model() -> None:
    """The logit moves by eps |w|_1 = .1 x 3.5, up or down; where the divergence starts is decided by the noise, so each
    row has one of the two, and the mean of three rows lies among their eight means. The padded row does not count."""
    loss, plain, term = told(transforms.trades(eps=0.1, beta=2.0, steps=5), "trades")
    z = (X @ W)[:3].astype(np.float64)
    up, down = kl(z, z + 0.35), kl(z, z - 0.35)
    choices = [np.mean(c) for c in np.stack(np.meshgrid(*zip(up, down, strict=True)), -1).reshape(-1, 3)]
    assert np.abs(np.asarray(choices) - term).min() < 1e-5
    assert loss == pytest.approx(plain + 2.0 * term, rel=1e-5)


def test_trades_stays_in_the_bounds() -> None:
    inside = {**BATCH, "x": jnp.clip(BATCH["x"], 0, 1)}
    o = transforms.trades(eps=10.0, bounds=(0.0, 1.0), steps=3)(base())
    params, state = o.init(inside, CTX)
    term = float(o.apply(params, state, inside, CTX)[1].metrics["trades"].compute())
    # The logit of a pixel within [0, 1] is between -1 and 2.5: at most that far from any.
    z = np.asarray(inside["x"])[:3] @ W
    assert term <= np.mean(np.maximum(kl(z, np.full(3, 2.5)), kl(z, np.full(3, -1.0)))) + 1e-5


def test_vat_of_a_linear_model() -> None:
    """The divergence turns along w alone: r = +- eps w / |w|, and the logit moves by +- eps |w|."""
    loss, plain, term = told(transforms.vat(eps=0.2, weight=3.0), "vat")
    z, step = (X @ W)[:3].astype(np.float64), 0.2 * np.linalg.norm(W)
    choices = np.stack(np.meshgrid(*zip(kl(z, z + step), kl(z, z - step), strict=True)), -1).reshape(-1, 3).mean(-1)
    assert np.abs(choices - term).min() < 1e-5
    assert loss == pytest.approx(plain + 3.0 * term, rel=1e-5)


def test_vat_needs_no_labels() -> None:
    """Its term is the same whatever they say."""
    terms = []
    for y in ([0, 1, 1, 0], [1, 0, 0, 1]):
        o = transforms.vat(eps=0.2)(base())
        batch = {**BATCH, "y": jnp.asarray(y)}
        params, state = o.init(batch, CTX)
        terms.append(float(o.apply(params, state, batch, CTX)[1].metrics["vat"].compute()))
    assert terms[0] == terms[1]


def test_weights_are_moved_by_gamma_of_their_norm() -> None:
    """The loss at w + gamma |w| g / |g|, g by hand: mean (sigma(w . x) - y) x."""
    o = transforms.awp(gamma=0.1)(base())
    params, state = o.init(BATCH, CTX)
    x, y = X[:3].astype(np.float64), np.asarray([0, 1, 1])
    g = np.mean((special.expit(x @ W) - y)[:, None] * x, 0)
    moved = W + 0.1 * np.linalg.norm(W) * g / np.linalg.norm(g)
    z = x @ moved
    wanted = np.mean(np.logaddexp(0, z) - y * z)
    assert float(o.apply(params, state, BATCH, CTX)[0]) == pytest.approx(wanted, rel=1e-5)
    assert float(o.apply(params, state, BATCH, CTX.eval())[0]) == pytest.approx(
        np.mean(np.logaddexp(0, x @ W) - y * (x @ W)), rel=1e-5
    )


def test_what_is_no_classifier_is_refused() -> None:
    o = transforms.trades(eps=0.1)(um.supervised(um.models.Filter(), um.losses.squared_error))
    batch = {"x": jnp.ones((2, 5, 5, 1)), "y": jnp.ones((2, 3, 3, 1))}
    params, state = o.init(batch, CTX)
    with pytest.raises(ValueError, match=r"about logits f32\[B, C\]"):
        o.apply(params, state, batch, CTX)
