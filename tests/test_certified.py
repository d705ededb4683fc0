"""Certified training by hand on linear models, and randomised smoothing against SciPy and known distances."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import umbrella as um
from tests.test_smooth import BATCH, CTX, Two, W, X, base
from umbrella import attacks, smoothing, transforms
from umbrella.objective import View

Z = (X @ W)[:3].astype(np.float64)
SIGN = np.asarray([-1.0, 1.0, 1.0])  # the labels 0, 1, 1
WIDTH = np.abs(W).sum()


def test_of_a_linear_model_the_worst_loss_is_known() -> None:
    """The margin within eps is sign w . x - eps |w|_1; the loss log(1 + exp(-margin)), and half of each."""
    o = transforms.certified(eps=0.1)(base())
    params, state = o.init(BATCH, CTX)
    loss, aux = o.apply(params, state, BATCH, CTX)
    clean, worst = (np.mean(np.logaddexp(0, -(SIGN * Z - e * WIDTH))) for e in (0.0, 0.1))
    assert float(loss) == pytest.approx(0.5 * clean + 0.5 * worst, rel=1e-5)
    assert float(aux.metrics["worst_loss"].compute()) == pytest.approx(worst, rel=1e-5)


def test_over_the_ramp_radius_and_share_grow() -> None:
    """In the third of ten steps: .3 of the radius of training, 1 - .5 x .3 of the clean loss."""
    o = transforms.certified(eps=0.1, train_eps=0.2, ramp=10)(base())
    params, state = o.init(BATCH, CTX)
    loss = o.apply(params, state, BATCH, CTX.replace(step=jnp.int32(2)))[0]
    clean, worst = (np.mean(np.logaddexp(0, -(SIGN * Z - e * WIDTH))) for e in (0.0, 0.06))
    assert float(loss) == pytest.approx(0.85 * clean + 0.15 * worst, rel=1e-5)


@pytest.mark.parametrize("how", ["interval", "crown"])
def test_in_evaluation_it_measures_what_is_verified(how: str) -> None:
    o = transforms.certified(eps=0.1, how=how)(base())
    params, state = o.init(BATCH, CTX)
    loss, aux = o.apply(params, state, BATCH, CTX.eval())
    assert float(loss) == pytest.approx(np.mean(np.logaddexp(0, -SIGN * Z)), rel=1e-5)
    assert float(aux.metrics["verified"].compute()) == pytest.approx(np.mean(SIGN * Z - 0.1 * WIDTH > 0))


def test_pixels_have_bounds() -> None:
    """Within [0, 1] a radius of 10 is everything: the worst logit of class 1 is the sum of the negative weights."""
    batch = {**BATCH, "x": jnp.clip(BATCH["x"], 0, 1)}
    o = transforms.certified(eps=10.0, kappa=0.0, bounds=(0.0, 1.0))(base())
    params, state = o.init(batch, CTX)
    worst = np.where(SIGN > 0, W[W < 0].sum(), -W[W > 0].sum())
    assert float(o.apply(params, state, batch, CTX)[0]) == pytest.approx(np.mean(np.logaddexp(0, -worst)), rel=1e-5)


@pytest.mark.slow
def test_what_is_verified_is_never_more_than_what_stands_an_attack() -> None:
    """On a network that was trained for it."""
    model, x = um.models.MLP(out=3, hidden=(16,)), jax.random.uniform(jax.random.key(0), (64, 6))
    y = (x[:, :3]).argmax(-1)
    batch = {"x": x, "y": y}
    o = transforms.certified(eps=0.03)(um.supervised(model, um.losses.cross_entropy))
    params, state = o.init(batch, CTX)
    step = jax.jit(
        lambda p: jax.tree.map(lambda w, g: w - 0.5 * g, p, jax.grad(lambda q: o.apply(q, state, batch, CTX)[0])(p))
    )
    for _ in range(150):
        params = step(params)
    f = lambda x: model.apply({"params": params["model"]}, x, train=False)  # noqa: E731
    found = attacks.found(attacks.apgd(steps=30, loss="dlr"), f, x, y, 0.03, jax.random.key(1))
    verified = {
        how: um.bounds.margins(f, jnp.clip(x - 0.03, 0, 1), jnp.clip(x + 0.03, 0, 1), y, how=how) > 0
        for how in ("interval", "crown")
    }
    for how, sure in verified.items():
        assert not (sure & found.fooled).any(), how
        assert sure.mean() > 0.4


# ------------------------------------------------------------------------------------------------------------ smoothing
def test_the_interval_is_clopper_and_pearsons() -> None:
    k = np.asarray([0, 1, 17, 50, 99, 100])
    got = smoothing.clopper_pearson(jnp.asarray(k), 100, 0.001)
    wanted = [0.0, *stats.beta.ppf(0.001, k[1:], 100 - k[1:] + 1)]
    np.testing.assert_allclose(got, wanted, atol=2e-4)
    np.testing.assert_allclose(
        smoothing.clopper_pearson(jnp.asarray(1000), 1000, 0.001), 0.001 ** (1 / 1000), atol=1e-4
    )


def test_radii_of_a_linear_model() -> None:
    """Under noise w . x is normal around itself, so p = Phi(|w . x| / (sigma |w|)) and the true radius is the distance
    |w . x| / |w|. A certified radius is below it, but for alpha, and grows towards it."""
    net, rng = Two(), np.random.default_rng(3)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    params = net.init(jax.random.key(0), jnp.asarray(x), train=False)["params"]
    f = lambda view, x: net.apply({"params": view.params}, x, train=False)  # noqa: E731
    view, distance = View(params, {}), np.abs(x @ W) / np.linalg.norm(W)
    got = smoothing.certify(f, view, x, jax.random.key(1), sigma=0.5, samples=2000, size=16)
    sure = got.label >= 0
    assert sure.sum() > 25 and (got.label[sure] == (x @ W > 0)[sure]).all()
    assert (got.radius[sure] <= distance[sure] + 1e-6).all() and (got.radius[~sure] == 0).all()
    most = 0.5 * stats.norm.ppf(0.001 ** (1 / 2000))  # of 2000 votes
    assert got.radius.max() <= most + 1e-3
    near = sure & (distance < 0.6)
    assert np.mean(got.radius[near] / distance[near]) > 0.6
    shares = special.ndtr(distance / 0.5)
    assert np.abs(got.votes[sure] / 2000 - shares[sure]).max() < 5 * np.sqrt(0.25 / 2000)


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return jnp.sin(nn.Dense(2)(x))


def test_a_network_without_a_bound_is_refused() -> None:
    o = transforms.certified(eps=0.1)(um.supervised(Masked(), um.losses.cross_entropy))
    params, state = o.init(BATCH, CTX)
    with pytest.raises(um.bounds.UnknownOperation, match="'sin'"):
        o.apply(params, state, BATCH, CTX)
