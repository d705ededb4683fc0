"""What samples are worth beside real examples, from features of both: NumPy, no model. Floor 4.

Features are f[N, D] of any kind; distances between them are Euclidean. Both sides should have as many rows: every
number here depends on it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
NEIGHBOURS = 3  # which one ends a ball, as in Kynkaanniemi et al. 2019, section 3
CHUNK = 1000  # rows of a matrix of distances that are made at once


# --------------------------------------------------------------------------------------------------- Frechet distance
class Gaussian(NamedTuple):
    mean: F64  # [D]
    covariance: F64  # [D, D]


def gaussian(features: np.ndarray) -> Gaussian:
    """The mean and the unbiased covariance of the rows.

    Raises:
      ValueError: fewer than two rows, or one that is not finite.
    """
    x = np.asarray(features, np.float64)
    if len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(f"a Gaussian needs at least two rows, all finite; there are {len(x)}")
    return Gaussian(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): the squared Wasserstein-2 distance of two Gaussians.

    The trace of the root is that of (C_a^(1/2) C_b C_a^(1/2))^(1/2), which is symmetric: so it is real, also when the
    covariances are singular. It is 0 for equal Gaussians, up to rounding, and grows with the variance of the estimates:
    of two samples of one distribution it is positive, and the more so the fewer rows they have.

    >>> one, other = Gaussian(np.zeros(2), np.diag([1.0, 4.0])), Gaussian(np.ones(2), np.diag([4.0, 4.0]))
    >>> round(frechet_distance(one, other), 12)  # 1 + 1 + (1 - 2)^2 + (2 - 2)^2
    3.0

    Source: Dowson and Landau 1982; of features, Heusel et al. 2017, eq. 6.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = root @ b.covariance @ root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    apart = float(np.sum((a.mean - b.mean) ** 2))
    return max(0.0, apart + float(np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared))


# --------------------------------------------------------------------------------------------------------- variety
def class_entropy(labels: np.ndarray, classes: int) -> float:
    """The entropy of the shares of the classes, nats: log(classes) when all are as frequent, 0 when there is one.

    >>> round(class_entropy(np.arange(10), 10), 3), class_entropy(np.zeros(5, int), 10)
    (2.303, 0.0)
    """
    shares = np.bincount(labels, minlength=classes) / max(1, len(labels))
    there = shares[shares > 0]
    return float(-np.sum(there * np.log(there))) + 0.0


class Manifold(NamedTuple):
    """Points, and around each the ball that reaches to its k-th nearest neighbour among the others."""

    points: F64  # [N, D]
    radii: F64  # [N], squared


def manifold(features: np.ndarray, k: int = NEIGHBOURS) -> Manifold:
    """Raises ValueError when there are not more than k rows."""
    x = np.asarray(features, np.float64)
    if len(x) <= k:
        raise ValueError(f"{len(x)} rows have no {k} neighbours each")
    radii = np.empty(len(x))
    for rows in _chunks(len(x)):
        away = squared_distances(x[rows], x)
        away[np.arange(len(rows)), rows] = -1.0  # itself, the first of k + 1, whatever rounding says
        radii[rows] = np.partition(away, k, axis=1)[:, k]
    return Manifold(x, radii)


def precision_recall(real: Manifold, fake: Manifold) -> tuple[float, float]:
    """(the share of samples that lie in a real point's ball, the share of real points that lie in a sample's ball).

    Source: Kynkaanniemi et al. 2019, eqs. 1 and 2.
    """
    within_real, within_fake = [], np.zeros(len(real.points), bool)
    for rows in _chunks(len(fake.points)):
        away = squared_distances(fake.points[rows], real.points)
        within_real.append((away <= real.radii[None]).any(1))
        within_fake |= (away <= fake.radii[rows][:, None]).any(0)
    return float(np.concatenate(within_real).mean()), float(within_fake.mean())


# ----------------------------------------------------------------------------------------------------- memorisation
def nearest(queries: np.ndarray, among: np.ndarray) -> tuple[F64, NDArray[np.int64]]:
    """(distance to the nearest row of `among`, its index) for every row of `queries`, f[N, ...] and f[M, ...]."""
    q, a = (np.asarray(v, np.float32).reshape(len(v), -1) for v in (queries, among))
    found = np.concatenate([squared_distances(q[rows], a).argmin(1) for rows in _chunks(len(q), 250)])
    # Of the pair itself, since a difference of large squares is nothing to go by for a copy.
    return np.sqrt(np.sum((q.astype(np.float64) - a[found]) ** 2, 1)), found


def copied(samples: F64, held_out: F64, share: float = 0.01) -> float:
    """The share of samples that are nearer to a training example than the nearest 1 % (`share`) of held-out ones are.

    Args:
      samples, held_out: distances to the nearest training example, as `nearest` gives them. The expected value of
        samples that are as good as fresh examples is `share`; a generator that copies is at 1.
    """
    return float(np.mean(samples < np.quantile(held_out, share)))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """f[N, D], f[M, D] -> f[N, M], not negative."""
    away = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * (a @ b.T)
    return np.maximum(away, 0, out=away)


def _chunks(n: int, size: int = CHUNK) -> list[NDArray[np.int64]]:
    return [np.arange(i, min(i + size, n)) for i in range(0, n, size)]
