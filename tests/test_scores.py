"""Scores against scikit-learn and SciPy, on random rows and on those that are meant to break them."""

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import optimize, special
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from umbrella import scores

CASES = {
    "random": lambda r: (r.random(200), r.integers(0, 2, 200)),
    "ties": lambda r: (r.integers(0, 4, 200) / 4, r.integers(0, 2, 200)),
    "all equal": lambda r: (np.full(50, 0.3), r.integers(0, 2, 50)),
    "perfect": lambda r: (np.arange(20) / 20, (np.arange(20) > 12).astype(int)),
    "upside down": lambda r: (-np.arange(20.0), (np.arange(20) > 12).astype(int)),
    "one positive": lambda r: (r.normal(size=30), (np.arange(30) == 7).astype(int)),
}
every_case = pytest.mark.parametrize("case", CASES)


def rows(case: str) -> tuple[np.ndarray, np.ndarray]:
    return CASES[case](np.random.default_rng(0))


def classes(n: int = 300, c: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    r = np.random.default_rng(seed)
    logits = r.normal(size=(n, c)) * 3
    return logits, np.where(r.random(n) < 0.6, logits.argmax(-1), r.integers(0, c, n))


# --------------------------------------------------------------------------------------------------------------- curves
@every_case
def test_roc_is_scikit_learns(case: str) -> None:
    score, y = rows(case)
    got, (fpr, tpr, cut) = scores.roc(score, y), sk.roc_curve(y, score, drop_intermediate=False)
    np.testing.assert_allclose(got.x, fpr)
    np.testing.assert_allclose(got.y, tpr)
    np.testing.assert_allclose(got.threshold, cut)
    assert scores.auc(got) == pytest.approx(sk.roc_auc_score(y, score))


@every_case
def test_precision_and_recall_are_scikit_learns(case: str) -> None:
    score, y = rows(case)
    got, (precision, recall, _) = scores.precision_recall(score, y), sk.precision_recall_curve(y, score)
    np.testing.assert_allclose(got.x, recall[::-1])
    np.testing.assert_allclose(got.y, precision[::-1])
    assert scores.average_precision(score, y) == pytest.approx(sk.average_precision_score(y, score))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_curve(label: int) -> None:
    score, y = np.array([0.2, 0.7]), np.full(2, label)
    assert np.isnan(scores.auc(scores.roc(score, y)))
    assert np.isnan(scores.average_precision(score, y)) == (label == 0)
    with pytest.raises(ValueError, match="one class only"):
        scores.threshold(score, y)


def test_no_rows() -> None:
    none = np.zeros(0)
    assert np.isnan(scores.auc(scores.roc(none, none)))
    assert np.isnan(scores.log_loss(np.zeros((0, 3)), np.zeros(0, int)))
    assert np.isnan(scores.calibration(np.zeros((0, 3)), np.zeros(0, int)).error())
    assert np.isnan(scores.calibration(np.zeros((0, 3)), np.zeros(0, int), edges="mass").worst())


def test_labels_that_are_not_zero_or_one_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or 1"):
        scores.roc([0.1, 0.2], [1, 2])
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        scores.roc([0.1, 0.2], [1, 0, 1])


# --------------------------------------------------------------------------------------------------------------- tables
def test_the_scores_of_classes_are_scikit_learns() -> None:
    logits, y = classes()
    told = logits.argmax(-1)
    confusion = sk.confusion_matrix(y, told)
    for ours, theirs in zip(scores.per_class(confusion), sk.precision_recall_fscore_support(y, told), strict=True):
        np.testing.assert_allclose(ours, theirs)


@pytest.mark.parametrize("how", ["micro", "macro", "weighted"])
@pytest.mark.parametrize("missing", [False, True])
def test_averages_are_scikit_learns(how: Any, missing: bool) -> None:
    """Also when a class is never predicted; one that does not occur at all is in neither."""
    logits, y = classes()
    told = np.where(logits.argmax(-1) == 2, 3, logits.argmax(-1)) if missing else logits.argmax(-1)
    confusion = sk.confusion_matrix(y, told, labels=range(7))  # classes 5 and 6 do not occur
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sk.precision_recall_fscore_support(y, told, average=how, zero_division=0)[:3]
    np.testing.assert_allclose(scores.averaged(confusion, how)[:3], theirs)


def test_what_is_not_defined_is_nan() -> None:
    got = scores.per_class([[3, 0, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(got.precision, [0.75, np.nan, np.nan])
    np.testing.assert_array_equal(got.recall, [1, 0, np.nan])
    np.testing.assert_array_equal(got.f1, [6 / 7, 0, np.nan])


@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_is_scikit_learns(k: int) -> None:
    logits, y = classes()
    assert scores.top_k(logits, y, k) == pytest.approx(sk.top_k_accuracy_score(y, logits, k=k))


def test_a_tie_at_the_edge_counts_as_its_share() -> None:
    """All five equal: the label is among the first two of a random order in 2 of 5 cases. scikit-learn says 0 or 1."""
    assert scores.top_k(np.zeros((10, 5)), np.zeros(10, int), 2) == pytest.approx(0.4)


# --------------------------------------------------------------------------------------------------------- calibration
def test_log_loss_and_brier_are_scikit_learns() -> None:
    logits, y = classes()
    p = special.softmax(logits, -1)
    assert scores.log_loss(p, y) == pytest.approx(sk.log_loss(y, p))
    two = special.softmax(logits[:, :2], -1)
    assert scores.brier(two, y % 2) == pytest.approx(2 * sk.brier_score_loss(y % 2, two[:, 1]))
    sure = np.eye(5)[(y + 1) % 5]
    assert scores.log_loss(sure, y) == pytest.approx(-np.log(1e-15))
    assert scores.brier(sure, y) == pytest.approx(2)


@pytest.mark.parametrize("edges", ["width", "mass"])
def test_calibration_is_scikit_learns(edges: Any) -> None:
    """As a curve of "is the most probable class right" over its probability; its quantiles for equal masses."""
    logits, y = classes(1000)
    p = special.softmax(logits, -1)
    got = scores.calibration(p, y, bins=10, edges=edges)
    strategy = {"width": "uniform", "mass": "quantile"}[edges]
    accuracy, confidence = calibration_curve(p.argmax(-1) == y, p.max(-1), n_bins=10, strategy=strategy)
    np.testing.assert_allclose(got.accuracy, accuracy, atol=0 if edges == "width" else 0.02)
    np.testing.assert_allclose(got.confidence, confidence, atol=1e-12 if edges == "width" else 0.01)
    assert got.rows.sum() == 1000
    by_hand = np.sum(got.rows / 1000 * np.abs(got.accuracy - got.confidence))
    assert got.error() == pytest.approx(by_hand)
    assert got.worst() >= got.error()


def test_equal_masses_are_equal() -> None:
    logits, y = classes(100)
    got = scores.calibration(special.softmax(logits, -1), y, bins=7, edges="mass")
    assert set(got.rows) <= {14, 15}
    assert (got.low <= got.confidence + 1e-12).all() and (got.confidence <= got.high + 1e-12).all()


def test_calibration_by_hand() -> None:
    """Confidences .9 .9 right, .9 wrong, .6 right: |2/3 - .9| * 3/4 + |1 - .6| * 1/4 = .275."""
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    got = scores.calibration(p, [0, 0, 0, 0], bins=10)
    assert got.error() == pytest.approx(abs(2 / 3 - 0.9) * 0.75 + 0.4 * 0.25)
    assert got.worst() == pytest.approx(0.4)


def test_where_every_row_is_right_there_is_no_temperature() -> None:
    """The loss falls without end as T goes to 0."""
    z = np.random.default_rng(0).normal(size=(50, 4))
    assert np.isnan(scores.temperature(z, z.argmax(-1)))
    y = z.argmax(-1)
    y[0] = z[0].argmin()
    assert 0.01 < scores.temperature(z, y) < 100


def test_a_temperature_is_found_again() -> None:
    """Labels drawn from softmax(z) and logits 3 z: the best T is 3, but for sampling; SciPy's on 1/T agrees."""
    r = np.random.default_rng(0)
    z = r.normal(size=(20_000, 4)) * 2
    y = (special.softmax(z, -1).cumsum(-1) > r.random((20_000, 1))).argmax(-1)
    got = scores.temperature(3 * z, y)
    assert got == pytest.approx(3, rel=0.05)

    def loss(beta: np.ndarray) -> float:
        return float(np.mean(special.logsumexp(3 * z * beta, -1) - 3 * z[np.arange(len(z)), y] * beta))

    assert got == pytest.approx(1 / optimize.minimize(loss, [1.0], tol=1e-12).x[0], rel=1e-4)
    assert scores.log_loss(special.softmax(3 * z / got, -1), y) < scores.log_loss(special.softmax(3 * z, -1), y)


# ----------------------------------------------------------------------------------------------------------- thresholds
AIMS: dict[str, Any] = {
    "f1": "f1",
    "tpr": {"tpr": 0.8},
    "tnr": {"tnr": 0.9},
    "cost": {"false_positive": 1.0, "false_negative": 5.0},
}


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("case", ["random", "ties", "perfect", "upside down"])
def test_a_threshold_is_the_best_of_all(aim: str, case: str) -> None:
    """Against every threshold there is, tried one by one."""
    score, y = rows(case)

    def worth(cut: float) -> float:
        told = score >= cut
        tp, fp = (told & (y == 1)).sum(), (told & (y == 0)).sum()
        tpr, tnr = tp / (y == 1).sum(), 1 - fp / (y == 0).sum()
        if aim == "f1":
            return float(sk.f1_score(y, told, zero_division=0))
        if aim == "cost":
            return -float(fp + 5 * ((y == 1).sum() - tp))
        return float((tnr if tpr >= 0.8 else -1) if aim == "tpr" else (tpr if tnr >= 0.9 else -1))

    got = scores.threshold(score, y, AIMS[aim])
    assert worth(got.threshold) == pytest.approx(max(worth(c) for c in [*score, np.inf]))
    told = score >= got.threshold
    assert got.f1 == pytest.approx(sk.f1_score(y, told, zero_division=0))
    assert got.tpr == pytest.approx(sk.recall_score(y, told, zero_division=0))


def test_an_aim_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="no aim 'accuracy'"):
        scores.threshold([0.1, 0.2], [0, 1], "accuracy")  # type: ignore[arg-type]
