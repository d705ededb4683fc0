"""The models against NumPy with the same weights, their sizes by formula, and what their fields do."""

import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from umbrella import losses, models
from umbrella.models import MLP, VAE, layers
from umbrella.models.coders import doubled
from umbrella.settings import SettingsError
from umbrella.train_state import parameter_count

KEYS = {"params": jax.random.key(0), "latent": jax.random.key(1), "dropout": jax.random.key(2)}
X = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
ACTIVATIONS = {
    "relu": lambda v: np.maximum(v, 0),
    "relu2": lambda v: np.maximum(v, 0) ** 2,
    "tanh": np.tanh,
    "silu": lambda v: v * special.expit(v),
    "gelu": lambda v: 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))),  # the usual approximation
}


@partial(jax.jit, static_argnums=0, static_argnames=("train", "method"))
def run(model: nn.Module, variables: Any, x: Any, keys: Any = KEYS, **kw: Any) -> Any:
    mutable = ["batch_stats"] if kw.get("train") and "batch_stats" in variables else False
    return model.apply(variables, x, rngs=keys, mutable=mutable, **kw)


def shapes_of(model: nn.Module) -> Any:
    return jax.eval_shape(lambda: model.init(KEYS, X, train=False))


def start(model: nn.Module) -> Any:
    """Variables drawn by NumPy; all positive in batch_stats, where variances are."""
    r = np.random.default_rng(1)
    drawn = jax.tree.map(lambda v: (0.5 * r.normal(size=v.shape)).astype(v.dtype), shapes_of(model))
    return drawn | {k: jax.tree.map(np.abs, v) for k, v in drawn.items() if k == "batch_stats"}


def norm(h: np.ndarray, p: Any, stats: Any = None) -> np.ndarray:
    """Over the features of a row (layer), or by the given running statistics (batch)."""
    if stats is None:
        mean, var, eps = h.mean(1, keepdims=True), h.var(1, keepdims=True), 1e-6
    else:
        mean, var, eps = stats["mean"], stats["var"], 1e-5
    return (h - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("none", "relu"),
        ("none", "relu2"),
        ("none", "tanh"),
        ("none", "silu"),
        ("none", "gelu"),
        ("layer", "relu"),
        ("batch", "relu"),
    ],
)
def test_mlp_is_numpys(kind: str, activation: str) -> None:
    model = MLP(out=4, hidden=(7, 6), norm=kind, activation=activation, dropout=0.5)
    variables = start(model)
    p = variables["params"]
    h = X.reshape(5, 6)
    for i in range(2):
        h = h @ p[f"hidden_{i}"]["kernel"] + p[f"hidden_{i}"].get("bias", 0)
        if kind != "none":
            running = variables["batch_stats"][f"norm_{i}"] if kind == "batch" else None
            h = norm(h, p[f"norm_{i}"], running)
        h = ACTIVATIONS[activation](h)
    wanted = h @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(run(model, variables, X, train=False), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "hidden", "count"),
    [  # 6 inputs, 4 outputs; a norm has a scale and a shift per unit, and the layer before it no bias
        ("none", (7, 5), (6 + 1) * 7 + (7 + 1) * 5 + (5 + 1) * 4),
        ("layer", (7, 5), (6 + 2) * 7 + (7 + 2) * 5 + (5 + 1) * 4),
        ("batch", (7, 5), (6 + 2) * 7 + (7 + 2) * 5 + (5 + 1) * 4),
        ("none", (), (6 + 1) * 4),
    ],
)
def test_mlp_has_as_many_parameters_as_the_formula_says(kind: str, hidden: tuple, count: int) -> None:
    shapes = shapes_of(MLP(out=4, hidden=hidden, norm=kind))
    assert parameter_count(shapes["params"]) == count
    has_bias = ["bias" in v for k, v in shapes["params"].items() if k.startswith("hidden")]
    assert has_bias == [kind == "none"] * len(hidden)


def test_batch_norm_moves_its_statistics_in_training_only() -> None:
    """running = .9 running + .1 batch, by the first layer's outputs."""
    model = MLP(out=4, hidden=(7,), norm="batch")
    variables = start(model)
    _, new = run(model, variables, X, train=True)
    h = X.reshape(5, 6) @ variables["params"]["hidden_0"]["kernel"]
    was, now = variables["batch_stats"]["norm_0"], new["batch_stats"]["norm_0"]
    np.testing.assert_allclose(now["mean"], 0.9 * was["mean"] + 0.1 * h.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(now["var"], 0.9 * was["var"] + 0.1 * h.var(0), rtol=1e-4)


def test_dropout_acts_in_training_only() -> None:
    """With dropout .5 a hidden unit is dropped or doubled; outputs through an identity head are 0 or 2 relu(h)."""
    model = MLP(out=200, hidden=(200,), dropout=0.5)
    variables = start(model)
    variables["params"]["head"] = {"kernel": np.eye(200, dtype=np.float32), "bias": np.zeros(200, np.float32)}
    sure, noisy = (np.asarray(run(model, variables, X, train=train)) for train in (False, True))
    other = {k: jax.random.fold_in(v, 1) for k, v in KEYS.items()}
    np.testing.assert_array_equal(sure, run(model, variables, X, other, train=False))
    alive = sure > 0
    np.testing.assert_allclose(noisy[noisy > 0], 2 * sure[noisy > 0], rtol=1e-5)
    share = (noisy > 0).sum() / alive.sum()  # of about 500 units: a standard deviation of .022
    assert 0.38 < share < 0.62


def test_dropout_of_inputs_acts_in_training_alone() -> None:
    """Through an identity head: an input is dropped or 5 / 4 of itself, and dropped one time in five."""
    model = MLP(out=784, hidden=(), input_dropout=0.2)
    x = np.ones((20, 784), np.float32)
    variables = {"params": {"head": {"kernel": np.eye(784, dtype=np.float32), "bias": np.zeros(784, np.float32)}}}
    noisy = np.asarray(model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_array_equal(model.apply(variables, x, train=False), x)
    assert set(np.unique(noisy)) == {0.0, 1.25}
    assert abs((noisy == 0).mean() - 0.2) < 5 * np.sqrt(0.16 / noisy.size)


@pytest.mark.parametrize(("name", "variance"), [("lecun_normal", 1 / 300), ("he_normal", 2 / 300)])
def test_hidden_layers_are_initialised_as_told(name: Any, variance: float) -> None:
    """Of 300 inputs: 300 x 400 weights, the standard error of whose variance is .4 %; the head as ever, 1 / 400."""
    v = MLP(out=200, hidden=(400,), kernel_init=name).init(jax.random.key(0), np.ones((1, 300)), train=False)
    assert np.var(v["params"]["hidden_0"]["kernel"]) == pytest.approx(variance, rel=0.03)
    assert np.var(v["params"]["head"]["kernel"]) == pytest.approx(1 / 400, rel=0.03)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MLP(out=2, norm="bn"), "MLP: norm: 'bn' is not one of the choices"),  # had neither norm nor bias
        (lambda: MLP(out=2, activation="relo"), "MLP: activation: 'relo' is not one of .* .did you mean 'relu'"),
        (lambda: MLP(out=2, kernel_init="he"), "MLP: kernel_init: 'he' is not one of the choices"),
        (lambda: vae(likelihood="bernouli"), "VAE: likelihood: 'bernouli' is not one of .* .did you mean 'bernoulli'"),
        (lambda: vae(activation="tan"), "VAE: activation: 'tan' is not one of .* .did you mean 'tanh'"),
    ],
)
def test_a_typo_does_not_choose_another_model(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


# ---- VAE
def vae(**kw: Any) -> VAE:
    return VAE(shape=(2, 3), latent=2, hidden=(7, 5), **kw)


def test_vae_shapes_and_parameter_count() -> None:
    """Encoder 6-7-5-(2 * 2), decoder 2-5-7-6, a bias everywhere; a log-scale for each of the 3 channels when asked."""
    encoder, decoder = 7 * 7 + 8 * 5 + 6 * 4, 3 * 5 + 6 * 7 + 8 * 6
    for kind, spread in (("bernoulli", {}), ("logistic", {"log_scale": (3,)}), ("gaussian", {"log_sd": (3,)})):
        out, variables = jax.eval_shape(lambda k=kind: vae(likelihood=k).init_with_output(KEYS, X, train=True))
        assert parameter_count(variables["params"]) == encoder + decoder + (3 if spread else 0)
        wanted = {"logits": (5, 2, 3), "mean": (5, 2), "log_var": (5, 2), "noise": (5, 2), "z": (5, 2)}
        assert {k: v.shape for k, v in out.items()} == wanted | spread


def test_vae_is_numpys() -> None:
    variables = start(vae())
    p = variables["params"]
    dense = lambda h, q: h @ q["kernel"] + q["bias"]  # noqa: E731
    there, back = p["encoder"], p["decoder"]
    out = jax.device_get(run(vae(), variables, X, train=True))
    h = np.tanh(dense(np.tanh(dense(X.reshape(5, 6), there["hidden_0"])), there["hidden_1"]))
    code = dense(h, p["to_latent"])
    np.testing.assert_allclose(out["mean"], code[:, :2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["log_var"], code[:, 2:], rtol=1e-4, atol=1e-5)
    h = np.tanh(dense(np.tanh(dense(out["z"], back["hidden_0"])), back["hidden_1"]))
    np.testing.assert_allclose(out["logits"], dense(h, back["out"]).reshape(5, 2, 3), rtol=1e-4, atol=1e-5)


def test_a_second_layer_is_numpys_and_its_own_prior() -> None:
    """q(z2|x), then q(z1|x, z2) of features and z2 side by side; p(z1|z2) by one hidden layer of 7, p(z2) = N(0, 1);
    `draw` is the prior at a given noise."""
    net = vae(above=3)
    variables = start(net)
    p = variables["params"]
    dense = lambda h, q: h @ q["kernel"] + q["bias"]  # noqa: E731
    out = jax.device_get(run(net, variables, X, train=True))
    h = np.tanh(dense(np.tanh(dense(X.reshape(5, 6), p["encoder"]["hidden_0"])), p["encoder"]["hidden_1"]))
    far = dense(h, p["to_above"])
    z2 = far[:, :3] + np.exp(0.5 * far[:, 3:]) * out["noise"][:, 2:]
    near = dense(np.concatenate([h, z2], 1), p["to_latent"])
    z1 = near[:, :2] + np.exp(0.5 * near[:, 2:]) * out["noise"][:, :2]
    given = lambda z: dense(np.tanh(dense(z, p["prior_hidden"]["hidden_0"])), p["to_prior"])  # noqa: E731
    prior = given(z2)
    wanted = {
        "mean": np.concatenate([near[:, :2], far[:, :3]], 1),
        "log_var": np.concatenate([near[:, 2:], far[:, 3:]], 1),
        "z": np.concatenate([z1, z2], 1),
        "prior_mean": np.concatenate([prior[:, :2], np.zeros((5, 3))], 1),
        "prior_log_var": np.concatenate([prior[:, 2:], np.zeros((5, 3))], 1),
        "logits": run(net, variables, z1.astype(np.float32), method="decode"),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(out[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    noise = out["noise"]
    mean, log_var = np.split(given(noise[:, 2:]), 2, 1)
    drawn = np.concatenate([mean + np.exp(0.5 * log_var) * noise[:, :2], noise[:, 2:]], 1)
    np.testing.assert_allclose(run(net, variables, noise, method="draw"), drawn, rtol=1e-4, atol=1e-5)


def test_a_conditional_one_is_told_its_label_in_both_halves() -> None:
    """The label's column of the first kernel is added, in the encoder behind the 6 pixels, in the decoder behind z."""
    net = vae(classes=4)
    label = np.array([0, 3, 1, 1, 2], np.int32)
    x = {"image": X, "label": label}
    variables = jax.tree.map(
        lambda v: (0.3 * np.random.default_rng(v.size).normal(size=v.shape)).astype(np.float32),
        jax.eval_shape(lambda: net.init(KEYS, x, train=False)),
    )
    p = variables["params"]
    out = jax.device_get(run(net, variables, x, train=True))
    first = p["encoder"]["hidden_0"]
    h = np.tanh(X.reshape(5, 6) @ first["kernel"][:6] + first["kernel"][6:][label] + first["bias"])
    h = np.tanh(h @ p["encoder"]["hidden_1"]["kernel"] + p["encoder"]["hidden_1"]["bias"])
    code = h @ p["to_latent"]["kernel"] + p["to_latent"]["bias"]
    np.testing.assert_allclose(out["mean"], code[:, :2], rtol=1e-4, atol=1e-5)
    start_of = p["decoder"]["hidden_0"]
    h = np.tanh(out["z"] @ start_of["kernel"][:2] + start_of["kernel"][2:][label] + start_of["bias"])
    h = np.tanh(h @ p["decoder"]["hidden_1"]["kernel"] + p["decoder"]["hidden_1"]["bias"])
    logits = h @ p["decoder"]["out"]["kernel"] + p["decoder"]["out"]["bias"]
    np.testing.assert_allclose(out["logits"], logits.reshape(5, 2, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [8, 28, 13])
def test_convolutions_halve_and_double_back_to_the_same_side(side: int) -> None:
    """Kernels of 4 x 4 and of 3 x 3 to four times the channels: 3 -> 4 -> 6 channels there, 6 -> 4 -> 3 back."""
    net = VAE(shape=(side, side, 3), latent=2, hidden=(5,), widths=(4, 6))
    small = (side + 3) // 4
    out, variables = jax.eval_shape(
        lambda: net.init_with_output(KEYS, np.zeros((2, side, side, 3), np.float32), train=True)
    )
    assert out["logits"].shape == (2, side, side, 3)
    there = (48 + 1 - 1) * 4 + 4 + 64 * 6 + 6 + (small**2 * 6 + 1) * 5 + 6 * 4
    back = 3 * 5 + 6 * small**2 * 6 + 6 * 9 * 16 + 16 + 4 * 9 * 12 + 12
    assert parameter_count(variables["params"]) == there + back


def test_doubling_lays_four_channels_out_as_two_by_two() -> None:
    """Channels 0..3 of a position are its upper left, upper right, lower left and lower right."""
    x = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4)
    np.testing.assert_array_equal(doubled(x)[0, :, :, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])


def test_vae_encodes_and_decodes_by_name() -> None:
    variables = start(vae())
    out = run(vae(), variables, X, train=True)
    mean, log_var = run(vae(), variables, X, method="encode")
    np.testing.assert_allclose(mean, out["mean"], rtol=1e-5)
    np.testing.assert_allclose(log_var, out["log_var"], rtol=1e-5)
    logits = run(vae(), variables, out["z"], method="decode")
    np.testing.assert_allclose(logits, out["logits"], rtol=1e-5, atol=1e-6)


def test_vaes_z_is_a_draw_of_q_in_training_and_in_evaluation() -> None:
    """(z - mean) / exp(log_var / 2) of 4,000 equal rows has mean 0 +- .016 and variance 1 +- .022, at 5 sigma."""
    variables, x = start(vae()), np.broadcast_to(X[:1], (4000, 2, 3))
    out = jax.device_get(run(vae(), variables, x, train=True))
    noise = (out["z"] - out["mean"]) / np.exp(0.5 * out["log_var"])
    np.testing.assert_allclose(out["noise"], noise, rtol=1e-4, atol=1e-4)
    assert np.abs(noise.mean(0)).max() < 5 * 0.016
    assert np.abs(noise.var(0) - 1).max() < 5 * 0.0224
    seen = run(vae(), variables, x, train=False)["z"]
    np.testing.assert_allclose(seen, out["z"], rtol=1e-5, atol=1e-6)
    other = run(vae(), variables, x, KEYS | {"latent": jax.random.key(9)}, train=False)["z"]
    assert np.abs(other - out["z"]).max() > 0.1


# ---- build
def test_build_makes_the_module_that_a_config_names() -> None:
    log: dict[str, Any] = {}
    got = models.build({"name": "mlp", "hidden": [8], "dropout": 0}, out=3, log=log)
    assert got == MLP(out=3, hidden=(8,), dropout=0.0)
    wanted = {"name": "mlp", "hidden": (8,), "dropout": 0.0, "activation": "relu", "norm": "none"}
    wanted |= {"kernel_init": "lecun_normal", "input_dropout": 0.0}
    assert log == {"model": wanted}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"name": "mpl"}, "config.model.name: no model 'mpl' (did you mean 'mlp'?)"),
        ({"hidden": (8,)}, "config.model.name: missing"),
        ({"name": "vae"}, "config.model.name: no model 'vae'"),
        ({"name": "mlp", "out": 3}, "config.model.out: the data decides this"),
        ({"name": "mlp", "hiden": (8,)}, "config.model.hiden: no such setting (did you mean 'hidden'?)"),
    ],
)
def test_build_refuses(config: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as error:
        models.build(config, only=("mlp",), out=3)
    assert str(error.value).startswith(says)


def test_products_of_more_axes_are_flax_s() -> None:
    """flax's own Dense multiplies f32[B, T, D] by another program."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 5))
    ours, theirs = layers.Dense(4), nn.Dense(4)
    params = theirs.init(jax.random.key(1), x)

    def loss(model: nn.Module, params: Any, x: Any) -> Any:
        return jnp.sum(jnp.sin(model.apply(params, x)))

    got, want = (jax.value_and_grad(partial(loss, m), argnums=(0, 1))(params, x) for m in (ours, theirs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)
    kernel = params["params"]["kernel"]
    np.testing.assert_allclose(layers.product(x, kernel), np.asarray(x) @ np.asarray(kernel), rtol=1e-5)


def test_dropout_keeps_the_mean_and_the_share() -> None:
    """77 of 256 are dropped at .3, so a number is kept with p = 179/256 and multiplied by 256/179; sd of a share of n
    numbers: sqrt(p (1 - p) / n)."""
    x = jnp.full((100, 50, 33), 2.0)  # 33: bytes are drawn by fours
    y = np.asarray(layers.Dropout(0.3).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)}))
    p, n = 179 / 256, x.size
    assert set(np.unique(y)) == {np.float32(0), np.float32(2 * 256 / 179)}
    assert abs((y > 0).mean() - p) < 4 * np.sqrt(p * (1 - p) / n)
    neighbours = ((y[..., 1:] > 0) & (y[..., :-1] > 0)).mean()
    assert abs(neighbours - p * p) < 0.006, "bytes of one word are independent"
    assert abs(((y[:, 1:] > 0) & (y[:, :-1] > 0)).mean() - p * p) < 0.006


def test_dropout_of_an_axis_at_the_ends_and_off() -> None:
    x, rngs = jnp.ones((4, 6, 8)), {"dropout": jax.random.key(0)}
    y = np.asarray(layers.Dropout(0.5, broadcast_dims=(1,)).apply({}, x, deterministic=False, rngs=rngs))
    assert (y == y[:, :1]).all()
    assert 0 < (y > 0).mean() < 1
    assert not layers.Dropout(1.0).apply({}, x, deterministic=False, rngs=rngs).any()
    few = np.asarray(layers.Dropout(0.001).apply({}, jnp.ones((100, 256)), deterministic=False, rngs=rngs))
    assert 0 < (few == 0).mean() < 0.01  # 1 of 256, the least there is
    for rate, off in ((0.5, True), (0.0, False)):
        np.testing.assert_array_equal(layers.Dropout(rate).apply({}, x, deterministic=off, rngs=rngs), x)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bf16"), ("fp16", "f16")])
def test_a_resnet_in_sixteen_bits(precision: Any, dtype: str) -> None:
    """Convolutions compute in 16 bits; parameters, averages of BatchNorm and logits are f32. The gradient is that of
    f32 but for rounding (0.04 of its norm was found), if activations are smooth: a ReLU whose input rounds to the other
    side of 0 has another gradient, and no small error (0.3)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 8, 8, 3)).astype(np.float32)
    y = jnp.asarray(rng.integers(0, 10, 16), jnp.int32)
    full, half = (models.ResNet(out=10, depth=20, activation="silu", precision=p) for p in ("f32", precision))
    variables = jax.jit(lambda: half.init(KEYS, x, train=False))()
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def loss(params: Any, net: nn.Module) -> Any:
        given = {**variables, "params": params}
        logits, changed = net.apply(given, x, train=True, mutable=["batch_stats"])
        return losses.cross_entropy(logits, y).mean(), (logits, changed)

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (g, (z, seen)), (g16, (z16, seen16)) = (gradient(variables["params"], net) for net in (full, half))
    assert {v.dtype for v in jax.tree.leaves((g16, z16, seen16))} == {jnp.dtype("float32")}
    assert not np.array_equal(z, z16)

    def apart(tree: Any, other: Any) -> float:
        a, b = (np.concatenate([np.ravel(v) for v in jax.tree.leaves(t)]) for t in (tree, other))
        return float(np.linalg.norm(a - b) / np.linalg.norm(a))

    assert apart(g, g16) < 0.1
    assert apart(seen, seen16) < 0.01
    traced = str(jax.make_jaxpr(lambda v: half.apply(v, x, train=False))(variables))
    assert set(re.findall(r"(\w+)\[[\d,]*\] = conv_general_dilated", traced)) == {dtype}
