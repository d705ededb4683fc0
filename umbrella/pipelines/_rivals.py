"""What forecasts are compared on, and the rivals of a network on it. Floor 5."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from umbrella import forecasts, naive
from umbrella.data.walk import Table
from umbrella.pipelines._walks import Walked

F64 = NDArray[np.float64]
LEVELS = np.array([0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95])  # of quantiles
DECAYS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 0.99)


class Tested(NamedTuple):
    """The test rows of all folds, and what came."""

    row: np.ndarray  # i64[N], of walked.rows
    fold: np.ndarray  # i64[N]
    series: np.ndarray  # i32[N]
    day: np.ndarray  # datetime64[s][N], the first that is forecast
    z: F64  # [N, 1], the last value known
    y: F64  # [N, H], what came: as the model says it, a change or a value
    scale: F64  # [N], the naive error of the training part of its series, in units of `own`
    spread: F64  # [N], the standard deviation of y one step ahead in the training part


class Told(NamedTuple):
    """What a forecaster says of the test rows, in the units of y."""

    words: str
    mean: F64  # [N, H]
    quantiles: F64  # [N, H, Q], of LEVELS
    ratio: F64  # [N], the mean of exp(y - mean) over the training part: what turns exp(mean) into a variance forecast
    seconds: float = 0.0


def tested(walked: Walked) -> Tested:
    those = walked.members["test"]
    row = np.flatnonzero(those.any(0))
    fold = those[:, row].argmax(0)
    of = walked.rows.series[row]
    y, z = actual(walked, row)
    scale, spread = np.empty(len(row)), np.empty(len(row))
    for k, f in enumerate(walked.folds):
        for s, table in enumerate(walked.tables):
            here = (fold == k) & (of == s)
            train = (table.dates >= f.train) & (table.dates < f.validation)
            known = table.z[train]
            if walked.target == "level" and walked.logs:
                known = np.exp(known)
            scale[here] = forecasts.naive_error(known, walked.period)
            spread[here] = walked.scales.y_sd[k, s, 0]
    return Tested(row, fold, of, walked.rows.first[row], z, y, np.maximum(scale, 1e-12), spread)


def actual(walked: Walked, row: np.ndarray) -> tuple[F64, F64]:
    """(y f64[N, H], z f64[N, 1]) of rows whose future is known, from the series themselves."""
    y, last = np.empty((len(row), walked.horizon)), np.empty((len(row), 1))
    ahead = np.arange(1, walked.horizon + 1)
    for s, table in enumerate(walked.tables):
        here = walked.rows.series[row] == s
        at = walked.rows.at[row[here]][:, None]
        last[here] = table.z[at]
        y[here] = table.z[at + ahead] - (table.z[at] if table.change else 0)
    return y, last


def rivals(walked: Walked, on: Tested) -> list[Told]:
    """Every rival on the test rows, each fitted to the training rows of its fold and series alone."""
    made: dict[str, Told] = {}
    N, H, Q = len(on.row), walked.horizon, len(LEVELS)
    for words in methods(walked):
        made[words] = Told(words, np.empty((N, H)), np.empty((N, H, Q)), np.empty(N))
    for k in range(len(walked.folds)):
        for s, table in enumerate(walked.tables):
            here = np.flatnonzero((on.fold == k) & (on.series == s))
            train = np.flatnonzero(walked.members["train"][k] & (walked.rows.series == s))
            at = walked.rows.at[train]
            came = actual(walked, train)[0]
            for words, method in methods(walked).items():
                began = time.perf_counter()
                said = method(table, at) - (table.z[:, None] if table.change else 0)
                left = came - said[at]
                left = left[np.isfinite(left).all(1)]
                if "EWMA" in words and walked.target == "volatility":  # the log of a mean is more than the mean of logs
                    said, left = said + left.mean(0), left - left.mean(0)
                told = made[words]
                told.mean[here] = said[walked.rows.at[on.row[here]]]
                told.quantiles[here] = told.mean[here][..., None] + np.quantile(left, LEVELS, axis=0).T[None]
                told.ratio[here] = np.exp(left[:, 0]).mean() if walked.target == "volatility" else 1.0
                made[words] = told._replace(seconds=told.seconds + time.perf_counter() - began)
    return list(made.values())


Method = Callable[[Table, NDArray[np.int64]], F64]


def methods(walked: Walked) -> dict[str, Method]:
    """name -> (series, training origins) -> forecasts of its z f64[T, H]. "persistence" is the first."""
    H, period = walked.horizon, walked.period
    window = walked.rows.x.shape[1]
    out: dict[str, Method] = {"persistence": lambda t, rows: naive.persistence(t.z, H)}
    if walked.target == "volatility":
        out |= {
            "mean": lambda t, rows: naive.mean(t.z, H, rows),
            "EWMA .94": lambda t, rows: np.log(naive.ewma(np.exp(t.z), H)),
            "EWMA, decay fitted": lambda t, rows: np.log(smoothed(np.exp(t.z), H, rows)),
            "HAR": lambda t, rows: naive.har(t.z, H, rows),
            f"AR({window})": lambda t, rows: naive.autoregression(t.z, H, rows, window),
        }
        if walked.beside and len(walked.tables) > 1:  # HAR of the market and of the last return, too, as a network sees
            out["HAR of all features"] = lambda t, rows: naive.regression(t.features, t.z, H, rows)
        return out
    out["drift"] = lambda t, rows: naive.drift(t.z, H, rows)
    if walked.prices:
        return out | {
            "momentum, EWMA .94": lambda t, rows: t.z[:, None] + _momentum(t.z, H),
            "AR(5) of returns": lambda t, rows: naive.autoregression(t.z, H, rows, 5, changes=True),
            f"AR({window}) of returns": lambda t, rows: naive.autoregression(t.z, H, rows, window, changes=True),
        }
    if period > 1:
        out["seasonal naive"] = lambda t, rows: naive.seasonal(t.z, H, period)
    out |= {
        "EWMA, decay fitted": lambda t, rows: smoothed(t.z, H, rows),
        f"AR({window})": lambda t, rows: naive.autoregression(t.z, H, rows, window),
    }
    if walked.beside:  # what the network sees beside the values: the calendar, other columns
        out[f"AR({window}) and columns"] = lambda t, rows: naive.regression(
            np.column_stack([naive.lagged(t.z, window), t.features[:, -walked.beside :]]), t.z, H, rows
        )
    return out


def smoothed(z: F64, horizon: int, rows: NDArray[np.int64]) -> F64:
    """naive.ewma with that of DECAYS whose squared error one row ahead is least in training."""
    errors = [np.square(z[rows + 1] - naive.ewma(z, 1, d)[rows, 0]).mean() for d in DECAYS]
    return naive.ewma(z, horizon, DECAYS[int(np.argmin(errors))])


def _momentum(z: F64, horizon: int) -> F64:
    """The exponentially weighted mean of past steps, so many times as there are steps ahead."""
    steps = np.concatenate([[0.0], np.diff(z)])
    return naive.ewma(steps, horizon) * np.arange(1, horizon + 1)
