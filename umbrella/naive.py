"""The rivals of a forecaster: what one writes down without a network. Floor 0; NumPy.

Each gives forecasts f64[T, H] of a series z f[T]: row t says z_{t+1} .. z_{t+H} by what was known on day t. Rows that
want more past than there is are NaN. What is fitted is fitted to the origins in `rows` alone.
"""

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def persistence(z: F64, horizon: int) -> F64:
    """The last value stays."""
    return np.repeat(np.asarray(z, np.float64)[:, None], horizon, 1)


def drift(z: F64, horizon: int, rows: NDArray[np.int64]) -> F64:
    """The last value goes on by the mean step of the rows: the line through the first and last of them.

    >>> drift(np.array([0.0, 2.0, 4.0, 9.0]), 2, np.array([0, 1, 2])).tolist()[-1]
    [11.0, 13.0]
    """
    step = (z[rows[-1]] - z[rows[0]]) / max(1, rows[-1] - rows[0])
    return persistence(z, horizon) + step * np.arange(1, horizon + 1)


def mean(z: F64, horizon: int, rows: NDArray[np.int64]) -> F64:
    """The mean of the rows, always."""
    return np.full((len(z), horizon), np.asarray(z, np.float64)[rows].mean())


def seasonal(z: F64, horizon: int, period: int) -> F64:
    """The value of one period before the day that is forecast; of several periods, where the horizon is longer.

    >>> seasonal(np.array([1.0, 2.0, 3.0]), 2, 2).tolist()[1:]
    [[1.0, 2.0], [2.0, 3.0]]
    """
    ahead = np.arange(1, horizon + 1)
    back = np.arange(len(z))[:, None] + ahead - period * (-(-ahead // period))
    return np.where(back >= 0, np.asarray(z, np.float64)[np.maximum(back, 0)], np.nan)


def ewma(z: F64, horizon: int, decay: float = 0.94) -> F64:
    """m_t = decay m_{t-1} + (1 - decay) z_t, from the first value on, for every step ahead.

    Of variances with .94 it is that of RiskMetrics (J.P. Morgan 1996, section 5.3), of levels simple exponential
    smoothing.

    >>> ewma(np.array([1.0, 3.0]), 1, 0.5).tolist()
    [[1.0], [2.0]]
    """
    out = np.empty(len(z))
    now = float(z[0]) if len(z) else 0.0
    for t, value in enumerate(np.asarray(z, np.float64)):
        now = decay * now + (1 - decay) * value
        out[t] = now
    return persistence(out, horizon)


def regression(known: F64, z: F64, horizon: int, rows: NDArray[np.int64]) -> F64:
    """Least squares of each of z_{t+1} .. z_{t+H} on a constant and what is known on day t: known f[T, P]."""
    x = np.column_stack([np.ones(len(z)), known])
    ahead = rows[:, None] + np.arange(1, horizon + 1)
    usable = np.isfinite(x[rows]).all(1) & (ahead[:, -1] < len(z))
    fitted = np.linalg.lstsq(x[rows[usable]], z[ahead[usable]], rcond=None)[0]
    out = np.full((len(z), horizon), np.nan)
    whole = np.isfinite(x).all(1)
    out[whole] = x[whole] @ fitted
    return out


def autoregression(z: F64, horizon: int, rows: NDArray[np.int64], order: int, *, changes: bool = False) -> F64:
    """Least squares on the last `order` values, by an equation for each step ahead ("direct").

    Args:
      changes: the equation is of changes from the last value by the last `order` changes, for what wanders.
    """
    z = np.asarray(z, np.float64)
    if not changes:
        return regression(lagged(z, order), z, horizon, rows)
    steps = np.concatenate([[np.nan], np.diff(z)])
    x = np.column_stack([np.ones(len(z)), lagged(steps, order)])
    ahead = rows[:, None] + np.arange(1, horizon + 1)
    usable = np.isfinite(x[rows]).all(1) & (ahead[:, -1] < len(z))
    fitted = np.linalg.lstsq(x[rows[usable]], z[ahead[usable]] - z[rows[usable], None], rcond=None)[0]
    whole = np.isfinite(x).all(1)
    out = np.full((len(z), horizon), np.nan)
    out[whole] = z[whole, None] + x[whole] @ fitted
    return out


def har(log_variance: F64, horizon: int, rows: NDArray[np.int64]) -> F64:
    """Least squares on the last day's value and the means of the last week and month, of log variances.

    Source: Corsi 2009, eq. 8; in logs as Andersen, Bollerslev and Diebold 2007, eq. 16, where the means are of
    variances.
    """
    z = np.asarray(log_variance, np.float64)
    known = [z] + [np.log(trailing(np.exp(z), days)) for days in (5, 22)]
    return regression(np.column_stack(known), z, horizon, rows)


def lagged(z: F64, order: int) -> F64:
    """f64[T, order]: z_t, z_{t-1}, ...; NaN before the first."""
    out = np.full((len(z), order), np.nan)
    for i in range(min(order, len(z))):
        out[i:, i] = z[: len(z) - i]
    return out


def trailing(x: F64, days: int) -> F64:
    """The mean f64[T] of each day and the days - 1 before it; NaN where there are fewer.

    >>> trailing(np.array([1.0, 3.0, 5.0]), 2).tolist()
    [nan, 2.0, 4.0]
    """
    out = np.full(len(x), np.nan)
    if len(x) >= days:
        out[days - 1 :] = np.lib.stride_tricks.sliding_window_view(x, days).mean(-1)
    return out
