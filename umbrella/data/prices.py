"""What daily prices say: returns, ranges, volatility. Every feature is a causal function of its series. Floor 4.

Changing anything on day t or later leaves every feature of the days before t as it was, to the bit: a mean is over a
window of its own, never a difference of two sums over the whole past.
"""

from typing import Literal

import numpy as np

from umbrella.data.series import Series
from umbrella.naive import trailing

Estimator = Literal["parkinson", "garman_klass"]
FEATURES = ("return", "overnight", "variance", "variance, 5 days", "variance, 22 days", "volume")
MARKET = ("market return", "market variance")
WARM = 22  # days before the first feature: a trading month, as HAR has it
LEAST = 1e-8  # of a day's variance: a standard deviation of a hundredth of a percent, where nothing moved
LOG_2 = float(np.log(2))


def variance(prices: Series, estimator: Estimator) -> np.ndarray:
    """The variance f64[T] of each day's log price from its range, without the night before it; at least LEAST.

    "parkinson": log(H / L)^2 / (4 log 2) (Parkinson 1980), 5.2 times as exact as the squared return of the same hours.
    "garman_klass": log(H / L)^2 / 2 - (2 log 2 - 1) log(C / O)^2, 7.4 times as exact (Garman and Klass 1980, their
    practical estimator). Both are of a Brownian motion without drift.
    """
    open_, high, low, close = np.log(prices.values[:, :4]).T
    of_range = np.square(high - low)
    if estimator == "parkinson":
        return np.maximum(of_range / (4 * LOG_2), LEAST)
    return np.maximum(0.5 * of_range - (2 * LOG_2 - 1) * np.square(close - open_), LEAST)


def features(prices: Series, estimator: Estimator) -> np.ndarray:
    """f64[T, 6] by FEATURES, NaN on the first WARM days.

    The log return since the day before and the part of it that fell into the night; the log of the day's variance and
    of its mean over 5 and 22 days (Corsi 2009: day, week and month); the log of the volume against its mean over 22
    days.
    """
    open_, close = np.log(prices.column("open")), np.log(prices.column("close"))
    volume = prices.column("volume")
    day = variance(prices, estimator)
    made = np.full((len(close), len(FEATURES)), np.nan)
    made[1:, 0] = close[1:] - close[:-1]
    made[1:, 1] = open_[1:] - close[:-1]
    for i, days in ((2, 1), (3, 5), (4, 22)):
        made[:, i] = np.log(trailing(day, days))
    made[:, 5] = np.log((volume + 1) / (trailing(volume, 22) + 1))  # a day without trade is a number, too
    made[:WARM] = np.nan
    return made


def market(all_prices: list[Series], estimator: Estimator) -> list[np.ndarray]:
    """f64[T, 2] of every series by MARKET, NaN on its first WARM days: the mean return and the mean log variance of the
    day over all series that have this day. Of a series alone, its own."""
    days = np.unique(np.concatenate([s.dates for s in all_prices]))
    table = np.full((len(all_prices), len(days), 2), np.nan)
    places = [np.searchsorted(days, s.dates) for s in all_prices]
    for row, place, s in zip(table, places, all_prices, strict=True):
        row[place[1:], 0] = np.diff(np.log(s.column("close")))
        row[place, 1] = np.log(variance(s, estimator))
    there = np.isfinite(table)
    mean = np.where(there, table, 0).sum(0) / np.maximum(there.sum(0), 1)
    out = [mean[place] for place in places]
    for one in out:
        one[:WARM] = np.nan
    return out


def shuffled(prices: Series, seed: int) -> Series:
    """The same days in another order: returns, ranges and volumes go along, nothing of the past is left in them.

    What is found in such a series is not there: the check of any claim to foresee returns or volatility.
    """
    logs = np.log(prices.values[:, :4])
    before = logs[:-1, 3:]
    days = np.random.default_rng([seed, 8]).permutation(len(before))
    moved = (logs[1:] - before)[days]
    start = np.concatenate([logs[:1, 3], moved[:, 3]]).cumsum()
    prices_then = np.exp(moved + start[:-1, None])
    values = np.concatenate([prices.values[:1], np.column_stack([prices_then, prices.column("volume")[1:][days]])])
    return prices._replace(values=values)
