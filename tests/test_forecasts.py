"""Errors, intervals and tests of forecasts, and the rivals: by hand, by scipy, by NumPy's own least squares."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_pinball_loss, r2_score

from umbrella import forecasts, naive
from umbrella.forecasts import diebold_mariano

RNG = np.random.default_rng(0)


# ---------------------------------------------------------------------------------------------------- errors, direction
def test_mase_by_hand() -> None:
    """Training 1, 3, 2, 6: steps 2, 1, 4, so 7/3 a step. Errors 7/3 and 14/3 are 1 and 2 of them."""
    scale = forecasts.naive_error([1.0, 3.0, 2.0, 6.0])
    assert scale == pytest.approx(7 / 3)
    assert forecasts.mase([7 / 3, -14 / 3], [scale, scale]) == pytest.approx(1.5)
    assert forecasts.naive_error([1.0, 3.0, 2.0, 6.0], 2) == pytest.approx(2.0)  # |2 - 1|, |6 - 3|
    assert np.isnan(forecasts.naive_error([1.0]))
    assert forecasts.relative([1.0, -3.0], [2.0, 2.0]) == 1.0


def test_r2_and_pinball_are_scikit_learns() -> None:
    y, f = RNG.normal(size=50), RNG.normal(size=50)
    assert forecasts.r2(f, y) == pytest.approx(r2_score(y, f))
    for level in (0.05, 0.5, 0.9):
        assert forecasts.pinball(f, y, level).mean() == pytest.approx(mean_pinball_loss(y, f, alpha=level))


def test_pinball_is_least_at_the_quantile() -> None:
    y = RNG.normal(size=2001)
    grid = np.linspace(-2, 2, 401)
    for level in (0.1, 0.75):
        best = grid[np.argmin([forecasts.pinball(np.full_like(y, q), y, level).mean() for q in grid])]
        assert best == pytest.approx(np.quantile(y, level), abs=0.011)


def test_direction_leaves_out_what_says_nothing_and_has_scipys_interval() -> None:
    told = forecasts.direction([1.0, -1.0, 2.0, 0.0, 1.0, 3.0], [2.0, 1.0, 0.5, 1.0, 0.0, 7.0])
    assert (told.hits, told.n, told.rate) == (3, 4, 0.75)
    for hits, n in ((3, 4), (0, 10), (10, 10), (520, 1000)):
        wanted = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
        assert forecasts.clopper_pearson(hits, n) == pytest.approx((wanted.low, wanted.high))
    assert forecasts.direction([0.0], [1.0])[1:2] == (0,) and np.isnan(forecasts.direction([0.0], [1.0]).rate)


def test_the_interval_covers() -> None:
    """Of 2,000 shares of 100 tosses of a coin with p = .3 at least 95 % of the intervals hold .3, less 4 sd."""
    hits = np.random.default_rng(1).binomial(100, 0.3, 2000)
    held = [low <= 0.3 <= high for low, high in map(lambda h: forecasts.clopper_pearson(int(h), 100), hits)]
    assert np.mean(held) > 0.95 - 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_qlike_by_hand_and_where_it_is_least() -> None:
    """s / v = 2: 2 - log 2 - 1. The best constant for s of mean 1 is v = 1, whatever the noise in s."""
    assert forecasts.qlike(1.0, 2.0) == pytest.approx(1 - np.log(2))
    assert forecasts.qlike(3.0, 3.0) == 0
    s = RNG.exponential(size=5000)
    s /= s.mean()
    grid = np.linspace(0.5, 2, 301)
    assert grid[np.argmin([forecasts.qlike(np.full_like(s, v), s).mean() for v in grid])] == pytest.approx(1, abs=0.006)


def test_coverage_counts_the_edges() -> None:
    assert forecasts.coverage([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, -1]) == 0.5


# ---------------------------------------------------------------------------------------------------------------- tests
def test_without_lags_diebold_and_marianos_is_students_test_of_the_difference() -> None:
    """The factor is sqrt((n - 1) / n) and the variance that with n in the denominator: together Student's t."""
    a, b = RNG.normal(size=40), RNG.normal(size=40)
    got = diebold_mariano(a, b, lags=0)
    wanted = stats.ttest_rel(a, b)
    assert (got.statistic, got.p) == pytest.approx((wanted.statistic, wanted.pvalue))
    assert got.difference == pytest.approx((a - b).mean())


def test_diebold_and_mariano_by_hand_with_a_lag() -> None:
    """d = 1, 2, 3, 6: mean 3, e = -2, -1, 0, 3, g0 = 14/4, g1 = (2 + 0 + 0)/4. With one lag of weight 1/2 the sum is
    14/4 + 2/4 = 4, of the mean 1. h = 2: the factor is sqrt((4 + 1 - 4 + 2/4) / 4) = sqrt(1.5 / 4)."""
    got = diebold_mariano([1.0, 2.0, 3.0, 6.0], [0.0] * 4, horizon=2)
    assert got.lags == 1 and forecasts.long_run_variance([1.0, 2.0, 3.0, 6.0], 1) == pytest.approx(4.0)
    statistic = np.sqrt(1.5 / 4) * 3
    assert got.statistic == pytest.approx(statistic)
    assert got.p == pytest.approx(2 * stats.t.sf(statistic, 3))


def test_the_test_is_antisymmetric_and_says_nothing_where_there_is_nothing() -> None:
    a, b = RNG.normal(size=300), RNG.normal(size=300)
    there, back = diebold_mariano(a, b), diebold_mariano(b, a)
    assert there.statistic == pytest.approx(-back.statistic) and there.p == pytest.approx(back.p)
    assert there.lags == int(4 * 3 ** (2 / 9))
    assert diebold_mariano(a, a)[1:3] == (0.0, 1.0)
    assert np.isnan(diebold_mariano([1.0], [2.0]).p)


def test_equal_forecasts_are_called_different_as_often_as_the_level_says() -> None:
    """Losses that depend on each other, AR(1) with .5, 250 days: 5 % of 1,000 tests, within what the lags leave over; a
    test without lags calls three times as many."""
    rng = np.random.default_rng(2)
    d = rng.normal(size=(1000, 300))
    for t in range(1, 300):
        d[:, t] += 0.5 * d[:, t - 1]
    zero = np.zeros(250)
    rates = [np.mean([diebold_mariano(row[50:], zero, lags=lags).p < 0.05 for row in d]) for lags in (None, 0)]
    assert 0.03 < rates[0] < 0.13 and rates[1] > 0.2


def test_the_mean_of_days_that_depend_on_each_other() -> None:
    v = [1.0, 2.0, 3.0, 6.0]
    mean, low, high = forecasts.mean_interval(v, lags=1)
    assert mean == 3 and high - mean == pytest.approx(stats.t.ppf(0.975, 3) * np.sqrt(4 / 4)) == pytest.approx(
        mean - low
    )


# --------------------------------------------------------------------------------------------------------------- rivals
Z = np.random.default_rng(5).normal(size=120).cumsum()
ROWS = np.arange(30, 80)


def test_ewma_by_its_sum() -> None:
    """m_t = .94^t z_0 + .06 sum_i .94^i z_{t-i}."""
    t, weights = 50, 0.06 * 0.94 ** np.arange(50)
    wanted = (weights * Z[t:0:-1]).sum() + 0.94**50 * Z[0]
    assert naive.ewma(Z, 3)[t] == pytest.approx([wanted] * 3)


def test_har_is_least_squares_on_day_week_and_month() -> None:
    """Against the normal equations, for the second step ahead, on the rows alone."""
    z = 0.1 * Z
    v = np.exp(z)
    known = np.array([[1, z[t], np.log(v[t - 4 : t + 1].mean()), np.log(v[t - 21 : t + 1].mean())] for t in ROWS])
    fitted = np.linalg.solve(known.T @ known, known.T @ z[ROWS + 2])
    t = 100
    last = np.array([1, z[t], np.log(v[t - 4 : t + 1].mean()), np.log(v[t - 21 : t + 1].mean())])
    got = naive.har(z, 2, ROWS)
    assert got[t, 1] == pytest.approx(last @ fitted) and np.isnan(got[20]).all() and np.isfinite(got[21]).all()


def test_autoregression_finds_its_own_process() -> None:
    z = np.zeros(5000)
    e = np.random.default_rng(0).normal(size=5000)
    for t in range(2, 5000):
        z[t] = 1 + 0.5 * z[t - 1] - 0.3 * z[t - 2] + e[t]
    got = naive.autoregression(z, 1, np.arange(2, 4000), 2)[4000:, 0]
    wanted = 1 + 0.5 * z[4000:] - 0.3 * z[3999:-1]
    assert np.abs(got - wanted).max() < 0.25 and np.abs(got - wanted).mean() < 0.05


def test_drift_mean_and_seasons() -> None:
    line = 3.0 + 2.0 * np.arange(20)
    assert naive.drift(line, 3, np.arange(5, 10))[12].tolist() == [29, 31, 33]
    assert naive.mean(line, 2, np.array([0, 1]))[7].tolist() == [4, 4]
    week = np.tile(np.arange(7.0), 4)
    got = naive.seasonal(week, 9, 7)
    assert got[20].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1] and np.isnan(got[3]).any()


@pytest.mark.parametrize("name", ["persistence", "drift", "mean", "seasonal", "ewma", "ar", "ar_changes", "har"])
def test_no_rival_knows_the_future(name: str) -> None:
    """What is changed from day 100 on, after all training rows, changes no forecast of the days before."""
    fn = {
        "persistence": lambda z: naive.persistence(z, 2),
        "drift": lambda z: naive.drift(z, 2, ROWS),
        "mean": lambda z: naive.mean(z, 2, ROWS),
        "seasonal": lambda z: naive.seasonal(z, 2, 5),
        "ewma": lambda z: naive.ewma(z, 2),
        "ar": lambda z: naive.autoregression(z, 2, ROWS, 4),
        "ar_changes": lambda z: naive.autoregression(z, 2, ROWS, 4, changes=True),
        "har": lambda z: naive.har(0.1 * z, 2, ROWS),
    }[name]
    other = Z.copy()
    other[100:] += 5
    a, b = fn(Z), fn(other)
    np.testing.assert_array_equal(a[:100], b[:100])
    if name not in ("mean",):
        assert (a[105:] != b[105:]).any()
