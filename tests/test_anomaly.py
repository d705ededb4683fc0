"""Anomalies: scores against scikit-learn and SciPy, the protocol as a property, what is refused."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

import umbrella as um
from tests.conftest import ROOT
from tests.helpers import context
from umbrella import cli, data, pipelines, settings
from umbrella.evaluation import evaluate
from umbrella.pipelines import _codes, _detectors, anomaly
from umbrella.settings import SettingsError

KEY = jax.random.key(0)


def config(**more: Any) -> dict[str, Any]:
    """Ten problems of digits, quickly."""
    made = cli.load_config(f"{ROOT}/configs/anomaly.py:digits")
    small = dict(model=dict(name="autoencoder", code=3, hidden=(8,)), train_for="2 steps", batch_size=32)
    return {**made, **small, "baselines": False, **more}


def one(**section: Any) -> dict[str, Any]:
    return config(data=dict(name="digits", validation=0.2, **section), seeds=1)


def refused(made: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as error:
        pipelines.build(made)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------------------------------------- the scores
def test_the_distance_is_scipys() -> None:
    r = np.random.default_rng(0)
    train, rows = r.normal(size=(200, 4)) @ r.normal(size=(4, 4)), r.normal(size=(20, 4))
    inverse = np.linalg.inv(np.cov(train.T))
    wanted = [mahalanobis(row, train.mean(0), inverse) for row in rows]
    fitted = _detectors.gaussian(train)
    np.testing.assert_allclose(fitted.distance(rows), wanted, rtol=1e-4)  # RIDGE is 1e-6 of the mean variance
    theirs = EmpiricalCovariance().fit(train)  # which divides by n instead of n - 1
    np.testing.assert_allclose(fitted.distance(rows) ** 2, theirs.mahalanobis(rows) * 199 / 200, rtol=1e-3)


def test_a_number_of_the_code_that_never_varies_does_no_harm() -> None:
    """Where the rows agree with it the distance is that of the others; where they do not it is large."""
    r = np.random.default_rng(0)
    train, rows = r.normal(size=(200, 2)), r.normal(size=(5, 2))
    still = np.concatenate([train, np.full((200, 1), 3.0)], 1)
    fitted, plain = _detectors.gaussian(still), _detectors.gaussian(train)
    same = np.concatenate([rows, np.full((5, 1), 3.0)], 1)
    np.testing.assert_allclose(fitted.distance(same), plain.distance(rows), rtol=1e-4)
    assert (fitted.distance(same + np.array([0, 0, 1.0])) > 100).all()


def test_what_scores_are_worth_is_what_scikit_learn_says() -> None:
    """With ties, as scores of few values have."""
    r = np.random.default_rng(0)
    y = r.random(500) < 0.3
    score = np.round(r.normal(size=500) + 1.2 * y, 1)
    got = anomaly.worth(score, y)
    assert got["auroc"] == pytest.approx(roc_auc_score(y, score))
    assert got["average_precision"] == pytest.approx(average_precision_score(y, score))
    fpr, tpr, _ = roc_curve(y, score, drop_intermediate=False)
    assert got["fpr_at_95_tpr"] == pytest.approx(fpr[tpr >= 0.95].min())


def test_the_threshold_is_the_kth_of_held_out_scores() -> None:
    """n = 9, rate .2: k = ceil(10 * .8) = 8, the 8th least of 10 .. 90. At .1 the 9th; at .05, k = 10 > n: none."""
    held = np.arange(90.0, 0, -10)
    assert [_detectors.threshold(held, rate) for rate in (0.2, 0.1, 0.05)] == [80.0, 90.0, np.inf]


def test_the_threshold_keeps_its_rate() -> None:
    """Of 99 held-out rows and a rate of .1, k = 90: the share of normal rows above it is Beta(10, 90) distributed, with
    the mean .1 and a standard deviation of .03; the mean of 400 draws is within five of its errors."""
    r = np.random.default_rng(0)
    cuts = [_detectors.threshold(r.exponential(size=99), 0.1) for _ in range(400)]
    assert np.mean(np.exp(-np.asarray(cuts))) == pytest.approx(0.1, abs=5 * 0.03 / 20)


def test_both_is_the_sum_of_what_normal_validation_rows_standardise() -> None:
    """Errors 1, 3 of validation: mean 2, sd 1. So the test errors 2, 5 become 0, 3; the distances likewise."""
    r = np.random.default_rng(0)
    train = _codes.Told(r.normal(size=(50, 2)), np.ones(50), np.ones(50))
    held = _codes.Told(r.normal(size=(2, 2)), np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    test = _codes.Told(r.normal(size=(2, 2)), np.array([2.0, 5.0]), np.array([4.0, 5.0]))
    got = anomaly.found(train, held, test, np.array([False, True]))
    far, near = got.test["distance"], got.held["distance"]
    np.testing.assert_allclose(got.test["both"], [0, 3] + (far - near.mean()) / near.std())
    np.testing.assert_allclose(got.test["relative"], [0.5, 1.0])
    np.testing.assert_array_equal(got.test["error"], test.error)


def test_the_rivals_are_what_they_say() -> None:
    r = np.random.default_rng(0)
    normal, rows = r.normal(size=(80, 70)).astype(np.float32), r.normal(size=(30, 70)).astype(np.float32)
    pca = PCA(32).fit(normal.astype(np.float64))
    wanted = ((pca.inverse_transform(pca.transform(rows)) - rows) ** 2).mean(1)
    np.testing.assert_allclose(_detectors.judge("pca", normal, [rows[:7], rows[7:]]).score, wanted, rtol=1e-3)
    apart = np.sort(np.sqrt(((rows[:, None] - normal[None]) ** 2).sum(-1)), 1)[:, :5].mean(1)
    np.testing.assert_allclose(_detectors.judge("knn", normal, [rows]).score, apart, rtol=1e-4)
    assert NearestNeighbors(n_neighbors=5).fit(normal).kneighbors(rows)[0].mean(1) == pytest.approx(apart, rel=1e-4)
    for name in ("isolation_forest", "one_class_svm"):  # high is anomalous: noise ten times as wide
        both = np.concatenate([rows, 10 * rows])
        assert roc_auc_score(np.arange(60) >= 30, _detectors.judge(name, normal, [both]).score) > 0.95


def test_a_rival_of_bounded_rows_says_so() -> None:
    x = np.random.default_rng(0).normal(size=(2_001, 2)).astype(np.float32)
    assert _detectors.judge("one_class_svm", x, [x[:5]]).words == "one-class SVM (on 2,000 rows)"
    assert _detectors.judge("one_class_svm", x[:-1], [x[:5]]).words == "one-class SVM"
    assert _detectors.judge("pca", x, [x[:5]], 9_000).words == "1 principal components (on 2,001 rows)"


# -------------------------------------------------------------------------------------------------------- the protocol
@pytest.mark.parametrize("section", [dict(normal=(3,)), dict(anomalies=(3,)), dict(normal=("1", "7"))])
def test_no_anomaly_is_in_train_or_validation_and_every_row_in_test(section: dict[str, Any]) -> None:
    whole, kept = data.load(name="digits", validation=0.2), anomaly.rows_of(name="digits", validation=0.2, **section)
    normal = {3} if section == dict(normal=(3,)) else {1, 7} if "normal" in section else set(range(10)) - {3}
    for split in ("train", "validation"):
        y = getattr(whole, split).column("y")
        wanted = np.isin(y, sorted(normal))
        np.testing.assert_array_equal(getattr(kept, split).column("y"), y[wanted])
        np.testing.assert_array_equal(getattr(kept, split).column("x"), getattr(whole, split).column("x")[wanted])
    np.testing.assert_array_equal(kept.test.column("y"), whole.test.column("y"))
    assert {int(c) for c in np.flatnonzero(kept.info["normal"][0])} == normal


@pytest.mark.parametrize("which", ["normal", "anomalies"])
def test_every_lane_reads_the_rows_of_its_own_problem(which: str) -> None:
    """Of all steps: lane k sees class k alone, or every class but k; each of its rows once an epoch of its own."""
    ex = pipelines.build(config(data=dict(name="digits", validation=0.2, **{which: "each"}), seed=5))
    y = ex.dataset.train.column("y")
    steps = 60
    slots = list(ex.train_data.stream(tuple(range(5, 15)), 0, steps))
    for k in range(10):
        mine = np.flatnonzero((y == k) == (which == "normal"))
        seen = np.concatenate([slot["idx"][k] for slot in slots])
        assert np.isin(seen, mine).all()
        if len(seen) >= len(mine):
            assert sorted(seen[: len(mine)]) == mine.tolist()
        np.testing.assert_array_equal(slots[7]["idx"][k], ex.train_data.slot(5 + k, 7)["idx"])
        assert (slots[7]["lane"][k] == k).all()


@pytest.mark.slow
def test_the_loss_of_a_lane_is_that_of_its_own_normal_rows(tmp_path: Path) -> None:
    """Of ten problems at once, by NumPy from what every lane makes of test and validation."""
    r = um.run(config(), workdir=tmp_path, quiet=True)
    ex, view = r.experiment, r.ts.eval_view()
    run = jax.jit(ex.predict)
    for split in ("test", "validation"):
        rows = getattr(ex.dataset, split).arrays
        for k in (0, 3, 9):
            out = run(view.lane(k), {"x": rows["x"]}, KEY)
            assert int(view.lane(k).state["protocol"]["lane"]) == k
            error = np.asarray(out["error"])[rows["y"] == k].mean()
            assert r.summary["metrics"][split]["loss"]["values"][k] == pytest.approx(error, rel=1e-4)
    kept = np.load(tmp_path / "artifacts" / "rows.npz", allow_pickle=False)
    for k in (0, 3, 9):
        for metric, kind in (("auroc", "relative"), ("error_auroc", "error"), ("distance_auroc", "distance")):
            wanted = roc_auc_score(kept["y"] != k, kept[kind][k])
            assert r.summary["metrics"]["test"][metric]["values"][k] == pytest.approx(wanted, abs=1e-4)
        np.testing.assert_array_equal(kept["anomalous"][k], kept["y"] != k)
    index = json.loads((tmp_path / "artifacts" / "index.json").read_text())
    assert {"problems", "scores", "roc", "normal_but_odd", "anomalous_but_plain"} == {e["name"] for e in index}


def test_one_problem_is_evaluated_on_its_normal_rows() -> None:
    ex = pipelines.build(one(anomalies=(3,)))
    assert ex.notes[0].startswith("Class 3 anomalous: trained on ")
    batch = jax.tree.map(np.asarray, ex.train_data.fetch(ex.train_data.resident, ex.train_data.slot(0, 0)))
    view = um.View(*ex.init(batch, context(train=False)))
    rows = ex.dataset.test.arrays
    error = np.asarray(jax.jit(ex.predict)(view, {"x": rows["x"]}, KEY)["error"])
    told = evaluate(ex.evals["test"].objective, view, ex.evals["test"].batches, KEY)
    assert told["loss"] == pytest.approx(error[rows["y"] != 3].mean(), rel=1e-4)


@pytest.mark.slow
def test_digits_are_told_from_one_another_better_than_by_components(tmp_path: Path) -> None:
    r = um.run({**cli.load_config(f"{ROOT}/configs/anomaly.py:digits"), "baselines": ("pca",)}, workdir=tmp_path)
    rival = r.summary["baselines"]["32 principal components"]["auroc"]
    assert 0.9 < rival < r.summary["metrics"]["test"]["auroc"]["mean"]


# --------------------------------------------------------------------------------------------------- what it refuses
@pytest.mark.parametrize(
    ("made", "words"),
    [
        (one(normal=("11",)), "config.data.normal: no class '11'"),
        (one(anomalies=(10,)), "config.data.anomalies: no class '10'"),
        (one(normal=tuple(range(10))), "config.data.normal: all of the classes"),
        (one(normal=()), "config.data.normal: none of the classes"),
        (one(), "Give one of data.normal and data.anomalies"),
        (one(normal=(1,), anomalies=(2,)), "Give one of data.normal and data.anomalies"),
        (one(normal="each"), "config.seeds: 1, but data.normal = 'each' is a problem for each of 10 classes"),
        (config(order="shared"), "config.order: with data.normal = 'each' every seed has rows of its own already"),
        (config(resample=True), "config.resample: with data.normal = 'each'"),
        (config(baselines=("knm",)), "config.baselines: no baseline 'knm' (did you mean 'knn'?)"),
        (config(false_positives=0.0), "config.false_positives: 0.0 must be in (0, 1)"),
        (config(score="errors"), "config.score: 'errors' is not one of the choices (did you mean 'error'?)"),
        (config(data=dict(name="diabetes", normal=(0,))), "has no classes, so none of them can be the normal one"),
        (config(data=dict(name="digits", normal=(0,), validation=0.0), seeds=1), "0 validation rows of the normal"),
        (config(data=dict(name="digits", normal="each", rows=5)), "config.data.rows: no such setting"),
    ],
)
def test_what_it_refuses(made: dict[str, Any], words: str) -> None:
    assert words in refused(made)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["good"] * 40, "every row of"),
        (["good"] * 20 + ["bad"] * 20, "config.data.normal: no class 'benign' (one of: bad, good)"),
        (["benign"] * 38 + [""] * 2, "row 40, column 'y': is empty"),
    ],
)
def test_a_table_that_is_no_problem_is_status_2_and_leaves_nothing(
    labels: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{i},{i * i % 7},{label}" for i, label in enumerate(labels)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,y", *lines]) + "\n")
    args = (f"--config={ROOT}/configs/anomaly.py:table", f"--config.data.path={tmp_path}/a.csv")
    assert cli.main(["launch.py", *args, f"--workdir={tmp_path}/w"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and words in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("text", "classes"), [("3", [3]), ("1, 7", [1, 7])])
def test_classes_may_be_named_on_the_command_line(text: str, classes: list[int]) -> None:
    """In the place of a word, where what a person types stays text."""
    made = config(seeds=1)
    settings.override(made, "data.normal", text)
    y = pipelines.build(made).dataset.train.column("y")
    whole = data.load(name="digits", validation=0.2).train.column("y")
    assert sorted(set(y.tolist())) == classes and len(y) == np.isin(whole, classes).sum()


def test_a_class_goes_by_its_name_and_not_by_its_place(tmp_path: Path) -> None:
    """Of a table labelled 1 and 2, the second class is "2"; there is no class "0"."""
    lines = [f"{i},{i * i % 7},{1 + i % 2}" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,y", *lines]) + "\n")
    section = dict(name=str(tmp_path / "a.csv"), validation=0.2)
    kept = anomaly.rows_of(**section, normal=(2,))
    assert kept.info["normal"].tolist() == [[False, True]] and (kept.train.column("y") == 1).all()
    with pytest.raises(SettingsError, match="no class '0'"):
        anomaly.rows_of(**section, normal=(0,))
