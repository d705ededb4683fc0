"""Convolutional and residual networks, and what they are put together from."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal, stats

from umbrella import losses
from umbrella.models import Flatten, Sequential, layers
from umbrella.models.cnn import CNN, LeNet
from umbrella.models.fast import CifarFast, Whitening, as_identity, whitening
from umbrella.models.layers import ACTIVATIONS, DropPath, initializer, normalise
from umbrella.models.mlp import MLP
from umbrella.models.resnet import DEPTHS, ResNet
from umbrella.objective import Ctx, supervised

pytestmark = pytest.mark.slow


def init(model: nn.Module, *shape: int, seed: int = 0) -> Any:
    return jax.jit(lambda: model.init({"params": jax.random.key(seed)}, jnp.zeros(shape), train=False))()


def count(model: nn.Module, *shape: int) -> int:
    made = jax.eval_shape(lambda: init(model, *shape))
    return sum(x.size for x in jax.tree.leaves(made["params"]))


# --------------------------------------------------------------------------------------------------------------- counts
# Of 1,000 classes at 224 x 224 as PyTorch's torchvision lists them; of 10 classes at 32 x 32 as He et al. 2016 round
# them in table 6 (0.27, 0.46, 0.66, 0.85 and 1.7 million).
LARGE = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
SMALL = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}


@pytest.mark.parametrize("depth", LARGE)
def test_the_numbers_of_a_large_resnet(depth: int) -> None:
    assert count(ResNet(out=1000, depth=depth), 1, 224, 224, 3) == LARGE[depth]


@pytest.mark.parametrize("depth", SMALL)
def test_the_numbers_of_a_small_resnet(depth: int) -> None:
    millions = count(ResNet(out=10, depth=depth), 1, 32, 32, 3) / 1e6
    assert round(millions, 1 if depth == 110 else 2) == SMALL[depth]


def test_resnet_20_by_hand() -> None:
    """A 3 x 3 convolution from a to b channels has 9 a b weights, its norm 2 b numbers."""

    def conv(a: int, b: int) -> int:
        return 9 * a * b + 2 * b

    stages = [conv(16, 16) * 6, conv(16, 32) + conv(32, 32) * 5, conv(32, 64) + conv(64, 64) * 5]
    assert count(ResNet(out=10, depth=20), 1, 32, 32, 3) == conv(3, 16) + sum(stages) + 64 * 10 + 10


def test_lenet_by_hand() -> None:
    """5 x 5 x 1 x 6 + 6; 5 x 5 x 6 x 16 + 16; 400 x 120 + 120; 120 x 84 + 84; 84 x 10 + 10."""
    assert count(LeNet(out=10), 1, 28, 28, 1) == 156 + 2416 + 48_120 + 10_164 + 850


def test_a_strided_network_by_hand() -> None:
    """Wong et al. 2020, two convolutions of 4 x 4 with stride 2, from 28 to 7: 16 x 16 + 16; 256 x 32 + 32;
    7 x 7 x 32 x 100 + 100; 100 x 10 + 10."""
    model = CNN(out=10, widths=(16, 32), depth=1, kernel=4, down="stride", head="flat", hidden=(100,), norm="none")
    assert count(model, 1, 28, 28, 1) == 272 + 8224 + 156_900 + 1010


def test_cifar_fast_by_hand() -> None:
    """24 biases of the whitening; 3 x 3 convolutions without bias; six norms of a shift alone; a head without bias. Of
    one channel the whitening has 8 outputs instead of 24."""
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    whole = 24 + convolutions + 2 * (64 + 256 + 256) + 256 * 10
    assert count(CifarFast(out=10), 2, 32, 32, 3) == whole == 1_971_352
    assert count(CifarFast(out=10), 2, 28, 28, 1) == whole - 16 - 9 * 16 * 64


def test_the_depth_is_the_number_of_layers_with_weights() -> None:
    """Stem, head, and two or three convolutions a block; projections are not counted."""
    for depth, (bottleneck, stages) in DEPTHS.items():
        assert 2 + (3 if bottleneck else 2) * sum(stages) == depth


# --------------------------------------------------------------------------------------------------------------- passes
MODELS: dict[str, nn.Module] = {
    "lenet": LeNet(out=7),
    "cnn": CNN(out=7, widths=(4, 8)),
    "cnn, all positions": CNN(out=7, widths=(4, 8), head="flat", norm="none", dropout=0.3),
    "cnn, by strides": CNN(out=7, widths=(4, 8), kernel=4, down="stride", head="flat", hidden=(5,), norm="none"),
    "cifar_fast": CifarFast(out=7, widths=(4, 8)),
    "cifar_fast, mirrored": CifarFast(out=7, widths=(4, 8, 8, 8, 8), mirror=True),
    "resnet20": ResNet(out=7, depth=20),
    "resnet18, small stem": ResNet(out=7, depth=18, stem="small", norm="group"),
    "resnet50": ResNet(out=7, depth=50, stochastic_depth=0.2, zero=True),
    "resnet50, bf16": ResNet(out=7, depth=50, stochastic_depth=0.2, zero=True, precision="bf16"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (2, 33, 29, 3)])
def test_shapes_and_dtypes(name: str, shape: tuple[int, ...]) -> None:
    """Also of odd sides. The statistics of BatchNorm change in training and only there."""
    model, x = MODELS[name], jnp.zeros(shape)

    def passes(x: jax.Array) -> Any:
        v = init(model, *shape)
        state = {k: s for k, s in v.items() if k != "params"}
        rngs = {"dropout": jax.random.key(1)}
        return model.apply(v, x, train=False), model.apply(v, x, train=True, mutable=list(state), rngs=rngs), state

    out, (trained, changed), state = jax.eval_shape(passes, x)
    assert out.shape == trained.shape == (2, 7) and out.dtype == trained.dtype == jnp.float32
    assert jax.tree.structure(changed) == jax.tree.structure(state)


def test_lenet_is_a_correlation_a_mean_and_matrices() -> None:
    """Against SciPy and NumPy, an image at a time."""
    model, x = LeNet(out=3), np.random.default_rng(0).normal(size=(2, 14, 12, 1)).astype(np.float32)
    v = init(model, *x.shape, seed=3)
    p = jax.tree.map(np.asarray, v["params"])

    def convolved(image: np.ndarray, layer: dict[str, np.ndarray], pad: int) -> np.ndarray:
        image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        maps = [
            sum(signal.correlate2d(image[..., i], k[..., i], "valid") for i in range(image.shape[2]))
            for k in np.moveaxis(layer["kernel"], -1, 0)
        ]
        return np.tanh(np.stack(maps, -1) + layer["bias"])

    def pooled(image: np.ndarray) -> np.ndarray:
        h, w, c = image.shape
        return image[: h // 2 * 2, : w // 2 * 2].reshape(h // 2, 2, w // 2, 2, c).mean((1, 3))

    for image, got in zip(x, model.apply(v, x, train=False), strict=True):
        h = pooled(convolved(pooled(convolved(image, p["conv_0"], 2)), p["conv_1"], 0)).ravel()
        for name in ("hidden_0", "hidden_1"):
            h = np.tanh(h @ p[name]["kernel"] + p[name]["bias"])
        np.testing.assert_allclose(got, h @ p["head"]["kernel"] + p["head"]["bias"], atol=1e-5)


def test_lenet_refuses_images_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="8 x 8: LeNet needs sides of at least 12"):
        init(LeNet(out=10), 1, 8, 8, 1)


def test_a_plain_network_has_no_use_for_what_is_about_shortcuts() -> None:
    """Its branches would be all that there is: starting at zero it would stay there."""
    for more in (dict(residual=False, zero=True), dict(residual=False, stochastic_depth=0.1)):
        with pytest.raises(ValueError, match="beside a shortcut"):
            ResNet(out=2, **more)
    with pytest.raises(ValueError, match="norm is 'none'"):
        ResNet(out=2, zero=True, norm="none")
    assert count(ResNet(out=10, depth=56), 1, 32, 32, 3) == count(
        ResNet(out=10, depth=56, residual=False), 1, 32, 32, 3
    )


def test_mirroring_in_evaluation_leaves_training_alone() -> None:
    """What whitens is measured on the images, not on their mirror images too."""
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    one, two = (CifarFast(out=3, widths=(4,), mirror=m).init(jax.random.key(0), x, train=False) for m in (False, True))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_shortcut_without_parameters_drops_rows_and_pads_channels() -> None:
    """With branches that start at zero a ResNet-20 is its stem, every fourth pixel of it: 16 channels, 48 zeros."""
    model = ResNet(out=5, depth=20, zero=True)
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    v = init(model, *x.shape)
    _, seen = jax.jit(lambda v, x: model.apply(v, x, train=False, capture_intermediates=True))(v, x)
    stem = nn.relu(seen["intermediates"]["stem_norm"]["__call__"][0])
    last = seen["intermediates"]["block_2_2"]["__call__"][0]
    np.testing.assert_allclose(last[..., :16], stem[:, ::4, ::4], atol=1e-6)
    assert not np.asarray(last[..., 16:]).any()


# ----------------------------------------------------------------------------------------------------------- cifar_fast
IMAGES = ndimage.uniform_filter(np.random.default_rng(5).random((64, 12, 12, 3)), (0, 3, 3, 0)).astype(np.float32)


def test_whitened_patches_are_uncorrelated() -> None:
    """Second moments of the first half of the outputs, of patches cut by NumPy: the identity, but for what epsilon
    takes, values / (values + .0005); the second half is minus the first."""
    made = jax.tree.map(np.asarray, whitening(jnp.asarray(IMAGES)))
    x = (IMAGES - IMAGES.mean((0, 1, 2))) / IMAGES.std((0, 1, 2))
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (1, 2)).transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
    values = np.linalg.eigvalsh(patches.T.astype(np.float64) @ patches / len(patches))[::-1]
    assert made["kernel"].shape == (2, 2, 3, 24)
    outputs = patches @ made["kernel"].reshape(12, 24)
    moments = outputs.T.astype(np.float64) @ outputs / len(outputs)
    np.testing.assert_allclose(moments[:12, :12], np.diag(values / (values + 5e-4)), atol=2e-3)
    np.testing.assert_array_equal(made["kernel"][..., 12:], -made["kernel"][..., :12])


def test_the_whitening_is_that_of_the_first_batch_and_stays() -> None:
    """Made from what `init` saw; not changed by training, and no parameter; applied as SciPy correlates."""
    model = CifarFast(out=5, widths=(4,))
    v = model.init(jax.random.key(0), IMAGES, train=False)
    own = v["whitening"]["whitening"]
    for k, made in whitening(jnp.asarray(IMAGES)).items():
        np.testing.assert_allclose(own[k], made, rtol=1e-3, atol=1e-3)
    assert {k: x.shape for k, x in v["params"]["whitening"].items()} == {"bias": (24,)}
    _, new = model.apply(v, 1 - IMAGES, train=True, mutable=["batch_stats", "whitening"])
    jax.tree.map(np.testing.assert_array_equal, new["whitening"], v["whitening"])
    kernel, centred = np.asarray(own["kernel"]), (IMAGES[0] - np.asarray(own["mean"])) / np.asarray(own["std"])
    wanted = sum(signal.correlate2d(centred[..., i], kernel[:, :, i, 7], "valid") for i in range(3))
    got = Whitening().apply({"params": {"bias": jnp.full(24, 0.25)}, "whitening": own}, IMAGES[:1])
    np.testing.assert_allclose(got[0, ..., 7], wanted + 0.25, atol=1e-4)


def test_a_convolution_starts_as_the_identity() -> None:
    """Eight channels of three: the three, and five random ones, uniform in +- 1 / sqrt(27)."""
    kernel = np.asarray(as_identity(jax.random.key(0), (3, 3, 3, 8)))
    image = np.random.default_rng(0).normal(size=(6, 6, 3))
    for o in range(3):
        same = sum(signal.correlate2d(image[..., i], kernel[..., i, o], "same") for i in range(3))
        np.testing.assert_allclose(same, image[..., o], atol=1e-6)
    wide = np.asarray(as_identity(jax.random.key(1), (3, 3, 3, 503)))[..., 3:].ravel()
    assert stats.kstest(wide, stats.uniform(-(27**-0.5), 2 * 27**-0.5).cdf).pvalue > 1e-3
    narrow = np.asarray(as_identity(jax.random.key(0), (3, 3, 8, 3)))  # fewer outputs than inputs
    np.testing.assert_array_equal(narrow[1, 1], np.eye(8, 3))
    assert np.count_nonzero(narrow) == 3


def test_mirrored_logits_are_a_mean() -> None:
    """Of the image and of its mirror image, in evaluation; in training of the image alone."""
    plain, both = CifarFast(out=5, widths=(4, 8)), CifarFast(out=5, widths=(4, 8), mirror=True)
    v = plain.init(jax.random.key(0), IMAGES, train=False)
    logits = [plain.apply(v, x, train=False) for x in (IMAGES, IMAGES[:, :, ::-1])]
    assert float(jnp.abs(logits[0] - logits[1]).max()) > 1e-3
    np.testing.assert_allclose(both.apply(v, IMAGES, train=False), (logits[0] + logits[1]) / 2, atol=1e-5)
    trained = [m.apply(v, IMAGES, train=True, mutable=["batch_stats"])[0] for m in (plain, both)]
    np.testing.assert_array_equal(*trained)
    kinds = [jax.tree.structure(m.init(jax.random.key(0), IMAGES, train=False)) for m in (plain, both)]
    assert kinds[0] == kinds[1]


def test_the_logits_are_scaled_maxima_through_a_matrix() -> None:
    model, nine = CifarFast(out=5, widths=(4, 8)), CifarFast(out=5, widths=(4, 8), scale=1.0)
    v = model.init(jax.random.key(0), IMAGES, train=False)
    full = nine.apply(v, IMAGES, train=False)
    np.testing.assert_allclose(9 * model.apply(v, IMAGES, train=False), full, atol=1e-5)
    _, kept = model.apply(v, IMAGES, train=False, capture_intermediates=True, mutable=["intermediates"])
    last = nn.gelu(kept["intermediates"]["norm_1_1"]["__call__"][0])
    wanted = np.asarray(last).max((1, 2)) @ np.asarray(v["params"]["head"]["kernel"])
    np.testing.assert_allclose(full, wanted, atol=1e-5)
    assert "scale" not in v["params"]["norm_1_1"]


@pytest.mark.parametrize("shape", [(8, 28, 28, 1), (8, 8, 8, 1), (8, 32, 32, 3), (8, 4, 5, 1)])
def test_cifar_fast_of_small_sides(shape: tuple[int, ...]) -> None:
    model, x = CifarFast(out=3, widths=(4, 4, 4)), np.random.default_rng(0).random(shape).astype(np.float32)
    assert np.isfinite(model.apply(model.init(jax.random.key(0), x, train=False), x, train=False)).all()


def test_cifar_fast_refuses_images_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="3 x 8: cifar_fast needs sides of at least 4"):
        init(CifarFast(out=10), 1, 3, 8, 1)


# ---------------------------------------------------------------------------------------------------------------- norms
class Normalise(nn.Module):
    """The function as a module."""

    kind: Any
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return normalise(x, self.kind, train=train, name="norm", momentum=self.momentum)


X = np.random.default_rng(1).normal(1.0, 2.0, (4, 3, 5, 64)).astype(np.float32)
OVER: dict[str, tuple[int, ...]] = {"batch": (0, 1, 2), "layer": (3,), "instance": (1, 2)}


@pytest.mark.parametrize("kind", OVER)
def test_norms_take_mean_and_variance_over_their_axes(kind: Any) -> None:
    module = Normalise(kind)
    v = module.init(jax.random.key(0), X, train=True)
    got, _ = module.apply(v, X, train=True, mutable=["batch_stats"])
    centred = X - X.mean(OVER[kind], keepdims=True)
    np.testing.assert_allclose(got, centred / np.sqrt(X.var(OVER[kind], keepdims=True)), atol=1e-3)


def test_groups_of_channels_and_root_mean_squares() -> None:
    group, rms = Normalise("group"), Normalise("rms")
    got = group.apply(group.init(jax.random.key(0), X, train=True), X, train=True)
    parts = X.reshape(4, 15, 32, 2)  # 64 channels in 32 groups of two
    wanted = (parts - parts.mean((1, 3), keepdims=True)) / parts.std((1, 3), keepdims=True)
    np.testing.assert_allclose(got, wanted.reshape(X.shape), atol=1e-3)
    got = rms.apply(rms.init(jax.random.key(0), X, train=True), X, train=True)
    np.testing.assert_allclose(got, X / np.sqrt((X**2).mean(-1, keepdims=True)), atol=1e-3)
    assert Normalise("none").apply({}, X, train=True) is X


def test_batch_norm_averages_what_it_saw() -> None:
    """After one pass from (0, 1): mean .1 m, variance .9 + .1 v (biased, as flax has it)."""
    module = Normalise("batch", momentum=0.9)
    v = module.init(jax.random.key(0), X, train=True)
    _, new = module.apply(v, X, train=True, mutable=["batch_stats"])
    stats_ = new["batch_stats"]["norm"]
    np.testing.assert_allclose(stats_["mean"], 0.1 * X.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(stats_["var"], 0.9 + 0.1 * X.var((0, 1, 2)), rtol=1e-4)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="norm: 'bn' is not one of the choices"):
        Normalise("bn").init(jax.random.key(0), X, train=True)


@pytest.mark.parametrize(
    ("kind", "shape"), [("instance", (2, 8)), ("instance", (2, 1, 1, 8)), ("layer", (2, 3, 3, 1)), ("group", (2, 1))]
)
def test_a_norm_of_single_numbers_is_refused(kind: str, shape: tuple[int, ...]) -> None:
    """Every number minus itself: whatever goes in, zeros come out."""
    with pytest.raises(ValueError, match=f"norm '{kind}' has nothing to take a mean over"):
        Normalise(kind).init(jax.random.key(0), jnp.ones(shape), train=True)


@pytest.mark.parametrize("width", [8, 16, 32, 48, 64])
def test_groups_of_rows_without_positions_let_the_input_through(width: int) -> None:
    """Groups of one channel would give zeros, of two +-1 and nothing else."""
    model = MLP(out=3, hidden=(width,), norm="group")
    x = jax.random.normal(jax.random.key(1), (50, 4))
    out = model.apply(model.init(jax.random.key(0), x, train=False), x, train=False)
    assert len(np.unique(np.asarray(out).round(5), axis=0)) == 50


# --------------------------------------------------------------------------------------------------------- initialisers
VARIANCE = {
    "lecun_normal": lambda i, o: 1 / i,
    "xavier_normal": lambda i, o: 2 / (i + o),
    "xavier_uniform": lambda i, o: 2 / (i + o),
    "he_normal": lambda i, o: 2 / i,
    "he_uniform": lambda i, o: 2 / i,
    "interval": lambda i, o: 2 * np.pi / i**2,
}


@pytest.mark.parametrize("name", VARIANCE)
@pytest.mark.parametrize("shape", [(2000, 500), (5, 5, 100, 400)])
def test_the_variance_of_a_million_weights(name: Any, shape: tuple[int, ...]) -> None:
    """Within five standard errors: var / sqrt(n) * sqrt(kurtosis - 1), where a normal has 3 and a uniform 9 / 5."""
    w = np.asarray(initializer(name)(jax.random.key(0), shape, jnp.float32), np.float64)
    field = int(np.prod(shape[:-2]))
    wanted = VARIANCE[name](shape[-2] * field, shape[-1] * field)
    error = wanted * np.sqrt((0.8 if "uniform" in name else 2.0) / w.size)
    assert abs(w.var() - wanted) < 5 * error
    assert abs(w.mean()) < 5 * np.sqrt(wanted / w.size)


def test_the_shapes_of_the_distributions() -> None:
    """Kolmogorov and Smirnov against SciPy: a uniform, and normals cut at two of their (uncut) standard deviations."""
    w = np.asarray(initializer("xavier_uniform")(jax.random.key(1), (300, 100), jnp.float32)).ravel()
    edge = np.sqrt(6 / 400)  # variance edge^2 / 3 = 2 / 400
    assert stats.kstest(w, stats.uniform(-edge, 2 * edge).cdf).pvalue > 1e-3
    w = np.asarray(initializer("truncated_normal")(jax.random.key(2), (300, 100), jnp.float32)).ravel()
    assert stats.kstest(w, stats.truncnorm(-2, 2, scale=0.02).cdf).pvalue > 1e-3
    w = np.asarray(initializer("he_normal")(jax.random.key(3), (300, 100), jnp.float32)).ravel()
    sd = np.sqrt(2 / 300) / stats.truncnorm(-2, 2).std()
    assert stats.kstest(w, stats.truncnorm(-2, 2, scale=sd).cdf).pvalue > 1e-3


def test_the_interval_initialiser_keeps_the_width_of_a_box() -> None:
    """Through 20 layers of 200 ReLUs around an input of either sign, within a factor of two; he_normal makes it
    sqrt(200 / pi) = 8 times as wide in each."""

    def widths(name: Any) -> list[float]:
        model = MLP(out=200, hidden=(200,) * 20, kernel_init=name)
        x = jax.random.normal(jax.random.key(1), (4, 200))
        v = model.init(jax.random.key(0), x, train=False)["params"]
        low, high, found = x - 0.1, x + 0.1, []
        for i in range(20):
            w = v[f"hidden_{i}"]["kernel"]
            middle, half = (low + high) / 2 @ w, (high - low) / 2 @ jnp.abs(w)
            low, high = jax.nn.relu(middle - half), jax.nn.relu(middle + half)
            found.append(float((high - low).mean()) / 0.2)
        return found

    kept, grown = widths("interval"), widths("he_normal")
    assert all(0.5 < w < 2 for w in kept) and grown[1] / grown[0] > 4 and grown[-1] > 1e6


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (3, 3, 4, 8), (5, 5), (7, 1)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    w = np.asarray(initializer("orthogonal")(jax.random.key(0), shape, jnp.float32)).reshape(-1, shape[-1])
    small = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(small, np.eye(min(w.shape)), atol=2e-6)


def test_orthogonal_is_uniform() -> None:
    """A uniform unit vector of R^3 has coordinates uniform in [-1, 1] (Archimedes): mean 0, square 1/3, fourth power
    1/5; so has every column, and every row of a square one. sd of the means of 4,000: at most sqrt(1/3 / 4000) = .009.
    """
    keys = jax.random.split(jax.random.key(0), 4000)
    for shape in ((3, 2), (3, 3)):
        w = np.asarray(jax.vmap(lambda key, s=shape: initializer("orthogonal")(key, s, jnp.float32))(keys))
        for power, mean in ((1, 0), (2, 1 / 3), (3, 0), (4, 1 / 5)):
            np.testing.assert_allclose((w**power).mean(0), mean, atol=0.04)
    turned = np.linalg.det(w) > 0
    assert abs(turned.mean() - 0.5) < 0.04  # sd sqrt(.25 / 4000) = .008


@pytest.mark.parametrize(("name", "survives"), [("he_normal", True), ("xavier_normal", False)])
def test_the_signal_through_fifty_layers(name: Any, survives: bool) -> None:
    """He's variance keeps the second moment through ReLUs; Glorot's halves it, which is 2^-50 after fifty layers."""
    x = jax.random.normal(jax.random.key(0), (64, 256))
    for i in range(50):
        x = ACTIVATIONS["relu"](x @ initializer(name)(jax.random.key(i + 1), (256, 256), jnp.float32))
    sd = float(jnp.sqrt(jnp.mean(x**2)))
    assert 0.5 < sd < 2 if survives else sd < 1e-6


# ----------------------------------------------------------------------------------------------------- stochastic depth
def test_a_dropped_path_is_a_whole_example() -> None:
    """Of 4,000 rows a quarter is zero, within five standard errors; the others are divided by 3/4; the mean stays."""
    module, x = DropPath(0.25), jnp.ones((4000, 3, 2))
    got = np.asarray(module.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}))
    dropped = (got == 0).all((1, 2))
    np.testing.assert_allclose(got[~dropped], 4 / 3, rtol=1e-6)
    assert abs(dropped.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
    assert module.apply({}, x, train=False) is x
    assert DropPath(0.0).apply({}, x, train=True) is x


def test_the_rate_grows_with_the_depth() -> None:
    """Linearly to the given one: of the nine blocks of a ResNet-20 the last drops at .9, the first at .1."""
    model = ResNet(out=2, depth=20, stochastic_depth=0.9)
    x = jnp.ones((256, 8, 8, 1))
    v = init(model, *x.shape)
    how = {"train": True, "mutable": ["batch_stats", "intermediates"], "capture_intermediates": True}
    _, seen = jax.jit(lambda v, x: model.apply(v, x, rngs={"dropout": jax.random.key(5)}, **how))(v, x)
    seen = seen["intermediates"]
    share = []
    for name in ("block_0_0", "block_2_2"):
        branch = np.asarray(seen[name]["DropPath_0"]["__call__"][0])
        share.append((branch == 0).all((1, 2, 3)).mean())
    for got, wanted in zip(share, (0.1, 0.9), strict=True):
        assert abs(got - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / 256)


def test_a_convolution_is_flaxs_to_the_bit() -> None:
    """Same parameters, same outputs, same gradients: only what XLA makes of it on a CPU differs."""
    x, key = jax.random.normal(jax.random.key(0), (2, 6, 6, 3)), jax.random.key(1)
    ours, theirs = layers.Conv(4, (3, 3)), nn.Conv(4, (3, 3))
    params = theirs.init(key, x)
    assert jax.tree.structure(params) == jax.tree.structure(ours.init(key, x))
    for fn in (lambda net: net.apply(params, x), lambda net: jax.grad(lambda v: (net.apply(params, v) ** 2).sum())(x)):
        np.testing.assert_array_equal(fn(ours), fn(theirs))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA's CPU backend makes of it")
def test_what_a_convolution_reads_is_not_computed_again_inside_of_a_transposition() -> None:
    x, net = jnp.zeros((8, 8, 8, 4)), layers.Conv(4, (3, 3))
    params = net.init(jax.random.key(0), x)

    def loss(params: Any) -> jax.Array:
        return (net.apply(params, nn.relu(net.apply(params, x))) ** 2).sum()

    text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    for body in re.findall(r"^%fused_computation.*?^}", text, re.MULTILINE | re.DOTALL):
        assert not ("transpose(" in body and "maximum(" in body), body


def test_layers_one_after_the_other_are_told_whether_they_train() -> None:
    """A norm and dropout in a row: evaluation is the composition by hand, training draws."""
    net = Sequential((layers.Conv(4, (3, 3)), nn.BatchNorm(), nn.relu, Flatten(), nn.Dropout(0.5), nn.Dense(3)))
    x = jax.random.normal(jax.random.key(0), (4, 5, 5, 2))
    v = net.init({"params": jax.random.key(1)}, x, train=False)
    out = net.apply(v, x, train=False)
    p = v["params"]
    y = nn.Conv(4, (3, 3)).apply({"params": p["layers_0"]}, x) / np.float32(np.sqrt(1 + 1e-5))  # mean 0, variance 1
    by_hand = nn.Dense(3).apply({"params": p["layers_5"]}, jnp.maximum(y, 0).reshape(4, -1))
    np.testing.assert_allclose(out, by_hand, rtol=1e-5, atol=1e-6)

    def trained(seed: int) -> Any:
        return net.apply(v, x, train=True, rngs={"dropout": jax.random.key(seed)}, mutable=["batch_stats"])

    assert np.abs(trained(0)[0] - trained(1)[0]).max() > 0
    assert np.abs(jax.tree.leaves(trained(0)[1])[0]).max() > 0  # the running mean has moved
    o = supervised(net, losses.cross_entropy)
    batch = {"x": x, "y": jnp.zeros(4, jnp.int32)}
    ctx = Ctx(jax.random.key(0), jnp.int32(0))
    assert np.isfinite(o.apply(*o.init(batch, ctx), batch, ctx)[0])
