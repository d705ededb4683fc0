"""What the pipelines give to techniques, and what they refuse: no run, only the experiment that a config makes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from tests.helpers import context, gap
from tests.test_objective import filled
from umbrella import data, pipelines, transforms
from umbrella.evaluation import evaluate
from umbrella.experiment import Experiment
from umbrella.objective import View
from umbrella.pipelines import _latent
from umbrella.settings import SettingsError


def config(pipeline: str, **kw: Any) -> dict[str, Any]:
    models = {"generative": {"name": "vae", "latent": 2, "hidden": (4,)}, "vision": {"name": "mlp", "hidden": (4,)}}
    return {
        "pipeline": pipeline,
        "data": {"name": "digits"},
        "model": models[pipeline],
        "optimizer": {"learning_rate": 1e-3},
        "batch_size": 16,
        "train_for": "2 steps",
        "evals": {"test": ()},
        **kw,
    }


@pytest.mark.parametrize("name", ["importance_weighted", "iwae"])
def test_a_weight_of_the_kl_that_importance_weighting_would_drop_is_refused(name: str) -> None:
    """In training; as an evaluation the bound is one, whatever the model was trained on."""
    section = {name: {"technique": "importance_weighted", "samples": 2}, "four": {"technique": "kl", "beta": 4.0}}
    with pytest.raises(SettingsError, match=rf"config.techniques: '{name}' has no KL term that 'four' could weigh"):
        pipelines.build(config("generative", techniques=("four", name), **section))
    made = pipelines.build(config("generative", techniques=("four",), evals={"nll": (name,)}, **section))
    assert made.settings["four"]["beta"] == 4


def test_sam_perturbs_what_the_pipeline_trains() -> None:
    """With trainable=("lora",) the loss is that of sam(only=("lora",)), and not that of sam on all scopes."""
    both = {"lora": {"rank": 2}, "sam": {"rho": 0.5}}
    made = pipelines.build(config("vision", techniques=("sam", "lora"), trainable=("lora",), **both))
    plain = pipelines.build(config("vision", techniques=("lora",), trainable=("lora",), **both)).objective
    batch = {
        "x": jnp.asarray(np.random.default_rng(0).integers(0, 17, (8, 8, 8, 1)), jnp.uint8),
        "y": jnp.arange(8, dtype=jnp.int32),
    }
    params, state = filled(plain, batch)
    wanted, other = (transforms.sam(rho=0.5, only=only)(plain) for only in (("lora",), ()))
    loss = jax.jit(lambda p: [o.apply(p, state, batch, context())[0] for o in (made.objective, wanted, other)])(params)
    assert gap(loss[0], loss[1]) < 1e-6
    assert gap(loss[0], loss[2]) > 1e-3


# ------------------------------------------------------------------------------------------------- what the review says
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """t.csv, 300 rows of 5 features that are not alike in scale; ink.npz, images of nothing but black and white."""
    folder, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    x = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)) * [1, 10, 0.1, 3, 1] + [0, 100, 0, -5, 1]
    lines = [",".join(f"{v:.6f}" for v in row) + f",{'ab'[i % 2]}" for i, row in enumerate(x)]
    (folder / "t.csv").write_text("a,b,c,d,e,y\n" + "\n".join(lines) + "\n")
    (folder / "u.csv").write_text("a,b,c,d,e\n" + "\n".join(line[:-2] for line in lines) + "\n")
    ink = np.where(rng.random((300, 5, 5)) < 0.4, 255, 0).astype(np.uint8)
    np.savez(folder / "ink.npz", x=ink, y=np.arange(300) % 3)
    grey = rng.integers(0, 256, (2700, 3, 3), np.uint8)
    np.savez(
        folder / "many.npz",
        x_train=grey[:200],
        y_train=np.zeros(200, int),
        x_test=grey[200:],
        y_test=np.zeros(2500, int),
    )
    return folder


def of(folder: Path, name: str = "u.csv", *, latent: int = 2, above: int = 0, **kw: Any) -> dict[str, Any]:
    own = {"likelihood": "gaussian"} if name.endswith(".csv") else {}
    section = {"name": f"{folder}/{name}", **({"labelled": False} if name == "u.csv" else {})}
    model = {"name": "vae", "latent": latent, "hidden": (6,), "above": above}
    return config("generative", **{"data": section, "model": model, "batch_size": 20, **own, **kw})


def ready(settings: dict[str, Any]) -> tuple[Experiment, View]:
    """An experiment and parameters drawn at random: what is compared holds for any."""
    made = pipelines.build(settings)
    batch = {
        k: jnp.asarray(v)
        for k, v in made.train_data.fetch(made.train_data.resident, made.train_data.slot(0, 0)).items()
    }
    return made, View(*filled(made.objective, batch))


def whole(source: Any) -> dict[str, np.ndarray]:
    return dict(source.__getitems__(np.arange(len(source))))


def predicted(made: Experiment, view: View, source: Any) -> dict[str, np.ndarray]:
    rows = whole(source)
    told = made.predict(view, {k: jnp.asarray(rows[k]) for k in made.asks}, jax.random.key(0))
    return {k: np.asarray(v, np.float64) for k, v in told.items()}


def reviewed(made: Experiment, view: View, *names: str) -> tuple[dict[str, float], dict[str, Any]]:
    """(numbers of test, the artifacts of these names); the others are not drawn."""
    told = made.review(jax.tree.map(lambda v: v[None], view), jax.random.key(1))
    found: dict[str, Any] = {}
    for name, value in told.artifacts if names else ():
        if name in names:
            found[name] = value
        if len(found) == len(names):
            break
    return dict(told.metrics["test"]), found


def seen(made: Experiment, split: str = "test") -> np.ndarray:
    """f64[N, D] of rows as the model sees them: z-scores by train's mean and deviation, or pixels in [0, 1]."""
    x = whole(getattr(made.dataset, split))["x"].astype(np.float64)
    if made.dataset.info["kind"] == "image":
        return x.reshape(len(x), -1) / made.dataset.info["scale"]
    train = whole(made.dataset.train)["x"].astype(np.float64)
    return np.asarray((x - train.mean(0)) / train.std(0))


@pytest.mark.parametrize(("name", "above"), [("u.csv", 0), ("u.csv", 3), ("ink.npz", 0)])
def test_the_numbers_of_the_review_are_those_of_the_predictions(name: str, above: int, folder: Path) -> None:
    made, view = ready(of(folder, name, above=above))
    told = predicted(made, view, made.dataset.test)
    numbers, _ = reviewed(made, view)
    error = told["reconstruction"].reshape(60, -1) - seen(made)
    assert numbers["mse"] == pytest.approx(np.mean(error**2), rel=1e-4)
    assert told["mean"].shape == told["log_var"].shape == (60, 2 + above)
    assert numbers["active_units"] == (told["mean"].var(0) > 0.01).sum()


@pytest.mark.parametrize("name", ["u.csv", "ink.npz"])
def test_the_error_of_pca_is_that_of_singular_vectors(name: str, folder: Path) -> None:
    """Test rows onto the first vectors of the centred training rows, and back; by NumPy."""
    made, view = ready(of(folder, name))
    train, test = seen(made, "train"), seen(made)
    axes = np.linalg.svd(train - train.mean(0), full_matrices=False)[2][:2]
    away = test - train.mean(0)
    wanted = np.mean((away - away @ axes.T @ axes) ** 2)
    _, drawn = reviewed(made, view, "compression")
    own, pca = drawn["compression"].rows
    assert (own[:2], pca[:2]) == (("this model's means", 2), ("PCA", 2))
    assert pca[3:] == (f"{wanted:.5f}", f"{1 - wanted / test.var(0).mean():.4f}")
    assert made.baselines()["PCA, 2 components"]["mse"] == pytest.approx(wanted, rel=1e-4)


def test_the_rival_of_the_error_is_of_the_rows_that_the_model_is(folder: Path) -> None:
    """Of more than 2,000 test rows, some: the same ones for both, and for the table."""
    made, view = ready(of(folder, "many.npz"))
    numbers, drawn = reviewed(made, view, "compression")
    own, pca = drawn["compression"].rows
    assert "2000 test rows" in drawn["compression"].caption
    assert float(own[3]) == pytest.approx(numbers["mse"], abs=1e-5)
    assert float(pca[3]) == pytest.approx(made.baselines()["PCA, 2 components"]["mse"], abs=1e-5)


def test_a_code_has_the_numbers_that_are_decoded(folder: Path) -> None:
    """What a second layer says is in the code no more: the decoder does not look at it."""
    made, view = ready(of(folder, above=3))
    _, drawn = reviewed(made, view, "compression")
    assert [row[1] for row in drawn["compression"].rows] == [2, 2]
    assert "PCA, 2 components" in made.baselines()


def test_chimeras_keep_every_column_and_half_of_every_row() -> None:
    rng = np.random.default_rng(0)
    for shape in ((20, 7), (20, 5, 4, 3)):
        x = rng.normal(size=shape)
        out = _latent.chimeras(x)
        np.testing.assert_array_equal(np.sort(out, axis=0), np.sort(x, axis=0))
        own = out == x
        other = out == np.roll(x, 1, axis=0)
        half = own[:, ::2] if len(shape) == 2 else own[:, : shape[1] // 2]
        rest = other[:, 1::2] if len(shape) == 2 else other[:, shape[1] // 2 :]
        assert half.all() and rest.all() and own.mean() == pytest.approx(half[0].size / x[0].size)


def scores_of(settings: dict[str, Any], **clean: Any) -> tuple[Experiment, View, np.ndarray]:
    made, view = ready({**settings, "clean": clean})
    assert made.scorer is not None
    rows = whole(made.dataset.test)
    score = made.scorer(view)
    return made, view, np.asarray(score({k: rows[k] for k in made.asks}))


@pytest.mark.parametrize(("latent", "name"), [(1, "u.csv"), (3, "u.csv"), (2, "ink.npz")])
def test_the_distance_of_a_code_is_scipys(latent: int, name: str, folder: Path) -> None:
    made, view, told = scores_of(of(folder, name, latent=latent), score="mahalanobis")
    train, test = (predicted(made, view, s)["mean"] for s in (made.dataset.train, made.dataset.test))
    inverse = np.linalg.inv(np.atleast_2d(np.cov(train.T)))
    wanted = [mahalanobis(row, train.mean(0), inverse) for row in test]
    np.testing.assert_allclose(told, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["u.csv", "ink.npz"])
def test_rate_and_distortion_are_the_bound(name: str, folder: Path) -> None:
    """Of all latent variables: as often as a row is drawn, the mean negative ELBO, within five of its deviations."""
    made, view = ready(of(folder, name))
    _, drawn = reviewed(made, view, "rate_distortion")
    rate, distortion = drawn["rate_distortion"].series["the largest n latent variables"]
    told = predicted(made, view, made.dataset.test)
    kl = 0.5 * (told["mean"] ** 2 + np.exp(told["log_var"]) - 1 - told["log_var"])
    np.testing.assert_allclose(rate, [0, kl.mean(0).max(), kl.mean(0).sum()], rtol=1e-4, atol=1e-6)
    evaluation = made.evals["test"]
    bounds = [
        evaluate(evaluation.objective, view, evaluation.batches, jax.random.key(i))["negative_elbo"] for i in range(12)
    ]
    assert np.std(bounds, ddof=1) > 0
    assert abs(rate[-1] + distortion[-1] - np.mean(bounds)) < 5 * np.std(bounds, ddof=1)


@pytest.mark.parametrize(
    ("name", "above", "conditional"),
    [
        ("u.csv", 0, False),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in (("u.csv", 2, False), ("ink.npz", 0, True))),
    ],
)
def test_more_weights_are_a_lower_estimate(name: str, above: int, conditional: bool, folder: Path) -> None:
    """By Jensen's inequality in the mean: -ELBO, then -log of the mean of 2 weights, of 100. With so wide a
    posterior as a random one the differences are far from the noise."""
    own = of(folder, name, above=above, conditional=conditional)
    asked = [{"score": "elbo"}, *({"score": "nll", "samples": n} for n in (2, 100))]
    means = [float(np.mean(scores_of(own, **clean)[2])) for clean in asked]
    assert means == sorted(means, reverse=True) and means[0] - means[-1] > 0.05


def test_a_score_is_of_the_row_and_not_of_the_others(folder: Path) -> None:
    """The same row at the same place of a batch has the same score, whatever is beside it."""
    made, view = ready(of(folder, clean={"samples": 3}))
    assert made.scorer is not None
    score, x = made.scorer(view), whole(made.dataset.test)["x"]
    one = score({"x": x[:10]})
    np.testing.assert_allclose(one[:5], score({"x": np.concatenate([x[:5], x[20:25]])})[:5], rtol=1e-5)


def test_scores_are_of_the_parameters_that_training_resolves_to(folder: Path) -> None:
    """LoRA's ranks, too: with them at random the scores are others than without."""
    lora = {"techniques": ("lora",), "lora": {"rank": 1}, "trainable": ("lora",)}
    for score in ("elbo", "mahalanobis"):
        made, view, told = scores_of(of(folder, **lora), score=score)
        assert set(view.params) == {"lora", "model"}
        plain = pipelines.build(of(folder, clean={"score": score}))
        assert plain.scorer is not None
        rows = {"x": whole(made.dataset.test)["x"]}
        with_ranks = made.objective.resolve(view.params, view.state)["model"]
        wanted, without = (plain.scorer(View({"model": p}, {}))(rows) for p in (with_ranks, view.params["model"]))
        np.testing.assert_allclose(told, wanted, rtol=1e-4, atol=1e-5)
        assert gap(told, without) > 1e-3


@pytest.mark.slow
def test_what_the_planted_anomalies_are_told_of_labels(folder: Path) -> None:
    for name, conditional, words in (
        ("t.csv", True, "the model was told the label of the other half"),
        ("u.csv", False, "no label was used"),
    ):
        made, view = ready(of(folder, name, conditional=conditional, clean={"samples": 2}))
        _, drawn = reviewed(made, view, "anomalies")
        table = drawn["anomalies"]
        assert words in table.caption and "every other feature" in table.caption
        assert [row[0] for row in table.rows][:3] == list(_latent.SCORES.values())
        assert all(0 <= float(row[1]) <= 1 and 0 <= float(row[2]) <= 1 for row in table.rows)


@pytest.mark.slow
def test_a_traversal_names_what_its_numbers_are(folder: Path) -> None:
    """With a second layer the prior of the first is no N(0, 1), so a KL against that would be none."""
    for above, words in ((0, "largest KL, in nats"), (2, "largest variance of the posterior mean")):
        made, view = ready(of(folder, "ink.npz", above=above))
        _, drawn = reviewed(made, view, "traversal")
        mean, log_var = (predicted(made, view, made.dataset.test)[k][:, :2] for k in ("mean", "log_var"))
        worth = mean.var(0) if above else (0.5 * (mean**2 + np.exp(log_var) - 1 - log_var)).mean(0)
        told = ", ".join(f"z{i} {worth[i]:.2f}" for i in np.argsort(-worth))
        assert words in drawn["traversal"].caption and told in drawn["traversal"].caption


# ------------------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("u.csv", dict(likelihood="bernoulli"), "config.likelihood: 'bernoulli' is of pixels; for a table set it to"),
        ("u.csv", dict(likelihood="logistic"), "config.likelihood: 'logistic' is of pixels; for a table set it to"),
        ("u.csv", dict(conditional=True), "have no labels to be told"),
        ("u.csv", dict(model={"name": "vae", "widths": (4,)}), "config.model.widths: convolutions are for images"),
        ("ink.npz", dict(model={"name": "vae", "classes": 3}), "config.model.classes: the data decides this; set cond"),
        (
            "ink.npz",
            dict(model={"name": "vae", "classes": 3}, conditional=True),
            "config.model.classes: the data decides this; leave it out",
        ),
        ("u.csv", dict(evals={"test": ("kl",)}), "config.evals.test: 'kl' acts in training only"),
        ("u.csv", dict(clean={"score": "elbow"}), "config.clean.score: 'elbow' .*did you mean 'elbo'"),
        ("u.csv", dict(clean={"rate": 1.0}), "config.clean.rate: 1.0 must be in"),
        ("u.csv", dict(clean={"samples": 0}), "config.clean.samples: "),
        (
            "u.csv",
            dict(above=2, techniques=("iwae",), iwae=dict(technique="importance_weighted", samples=2, gradient="dreg")),
            "config.iwae.gradient: 'dreg' is for one layer of latent variables; set model.above to 0",
        ),
        (
            "u.csv",
            dict(
                techniques=("importance_weighted", "lora"),
                lora=dict(rank=1),
                importance_weighted=dict(samples=2, gradient="dreg"),
            ),
            "config.importance_weighted.gradient: 'dreg' cannot tell whose the parameters of 'lora' are",
        ),
    ],
)
def test_what_generative_refuses(name: str, more: dict[str, Any], words: str, folder: Path) -> None:
    with pytest.raises(SettingsError, match=words) as error:
        pipelines.build(of(folder, name, **more))
    assert "\n" not in str(error.value)


def test_a_target_that_is_a_number_is_no_label() -> None:
    with pytest.raises(SettingsError, match="config.conditional: the rows of 'diabetes' have no labels"):
        pipelines.build(config("generative", data={"name": "diabetes"}, likelihood="gaussian", conditional=True))


@pytest.mark.parametrize("more", [{}, {"conditional": True}, {"clean": {"score": "elbo"}}])
def test_what_a_run_wrote_of_its_config_is_a_config(more: Mapping[str, Any], folder: Path) -> None:
    """Every key is there, those of `clean` among them."""
    first = pipelines.build(of(folder, "ink.npz", **more)).settings
    assert first["clean"] == {"score": more.get("clean", {}).get("score", "nll"), "samples": 50, "rate": 0.01}
    again = pipelines.build(json.loads(json.dumps(first))).settings
    assert json.dumps(first, sort_keys=True) == json.dumps(again, sort_keys=True)


@pytest.mark.slow
def test_an_attack_is_on_the_image_and_not_on_the_label(folder: Path) -> None:
    """A ball of next to no size changes nothing, so what the model is told beside the image is what it was."""
    rows: dict[str, Any] = {}
    losses = {}
    for eps in (None, 1e-6, 0.1):
        attack = {"techniques": ("adversarial",), "adversarial": {"eps": eps, "steps": 2}} if eps else {}
        made = pipelines.build(of(folder, "ink.npz", conditional=True, **attack))
        rows = rows or {k: jnp.asarray(v[:16]) for k, v in whole(made.dataset.train).items()}
        params, state = filled(made.objective, rows)
        losses[eps] = float(made.objective.apply(params, state, rows, context())[0])
    assert losses[1e-6] == pytest.approx(losses[None], rel=1e-3)
    assert losses[0.1] > losses[None] * 1.001


def test_a_table_without_labels_goes_all_the_way(folder: Path, tmp_path: Path) -> None:
    """No y: not in the batches, nor in what counts rows that are in two splits; the rivals are Gaussians and PCA."""
    lines = (folder / "u.csv").read_text().splitlines()
    path = tmp_path / "twice.csv"
    path.write_text("\n".join([*lines, *lines[1:]]) + "\n")
    dataset = data.load(name=str(path), labelled=False)
    assert set(whole(dataset.test)) == {"x"} and dataset.info["features"] == ("a", "b", "c", "d", "e")
    train = {row.tobytes() for row in whole(dataset.train)["x"]}
    wanted = {k: sum(r.tobytes() in train for r in whole(getattr(dataset, k))["x"]) for k in ("validation", "test")}
    assert data.overlap(dataset) == wanted and wanted["test"] > 0
