"""Scores of anomaly and what they are worth; detectors without a neural network. Floor 5."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from umbrella import scores
from umbrella.settings import SettingsError, near

RIDGE = 1e-6  # of the mean variance, added to each: codes of which one never varies have a distance, too
NEIGHBOURS = 5


# --------------------------------------------------------------------------------------------------------------- scores
class Gaussian(NamedTuple):
    """Mean f64[L] and inverse covariance f64[L, L] of codes."""

    mean: np.ndarray
    precision: np.ndarray

    def distance(self, code: np.ndarray) -> np.ndarray:
        """f64[N]: sqrt((z - m)^T S^-1 (z - m)) of each row of f[N, L] (Mahalanobis 1936)."""
        apart = np.asarray(code, np.float64) - self.mean
        return np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", apart, self.precision, apart), 0))


def gaussian(code: np.ndarray) -> Gaussian:
    """Of codes f[N, L], N >= 2, with the sample covariance.

    Deviation: RIDGE times the mean variance is added to the diagonal, without which a number of the code that never
    varies, or fewer rows than numbers, has no inverse.
    """
    z = np.asarray(code, np.float64)
    covariance = np.atleast_2d(np.cov(z, rowvar=False))
    mean_variance = max(float(np.trace(covariance)) / len(covariance), np.finfo(np.float64).tiny)
    return Gaussian(z.mean(0), np.linalg.inv(covariance + RIDGE * mean_variance * np.eye(len(covariance))))


def standardised(score: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(score - mean) / sd, both of the scores of held-out normal rows; a score that does not vary is only shifted."""
    spread = float(held.std())
    return (score - held.mean()) / (spread if spread > 0 else 1.0)


def fpr_at(score: np.ndarray, y: np.ndarray, tpr: float) -> float:
    """The least false positive rate of a threshold on score f[N] that finds at least the share `tpr` of y = 1."""
    curve = scores.roc(score, y)
    return float(curve.x[curve.y >= tpr].min()) if np.isfinite(curve.y).all() else float("nan")


def threshold(held: np.ndarray, rate: float) -> float:
    """The score above which a row is called an anomaly, so that at most the share `rate` of normal rows is.

    It is the k-th least of the scores f[n] of normal rows that were not trained on, k = ceil((n + 1) (1 - rate)); the
    next normal row is above it with a probability of at most `rate`, whatever the scores' distribution. Infinite when
    n + 1 < 1 / rate: so few rows promise no such rate.

    Source: Vovk et al. 2005 (split conformal prediction); Bates et al. 2023, section 2, for anomalies.

    >>> threshold(np.arange(1.0, 20.0), 0.1), threshold(np.arange(1.0, 20.0), 0.01)
    (18.0, inf)
    """
    n = len(held)
    k = int(np.ceil(np.round((n + 1) * (1 - rate), 9)))
    return float(np.sort(held)[k - 1]) if k <= n else float("inf")


# -------------------------------------------------------------------------------------------------------------- rivals
class Detector(NamedTuple):
    """A rival: fitted on normal rows f32[N, D], it scores rows; high is anomalous."""

    words: str  # {} stands for the number of components
    most: int  # rows that it is fitted on at most: above, a random part, and its name says so
    fit: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]


def _pca(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.decomposition import PCA

    fitted = PCA(_size(x), random_state=0).fit(x)
    return lambda rows: np.square(fitted.inverse_transform(fitted.transform(rows)) - rows).mean(1)


def _size(x: np.ndarray) -> int:
    """32 components, or half as many as x f[N, D] has numbers: all of them would leave no error."""
    return min(32, len(x), max(1, x.shape[1] // 2))


def _knn(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.neighbors import NearestNeighbors

    fitted = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(x))).fit(x)
    return lambda rows: fitted.kneighbors(rows)[0].mean(1)


def _forest(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.ensemble import IsolationForest

    fitted = IsolationForest(n_estimators=200, random_state=0).fit(x)  # 256 rows a tree, as in Liu et al. 2008
    return lambda rows: -fitted.score_samples(rows)


def _svm(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.svm import OneClassSVM

    fitted = OneClassSVM(nu=0.1, gamma="scale").fit(x)
    return lambda rows: -fitted.score_samples(rows)


DETECTORS = {
    "pca": Detector("{} principal components", 60_000, _pca),
    "knn": Detector(f"{NEIGHBOURS} nearest neighbours", 10_000, _knn),
    "isolation_forest": Detector("isolation forest", 60_000, _forest),
    "one_class_svm": Detector("one-class SVM", 2_000, _svm),  # time grows with the square of the rows
}


def chosen(names: bool | tuple[str, ...]) -> tuple[str, ...]:
    """The names that config.baselines stands for: True is all of them.

    Raises:
      SettingsError: no such name.
    """
    found = names if isinstance(names, tuple) else tuple(DETECTORS) * names
    for name in found:
        if name not in DETECTORS:
            raise SettingsError(f"config.baselines: no baseline {name!r}{near(name, DETECTORS)}")
    return found


class Judged(NamedTuple):
    """What a detector says of the test rows of one problem."""

    words: str
    score: np.ndarray  # f64[N]
    seconds: float


def judge(name: str, normal: np.ndarray, parts: Iterable[np.ndarray], whole: int | None = None) -> Judged:
    """The detector of that name, fitted on normal rows f32[N, D], on the rows of all parts f32[M, D].

    Args:
      whole: how many normal rows there are, when these are a part of them.
    """
    rival, began = DETECTORS[name], time.perf_counter()
    few = np.sort(np.random.default_rng(0).permutation(len(normal))[: rival.most])
    scored = rival.fit(normal[few])
    score = np.concatenate([np.asarray(scored(rows), np.float64) for rows in parts])
    words = rival.words.format(_size(normal[few])) + (
        f" (on {len(few):,} rows)" if len(few) < (whole or len(normal)) else ""
    )
    return Judged(words, score, time.perf_counter() - began)
