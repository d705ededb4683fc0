"""The losses against SciPy, quadrature and sums that must be one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from umbrella import losses
from umbrella.models import VAE

Array = jax.Array


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def f32(x: Any) -> Array:
    return jnp.asarray(x, jnp.float32)


# ------------------------------------------------------------------------------------------------- cross_entropy
@pytest.mark.parametrize("lead", [(7,), (4, 5)])
def test_cross_entropy_is_scipys_log_softmax(rng: np.random.Generator, lead: tuple[int, ...]) -> None:
    logits, y = 5 * rng.normal(size=(*lead, 6)), rng.integers(0, 6, lead)
    wanted = -np.take_along_axis(special.log_softmax(logits, -1), y[..., None], -1)[..., 0]
    got = losses.cross_entropy(f32(logits), jnp.asarray(y, jnp.int32))
    assert got.shape == lead
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_labels_and_of_distributions(rng: np.random.Generator) -> None:
    """Integers are one-hot vectors; a soft label gives sum_c y_c times the loss of class c."""
    logits, y = rng.normal(size=(5, 4)), rng.integers(0, 4, 5)
    hard = losses.cross_entropy(f32(logits), jnp.asarray(y, jnp.int32))
    np.testing.assert_array_equal(hard, losses.cross_entropy(f32(logits), f32(np.eye(4)[y])))
    soft = rng.dirichlet(np.ones(4), 5)
    wanted = -(soft * special.log_softmax(logits, -1)).sum(-1)
    np.testing.assert_allclose(losses.cross_entropy(f32(logits), f32(soft)), wanted, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.int8])
def test_an_index_that_is_no_class_costs_nan_and_disturbs_no_other_row(dtype: Any) -> None:
    """Three classes, even logits: log 3 for a label. 3, 7 and -1 (in u8: 255) are none; their rows pass no gradient,
    the others softmax - one-hot, which is 1/3 less 1 at the label."""
    y = jnp.asarray([0, 3, 2, -1, 7]).astype(dtype)
    loss = jax.jit(lambda v: losses.cross_entropy(v, y))
    np.testing.assert_allclose(loss(jnp.zeros((5, 3))), [np.log(3), np.nan, np.log(3), np.nan, np.nan], rtol=1e-6)
    slope = jax.jit(jax.grad(lambda v: jnp.nansum(loss(v))))(jnp.zeros((5, 3)))
    wanted = np.zeros((5, 3))
    wanted[[0, 2]] = 1 / 3 - np.eye(3)[[0, 2]]
    np.testing.assert_allclose(slope, wanted, atol=1e-6)


def test_an_index_above_what_its_dtype_can_count_to() -> None:
    """Of 300 classes, label 20 as u8 is class 20, and 276 = 256 + 20 is not it."""
    logits = f32(np.random.default_rng(0).normal(size=(1, 300)))
    wanted = -special.log_softmax(np.asarray(logits))[0, 20]
    assert float(losses.cross_entropy(logits, jnp.asarray([20], jnp.uint8))[0]) == pytest.approx(wanted, rel=1e-5)


def test_a_class_that_is_ruled_out() -> None:
    """Logits 0, 1, -inf and label 1: log(1 + e) - 1 = log(1 + 1 / e), and the gradient is softmax less one-hot."""
    for y in (jnp.asarray([1], jnp.int32), f32([[0.0, 1.0, 0.0]])):
        one = jax.jit(jax.value_and_grad(lambda v, y=y: losses.cross_entropy(v, y)[0]))
        loss, slope = one(f32([[0.0, 1.0, -np.inf]]))
        assert float(loss) == pytest.approx(np.log1p(np.exp(-1)))
        p = np.e / (1 + np.e)
        np.testing.assert_allclose(slope, [[1 - p, p - 1, 0]], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        ((4, 1), jnp.int32, r"are class indices: for logits \(4, 3\) their shape is \(4,\), not \(4, 1\)"),
        ((4, 3), jnp.int32, r"are class indices: .* not \(4, 3\)"),
        ((4,), jnp.float32, r"are distributions over the classes: .* is \(4, 3\), not \(4,\)"),
        ((4, 1), jnp.float32, r"are distributions over the classes: .* not \(4, 1\)"),
        ((4,), jnp.bool_, "labels of dtype bool: give class indices"),
    ],
)
def test_labels_of_another_shape_than_their_dtype_asks_for(shape: tuple[int, ...], dtype: Any, says: str) -> None:
    """i32[B, 1] against f32[B, C] was taken for a soft label."""
    with pytest.raises(ValueError, match=says):
        losses.cross_entropy(jnp.zeros((4, 3)), jnp.zeros(shape, dtype))


# ----------------------------------------------------------------------------------- squared error and Bernoulli
def test_squared_error_pairs_a_column_with_a_row() -> None:
    """(1 - 2)^2, (3 - 5)^2, (0 - 4)^2 = 1, 4, 16, whichever of the two is [B, 1]. Broadcast, it would be [3, 3]."""
    a, b = f32([1.0, 3.0, 0.0]), f32([2.0, 5.0, 4.0])
    for prediction, y in ((a[:, None], b), (a, b[:, None]), (a, b), (a[:, None], b[:, None])):
        np.testing.assert_allclose(losses.squared_error(prediction, y), [1.0, 4.0, 16.0])


@pytest.mark.parametrize("loss", [losses.squared_error, losses.bernoulli, losses.discretized_logistic])
@pytest.mark.parametrize(("a", "b"), [((6, 3), (6,)), ((6, 1, 3), (6, 3, 3)), ((6, 2, 3), (6, 3, 2)), ((6,), (1,))])
def test_shapes_that_only_broadcasting_would_fit(loss: Any, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Even where JAX would let ranks promote, as it does outside of these tests."""
    if loss is losses.discretized_logistic:
        loss = lambda m, y: losses.discretized_logistic(m, jnp.zeros(a[-1]), y)  # noqa: E731
    with jax.numpy_rank_promotion("allow"):
        for shapes in ((a, b), (b, a)):
            with pytest.raises(ValueError, match="must be equal"):
                loss(*(jnp.zeros(s) for s in shapes))


def test_squared_error_sums_over_all_but_the_rows(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 2, 4))
    np.testing.assert_allclose(losses.squared_error(f32(a), f32(b)), ((a - b) ** 2).sum((1, 2)), rtol=1e-5)


def test_bernoulli_is_scipys(rng: np.random.Generator) -> None:
    logits, y = 3 * rng.normal(size=(6, 2, 3)), rng.integers(0, 2, (6, 2, 3))
    wanted = -stats.bernoulli(special.expit(logits)).logpmf(y).sum((1, 2))
    np.testing.assert_allclose(losses.bernoulli(f32(logits), f32(y)), wanted, rtol=1e-5)


def test_the_gradient_of_bernoulli_is_sigmoid_less_y() -> None:
    """In both tails, and at 0, where the formula that is used has two kinks that must cancel."""
    logits = np.array([-1e4, -30.0, -1.0, -1e-30, 0.0, 1e-30, 1.0, 30.0, 1e4])
    slope = jax.jit(jax.grad(lambda v, y: losses.bernoulli(v, y).sum()))
    for y in (0.0, 0.3, 1.0):
        got = slope(f32(logits)[None], jnp.full((1, len(logits)), y, jnp.float32))
        np.testing.assert_allclose(got[0], special.expit(logits) - y, rtol=1e-6, atol=1e-7)


def test_bernoulli_of_grey_values_is_linear_in_them(rng: np.random.Generator) -> None:
    """y log p + (1 - y) log(1 - p) at y = .25 is a quarter of the loss at 1 and three quarters of that at 0."""
    logits = f32(rng.normal(size=(4, 3)))
    at = lambda v: losses.bernoulli(logits, jnp.full((4, 3), v, jnp.float32))  # noqa: E731
    np.testing.assert_allclose(at(0.25), 0.25 * at(1.0) + 0.75 * at(0.0), rtol=1e-5)


# --------------------------------------------------------------------------------------------------- gaussian_kl
def test_gaussian_kl_by_hand() -> None:
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2.

    m = 2, s^2 = 4: (4 + 4 - 1 - log 4) / 2 = (7 - 1.386294) / 2 = 2.806853. m = 0, s^2 = 1: 0. Latents add up.
    """
    log_4 = np.log(4.0)
    got = losses.gaussian_kl(f32([[2.0, 0.0], [0.0, 0.0], [2.0, 2.0]]), f32([[log_4, 0.0], [0.0, 0.0], [log_4, log_4]]))
    np.testing.assert_allclose(got, [2.806853, 0.0, 5.613706], rtol=1e-6)


@pytest.mark.parametrize(("mean", "log_var"), [(0.7, -1.3), (-2.0, 0.8), (0.0, -4.0)])
def test_gaussian_kl_is_the_integral(mean: float, log_var: float) -> None:
    q = stats.norm(mean, np.exp(0.5 * log_var))
    wanted, _ = integrate.quad(
        lambda z: q.pdf(z) * (q.logpdf(z) - stats.norm.logpdf(z)), mean - 12, mean + 12, points=[mean]
    )
    np.testing.assert_allclose(losses.gaussian_kl(f32([[mean]]), f32([[log_var]]))[0], wanted, rtol=1e-5)


# ------------------------------------------------------------------------------------------ discretized logistic
LEVELS = np.arange(256) / 255


@pytest.mark.parametrize(("location", "log_scale"), [(0.5, -2.0), (0.0, -1.0), (1.0, -5.0), (0.3, -7.0), (-2.0, 1.0)])
def test_the_levels_of_a_discretized_logistic_add_up_to_one(location: float, log_scale: float) -> None:
    y = f32(LEVELS)[:, None]
    got = losses.discretized_logistic(jnp.full((256, 1), location, jnp.float32), f32([log_scale]), y)
    np.testing.assert_allclose(np.exp(-np.asarray(got, np.float64)).sum(), 1, atol=1e-4)


@pytest.mark.parametrize(("location", "scale"), [(0.5, 0.1), (0.1, 0.02), (0.9, 0.3)])
def test_a_discretized_logistic_is_a_difference_of_scipys_cdf(location: float, scale: float) -> None:
    """P(y) = F(y + 1/510) - F(y - 1/510); the outermost bins reach to infinity. In the centre and in both tails.

    Right of the centre the difference is that of survival functions, since F is 1 there to all digits.
    """
    law, half = stats.logistic(location, scale), 1 / 510
    upper = np.where(1 - half < LEVELS, np.inf, LEVELS + half)
    lower = np.where(half > LEVELS, -np.inf, LEVELS - half)
    wanted = np.where(location > LEVELS, law.cdf(upper) - law.cdf(lower), law.sf(lower) - law.sf(upper))
    got = losses.discretized_logistic(
        jnp.full((256, 1), location, jnp.float32), f32([np.log(scale)]), f32(LEVELS)[:, None]
    )
    np.testing.assert_allclose(got, -np.log(wanted), rtol=2e-4, atol=1e-4)


def test_a_discretized_logistic_far_in_the_tail() -> None:
    """Where the difference of two sigmoids underflows: for y >> m, with a width s, P ~ exp(-(y - m) / s) (exp(h / s) -
    exp(-h / s)); at m = 0, s = 1/1000, y = 254/255: -log P = 996.0784 - log(2 sinh(1000/510)) = 996.0784 - 1.9407."""
    got = losses.discretized_logistic(f32([[0.0]]), f32([np.log(1e-3)]), f32([[254 / 255]]))
    np.testing.assert_allclose(got[0], 254 / 255 * 1000 - np.log(2 * np.sinh(1000 / 510)), rtol=1e-5)


def test_channels_have_widths_of_their_own(rng: np.random.Generator) -> None:
    y, log_scale = f32(rng.integers(0, 256, (3, 2, 2, 3)) / 255), f32([-3.0, -2.0, -1.0])
    location = f32(rng.random((3, 2, 2, 3)))
    loss = jax.jit(losses.discretized_logistic)
    each = [loss(location[..., c : c + 1], log_scale[c : c + 1], y[..., c : c + 1]) for c in range(3)]
    np.testing.assert_allclose(loss(location, log_scale, y), sum(each), rtol=1e-5)


def test_the_discretized_logistic_has_finite_gradients_at_every_level() -> None:
    y = f32(LEVELS)[:, None]
    gradient = jax.jit(jax.grad(lambda m, s: losses.discretized_logistic(m, s, y).sum(), argnums=(0, 1)))
    for log_scale in (-12.0, -7.0, 0.0, 5.0):
        for location in (0.0, 0.5, 1.0):
            g = gradient(jnp.full((256, 1), location, jnp.float32), f32([log_scale]))
            assert all(np.isfinite(x).all() for x in g)


# -------------------------------------------------------------------------------------------- importance weights
def test_log_importance_weight_is_scipys(rng: np.random.Generator) -> None:
    z, mean, log_var, logits = (
        rng.normal(size=(5, 2)),
        rng.normal(size=(5, 2)),
        0.5 * rng.normal(size=(5, 2)),
        rng.normal(size=(5, 3)),
    )
    y = rng.integers(0, 2, (5, 3))
    wanted = (
        stats.norm.logpdf(z).sum(1)
        + stats.bernoulli(special.expit(logits)).logpmf(y).sum(1)
        - stats.norm(mean, np.exp(0.5 * log_var)).logpdf(z).sum(1)
    )
    noise = (z - mean) * np.exp(-0.5 * log_var)
    outputs = {"z": f32(z), "noise": f32(noise), "log_var": f32(log_var), "logits": f32(logits)}
    np.testing.assert_allclose(jax.jit(losses.log_importance_weight)(outputs, f32(y)), wanted, rtol=1e-4, atol=1e-5)


def test_the_mean_log_importance_weight_is_the_elbo(rng: np.random.Generator) -> None:
    """E_q[log p(y, z) - log q(z | y)] = E_q[log p(y | z)] - KL: by 50,000 draws of z, and by the analytic KL."""
    mean, log_var = np.array([0.5, -1.0]), np.array([-0.5, 0.3])
    noise = rng.normal(size=(50_000, 2))
    z = mean + np.exp(0.5 * log_var) * noise
    logits, y = z @ np.array([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0]]), np.array([1.0, 0.0, 1.0])
    n = len(z)
    wide = lambda v: jnp.broadcast_to(f32(v), (n, len(v)))  # noqa: E731
    outputs = {"z": f32(z), "noise": f32(noise), "log_var": wide(log_var), "logits": f32(logits)}
    weights = np.asarray(jax.jit(losses.log_importance_weight)(outputs, wide(y)), np.float64)
    elbo = stats.bernoulli(special.expit(logits)).logpmf(y).sum(1).mean()
    elbo -= 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum()
    assert abs(weights.mean() - elbo) < 5 * weights.std() / np.sqrt(n)
    assert weights.std() / np.sqrt(n) < 0.02


@pytest.mark.parametrize("log_var", [-20.0, -34.0, -100.0])
def test_a_narrow_posterior_loses_no_digits(log_var: float) -> None:
    """A VAE whose weights are zero but for the biases: mean 3, this log-variance, even odds for its one pixel. Then
    log w = log N(3; 0, 1) - log q - log 2, with E[log q] = -(1 + log 2 pi + log_var) / 2, and of log w's variance only
    1/2, that of noise^2 / 2, is left. From z - 3, which f32 rounds to 2^-22, noise could not be told."""
    net = VAE(shape=(1,), latent=1, hidden=())
    x, key = jnp.zeros((4000, 1)), {"latent": jax.random.key(0)}
    shapes = jax.eval_shape(lambda: net.init({"params": jax.random.key(0), **key}, x, train=False))
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)["params"]
    params["to_latent"]["bias"] = f32([3.0, log_var])
    run = jax.jit(lambda p: losses.log_importance_weight(net.apply({"params": p}, x, train=True, rngs=key), x))
    got = np.asarray(run(params), np.float64)
    wanted = stats.norm.logpdf(3.0) + 0.5 * (1 + np.log(2 * np.pi) + log_var) - np.log(2)
    assert abs(got.mean() - wanted) < 5 * np.sqrt(0.5 / len(got))
    assert (
        abs(got.var() - 0.5) < 0.1
    )  # five standard errors of a chi-squared's variance, .5 * sqrt(14 / 4000) * 5 = .15


def test_negative_elbo_adds_its_two_terms(rng: np.random.Generator) -> None:
    mean, log_var, logits, y = (
        rng.normal(size=(4, 2)),
        rng.normal(size=(4, 2)),
        rng.normal(size=(4, 3)),
        rng.integers(0, 2, (4, 3)),
    )
    outputs = {"mean": f32(mean), "log_var": f32(log_var), "logits": f32(logits)}
    fit = -stats.bernoulli(special.expit(logits)).logpmf(y).sum(1)
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(1)
    np.testing.assert_allclose(losses.negative_elbo(outputs, f32(y)), fit + kl, rtol=1e-4)


def test_a_gaussian_is_scipys(rng: np.random.Generator) -> None:
    mean, y, log_sd = rng.normal(size=(4, 3, 2)), rng.normal(size=(4, 3, 2)), rng.normal(size=2)
    wanted = -stats.norm(mean, np.exp(log_sd)).logpdf(y).sum((1, 2))
    np.testing.assert_allclose(losses.gaussian(f32(mean), f32(log_sd), f32(y)), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="must be equal"):
        losses.gaussian(f32(mean), f32(log_sd), f32(y[:, :1]))


def test_the_kl_of_two_gaussians_is_an_integral(rng: np.random.Generator) -> None:
    """int q log(q / p) by a sum over a fine grid; against N(0, 1) when no prior is given."""
    m, v, pm, pv = rng.normal(size=4)
    x = np.linspace(-40, 40, 400_001)
    q, p = stats.norm(m, np.exp(v / 2)), stats.norm(pm, np.exp(pv / 2))
    for other, given in ((p, (f32([[pm]]), f32([[pv]]))), (stats.norm(), ())):
        wanted = np.sum(q.pdf(x) * (q.logpdf(x) - other.logpdf(x))) * (x[1] - x[0])
        assert float(losses.gaussian_kl(f32([[m]]), f32([[v]]), *given)[0]) == pytest.approx(wanted, rel=1e-4)


def test_weights_under_a_prior_of_their_own_are_scipys(rng: np.random.Generator) -> None:
    """log p(z) by the prior that the outputs give, and a Gaussian likelihood with them."""
    mean, log_var, noise, pm, pv = (rng.normal(size=(4, 2)) for _ in range(5))
    logits, y, log_sd = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.normal(size=3)
    z = mean + np.exp(log_var / 2) * noise
    named = dict(mean=mean, log_var=log_var, noise=noise, z=z, prior_mean=pm, prior_log_var=pv, logits=logits)
    outputs = {k: f32(v) for k, v in {**named, "log_sd": log_sd}.items()}
    wanted = stats.norm(pm, np.exp(pv / 2)).logpdf(z).sum(1) - stats.norm(mean, np.exp(log_var / 2)).logpdf(z).sum(1)
    wanted += stats.norm(logits, np.exp(log_sd)).logpdf(y).sum(1)
    np.testing.assert_allclose(losses.log_importance_weight(outputs, f32(y)), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="path=True is of one layer"):
        losses.log_importance_weight(outputs, f32(y), path=True)


def test_the_path_knows_the_posterior_by_z_alone(rng: np.random.Generator) -> None:
    """The same number; with the logits fixed, d/dmean is -z + (z - mean) / var = -z + noise / sd, and d/dlog_var that
    times dz/dlog_var = sd noise / 2."""
    mean, log_var, noise = (rng.normal(size=(4, 2)) for _ in range(3))
    y = f32(np.zeros((4, 3)))

    def weight(m: Any, v: Any, **how: Any) -> Any:
        z = m + jnp.exp(v / 2) * f32(noise)
        out = {"mean": m, "log_var": v, "noise": f32(noise), "z": z, "logits": y}
        return losses.log_importance_weight(out, y, **how)

    both = f32(mean), f32(log_var)
    np.testing.assert_allclose(weight(*both, path=True), weight(*both), rtol=1e-5)
    got = jax.grad(lambda m, v: weight(m, v, path=True).sum(), (0, 1))(*both)
    sd = np.exp(log_var / 2)
    slope = -(mean + sd * noise) + noise / sd
    np.testing.assert_allclose(got[0], slope, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], slope * sd * noise / 2, rtol=1e-4, atol=1e-5)


def test_generative_losses_are_finite_at_logits_of_10000() -> None:
    """Value and gradient, under each likelihood."""
    y = f32([[0.0, 1.0, 0.5]])
    base = {"mean": f32([[0.0]]), "log_var": f32([[0.0]])}
    for sign in (1e4, -1e4):
        for more in ({}, {"log_scale": f32(np.full(3, -2.0))}, {"log_sd": f32(np.zeros(3))}):
            loss, slope = jax.value_and_grad(
                lambda logits, more=more: losses.negative_elbo({**base, **more, "logits": logits}, y).sum()
            )(jnp.full((1, 3), sign, jnp.float32))
            assert np.isfinite(float(loss)) and np.isfinite(slope).all()
