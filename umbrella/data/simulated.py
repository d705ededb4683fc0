"""Series that are generated, for configs that are given no file: what can be foreseen in them is known. Floor 4."""

import numpy as np

from umbrella.data.series import PRICES, Series

STEPS = 64  # of the price within a day: its range is then 5 % too narrow, as of any price that is seen now and then


def stocks(*, tickers: int, days: int, seed: int) -> list[Series]:
    """Daily prices whose volatility can be foreseen and whose direction cannot.

    GJR-GARCH (Glosten et al. 1993, eq. 4): r_t = sigma_t z_t with z_t normal and independent, so that the sign of a
    return is a fair coin whatever came before; sigma_{t+1}^2 = w + (a + g [r_t < 0]) r_t^2 + b sigma_t^2 with a = .03,
    g = .08, b = .91, persistence a + g/2 + b = .98. A day's path is a Brownian motion of STEPS steps, a fifth of whose
    variance falls into the night. The series are independent.
    """
    a, g, b = 0.03, 0.08, 0.91
    made = []
    for k in range(tickers):
        rng = np.random.default_rng([seed, 9, k])
        level = (0.01 + 0.01 * rng.random()) ** 2  # the variance of a day in the long run: 16 to 32 % a year
        shocks = rng.standard_normal((days, STEPS + 1)) * np.sqrt(np.r_[0.2, np.full(STEPS, 0.8 / STEPS)])
        z = shocks.sum(1)
        sd = np.empty(days)
        now = level
        for t in range(days):
            sd[t] = np.sqrt(now)
            r2 = now * z[t] ** 2
            now = (1 - a - g / 2 - b) * level + (a + g * (z[t] < 0)) * r2 + b * now
        path = (shocks * sd[:, None]).cumsum(1)
        before = np.r_[0.0, path[:-1, -1].cumsum()][:, None]
        log_price = np.log(100) + before + path
        open_, high, low, close = log_price[:, 0], log_price.max(1), log_price.min(1), log_price[:, -1]
        volume = 1e6 * np.exp(0.5 * np.log(sd / np.sqrt(level)) + 0.3 * rng.standard_normal(days))
        values = np.column_stack([*np.exp([open_, high, low, close]), volume.round()])
        made.append(Series(f"GEN{k}", _weekdays(days), values, PRICES))
    return made


def seasons(*, days: int, seed: int) -> Series:
    """A daily series with a trend, a week, a year, and noise, of positive numbers: the demand for something, say.

    exp of: a trend that grows by 10 % a year; a year with two harmonics; a week whose weekend is lower, and lower still
    in summer, so that the two do not just add up; noise of which a part stays for days, AR(1) with .7.
    """
    rng = np.random.default_rng([seed, 10])
    t = np.arange(days)
    year, week = 2 * np.pi * t / 365.25, t % 7
    summer = 0.5 * (1 - np.cos(year))
    weekend = np.where(week >= 5, -0.15 - 0.3 * summer, 0.0) + np.where(week == 4, 0.05, 0.0)
    slow, kept = np.empty(days), 0.0
    for i, shock in enumerate(rng.standard_normal(days)):
        kept = 0.7 * kept + 0.03 * shock
        slow[i] = kept
    log = np.log(1000) + 0.1 * t / 365.25 + 0.2 * np.sin(year) + 0.1 * np.cos(2 * year) + weekend + slow
    values = np.exp(log + 0.02 * rng.standard_normal(days))
    first = np.datetime64("2012-01-02", "s")  # a Monday
    return Series("seasons", first + t * np.timedelta64(86_400, "s"), values[:, None], ("value",))


def _weekdays(days: int) -> np.ndarray:
    """datetime64[s][days] from Monday, 2010-01-04 on, without weekends."""
    t = np.arange(days)
    whole = np.datetime64("2010-01-04", "D") + (t // 5 * 7 + t % 5)
    return whole.astype("datetime64[s]")
