"""Pipelines from config to experiment: what they refuse in one line, and that evaluations are of what was trained."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import special
from sklearn.linear_model import LogisticRegression

import umbrella as um
from tests.conftest import ROOT
from tests.test_objective import filled
from umbrella import baselines, cli, data, pipelines, transforms
from umbrella.evaluation import evaluate
from umbrella.experiment import Experiment, RunSettings
from umbrella.objective import Params, View, map_params
from umbrella.pipelines.generative import FITTING
from umbrella.settings import SettingsError

KEY = jax.random.key(0)
SETTINGS = {  # of every technique that has one without a default
    "adversarial": dict(eps=0.1),
    **{name: {} for name in ("affine", "alternating_flip", "colour", "crop", "cutmix", "cutout", "diffaugment")},
    **{name: {} for name in ("elastic", "flip")},
    "apgd": dict(eps=0.1, steps=3),
    "awp": {},
    "certified": dict(eps=0.05),
    "corruption": dict(kind="contrast"),
    "fgsm": dict(eps=0.1),
    "importance_weighted": dict(samples=3),
    "kl": dict(beta=2.0),
    "l1": dict(weight=0.1),
    "l2": dict(weight=0.1),
    "label_smoothing": dict(eps=0.1),
    "lora": dict(rank=4, alpha=8.0),
    "mixup": dict(alpha=0.2),
    "noise": dict(eps=0.1),
    "randaugment": {},
    "sam": dict(rho=0.05),
    "sparse": dict(weight=0.1),
    "trades": dict(eps=0.1),
    "vat": dict(eps=0.5),
}


def vision(**more: Any) -> dict[str, Any]:
    """A small classifier of digits."""
    base = dict(
        pipeline="vision",
        data=dict(name="digits"),
        model=dict(name="mlp", hidden=(8,)),
        optimizer=dict(name="adam"),
        batch_size=64,
        train_for="4 steps",
        evals=dict(test=()),
        baselines=False,
    )
    return {**base, **more}


def refused(config: dict[str, Any]) -> str:
    """The one line that building the experiment of a config ends with."""
    with pytest.raises(SettingsError) as error:
        pipelines.build(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def generative(**more: Any) -> dict[str, Any]:
    """A small autoencoder of images of bytes, which a discretised logistic reads as they are."""
    own = dict(
        pipeline="generative",
        model=dict(name="vae", latent=3, hidden=(8,)),
        likelihood="logistic",
        data=dict(name="quarters.npz"),
    )
    return vision(**{**own, **more})


@pytest.fixture
def quarters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """quarters.npz in the working folder: 100 images in which the bright quarter is the class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 100)
    x = rng.integers(0, 60, (100, 4, 4), np.uint8)
    for image, label in zip(x, y, strict=True):
        image[2 * (label // 2) :, 2 * (label % 2) :][:2, :2] += 150
    monkeypatch.chdir(tmp_path)
    np.savez("quarters.npz", x=x, y=y)
    return x


def view_of(ex: Experiment) -> View:
    """Random parameters, every scope's: what holds for these holds for whatever training makes."""
    batch = ex.train_data.fetch(ex.train_data.resident, ex.train_data.slot(0, 0))
    return View(*filled(ex.objective, {k: jnp.asarray(v) for k, v in batch.items()}))


def told(ex: Experiment, name: str, view: View) -> dict[str, Any]:
    return evaluate(ex.evals[name].objective, view, ex.evals[name].batches, KEY)


def predicted(ex: Experiment, split: Any, view: View) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    rows = split.__getitems__(np.arange(len(split)))
    return rows, jax.device_get(ex.predict(view, {"x": rows["x"]}, KEY))


# ------------------------------------------------------------------------------- an evaluation is of what was trained
NOT_OF_CLASSIFIERS = {"importance_weighted", "kl", "sparse"}


@pytest.mark.parametrize("name", sorted(set(transforms.TABLE) - NOT_OF_CLASSIFIERS))
def test_accuracy_is_that_of_the_predictions(name: str) -> None:
    """On test, validation and the part of train, whatever technique is trained with: by NumPy from predict()."""
    ex = pipelines.build(vision(techniques=(name,), **{name: SETTINGS[name]}))
    view = view_of(ex)
    for split, source in (("test", ex.dataset.test), ("validation", ex.dataset.validation)):
        rows, got = predicted(ex, source, view)
        metrics = told(ex, split, view)
        assert metrics["accuracy"] == pytest.approx(np.mean(got["label"] == rows["y"]), abs=1e-9)
        loss = -np.log(got["probabilities"].astype(np.float64))[np.arange(len(rows["y"])), rows["y"]]
        assert metrics["loss"] == pytest.approx(loss.mean(), rel=1e-4)
    part = ex.evals["train_eval"].batches.source
    rows = part.__getitems__(np.arange(len(part)))
    got = jax.device_get(ex.predict(view, {"x": rows["x"]}, KEY))
    assert told(ex, "train_eval", view)["accuracy"] == pytest.approx(np.mean(got["label"] == rows["y"]), abs=1e-9)


@pytest.mark.parametrize("name", FITTING)
def test_the_divergence_is_that_of_the_predicted_latents(name: str, quarters: np.ndarray) -> None:
    """KL(N(m, s^2) | N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2 a latent, by NumPy from what predict() encodes."""
    ex = pipelines.build(generative(techniques=(name,), **{name: SETTINGS[name]}))
    view = view_of(ex)
    _, got = predicted(ex, ex.dataset.test, view)
    m, v = got["mean"].astype(np.float64), got["log_var"].astype(np.float64)
    kl = 0.5 * (m**2 + np.exp(v) - 1 - v).sum(1).mean()
    assert told(ex, "test", view)["kl"] == pytest.approx(kl, rel=1e-4)


def by_hand(params: Params) -> Params:
    """W + alpha / rank * A B, here 8 / 4, by NumPy in 64 bits."""
    model = jax.tree.map(lambda w: np.asarray(w, np.float64), params["model"])
    for path, d in params["lora"].items():
        layer, kind = path.split(".")
        model[layer][kind] = model[layer][kind] + 2 * np.asarray(d["a"], np.float64) @ np.asarray(d["b"], np.float64)
    return model


def test_a_run_with_lora_is_evaluated_with_it() -> None:
    """The loss of the test split by NumPy on the merged matrices; and an attack in an evaluation climbs them, too."""
    config = vision(
        model=dict(name="mlp", hidden=()),
        techniques=("lora",),
        lora=SETTINGS["lora"],
        trainable=("lora",),
        evals=dict(test=(), attacked=("fgsm",)),
        fgsm=dict(eps=0.1),
    )
    ex = pipelines.build(config)
    view = view_of(ex)
    head = by_hand(view.params)["head"]
    rows, _ = predicted(ex, ex.dataset.test, view)
    x, at = rows["x"].reshape(len(rows["y"]), -1) / 16, np.arange(len(rows["y"]))

    def mean_loss(x: np.ndarray) -> float:
        return -special.log_softmax(x @ head["kernel"] + head["bias"], 1)[at, rows["y"]].mean()

    assert told(ex, "test", view)["loss"] == pytest.approx(mean_loss(x), rel=1e-5)
    # One signed step: the gradient of -log p_y in x is (p - onehot) W^T.
    slope = (special.softmax(x @ head["kernel"] + head["bias"], 1) - np.eye(10)[rows["y"]]) @ head["kernel"].T
    assert told(ex, "attacked", view)["loss"] == pytest.approx(
        mean_loss(np.clip(x + 0.1 * np.sign(slope), 0, 1)), rel=1e-4
    )


def test_a_run_that_trains_only_lora_reports_what_it_learnt(tmp_path: Path) -> None:
    """The base is random and fixed, about one in ten right: what is learnt is in the deltas alone."""
    more = dict(model=dict(name="mlp", hidden=(64,)), optimizer=dict(name="adam", learning_rate=3e-3))
    lora = dict(techniques=("lora",), lora=dict(rank=8, alpha=8.0), trainable=("lora",))
    r = um.run(vision(train_for="5 epochs", **more, **lora), workdir=tmp_path, quiet=True)
    rows, got = predicted(r.experiment, r.experiment.dataset.test, r.ts.eval_view())
    right = np.mean(got["label"] == rows["y"])
    assert right > 0.7
    assert r.summary["metrics"]["test"]["accuracy"] == pytest.approx(right, abs=1e-9)
    assert r.summary["metrics"]["validation"]["accuracy"] > 0.7


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            dict(techniques=("lora",), evals=dict(test=("lora",))),
            "config.evals.test: 'lora' is trained with, so it is part of every evaluation already; leave it out",
        ),
        (
            dict(techniques=("lora",), evals=dict(test=("again",)), again=dict(technique="lora", rank=4)),
            "config.evals.test: 'again' is trained with",
        ),
        (
            dict(evals=dict(test=("lora",))),
            "config.evals.test: needs the parameters lora, which config.techniques does not make",
        ),
    ],
)
def test_a_reparametrisation_is_not_named_again_in_an_evaluation(config: dict[str, Any], words: str) -> None:
    assert words in refused(vision(lora=SETTINGS["lora"], **config))


def test_a_reparametrisation_may_be_looked_at_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding a trained model's parameters to one decimal is a question for an evaluation. It rounds W + 2 A B."""

    def rounded() -> Any:
        return map_params(lambda p, s: {**p, "model": jax.tree.map(lambda w: jnp.round(w, 1), p["model"])}, name="r")

    monkeypatch.setitem(transforms.TABLE, "rounded", rounded)
    config = dict(model=dict(name="mlp", hidden=()), techniques=("lora",), lora=SETTINGS["lora"])
    ex = pipelines.build(vision(**config, evals=dict(test=("rounded",))))
    view = view_of(ex)
    head = {k: np.round(v, 1) for k, v in by_hand(view.params)["head"].items()}
    rows, _ = predicted(ex, ex.dataset.test, view)
    logits = rows["x"].reshape(len(rows["y"]), -1) / 16 @ head["kernel"] + head["bias"]
    wanted = -special.log_softmax(logits, 1)[np.arange(len(logits)), rows["y"]].mean()
    # A weight that lies at a tie in 64 bits may be rounded the other way in 32: hence the tolerance.
    assert told(ex, "test", view)["loss"] == pytest.approx(wanted, rel=1e-3)


def test_techniques_that_leave_the_parameters_alone_may_be_in_both() -> None:
    both = dict(techniques=("lora", "fgsm"), evals=dict(test=("fgsm",)), lora=SETTINGS["lora"], fgsm=SETTINGS["fgsm"])
    assert "test" in pipelines.build(vision(**both)).evals


# -------------------------------------------------------------------------------------------- scopes that are not there
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (dict(trainable=("modle",)), "config.trainable: the parameters have no scope 'modle' (did you mean 'model'?)"),
        (dict(trainable=("lora",)), "config.trainable: the parameters have no scope 'lora' (one of: model)"),
        (
            dict(techniques=("l2",), l2=dict(weight=0.1, scope="modle")),
            "config.l2.scope: the parameters have no scope 'modle' (did you mean 'model'?)",
        ),
        (
            dict(techniques=("lora",), lora=dict(rank=2, scope="modle")),
            "config.lora.scope: the parameters have no scope 'modle' (did you mean 'model'?)",
        ),
        (
            dict(techniques=("small",), small=dict(technique="lora", rank=2, scope="modle")),
            "config.small.scope: the parameters have no scope 'modle' (did you mean 'model'?)",
        ),
        (dict(techniques=("lora", "lora"), lora=dict(rank=2)), "config.techniques: lora is there already"),
        (dict(evals=dict(test=("lora", "lora")), lora=dict(rank=2)), "config.evals.test: lora is there already"),
    ],
)
def test_a_wrong_scope_is_one_line(config: dict[str, Any], words: str) -> None:
    assert words in refused(vision(**config))


def test_no_training_examples_are_one_line(tmp_path: Path) -> None:
    x, y = np.zeros((4, 2, 2), np.uint8), np.zeros(4, np.int32)
    np.savez(tmp_path / "a.npz", x_train=x[:0], y_train=y[:0], x_test=x, y_test=y)
    assert "the data set has no examples" in refused(vision(data=dict(name=str(tmp_path / "a.npz"), validation=0.0)))


def test_on_the_command_line_a_wrong_scope_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.py"
    file.write_text(f"def get_config():\n    return {vision(trainable=('modle',))!r}\n")
    work = tmp_path / "w"
    assert cli.main(["launch.py", f"--config={file}", f"--workdir={work}"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "did you mean 'model'?" in line
    assert not work.exists()


def test_a_scope_that_another_technique_makes_is_one() -> None:
    """On either side: what is to the left of lora and what is to its right see both scopes."""
    for order in itertools.permutations(("lora", "l2")):
        config = vision(techniques=order, lora=dict(rank=2), l2=dict(weight=0.1, scope="lora"), trainable=("lora",))
        assert pipelines.build(config).evals.keys() == {"train_eval", "validation", "test"}


# --------------------------------------------------------------------------------------------- labels that are withheld
def withhold(monkeypatch: pytest.MonkeyPatch, name: str, *splits: str) -> None:
    """load(name=...) gives the set with the labels of these splits at -1, as TFDS's readers do."""
    found = data.load(name=name)
    for split in splits:
        columns = getattr(found, split).arrays
        found = found._replace(**{split: data.Arrays({**columns, "y": np.full_like(columns["y"], -1)})})
    found = found._replace(info={**found.info, "hidden": splits})

    def load(*, name: str) -> data.Dataset:
        return found

    monkeypatch.setattr(data, "load", load)


def test_a_split_whose_labels_are_withheld_is_left_out_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    withhold(monkeypatch, "digits", "test")
    config = vision(baselines=True, evals=dict(test=(), robust=("fgsm",)), fgsm=dict(eps=0.1))
    r = um.run(config, workdir=tmp_path)
    assert r.summary["metrics"].keys() == {"train_eval", "validation"}
    assert r.summary["baselines"] == {} and not (tmp_path / "artifacts").exists()
    said = [line for line in capsys.readouterr().out.splitlines() if "withheld" in line]
    assert said == ["The labels of the test split are withheld: there are no evaluations on it and no baselines."]


def test_a_validation_split_whose_labels_are_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    withhold(monkeypatch, "digits", "validation")
    ex = pipelines.build(vision())
    assert ex.evals.keys() == {"train_eval", "test"}
    assert ex.notes == ("The labels of the validation split are withheld: there are no evaluations on it.",)


def test_an_autoencoder_needs_no_labels(quarters: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    withhold(monkeypatch, "quarters.npz", "test", "validation")
    ex = pipelines.build(generative())
    assert ex.evals.keys() == {"train_eval", "validation", "test"} and ex.notes == ()
    assert ex.baselines().keys() == {"independent pixels", "the pixel to the left", "PCA, 3 components"}
    drawn = dict(ex.review(jax.tree.map(lambda x: x[None], view_of(ex)), KEY).artifacts)["latent_map"]
    assert (np.asarray(drawn.labels) == 0).all() and "class" not in drawn.caption


def test_pixels_that_are_not_bytes_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = data.load(name="digits")
    found = found._replace(info={**found.info, "scale": None})

    def load(*, name: str) -> data.Dataset:
        return found

    monkeypatch.setattr(data, "load", load)
    for config in (vision(), generative(data=dict(name="digits"))):
        assert "'digits' holds images whose pixels are not bytes, which this pipeline needs" in refused(config)


# -------------------------------------------------------------------------------------------- parts of large or sorted
@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Five classes of 40 images each, in folders: in the order of their classes."""
    rng = np.random.default_rng(0)
    for name, grey in zip("abcde", (10, 60, 110, 160, 210), strict=True):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(40):
            Image.fromarray(rng.integers(grey, grey + 40, (4, 4)).astype(np.uint8)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
    return str(tmp_path / "images")


def test_the_training_examples_that_are_evaluated_are_of_every_class(folder: str) -> None:
    """14 of 144, a tenth as in validation: the first would all be of class a."""
    ex = pipelines.build(vision(data=dict(name=folder), batch_size=16))
    part = ex.evals["train_eval"].batches.source
    assert len(part) == len(ex.dataset.validation)
    assert len(set(part.column("y").tolist())) >= 4
    again = pipelines.build(vision(data=dict(name=folder), batch_size=16, seed=5)).evals["train_eval"].batches.source
    np.testing.assert_array_equal(part.column("x"), again.column("x"))


def test_a_sample_is_of_distinct_rows_in_order() -> None:
    rows = data.sample(1000, 100)
    assert len(set(rows.tolist())) == 100 and (np.diff(rows) > 0).all() and rows.min() >= 0 and rows.max() < 1000
    assert abs(rows.mean() - 499.5) < 5 * 1000 / np.sqrt(12 * 100)  # the mean of 100 uniform draws, five errors


class Watched:
    """A source that is streamed, and counts what is read of it."""

    def __init__(self, source: data.Arrays):
        self.source, self.read = source, 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        self.read += len(indices)
        return self.source.__getitems__(indices)

    def column(self, name: str) -> np.ndarray:
        raise AssertionError("a baseline reads no whole column")


def test_rivals_of_a_streamed_set_are_fitted_on_a_part_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most LARGE rows and ROOM numbers: 50 rows of training, and of 16 numbers a row 640 / 16 = 40 in test."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600).astype(np.int32)
    x = (60 * y[:, None] + rng.integers(0, 60, (600, 16))).astype(np.uint8)
    whole = data.Arrays({"x": x, "y": y})

    def fit(train: Any, test: Any) -> dict[str, dict[str, float]]:
        return baselines.classification(train, test, 255.0)

    assert set(baselines.on_parts(fit, whole, whole)) == {
        "majority class",
        "3 nearest neighbours",
        "logistic regression",
    }
    monkeypatch.setattr(baselines, "LARGE", 50)
    train, test = Watched(whole), Watched(whole)
    got = baselines.on_parts(fit, train, whole)
    assert set(got) == {f"{k} (on 50 rows)" for k in ("majority class", "3 nearest neighbours", "logistic regression")}
    assert train.read <= 51
    few = whole.__getitems__(data.sample(600, 50))
    most = np.bincount(few["y"]).argmax()
    assert got["majority class (on 50 rows)"]["accuracy"] == pytest.approx(np.mean(y == most))
    monkeypatch.setattr(baselines, "ROOM", 640)
    both = baselines.on_parts(fit, train, test)
    assert "majority class (on 40 rows, tested on 40)" in both and test.read <= 41


def test_a_run_on_a_streamed_set_reads_no_more_for_its_rivals(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "LARGE", 30)
    ex = pipelines.build(vision(data=dict(name=folder, in_memory=False), batch_size=16, baselines=True))
    assert set(ex.baselines()) >= {"majority class (on 30 rows, tested on 30)"}


def test_the_rivals_are_those_that_the_config_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In summary.json, the terminal and the report; on the rows that the network was trained on and not one more."""
    r = um.run(vision(baselines=("nearest_centroid", "majority")), workdir=tmp_path)
    rows = r.summary["baselines"]
    assert list(rows) == ["nearest centroid", "majority class"]
    assert rows["majority class"].keys() == {"accuracy", "loss", "seconds"}
    y = [s.column("y") for s in (r.experiment.dataset.train, r.experiment.dataset.test)]
    assert rows["majority class"]["accuracy"] == np.mean(y[1] == np.bincount(y[0]).argmax())
    shares = np.bincount(y[0]) / len(y[0])
    assert rows["majority class"]["loss"] == pytest.approx(-np.log(shares[y[1]]).mean())
    cli_table = cli._table(r.summary)
    assert "seconds" in cli_table and "nearest centroid" in cli_table
    assert "nearest centroid" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_softmax_regression_finds_scikit_learns_coefficients(tmp_path: Path) -> None:
    """configs/softmax.py with the whole of train as its batch, until nothing moves. scikit-learn minimises
    C * the sum of losses + |W|^2 / 2, so its C is 1 / (n * weight); neither penalises the biases. Softmax leaves a
    constant over the classes free, in the biases: compared are differences from their mean.
    """
    weight, config = 1e-2, cli.load_config(f"{ROOT}/configs/softmax.py")
    more = dict(l2=dict(weight=weight), batch_size=1294, train_for="4000 steps", baselines=False, eval_every="never")
    sgd = dict(name="sgd", learning_rate=0.3, momentum=0.9)
    r = um.run({**config, **more, "optimizer": sgd}, workdir=tmp_path, quiet=True)
    rows = r.experiment.dataset.train.arrays
    x, n = rows["x"].reshape(-1, 64) / 16, len(rows["x"])
    assert n == 1294
    wanted = LogisticRegression(C=1 / (n * weight), tol=1e-8, max_iter=10_000).fit(x, rows["y"])
    head = jax.device_get(r.ts.params["model"]["head"])
    np.testing.assert_allclose(head["kernel"].T, wanted.coef_, atol=1e-3)
    bias, theirs = head["bias"], wanted.intercept_
    np.testing.assert_allclose(bias - bias.mean(), theirs - theirs.mean(), atol=1e-3)


def test_a_rival_that_there_is_not_is_one_line() -> None:
    assert refused(vision(baselines="majority,randomforest")) == (
        "config.baselines: no baseline 'randomforest' (did you mean 'random_forest'?)"
    )
    assert "config.baselines: this pipeline has no choice of rivals; say true or false" in refused(
        generative(baselines=("knn",))
    )
    assert "config.baselines: 3 is int, wanted bool or tuple" in refused(vision(baselines=3))


# ----------------------------------------------------------------------------------------------------- bounds of a run
def test_a_seed_is_made_of_32_bits() -> None:
    """A key keeps the low 32 bits: 2^40 + 3 would draw what 3 draws."""
    bits = [np.asarray(jax.random.key_data(jax.random.key(s))) for s in (3, 2**40 + 3)]
    assert (bits[0] == bits[1]).all()
    assert "seeds are below 2^32" in refused(vision(seed=2**40 + 3))
    assert "config.seed: 4294967294 + 2 is too large" in refused(vision(seed=2**32 - 2, seeds=3))
    run = RunSettings(pipeline="vision", batch_size=1, train_for="1 step", seed=2**32 - 2, seeds=2)
    keys = jax.vmap(jax.random.key)(np.asarray([run.seed, run.seed + 1], np.uint32))
    for k in range(2):
        assert (jax.random.key_data(keys[k]) == jax.random.key_data(jax.random.key(run.seed + k))).all()


def test_a_length_beyond_what_a_float_holds_is_one_line() -> None:
    assert "more steps than can be counted" in refused(vision(train_for="1e308 epochs"))


def test_a_number_where_a_tuple_of_numbers_is_wanted() -> None:
    assert refused(vision(model=dict(name="mlp", hidden=8))) == (
        "config.model.hidden: 8 is int, wanted a tuple such as (8,)"
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            dict(evals=dict(shifted=("crop",)), crop=dict(pad=1)),
            "config.evals.shifted: 'crop' acts in training only",
        ),
        (
            dict(techniques=("flip", "again"), again=dict(technique="flip")),
            "config.techniques: 'again' would draw what 'flip' draws",
        ),
        (dict(swa_from="9 epochs", train_for="2 epochs"), "config.swa_from: '9 epochs' is step"),
    ],
)
def test_what_would_do_nothing_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        pipelines.build(vision(**more))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (dict(model=dict(name="mlp", hidden=(8,), norm="batch")), "'certified': there is no bound for the operation"),
        (dict(techniques=("label_smoothing", "certified")), "certified needs labels i32[B], y is float32[1, 10]"),
    ],
)
def test_what_has_no_bounds_is_refused_before_it_trains(config: dict[str, Any], words: str) -> None:
    told = refused(vision(**{"techniques": ("certified",), "certified": SETTINGS["certified"], **config}))
    assert words in told and "config.techniques: " in told


def test_only_classifiers_have_bounds(quarters: np.ndarray) -> None:
    told = refused(generative(techniques=("certified",), certified=SETTINGS["certified"]))
    assert "config.techniques: 'certified' is not for this pipeline's inputs" in told


def test_an_attack_that_leaves_the_ball_is_no_evaluation() -> None:
    beyond = dict(technique="fgsm", eps=0.1, start="beyond")
    told = refused(vision(evals=dict(test=("beyond",)), beyond=beyond))
    assert "config.evals.test: 'beyond' starts 'beyond' the ball and ends outside of it" in told
