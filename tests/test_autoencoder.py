"""Autoencoders against principal components, rings in closed form, the penalty on codes by hand."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

import umbrella as um
from tests.conftest import ROOT
from tests.helpers import context
from umbrella import cli, data, losses, models, pipelines, transforms
from umbrella.evaluation import evaluate
from umbrella.objective import View, supervised
from umbrella.pipelines import _codes, autoencoder
from umbrella.settings import SettingsError

KEY = jax.random.key(0)


def config(variant: str = "digits", file: str = "autoencoder", **more: Any) -> dict[str, Any]:
    made = cli.load_config(f"{ROOT}/configs/{file}.py:{variant}")
    small = dict(model=dict(name="autoencoder", code=3, hidden=(8,)), train_for="2 steps", batch_size=64)
    return {**made, **small, **more}


def refused(made: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as error:
        pipelines.build(made)
    assert "\n" not in str(error.value)
    return str(error.value)


def started(ex: Any) -> View:
    """The parameters that a run starts from."""
    batch = {
        k: jnp.asarray(v) for k, v in ex.train_data.fetch(ex.train_data.resident, ex.train_data.slot(0, 0)).items()
    }
    return View(*ex.init(batch, context(train=False)))


# ---------------------------------------------------------------------------------------------------------- the model
def test_without_hidden_layers_it_is_linear() -> None:
    """f(x) = (x W + b) V + c: f(x + y) - f(x) - f(y) + f(0) = 0, and the numbers are those of the two matrices."""
    net = models.Autoencoder(shape=(5,), code=2, hidden=())
    r = np.random.default_rng(0)
    x, y = (jnp.asarray(r.normal(size=(4, 5)), jnp.float32) for _ in range(2))
    params = net.init(KEY, x, train=True)["params"]
    sizes = {jax.tree_util.keystr(k): v.size for k, v in jax.tree_util.tree_leaves_with_path(params)}
    assert sum(sizes.values()) == 5 * 2 + 2 + 2 * 5 + 5
    f = lambda v: net.apply({"params": params}, v, train=False)["output"]  # noqa: E731
    np.testing.assert_allclose(f(x + y) - f(x) - f(y) + f(0 * x), np.zeros((4, 5)), atol=1e-5)


@pytest.mark.parametrize("widths", [(), (4, 8)])
def test_encode_then_decode_is_the_pass(widths: tuple[int, ...]) -> None:
    net = models.Autoencoder(shape=(6, 5, 1), code=3, hidden=(7,), widths=widths, output="sigmoid")
    x = jnp.asarray(np.random.default_rng(0).random((2, 6, 5, 1)), jnp.float32)
    variables = net.init(KEY, x, train=True)
    out = net.apply(variables, x, train=False)
    code = net.apply(variables, x, method="encode")
    assert code.shape == (2, 3) and out["output"].shape == x.shape
    np.testing.assert_array_equal(code, out["code"])
    np.testing.assert_allclose(net.apply(variables, code, method="decode"), out["output"], rtol=1e-6)
    assert ((out["output"] > 0) & (out["output"] < 1)).all()


@pytest.mark.parametrize(("how", "low", "high"), [("relu", 0, np.inf), ("sigmoid", 0, 1), ("linear", -np.inf, np.inf)])
def test_the_range_of_codes(how: Any, low: float, high: float) -> None:
    net = models.Autoencoder(shape=(6,), code=16, hidden=(8,), code_activation=how)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 6)), jnp.float32)
    code = np.asarray(net.apply(net.init(KEY, x, train=True), x, method="encode"))
    assert low <= code.min() and code.max() <= high
    assert ((code == 0).mean() > 0.2) == (how == "relu") and (code.min() < 0) == (how == "linear")


def test_convolutions_want_images() -> None:
    with pytest.raises(ValueError, match="no images"):
        models.Autoencoder(shape=(5,), widths=(4,))


def test_a_linear_one_trained_on_all_rows_is_as_good_as_principal_components() -> None:
    """Their error is the least of any linear code (Eckart and Young), so it is approached from above: within 1 %."""
    x = data.load(name="digits").train.column("x").reshape(-1, 64).astype(np.float32) / 16
    fitted = PCA(8).fit(x)
    least = np.mean((fitted.inverse_transform(fitted.transform(x)) - x) ** 2)
    net, tx, rows = models.Autoencoder(shape=(64,), code=8, hidden=()), optax.adam(3e-2), jnp.asarray(x)
    params = net.init(KEY, rows[:1], train=True)
    loss = lambda p: jnp.mean((net.apply(p, rows, train=True)["output"] - rows) ** 2)  # noqa: E731

    def step(carry: Any, _: Any) -> Any:
        p, opt = carry
        updates, opt = tx.update(jax.grad(loss)(p), opt)
        return (optax.apply_updates(p, updates), opt), None

    with jax.numpy_dtype_promotion("standard"):
        (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=1000))((params, tx.init(params)))
    assert least < float(loss(params)) < 1.01 * least


# ------------------------------------------------------------------------------------------------------ principal parts
def test_the_components_are_scikit_learns_and_the_first_few_are_the_fewer() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4, 3)) @ np.random.default_rng(1).normal(size=(3, 3))
    mine, flat = _codes.components(x, 12), x.reshape(50, 12)
    for size in (1, 5, 12):
        theirs = PCA(size).fit(flat)
        back = theirs.inverse_transform(theirs.transform(flat))
        np.testing.assert_allclose(mine.reconstruction(x, size).reshape(50, 12), back, atol=1e-9)
        np.testing.assert_allclose(mine.error(x, size), ((back - flat) ** 2).mean(1), atol=1e-9)
    assert len(_codes.components(x, 99).axes) == 12


@pytest.mark.parametrize("radius", [0.5, 1.0, 3.0])
def test_one_component_leaves_half_of_a_ring(radius: float) -> None:
    """x = r (cos t, sin t), t uniform: E x = 0, E x x^T = r^2 / 2 I, since cos^2 and sin^2 have the mean 1/2 and their
    product the mean 0. Any direction keeps r^2 / 2 and leaves r^2 / 2, over the two coordinates together. Angles at
    equal distances have these moments exactly."""
    t = np.arange(360) * 2 * np.pi / 360
    x = radius * np.stack([np.cos(t), np.sin(t)], 1)
    assert 2 * _codes.components(x, 1).error(x).mean() == pytest.approx(radius**2 / 2, rel=1e-9)


def test_the_rings_are_what_is_asked_for() -> None:
    """Half of the rows on each; the variance of a coordinate is (1 + .5^2) / 2 / 2 + noise^2 = .3125 + .01."""
    made = autoencoder.circles(name="circles", rows=20_000, noise=0.1)
    x, y = made.train.column("x"), made.train.column("y")
    radius = np.sqrt((x**2).sum(1))
    assert [len(s) for s in made[3:6]] == [14_000, 2_000, 4_000] and (y == 0).sum() == 7_000
    for ring, r in ((0, 1.0), (1, 0.5)):  # noise along the radius adds sd^2 / (2 r) to its mean
        assert radius[y == ring].mean() == pytest.approx(r + 0.01 / (2 * r), abs=0.01)
    np.testing.assert_allclose(x.var(0), 0.3225, atol=0.01)
    again = autoencoder.circles(name="circles", rows=20_000, noise=0.1)
    other = autoencoder.circles(name="circles", rows=20_000, noise=0.1, seed=1)
    assert made.fingerprint == again.fingerprint != other.fingerprint


def test_hoyers_measure_by_hand() -> None:
    """(3, 4): L = 2, |z|_1 = 7, |z|_2 = 5: (sqrt 2 - 1.4) / (sqrt 2 - 1)."""
    got = autoencoder.hoyer(np.array([[3.0, -4.0], [0.0, 0.0]]))
    assert got[0] == pytest.approx((np.sqrt(2) - 1.4) / (np.sqrt(2) - 1)) and np.isnan(got[1])
    assert np.isnan(autoencoder.hoyer(np.ones((2, 1)))).all()


def test_what_is_explained_is_scikit_learns() -> None:
    r = np.random.default_rng(0)
    x = r.normal(size=(40, 3)) * np.array([1.0, 2.0, 5.0])
    guess = x + 0.3 * r.normal(size=x.shape)
    wanted = r2_score(x, guess, multioutput="variance_weighted")
    assert _codes.explained(float(((guess - x) ** 2).mean()), x) == pytest.approx(wanted)


# ------------------------------------------------------------------------------------------------------------- sparsity
class _Code:
    """A model that gives its input as its code and output."""

    def init(self, rngs: Any, x: Any, *, train: bool) -> dict[str, Any]:
        return {"params": {"w": jnp.ones(())}}

    def apply(self, variables: Any, x: Any, *, train: bool, rngs: Any) -> dict[str, Any]:
        return {"output": x * variables["params"]["w"], "code": x * variables["params"]["w"]}


def priced(batch: dict[str, Any], **how: Any) -> tuple[float, Any, Any]:
    base = supervised(_Code(), lambda out, y: losses.squared_error(out["output"], y))
    o = transforms.sparse(_codes.code_of, **how)(base)
    params, state = o.init(batch, context())
    value, aux = o.apply(params, state, batch, context())
    slope = jax.grad(lambda p: o.apply(p, state, batch, context())[0])(params)
    return float(value), aux, float(slope["model"]["w"])


def test_the_l1_of_a_code_by_hand() -> None:
    """Rows (1, -2) and (3, 0) count, (9, 9) is padding: (3 + 3) / 2 = 3. The squared error is 0. Weight .1: .3, and its
    slope in the scale w of the code, at w = 1, is the same."""
    x = jnp.asarray([[1.0, -2.0], [3.0, 0.0], [9.0, 9.0]])
    loss, aux, slope = priced({"x": x, "y": x, "mask": jnp.asarray([1.0, 1.0, 0.0])}, weight=0.1)
    assert loss == pytest.approx(0.3) and slope == pytest.approx(0.3)
    assert aux.metrics["sparse"].compute() == pytest.approx(3.0) and aux.metrics["loss"].compute() == 0


def test_the_divergence_of_activities_by_hand() -> None:
    """Mean activities .25 and .5, target .25: KL(.25 | .25) = 0 and KL(.25 | .5) = .25 log(.5) + .75 log(1.5)."""
    x = jnp.asarray([[0.1, 0.3], [0.4, 0.7], [0.9, 0.9]])
    batch = {"x": x, "y": x, "mask": jnp.asarray([1.0, 1.0, 0.0])}
    loss, aux, slope = priced(batch, weight=2.0, penalty="kl", target=0.25)
    kl = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    assert loss == pytest.approx(2 * kl, rel=1e-5)
    # d KL / d a = -t / a + (1 - t) / (1 - a): 0 at .25, and -.5 + 1.5 = 1 at .5; d a / d w = a = .5.
    assert slope == pytest.approx(2 * 1 * 0.5, rel=1e-4)
    nothing, _, slope = priced({**batch, "mask": jnp.zeros(3)}, weight=2.0, penalty="kl")
    assert nothing == 0 and slope == 0


@pytest.mark.slow
def test_a_sparse_code_is_one(tmp_path: Path) -> None:
    """The same run with and without the penalty: the l1 of the code falls, and the error rises."""
    sized = []
    for weight in (0.0, 0.03):
        more = dict(
            techniques=("sparse",),
            sparse=dict(weight=weight),
            train_for="150 steps",
            baselines=False,
            eval_every="never",
        )
        r = um.run(config(**more), workdir=tmp_path / str(weight), quiet=True)
        rows = np.load(tmp_path / str(weight) / "artifacts" / "rows.npz", allow_pickle=False)
        sized.append((np.abs(rows["code"]).sum(1).mean(), r.summary["metrics"]["test"]["loss"]))
    assert sized[1][0] < 0.5 * sized[0][0] and sized[1][1] > sized[0][1]


# ------------------------------------------------------------------------------------------------------------ denoising
@pytest.mark.parametrize(
    "more",
    [
        dict(techniques=("noise",), noise=dict(eps=0.3, norm="normal")),
        dict(techniques=("corruption",), corruption=dict(kind="impulse_noise", severity=5)),
        dict(techniques=("cutout",), cutout=dict(size=3)),
    ],
)
def test_the_target_of_a_corrupted_image_is_the_clean_one(more: dict[str, Any]) -> None:
    """The model's input is changed and the target is not: the identity then costs what the corruption does."""
    ex = pipelines.build(config(**more))
    seen: dict[str, Any] = {}

    def spy(params: Any, state: Any, batch: Any, ctx: Any) -> Any:
        seen.update(batch)
        return jnp.zeros(()), None

    made = transforms.build(
        more["techniques"],
        {k: v for k, v in more.items() if k != "techniques"},
        **{"bounds": (0.0, 1.0), "on": "x", "where": None},
    )
    base = supervised(models.Autoencoder(shape=(8, 8, 1), code=3, hidden=(8,)), lambda out, y: y.sum((1, 2, 3)))
    stored = jax.tree.map(jnp.asarray, ex.train_data.fetch(ex.train_data.resident, ex.train_data.slot(0, 0)))
    units = _codes.units(ex.dataset)
    um.chain(units.outer, *made)(base._replace(apply=spy)).apply({}, {}, stored, context())
    clean = np.asarray(stored["x"], np.float32) / 16
    np.testing.assert_allclose(seen["y"], clean, atol=1e-6)
    assert np.abs(np.asarray(seen["x"]) - clean).mean() > 0.005


def test_the_loss_on_test_is_the_error_of_what_predict_says() -> None:
    """By NumPy, also after training with noise, which does not act in a plain evaluation."""
    for more in ({}, dict(techniques=("noise",), noise=dict(eps=0.3, norm="normal"))):
        ex = pipelines.build(config(**more))
        view = started(ex)
        x = ex.dataset.test.column("x")
        out = jax.device_get(jax.jit(ex.predict)(view, {"x": x}, KEY))
        error = np.mean((out["reconstruction"] - x / np.float32(16)) ** 2)
        assert out["code"].shape == (len(x), 3)
        told = evaluate(ex.evals["test"].objective, view, ex.evals["test"].batches, KEY)
        assert told["loss"] == pytest.approx(error, rel=1e-5)


def test_a_table_is_standardised_by_train_and_predicted_in_its_own_units() -> None:
    ex = pipelines.build(config("table", data=dict(name="wine", validation=0.1)))
    view = started(ex)
    train, x = ex.dataset.train.column("x"), ex.dataset.test.column("x")
    mean, sd = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    out = jax.device_get(jax.jit(ex.predict)(view, {"x": x}, KEY))
    error = np.mean(((out["reconstruction"] - x) / sd) ** 2)
    told = evaluate(ex.evals["test"].objective, view, ex.evals["test"].batches, KEY)
    assert told["loss"] == pytest.approx(error, rel=1e-4)
    pca = PCA(3).fit((train - mean) / sd)
    z = (x - mean) / sd
    rivals = ex.baselines()
    assert rivals["3 principal components"]["loss"] == pytest.approx(
        np.mean((pca.inverse_transform(pca.transform(z)) - z) ** 2), rel=1e-4
    )
    assert rivals["the mean of train"]["loss"] == pytest.approx(np.mean(z**2), rel=1e-4)


# ----------------------------------------------------------------------------------------------------------------- runs
@pytest.mark.slow
def test_a_run_of_two_seeds_says_what_the_report_shows(tmp_path: Path) -> None:
    r = um.run(config(seeds=2), workdir=tmp_path, quiet=True)
    test = r.summary["metrics"]["test"]
    assert {"loss", "r2", "sparsity", "probe_accuracy"} <= set(test) and test["r2"]["n"] == 2
    x = r.experiment.dataset.test.column("x") / np.float32(16)
    blank = ((x - x.mean(0)) ** 2).mean()
    for loss, r2 in zip(test["loss"]["values"], test["r2"]["values"], strict=True):
        assert r2 == pytest.approx(1 - loss / blank, abs=1e-5)
    index = json.loads((tmp_path / "artifacts" / "index.json").read_text())
    assert {"reconstructions", "codes", "sizes", "sparsity"} == {e["name"] for e in index}
    sizes = json.loads((tmp_path / "artifacts" / "sizes.json").read_text())
    own = next(row for row in sizes["rows"] if row[0] == 3)
    assert own[1] == 12 and float(own[2]) == pytest.approx(test["loss"]["values"][0], abs=1e-5)
    assert float(own[3]) == pytest.approx(r.summary["baselines"]["3 principal components"]["loss"], abs=1e-5)
    assert "an example has 64" in sizes["caption"]


@pytest.mark.slow
def test_two_rings_by_one_number(tmp_path: Path) -> None:
    """A tenth of what one principal component leaves, which is half of the variance: 1/2 in standardised units."""
    r = um.run(cli.load_config(f"{ROOT}/configs/circles.py:line"), workdir=tmp_path, quiet=True)
    rival = r.summary["baselines"]["1 principal component"]["loss"]
    assert rival == pytest.approx(0.5, abs=0.03)
    assert r.summary["metrics"]["test"]["loss"] < 0.1 * rival


# ------------------------------------------------------------------------------------------------------ what it refuses
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(model=dict(name="vae")), "config.model.name: no model 'vae'"),
        (dict(model=dict(name="autoencoder", shape=(3,))), "config.model.shape: the data decides this"),
        (dict(techniques=("flip",)), "config.techniques: 'flip' is not for this pipeline's inputs"),
        (
            dict(techniques=("sparse",), sparse=dict(weight=0.1, penalty="kl")),
            "config.sparse.penalty: 'kl' wants codes in (0, 1)",
        ),
        (dict(techniques=("sparse",), sparse=dict(weight=-1.0)), "config.sparse.weight: -1.0 must be >= 0"),
        (dict(evals=dict(test=("sparse",)), sparse=dict(weight=1.0)), "'sparse' acts in training only"),
        (
            dict(data=dict(name="wine"), model=dict(name="autoencoder", widths=(4,))),
            "config.model.widths: convolutions",
        ),
        (dict(data=dict(name="wine"), model=dict(name="autoencoder", output="sigmoid")), "config.model.output"),
        (dict(data=dict(name="circles", inner=1.5)), "config.data.inner: 1.5 must be below 1"),
        (dict(data=dict(name="circles", rows=5)), "config.data.rows: 5 are too few"),
        (dict(data=dict(name="circles", nosie=0.1)), "did you mean 'noise'?"),
        (dict(baselines=("pca",)), "config.baselines: ('pca',) is tuple, wanted bool"),
    ],
)
def test_what_it_refuses(more: dict[str, Any], words: str) -> None:
    assert words in refused(config(**more))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,y\n1,2,0\n3,,1\n", "row 3, column 'b': is empty"),
        ("a,b,y\n1,2,0\n3,n/a,1\n", "row 3, column 'b': 'n/a' is no number"),
        ("a,b,y\n1,2,0\n3,inf,1\n", "row 3, column 'b': 'inf' is not finite"),
        ("a,b\n1,2\n", "which column is the target?"),
    ],
)
def test_a_table_with_holes_is_status_2_and_leaves_nothing(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(text)
    args = (f"--config={ROOT}/configs/autoencoder.py:table", f"--config.data.path={tmp_path}/a.csv")
    assert cli.main(["launch.py", *args, f"--workdir={tmp_path}/w"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and words in line
    assert not (tmp_path / "w").exists()


def test_texts_have_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("".join(f"{'ab'[i % 2]}\tline {i}\n" for i in range(40)))
    assert "holds neither images nor numbers: text" in refused(config(data=dict(name=str(tmp_path / "a.tsv"))))


def test_images_of_two_sizes_are_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for name, side in (("a", 4), ("b", 5)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(np.full((side, side), 9 * i, np.uint8)).save(tmp_path / "set" / name / f"{i}.png")
    args = (f"--config={ROOT}/configs/autoencoder.py", f"--config.data.path={tmp_path}/set")
    assert cli.main(["launch.py", *args, f"--workdir={tmp_path}/w"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "5x5 pixels" in line and "data.size" in line
    assert not (tmp_path / "w").exists()
