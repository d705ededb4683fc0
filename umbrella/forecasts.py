"""What forecasts are worth: errors beside the naive ones, direction, intervals, tests of one against another. Floor 0.

On the host in float64, NumPy and SciPy. Everything is a function of arrays: forecasts and what came, by rows.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


def naive_error(z: ArrayLike, period: int = 1) -> float:
    """The mean absolute change f[T] over `period` steps: the scale of MASE, of the training part (eq. in `mase`).

    >>> naive_error([1.0, 3.0, 2.0])
    1.5
    """
    z = _flat(z)
    return float(np.abs(z[period:] - z[:-period]).mean()) if len(z) > period else float("nan")


def mase(error: ArrayLike, scale: ArrayLike) -> float:
    """The mean absolute scaled error: |e_i| over the naive error of the training part of its series, averaged.

    Below 1: better than the naive one-step forecast was *in training*. Where the test part is calmer than the training
    part every forecast, the naive one too, is below 1; `relative` compares on the same days.

    Args:
      error, scale: f[N, ...] and f[N]: of each row, that of its series.

    Source: Hyndman and Koehler 2006, section 3.
    """
    e = np.abs(np.asarray(error, np.float64))
    return float((e / np.asarray(scale, np.float64).reshape((-1,) + (1,) * (e.ndim - 1))).mean())


def relative(error: ArrayLike, of_rival: ArrayLike) -> float:
    """The mean absolute error over that of a rival on the same rows (the relative MAE there, section 2.4)."""
    return float(np.abs(np.asarray(error, np.float64)).mean() / np.abs(np.asarray(of_rival, np.float64)).mean())


def r2(forecast: ArrayLike, came: ArrayLike) -> float:
    """1 - sum of squared errors / sum of squares about the mean of what came, f[N].

    Of levels it is near 1 for any forecast that stays near the last value: it compares with the mean of the whole test
    part, which nobody would forecast for a series that wanders.
    """
    y, f = _flat(came), _flat(forecast)
    return float(1 - np.square(y - f).sum() / np.square(y - y.mean()).sum())


# ------------------------------------------------------------------------------------------------------------ direction
class Direction(NamedTuple):
    hits: int
    n: int  # rows where something moved and the forecast says which way
    rate: float
    low: float  # 95 % interval
    high: float


def direction(forecast: ArrayLike, came: ArrayLike, *, level: float = 0.95) -> Direction:
    """How often a forecast change f[N] has the sign of what came, with the interval of Clopper and Pearson (1934).

    Rows of either exactly 0 say nothing and are left out. The interval takes rows for independent: of series that move
    together on the same days it is too narrow.
    """
    f, y = np.sign(_flat(forecast)), np.sign(_flat(came))
    kept = (f != 0) & (y != 0)
    hits, n = int((f == y)[kept].sum()), int(kept.sum())
    low, high = clopper_pearson(hits, n, level)
    return Direction(hits, n, hits / n if n else float("nan"), low, high)


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share: covers it with `level` at least, whatever it is. (0, 1) of no rows.

    >>> tuple(round(v, 4) for v in clopper_pearson(0, 10))  # 1 - (.05 / 2)^(1 / 10)
    (0.0, 0.3085)
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0


# ------------------------------------------------------------------------------------------------ volatility, intervals
def qlike(forecast: ArrayLike, came: ArrayLike) -> F64:
    """s / v - log(s / v) - 1 f64[...] of a variance forecast v when s came: 0 when equal, robust to noise in s.

    Source: Patton 2011, eq. 15, b = -2, up to terms that no forecast changes.
    """
    ratio = np.asarray(came, np.float64) / np.asarray(forecast, np.float64)
    return np.asarray(ratio - np.log(ratio) - 1)


def pinball(quantile: ArrayLike, came: ArrayLike, level: ArrayLike) -> F64:
    """The loss whose expectation is least at the quantile of that level: (y - q) level above it, (q - y) (1 - level)
    below (Koenker and Bassett 1978). f[...] -> f64[...]

    >>> pinball([0.0, 0.0], [1.0, -1.0], 0.9).tolist()
    [0.9, 0.09999999999999998]
    """
    gap = np.asarray(came, np.float64) - np.asarray(quantile, np.float64)
    level = np.asarray(level, np.float64)
    return np.asarray(np.maximum(level * gap, (level - 1) * gap))


def coverage(low: ArrayLike, high: ArrayLike, came: ArrayLike) -> float:
    """The share of rows within their interval, edges included."""
    y = np.asarray(came, np.float64)
    return float(((y >= np.asarray(low)) & (y <= np.asarray(high))).mean())


# ---------------------------------------------------------------------------------------------------------------- tests
class Compared(NamedTuple):
    difference: float  # mean loss of the first less that of the second: negative is better
    statistic: float
    p: float  # two-sided
    n: int
    lags: int


def diebold_mariano(a: ArrayLike, b: ArrayLike, *, horizon: int = 1, lags: int | None = None) -> Compared:
    """Do two forecasts differ in their expected loss?

    The statistic of Diebold and Mariano 1995 with the factor of Harvey, Leybourne and Newbold 1997 (eq. 9), by
    Student's t with n - 1 degrees. The variance of the mean is that of Newey and West 1987 with Bartlett's weights,
    which cannot be negative as the plain sum of the papers can. (Equal to theirs where there is no lag.)

    Args:
      a, b: f[N], the losses in order of time; of several series, their mean on each day, as `by_day` makes it.
      horizon: steps ahead; errors of h steps overlap, and so depend on each other over h - 1.
      lags: of the variance; None for the larger of horizon - 1 and 4 (n / 100)^(2/9), as losses of volatility depend
        on each other at any horizon.

    Returns:
      p NaN of fewer than two rows. Losses that are equal throughout: statistic 0, p 1.
    """
    from scipy.stats import t

    d = _flat(a) - _flat(b)
    n = len(d)
    lags = max(horizon - 1, int(4 * (n / 100) ** (2 / 9))) if lags is None else lags
    lags = max(0, min(lags, n - 1))
    mean = float(d.mean()) if n else float("nan")
    if n and not d.any():
        return Compared(0.0, 0.0, 1.0, n, lags)
    if n < 2:
        return Compared(mean, float("nan"), float("nan"), n, lags)
    h = min(horizon, n - 1)
    factor = np.sqrt((n + 1 - 2 * h + h * (h - 1) / n) / n)
    statistic = float(factor * mean / np.sqrt(long_run_variance(d, lags) / n))
    return Compared(mean, statistic, float(2 * t.sf(abs(statistic), n - 1)), n, lags)


def long_run_variance(d: ArrayLike, lags: int) -> float:
    """g_0 + 2 sum_k (1 - k / (lags + 1)) g_k with g_k = sum (d_t - m)(d_{t-k} - m) / n (Newey and West 1987, eq. 5)."""
    d = _flat(d)
    e = d - d.mean()
    g = [float(e[k:] @ e[: len(e) - k]) / len(e) for k in range(lags + 1)]
    return g[0] + 2 * sum((1 - k / (lags + 1)) * g[k] for k in range(1, lags + 1))


def by_day(loss: ArrayLike, day: ArrayLike) -> F64:
    """The mean loss of each day f64[D], in order of days: series that move together are one observation a day.

    >>> by_day([1.0, 3.0, 5.0], [20060104, 20060104, 20060103]).tolist()
    [5.0, 2.0]
    """
    _, place = np.unique(np.asarray(day), return_inverse=True)
    return np.bincount(place, _flat(loss)) / np.bincount(place)


def mean_interval(values: ArrayLike, *, lags: int | None = None, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of values f[N] in order of time that may depend on each other, by Newey and West's variance."""
    from scipy.stats import t

    v = _flat(values)
    n = len(v)
    lags = max(0, min(int(4 * (n / 100) ** (2 / 9)) if lags is None else lags, n - 1))
    half = float(t.ppf((1 + level) / 2, n - 1) * np.sqrt(long_run_variance(v, lags) / n)) if n > 1 else float("nan")
    mean = float(v.mean()) if n else float("nan")
    return mean, mean - half, mean + half


def _flat(x: ArrayLike) -> F64:
    return np.asarray(x, np.float64).reshape(-1)
