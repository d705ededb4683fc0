"""What predictions are worth, from all of them at once, on the host in float64. Floor 0; NumPy and SciPy.

`umbrella.metrics` adds up while a pass goes on; here are the curves, tables and choices that need every row: ROC and
precision against recall, calibration and its mending by a temperature, thresholds for a stated aim. A quantity that is
not defined, such as an area under the curve with one class only, is NaN.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


# --------------------------------------------------------------------------------------------------------------- tables
class Scores(NamedTuple):
    """Per class f64[C], or one number each for an average."""

    precision: F64
    recall: F64
    f1: F64
    support: F64


def per_class(confusion: ArrayLike) -> Scores:
    """Precision, recall, F1 and support of every class from counts f[C, C] by (true, predicted).

    NaN where the denominator is zero: the precision of a class that was never predicted, the recall of one that does
    not occur, the F1 of one that is neither. (scikit-learn says 0 there, and warns.)
    """
    c = np.asarray(confusion, np.float64)
    hit, predicted, true = np.diag(c), c.sum(0), c.sum(1)
    return Scores(_share(hit, predicted), _share(hit, true), _share(2 * hit, predicted + true), true)


def averaged(confusion: ArrayLike, how: Literal["micro", "macro", "weighted"]) -> Scores:
    """Averages over classes: of the counts ("micro"), of the classes' scores ("macro"), of these by support.

    A class whose score is not defined counts 0 in it, so that never predicting a class is no way to a better average;
    a class that neither occurs nor is predicted counts not at all.
    """
    c = np.asarray(confusion, np.float64)
    seen = (c.sum(0) + c.sum(1)) > 0
    scores = per_class(c)
    if how == "micro":
        share = _share(np.diag(c).sum(), c.sum())
        return Scores(share, share, share, np.asarray(c.sum()))
    weight = scores.support[seen] if how == "weighted" else np.ones(int(seen.sum()))
    p, r, f1 = (_share((np.nan_to_num(s[seen]) * weight).sum(), weight.sum()) for s in scores[:3])
    return Scores(p, r, f1, np.asarray(c.sum()))


def top_k(scores: ArrayLike, y: ArrayLike, k: int) -> float:
    """The share of rows whose label is among the k highest of scores f[N, C]; a tie at the edge counts as its share."""
    s, labels = np.asarray(scores, np.float64), np.asarray(y)
    own = s[np.arange(len(s)), labels][:, None]
    above, tied = (s > own).sum(1), (s == own).sum(1)
    return _mean(np.clip((k - above) / tied, 0, 1))


# --------------------------------------------------------------------------------------------------------------- curves
class Curve(NamedTuple):
    """Points of a curve over thresholds, the highest threshold first."""

    x: F64
    y: F64
    threshold: F64  # what is at least this is called positive; the first is infinite: nothing is


def roc(score: ArrayLike, y: ArrayLike) -> Curve:
    """x false positive rate, y true positive rate, at every distinct score f[N]; y in {0, 1}."""
    threshold, positive, false = _steps(score, y)
    return Curve(_share(false, false[-1]), _share(positive, positive[-1]), threshold)


def precision_recall(score: ArrayLike, y: ArrayLike) -> Curve:
    """x recall, y precision. Where nothing is called positive, precision is 1 by convention."""
    threshold, positive, false = _steps(score, y)
    called = positive + false
    precision = np.where(called > 0, positive / np.maximum(called, 1), 1.0)
    return Curve(_share(positive, positive[-1]), precision, threshold)


def auc(curve: Curve) -> float:
    """The area under a ROC curve by trapezoids: ties count half, so it is the statistic of Mann and Whitney."""
    if np.isnan(curve.x).any() or np.isnan(curve.y).any():
        return float("nan")
    return float(np.trapezoid(curve.y, curve.x))


def average_precision(score: ArrayLike, y: ArrayLike) -> float:
    """sum_n (recall_n - recall_{n-1}) precision_n: the area under the steps of the curve, nothing interpolated."""
    curve = precision_recall(score, y)
    return float(np.sum(np.diff(curve.x) * curve.y[1:]))


def _steps(score: ArrayLike, y: ArrayLike) -> tuple[F64, F64, F64]:
    """(thresholds, true positives, false positives), from none called positive to all of them."""
    s, label = np.asarray(score, np.float64), np.asarray(y)
    if s.shape != label.shape or s.ndim != 1 or not np.isin(label, (0, 1)).all():
        raise ValueError(f"a score and a label of 0 or 1 for each row, not {s.shape} and {label.shape}")
    order = np.argsort(-s, kind="stable")
    s, label = s[order], label[order]
    last = np.flatnonzero(np.append(np.diff(s) != 0, True)) if len(s) else np.zeros(0, int)  # of each run of ties
    positive = np.cumsum(label, dtype=np.float64)[last]
    start = np.zeros(1)
    return (
        np.concatenate([[np.inf], s[last]]),
        np.concatenate([start, positive]),
        np.concatenate([start, last + 1 - positive]),
    )


# --------------------------------------------------------------------------------------------------------- calibration
def log_loss(probabilities: ArrayLike, y: ArrayLike) -> float:
    """-log of the probability f[N, C] of the label, averaged; a probability of 0 costs what 1e-15 costs."""
    p = np.asarray(probabilities, np.float64)[np.arange(len(np.asarray(y))), np.asarray(y)]
    return _mean(-np.log(np.maximum(p, 1e-15)))


def brier(probabilities: ArrayLike, y: ArrayLike) -> float:
    """sum_c (p_c - [y = c])^2, averaged: between 0 and 2, as in Brier 1950 (twice the usual binary score)."""
    p = np.asarray(probabilities, np.float64)
    return _mean(np.sum((p - np.eye(p.shape[1])[np.asarray(y)]) ** 2, -1))


class Calibration(NamedTuple):
    """By bins of confidence, those without a row left out. f64[B] each."""

    confidence: F64  # mean
    accuracy: F64
    rows: F64  # how many
    low: F64  # the edges of the bins
    high: F64

    def error(self) -> float:
        """The expected calibration error: |accuracy - confidence|, averaged over rows (Guo et al. 2017, eq. 3)."""
        return float(_share((np.abs(self.accuracy - self.confidence) * self.rows).sum(), self.rows.sum()))

    def worst(self) -> float:
        """The largest |accuracy - confidence| of a bin (eq. 5 there)."""
        return float(np.abs(self.accuracy - self.confidence).max()) if len(self.rows) else float("nan")


def calibration(
    probabilities: ArrayLike, y: ArrayLike, *, bins: int = 15, edges: Literal["width", "mass"] = "width"
) -> Calibration:
    """How often the most probable class is right, by how probable it was said to be.

    Args:
      probabilities, y: f[N, C] and i[N].
      edges: bins of equal width (Guo et al. 2017), right edge included; or with equally many rows each, which has no
        empty bins and is less biased (Nixon et al. 2019).
    """
    p = np.asarray(probabilities, np.float64)
    confidence, hit = p.max(-1), p.argmax(-1) == np.asarray(y)
    if edges == "width":
        edge = np.linspace(0, 1, bins + 1)
        place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    else:
        order = np.argsort(confidence, kind="stable")
        place = np.empty(len(p), int)
        place[order] = np.arange(len(p)) * bins // max(len(p), 1)
        ends = confidence[order][[min(len(p) - 1, -(-k * len(p) // bins)) for k in range(1, bins)]] if len(p) else []
        edge = np.concatenate([[0.0], ends, [1.0]]) if len(p) else np.linspace(0, 1, bins + 1)
    count = np.bincount(place, minlength=bins).astype(np.float64)
    kept = count > 0
    sums = [np.bincount(place, v, bins)[kept] / count[kept] for v in (confidence, hit.astype(np.float64))]
    return Calibration(sums[0], sums[1], count[kept], edge[:-1][kept], edge[1:][kept])


def temperature(logits: ArrayLike, y: ArrayLike) -> float:
    """The T > 0 for which softmax(logits / T) has the least log loss (Guo et al. 2017, section 4.2).

    Fit it on rows that neither trained nor test the model. The order of the classes does not change, so neither does
    the accuracy. The loss is convex in 1 / T; T is looked for between 1/100 and 100. NaN when every row is right: the
    smaller T the better then, without end, and nothing could be less sure of a row that is wrong.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    z, labels = np.asarray(logits, np.float64), np.asarray(y)
    own = z[np.arange(len(z)), labels]
    if (own >= z.max(-1)).all():
        return float("nan")

    def loss(log_t: float) -> float:
        return _mean(logsumexp(z * np.exp(-log_t), axis=-1) - own * np.exp(-log_t))

    edge = np.log(100.0)
    return float(np.exp(minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-8}).x))


def platt(score: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """(a > 0, b) for which sigmoid(a score + b) fits best as the probability of y = 1 (Platt 1999, section 2.2).

    Fit it on rows that neither trained nor test the model. The aims are not 0 and 1 but 1 / (N- + 2) and
    (N+ + 1) / (N+ + 2), so there is a best a even where every row is right. a is looked for between 1/100 and 100.

    Args:
      score, y: f[N], such as log odds, and {0, 1}[N].

    >>> a, b = platt([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])
    >>> round(a, 3), abs(b) < 1e-6
    (0.674, True)
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    s, label = np.asarray(score, np.float64), np.asarray(y)
    positive = np.sum(label == 1)
    aim = np.where(label == 1, (positive + 1) / (positive + 2), 1 / (len(s) - positive + 2))

    def loss(at: F64) -> tuple[float, F64]:
        z = at[0] * s + at[1]
        slope = expit(z) - aim
        return _mean(np.logaddexp(0, z) - aim * z), np.array([_mean(slope * s), _mean(slope)])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=[(0.01, 100.0), (None, None)], tol=1e-12)
    return float(found.x[0]), float(found.x[1])


# ----------------------------------------------------------------------------------------------------------- thresholds
class Choice(NamedTuple):
    """A threshold, and what it gives on the rows that it was chosen on."""

    threshold: float  # what is at least this is called positive
    tpr: float
    tnr: float
    precision: float
    f1: float


def threshold(score: ArrayLike, y: ArrayLike, aim: Mapping[str, float] | Literal["f1"] = "f1") -> Choice:
    """The threshold that fits an aim; of several, the highest. Choose it on validation, and use it on test.

    Args:
      score, y: f[N] and {0, 1}[N].
      aim: "f1" for the largest F1; {"tpr": r} for the highest true negative rate with at least that true positive rate;
        {"tnr": r} the other way round; {"false_positive": a, "false_negative": b} for the least cost.

    Raises:
      ValueError: no such aim, or one class only.
    """
    cut, positive, false = _steps(score, y)
    total, negatives = positive[-1], false[-1]
    if not (total and negatives):
        raise ValueError("a threshold cannot be chosen: there is one class only")
    tpr, tnr = positive / total, 1 - false / negatives
    f1 = 2 * positive / (positive + false + total)
    if aim == "f1":
        value = f1
    elif isinstance(aim, Mapping) and set(aim) == {"tpr"}:
        value = np.where(tpr >= aim["tpr"], tnr, -1.0)
    elif isinstance(aim, Mapping) and set(aim) == {"tnr"}:
        value = np.where(tnr >= aim["tnr"], tpr, -1.0)
    elif isinstance(aim, Mapping) and set(aim) == {"false_positive", "false_negative"}:
        value = -(aim["false_positive"] * false + aim["false_negative"] * (total - positive))
    else:
        raise ValueError(f"no aim {aim!r}: 'f1', tpr, tnr, or the costs false_positive and false_negative")
    i = int(np.argmax(value))
    called = positive[i] + false[i]
    return Choice(float(cut[i]), float(tpr[i]), float(tnr[i]), float(_share(positive[i], called)), float(f1[i]))


# ------------------------------------------------------------------------------------------------------ several runs
def interval(values: ArrayLike) -> tuple[F64, F64]:
    """(mean, half of its 95 % confidence interval) over the first axis of f[K, ...], by Student's t.

    What is not finite in a run is left out there; fewer than two values have no interval, and none has no mean: NaN.
    """
    from scipy import stats

    v = np.asarray(values, np.float64)
    kept = np.isfinite(v)
    n = kept.sum(0)
    mean = _share(np.where(kept, v, 0).sum(0), n)
    rest = np.where(kept, v - np.where(n > 0, mean, 0), 0)
    variance = _share((rest**2).sum(0), np.maximum(n - 1, 0))
    t = stats.t.ppf(0.975, np.maximum(n - 1, 1))
    return mean, t * np.sqrt(variance / np.maximum(n, 1))


def paired(a: ArrayLike, b: ArrayLike) -> dict[str, float]:
    """Student's paired test of a, b f[K], matched run by run: does a - b differ from 0?

    Returns:
      difference, low, high (its 95 % confidence interval), p (two-sided), of the runs where both are finite; NaN of
      fewer than two. When all differences are equal, p is 1 for no difference and NaN for any: without a spread
      nothing says how large it would be next time.
    """
    from scipy import stats

    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    kept = np.isfinite(x) & np.isfinite(y)
    d = x[kept] - y[kept]
    mean, half = (float(v) for v in interval(d))
    spread = d.std(ddof=1) if len(d) > 1 else np.nan
    if spread <= 1e-12 * np.abs(np.concatenate([x[kept], y[kept]])).max(initial=0.0):  # nothing but rounding
        p, half = (1.0, 0.0) if mean == 0 else (float("nan"), float("nan"))
    else:
        p = float(2 * stats.t.sf(abs(mean) / (spread / np.sqrt(len(d))), len(d) - 1)) if len(d) > 1 else np.nan
    return {"difference": mean, "low": mean - half, "high": mean + half, "p": p}


def mcnemar(a: ArrayLike, b: ArrayLike) -> dict[str, float]:
    """The exact test of McNemar 1947: of two classifiers' hits bool[N] on the same rows, is one right more often?

    Returns:
      only_a, only_b: rows that only one is right on; p: two-sided, by the binomial distribution; 1 when they agree.
    """
    from scipy import stats

    x, y = np.asarray(a, bool), np.asarray(b, bool)
    only_a, only_b = int((x & ~y).sum()), int((~x & y).sum())
    n = only_a + only_b
    p = float(stats.binomtest(only_a, n).pvalue) if n else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": p}


def _share(part: ArrayLike, whole: ArrayLike) -> F64:
    """part / whole, NaN where the whole is nothing."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole != 0)


def _mean(values: F64) -> float:
    return float(values.mean()) if values.size else float("nan")
