"""What is said of classifiers beside accuracy: against scikit-learn, for one run, for several, for their ensemble."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

import umbrella as um
from umbrella.artifacts import Curves, Matrix, Table
from umbrella.experiment import Review
from umbrella.pipelines import _classes
from umbrella.pipelines._classes import Told

NAMES = tuple("abcdefg")


def told(lanes: int, rows: int = 400, classes: int = 7, seed: int = 0, gain: float = 3.0) -> Told:
    """Predictions that are right more often than not, and too sure."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows).astype(np.int32)
    hint = np.eye(classes)[y] + rng.normal(size=(lanes, rows, classes))
    return Told((gain * hint).astype(np.float32), y)


def values(made: Review) -> dict[str, object]:
    return dict(made.artifacts)


def test_the_numbers_are_those_of_scikit_learn() -> None:
    test = told(1)
    made = _classes.review(test, told(1, seed=1), NAMES).metrics["test"]
    p = softmax(test.logits[0].astype(np.float64), -1)
    assert made["macro_f1"] == pytest.approx(sk.f1_score(test.y, p.argmax(-1), average="macro"))
    assert made["auc"] == pytest.approx(sk.roc_auc_score(test.y, p, multi_class="ovr", average="macro"))
    assert made["top5_accuracy"] == pytest.approx(sk.top_k_accuracy_score(test.y, p, k=5))
    assert made["brier"] == pytest.approx(np.mean(np.sum((p - np.eye(7)[test.y]) ** 2, -1)))
    cooled = softmax(test.logits[0].astype(np.float64) / made["temperature"], -1)
    assert made["loss_at_temperature"] == pytest.approx(sk.log_loss(test.y, cooled))
    assert made["temperature"] > 1 and made["ece_at_temperature"] < made["ece"]  # it was too sure


def test_the_temperature_knows_nothing_of_test() -> None:
    validation = told(1, seed=1)
    first, second = (_classes.review(told(1, seed=s), validation, NAMES).metrics["test"] for s in (2, 3))
    assert first["temperature"] == second["temperature"] and first["brier"] != second["brier"]
    assert "temperature" not in _classes.review(told(1), None, NAMES).metrics["test"]


def test_an_ensemble_averages_probabilities_and_its_members_are_told_beside() -> None:
    test = told(3)
    made = _classes.review(test, None, NAMES)
    p = softmax(test.logits.astype(np.float64), -1).mean(0)
    assert made.metrics["test"]["brier"].shape == (3,)
    assert made.metrics["ensemble"]["loss"] == pytest.approx(sk.log_loss(test.y, p))
    assert made.metrics["ensemble"]["accuracy"] == sk.accuracy_score(test.y, p.argmax(-1))
    # -log is convex, so the loss of the average is below the average loss (Jensen), whatever the numbers.
    assert made.metrics["ensemble"]["loss"] < np.mean([sk.log_loss(test.y, softmax(z, -1)) for z in test.logits])
    np.testing.assert_array_equal(made.rows["label"], test.logits.argmax(-1))


def test_curves_pass_through_the_points_of_scikit_learn() -> None:
    test = told(1)
    drawn = values(_classes.review(test, None, NAMES))
    p = softmax(test.logits[0].astype(np.float64), -1)
    roc, pr = drawn["roc"], drawn["precision_recall"]
    assert isinstance(roc, Curves) and isinstance(pr, Curves)
    fpr, tpr, _ = sk.roc_curve(test.y == 2, p[:, 2], drop_intermediate=False)
    x, y = roc.series[f"c (area {sk.roc_auc_score(test.y == 2, p[:, 2]):.4f})"]
    at = 0.25  # on the grid: what the highest threshold there reaches
    assert y[x == at][0] == pytest.approx(np.interp(at, *(v[np.append(np.diff(fpr) > 0, True)] for v in (fpr, tpr))))
    average = sk.average_precision_score(test.y == 2, p[:, 2])
    x, y = pr.series[f"c (average precision {average:.4f})"]
    precision, recall, _ = sk.precision_recall_curve(test.y == 2, p[:, 2])
    for at in (0.25, 0.6, 1.0):  # of the highest threshold that reaches this recall
        assert y[x == at][0] == pytest.approx(precision[recall >= at][-1])
    assert abs(np.mean(y[1:]) - average) < 0.01  # the area that is drawn is the one that is told
    assert roc.bands == {}


def test_several_seeds_have_bands_and_one_has_none() -> None:
    drawn = values(_classes.review(told(4), told(4, seed=1), NAMES))
    for name in ("roc", "precision_recall", "calibration"):
        chart = drawn[name]
        assert isinstance(chart, Curves)
        assert "Mean over 4 seeds" in chart.caption and chart.bands
        for k, (low, high) in chart.bands.items():
            kept = np.isfinite(low)
            assert (
                kept.any()
                and (low[kept] <= chart.series[k][1][kept]).all()
                and (chart.series[k][1] <= high)[kept].all()
            )
    table, matrix = drawn["classes"], drawn["confusion"]
    assert isinstance(table, Table) and "±" in table.rows[0][1]
    assert isinstance(matrix, Matrix) and matrix.values.sum() == pytest.approx(400)


def test_two_classes_get_one_curve_and_thresholds_that_were_chosen_on_validation() -> None:
    test, validation = told(1, classes=2), told(1, classes=2, seed=1)
    made = _classes.review(test, validation, ("ham", "spam"))
    drawn = values(made)
    p = softmax(test.logits[0].astype(np.float64), -1)[:, 1]
    assert made.metrics["test"]["auc"] == pytest.approx(sk.roc_auc_score(test.y, p))
    roc, table = drawn["roc"], drawn["thresholds"]
    assert isinstance(roc, Curves) and len(roc.series) == 1 and "spam against ham" in roc.caption
    assert isinstance(table, Table)
    for _, cut, tpr, tnr, precision in table.rows:
        called = p >= cut
        assert tpr == pytest.approx(sk.recall_score(test.y, called))
        assert tnr == pytest.approx(sk.recall_score(test.y, called, pos_label=0))
        assert precision == pytest.approx(sk.precision_score(test.y, called))


@pytest.mark.parametrize("y", [np.zeros(50, np.int32), np.arange(50, dtype=np.int32) % 2])
def test_classes_that_do_not_occur_have_no_curve_and_no_score(y: np.ndarray) -> None:
    test = told(2)._replace(y=np.resize(y, 400))
    made = _classes.review(test, None, NAMES)
    drawn = values(made)
    roc, table = drawn["roc"], drawn["classes"]
    assert isinstance(roc, Curves) and len(roc.series) == len(np.unique(y)) * (len(np.unique(y)) > 1)
    assert isinstance(table, Table) and table.rows[6][2] == "–" and table.rows[6][4] == 0  # recall of nothing
    assert np.isnan(made.metrics["test"]["auc"]).all() == (len(np.unique(y)) == 1)


def test_more_classes_than_fit_show_the_worst() -> None:
    test = told(1, classes=25, gain=1.0)
    roc = values(_classes.review(test, None, tuple(map(str, range(25)))))["roc"]
    assert isinstance(roc, Curves) and len(roc.series) == 10 and "of 25" in roc.caption
    p = softmax(test.logits[0].astype(np.float64), -1)
    worst = min(range(25), key=lambda c: sk.roc_auc_score(test.y == c, p[:, c]))
    assert any(k.startswith(f"{worst} (") for k in roc.series)


def test_a_run_of_several_seeds_tells_members_and_ensemble(tmp_path: Path) -> None:
    config = dict(
        pipeline="vision",
        data=dict(name="digits"),
        model=dict(name="mlp", hidden=(16,)),
        optimizer=dict(name="adam", learning_rate=1e-2),
        batch_size=64,
        train_for="40 steps",
        seeds=3,
        evals=dict(test=()),
        baselines=False,
    )
    r = um.run(config, workdir=tmp_path, quiet=True)
    m = r.summary["metrics"]
    assert m["test"]["brier"]["n"] == 3 and m["test"]["auc"]["mean"] > 0.9
    assert m["ensemble"]["loss"] < m["test"]["loss"]["mean"]
    rows = np.load(tmp_path / "artifacts" / "rows.npz", allow_pickle=False)
    assert rows["label"].shape == (3, len(r.experiment.dataset.test))
    hits = (rows["label"] == rows["y"]).mean(1)
    np.testing.assert_allclose(hits, m["test"]["accuracy"]["values"], atol=1e-6)
    page = (tmp_path / "report.html").read_text()
    for word in ("ensemble", "Mean over 3 seeds", "as sure as right", "macro average"):
        assert word in page


def test_a_run_that_is_not_finite_has_no_numbers_and_spoils_none_of_the_others() -> None:
    test = told(3)
    broken = test._replace(logits=test.logits.copy())
    broken.logits[1, 7, 2] = np.nan
    made, sound = _classes.review(broken, None, NAMES), _classes.review(test, None, NAMES)
    for name, v in made.metrics["test"].items():
        assert np.isnan(v[1]) and (v[[0, 2]] == sound.metrics["test"][name][[0, 2]]).all()
    assert "ensemble" not in made.metrics
    matrix = dict(made.artifacts)["confusion"]
    assert isinstance(matrix, Matrix) and "2 seeds" in matrix.caption
    nothing = _classes.review(broken._replace(logits=broken.logits[1:2]), None, NAMES)
    assert nothing.metrics == {} and list(nothing.artifacts) == []


def test_a_set_of_one_class_has_no_curve() -> None:
    test = Told(np.zeros((2, 5, 1), np.float32), np.zeros(5, np.int32))
    made = _classes.review(test, test, ("only",))
    drawn = dict(made.artifacts)
    roc = drawn["roc"]
    assert isinstance(roc, Curves) and not roc.series
    assert made.metrics["ensemble"]["accuracy"] == 1 and np.isnan(made.metrics["test"]["auc"]).all()
