"""Series from files: dates, what is refused, features that know no future, folds that do not overlap."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umbrella.data import dates, prices, series, simulated, walk
from umbrella.data.series import Series
from umbrella.settings import SettingsError

HEAD = "Date,Open,High,Low,Close,Volume,Name\n"


def written(folder: Path, text: str, name: str = "a.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(SettingsError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------------------------------------------- dates
@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (("2006-01-03", "2006-1-4"), ("2006-01-03", "2006-01-04")),
        (("2006-01-03 15:30", "2006-01-03T15:31:02Z"), ("2006-01-03T15:30:00", "2006-01-03T15:31:02")),
        (("2006/01/03",), ("2006-01-03",)),
        (("20060103",), ("2006-01-03",)),
        (("2006-02", "2006-03"), ("2006-02-01", "2006-03-01")),
        (("3.1.2006", "31.1.2006"), ("2006-01-03", "2006-01-31")),
        (("01/02/2006", "01/13/2006"), ("2006-01-02", "2006-01-13")),  # a 13th month: the month stands first
        (("01/02/2006", "13/02/2006"), ("2006-02-01", "2006-02-13")),
    ],
)
def test_dates_as_people_write_them(texts: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    got = dates.read(texts, Path("a.csv"), range(2, 9)[: len(texts)], "day", "found")
    assert (got == np.array(wanted, "datetime64[s]")).all()
    assert got.dtype == np.dtype("datetime64[s]")


def test_day_or_month_first_is_asked_for_where_both_fit() -> None:
    read = lambda order: dates.read(("01/02/2006",), Path("a.csv"), (2,), "day", order)  # noqa: E731
    assert "config.data.dates='day first' or 'month first'" in refused(lambda: read("found"))
    assert read("day first")[0] == np.datetime64("2006-02-01")
    assert read("month first")[0] == np.datetime64("2006-01-02")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("2006-01-03", "2006-02-30"), "a.csv: row 3, column 'day': '2006-02-30' is no date, while the rows before"),
        (("2006-01-03", "4.1.2006"), "a.csv: row 3, column 'day': '4.1.2006' is no date, while"),
        (("soon",), "a.csv: row 2, column 'day': 'soon' is no date; write all as YYYY-MM-DD"),
        (("2006-01-03 10:00+02:00",), "is no date"),  # a zone: the clock is put back once a year
        (("10.34",), "is no date"),
    ],
)
def test_what_is_no_date(texts: tuple[str, ...], words: str) -> None:
    assert (
        words in refused(lambda: dates.read(texts, Path("a.csv"), (2, 3), "day", "found"))
        if len(texts) > 1
        else (words in refused(lambda: dates.read(texts, Path("a.csv"), (2,), "day", "found")))
    )


# -------------------------------------------------------------------------------------------------------------- reading
def test_a_csv_with_a_date_column_is_found_and_sorted(tmp_path: Path) -> None:
    path = written(tmp_path, "station,When,rain,wind\nA,2006-01-05,3,7\nA,2006-01-04,2,8\nA,2006-01-03,1,9\n")
    got = series.read_csv(path)
    assert got.columns == ("rain", "wind") and got.name == "a"
    assert got.column("rain").tolist() == [1, 2, 3] and dates.written(got.dates)[0] == "2006-01-03"
    assert got.notes == ("a.csv: the rows were newest first and have been sorted.",)
    assert series.read_csv(path, columns=("WIND",)).column("wind").tolist() == [9, 8, 7]


def test_a_mixed_order_is_sorted_with_a_word_and_a_date_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "date,x\n2006-01-04,2\n2006-01-03,1\n2006-01-05,3\n")
    got = series.read_csv(path)
    assert got.values[:, 0].tolist() == [1, 2, 3] and "not in order of their dates" in got.notes[0]
    path = written(tmp_path, "date,x\n2006-01-04,2\n2006-01-03,1\n2006-01-04,3\n")
    assert "row 4, column 'date': the date 2006-01-04T00:00:00 again (row 2 has it)" in refused(
        lambda: series.read_csv(path)
    )


def test_gaps_are_said(tmp_path: Path) -> None:
    days = [f"2006-01-{d:02d}" for d in (1, 2, 3, 4, 9, 10)]
    got = series.read_csv(written(tmp_path, "date,x\n" + "".join(f"{d},1\n" for d in days)))
    assert got.notes == (
        "a.csv: 1 gap in its dates, the longest from 2006-01-04 to 2006-01-09; steps are counted in rows.",
    )
    months = [f"2006-{m:02d}" for m in range(1, 13)]  # 28 to 31 days each
    assert series.read_csv(written(tmp_path, "date,x\n" + "".join(f"{d},1\n" for d in months))).notes == ()
    weekdays = [d for d in range(2, 28) if (d - 2) % 7 < 5]  # 2006-01-02 was a Monday
    text = "date,x\n" + "".join(f"2006-01-{d:02d},1\n" for d in weekdays)
    assert series.read_csv(written(tmp_path, text)).notes == ()


@pytest.mark.parametrize(
    ("missing", "wanted"), [("drop", [1.0, 4.0, 5.0, 6.0]), ("previous", [1.0, 1.0, 4.0, 5.0, 6.0])]
)
def test_an_empty_field_is_refused_dropped_or_the_value_before(
    tmp_path: Path, missing: series.Missing, wanted: list[float]
) -> None:
    rows = ["2006-01-03,1", "2006-01-04,", "2006-01-05,4", "2006-01-06,5", "2006-01-07,6"]
    path = written(tmp_path, "\n".join(["date,x", *rows]) + "\n")
    assert "a.csv: row 3, column 'x': is empty" in refused(lambda: series.read_csv(path))
    got = series.read_csv(path, missing=missing)
    assert got.values[:, 0].tolist() == wanted and "2006-01-04" in got.notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty file"),
        ("date,x\n", "a header and no rows"),
        ("date,x,x\n2006-01-03,1,2\n", "row 1, column 3: 'x' again"),
        ("date,x\n2006-01-03,1\n2006-01-04\n", "row 3: 1 fields, but the header has 2"),
        ("date,x\n2006-01-03,1\n2006-01-04,two\n", "row 3, column 'x': 'two' is no number"),
        ("date,x\n2006-01-03,1\n2006-01-04,nan\n", "row 3, column 'x': 'nan' is no number"),
        ("date,x\n2006-01-03,1\n2006-01-04,1_0\n", "row 3, column 'x': '1_0' is no number"),
        ("a,b\n1,2\n", "no column holds a date: 'a' begins with '1'; write dates as 2006-01-03"),
        ("b,Date\n1,3-Jan-06\n", "no column holds a date: 'Date' begins with '3-Jan-06'"),
        ("date,b\n2006-01-03,x\n", "no column of numbers beside that of the dates, 'date'"),
        ("date,x,y\n2006-01-03,1,\n2006-01-04,1,2\n", "row 2, column 'y': is empty"),
        ("date,x\n" + "".join(f"2006-01-0{i},\n" for i in range(3, 9)), "are fields of 6 of 6 rows; too many"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    if "x\n2006-01-03,\n" in text:
        text = refused(lambda: series.read_csv(path, columns=("x",), missing="drop"))
    else:
        text = refused(lambda: series.read_csv(path))
    assert words in text and text.startswith(str(path))


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = written(tmp_path, "date,rain\n2006-01-03,1\n")
    assert "no column 'rian' (did you mean 'rain'?)" in refused(lambda: series.read_csv(path, columns=("rian",)))
    assert "no column 'day'" in refused(lambda: series.read_csv(path, date="day"))
    assert "'date' is the date; name another" in refused(lambda: series.read_csv(path, columns=("date",)))


# --------------------------------------------------------------------------------------------------------------- prices
def test_a_folder_of_prices_one_for_each_ticker(tmp_path: Path) -> None:
    line = "2006-01-{:02d},10,12,9,11,100,{}\n"
    for name in ("B", "A"):
        written(tmp_path, HEAD + "".join(line.format(d, name) for d in range(2, 7)), f"{name}.csv")
    written(tmp_path, HEAD + line.format(2, "C") + "2006-01-03,,12,9,11,100,C\n2006-01-04,13,12,9,11,100,C\n", "C.csv")
    got = series.read_prices(tmp_path)
    assert [s.name for s in got] == ["A", "B", "C"] and got[0].columns == series.PRICES
    assert dates.written(got[2].dates) == ["2006-01-02", "2006-01-04"]  # the day with an empty field is left out
    assert got[2].column("high").tolist() == [12, 13]  # an opening price above the high
    notes = series.collected(got)
    assert notes[0].startswith("C.csv: left out for an empty field: 2006-01-03")
    assert notes[1] == "On 1 of 12 days the range was widened to hold the opening and closing price."


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("2006-01-03,10,9,12,11,100,A", "2006-01-03: the high 9 is below the low 12"),
        ("2006-01-03,10,12,0,11,100,A", "2006-01-03, column 'low': 0 is no low"),
        ("2006-01-03,10,12,9,11,-1,A", "2006-01-03, column 'volume': -1 is no volume"),
    ],
)
def test_prices_that_are_none(tmp_path: Path, row: str, words: str) -> None:
    path = written(tmp_path, f"{HEAD}{row}\n")
    assert words in refused(lambda: series.read_prices(path))


def test_a_folder_s_files_whatever_their_case_but_hidden_ones(tmp_path: Path) -> None:
    row = "2006-01-03,1,2,1,2,5,x\n2006-01-04,1,2,1,2,5,x\n"
    for name in ("b.CSV", "a.csv", "._a.csv", "notes.txt"):
        written(tmp_path, HEAD + row, name)
    assert [s.name for s in series.read_prices(tmp_path)] == ["a", "b"]


def test_no_prices_there(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(lambda: series.read_prices(tmp_path / "none"))
    assert "a folder without .csv files" in refused(lambda: series.read_prices(tmp_path))
    path = written(tmp_path, "Date,Close\n2006-01-03,1\n")
    assert "no column 'open'" in refused(lambda: series.read_prices(path))


def test_variances_by_the_range_against_their_formulas_and_against_a_known_one() -> None:
    """O = L = 1, H = C = e: Parkinson 1 / (4 log 2); Garman and Klass 1/2 - (2 log 2 - 1)."""
    e = np.e
    one = Series("one", np.array(["2006-01-03"], "datetime64[s]"), np.array([[1, e, 1, e, 1.0]]), series.PRICES)
    assert prices.variance(one, "parkinson")[0] == pytest.approx(1 / (4 * np.log(2)))
    assert prices.variance(one, "garman_klass")[0] == pytest.approx(0.5 - (2 * np.log(2) - 1))
    still = one._replace(values=np.ones((1, 5)))
    assert prices.variance(still, "garman_klass")[0] == prices.LEAST
    # Of generated prices four fifths of a day's variance fall into the day; a range of 64 points is too narrow.
    made = simulated.stocks(tickers=1, days=20_000, seed=0)[0]
    r = np.diff(np.log(made.column("close")))
    for estimator, low in (("parkinson", 0.65), ("garman_klass", 0.62)):
        assert low < prices.variance(made, estimator).mean() / r.var() < 0.8


# ------------------------------------------------------------------------------------------------ nothing of the future
def spoiled(one: Series, t: int, seed: int) -> Series:
    """The series with other prices and volumes from day t on."""
    values = one.values.copy()
    values[t:] *= np.exp(np.random.default_rng(seed).normal(size=(len(values) - t, 1)))
    values[t:, 4] += 17
    return one._replace(values=values)


@pytest.mark.parametrize("estimator", ["parkinson", "garman_klass"])
@pytest.mark.parametrize("t", [1, 22, 23, 150, 299])
def test_changing_the_future_changes_no_feature_of_the_past_to_the_bit(estimator: prices.Estimator, t: int) -> None:
    one = simulated.stocks(tickers=1, days=300, seed=3)[0]
    before, after = (prices.features(s, estimator) for s in (one, spoiled(one, t, t)))
    assert before[:t].tobytes() == after[:t].tobytes()
    if t >= prices.WARM:  # and what is changed is seen: the test can fail
        assert (before[t] != after[t]).any()


@pytest.mark.parametrize("t", [60, 100, 199])
def test_changing_the_future_changes_no_window_of_the_past_to_the_bit(t: int) -> None:
    one = simulated.stocks(tickers=1, days=200, seed=4)[0]
    told = []
    for s in (one, spoiled(one, t, 0)):
        known = prices.features(s, "garman_klass")
        table = walk.Table("a", s.dates, known, np.log(s.column("close")), True)
        told.append(walk.rows([table], 10, 3))
    past = told[0].at < t
    assert past.any() and told[0].x[past].tobytes() == told[1].x[past].tobytes()
    whole = told[0].at + 3 < t  # of these the y, too
    assert told[0].y[whole].tobytes() == told[1].y[whole].tobytes()


def test_the_scales_are_those_of_training_rows_alone() -> None:
    rng = np.random.default_rng(0)
    made = []
    for late in (1.0, 1000.0):
        z = rng.normal(size=200) if not made else made[0][0].z.copy()
        z[150:] *= late
        days = np.datetime64("2006-01-01", "s") + np.arange(200) * np.timedelta64(86_400, "s")
        table = walk.Table("a", days, z[:, None], z, False)
        r = walk.rows([table], 5, 2)
        cuts = walk.folds(days, test=0.2, validation=0.05, count=1, walk="expanding")
        assert cuts[0].validation == days[150]
        made.append((table, walk.scales(r, walk.members(r, cuts)["train"], [table])))
    for a, b in zip(made[0][1], made[1][1], strict=True):
        assert a.tobytes() == b.tobytes()
    z = made[0][0].z
    at = np.arange(4, 148)  # origins whose window is whole and whose second day ahead is before day 150
    assert made[0][1].y_mean[0, 0] == pytest.approx([z[at + 1].mean(), z[at + 2].mean()], rel=1e-5)
    assert made[0][1].x_sd[0, 0, 0] == pytest.approx(np.stack([z[at - i] for i in range(5)]).std(), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------- folds
def test_the_cuts_of_a_walk_by_hand() -> None:
    """100 days, the last 20 tested in two blocks of 10, 5 days of validation before each."""
    days = np.datetime64("2006-01-01", "s") + np.arange(100) * np.timedelta64(86_400, "s")
    for how, start in (("expanding", 0), ("rolling", 10)):
        a, b = walk.folds(days, test=0.2, validation=0.05, count=2, walk=how)
        assert (a.train, a.validation, a.test, a.end) == (days[0], days[75], days[80], days[90])
        assert (b.train, b.validation, b.test) == (days[start], days[85], days[90]) and b.end > days[99]
    assert "10 days are too few for 9 folds" in refused(
        lambda: walk.folds(days[:10], test=0.2, validation=0.1, count=9, walk="expanding")
    )


@pytest.mark.parametrize("how", ["expanding", "rolling"])
@pytest.mark.parametrize("horizon", [1, 4])
def test_no_part_reaches_into_the_next(how: walk.Walk, horizon: int) -> None:
    """By the days themselves: the last day that a row of train speaks of is before the first of validation, and so on;
    every day of test is forecast once; series of different lengths are cut on the same days."""
    days = np.datetime64("2006-01-01", "s") + np.arange(120) * np.timedelta64(86_400, "s")
    tables = [
        walk.Table(f"s{i}", days[i * 7 :], np.arange(120.0 - i * 7)[:, None], np.arange(120.0 - i * 7), True)
        for i in range(3)
    ]
    r = walk.rows(tables, 6, horizon)
    cuts = walk.folds(days, test=0.3, validation=0.1, count=3, walk=how)
    parts = walk.members(r, cuts)
    for k, cut in enumerate(cuts):
        train, held, test = (parts[p][k] for p in ("train", "validation", "test"))
        assert r.final[train].max() < cut.validation <= r.first[held].min()
        assert r.final[held].max() < cut.test <= r.first[test].min() and r.first[test].max() < cut.end
        assert r.begins[train].min() >= cut.train
        lost = cut.validation - r.final[train].max()
        assert lost == np.timedelta64(86_400, "s")  # nothing more is left out than the horizon asks for
    assert (parts["test"].sum(0) <= 1).all()
    assert parts["test"].any(0).sum() == 3 * (36 - horizon + 1)
    kept = walk.arrays(r, parts["train"], {})
    inside = [(kept.column("from") <= k) & (k <= kept.column("to")) for k in range(3)]
    np.testing.assert_array_equal(np.array(inside), parts["train"][:, parts["train"].any(0)])


def test_a_window_is_the_days_before_and_its_level_is_told_from_its_last() -> None:
    days = np.datetime64("2006-01-01", "s") + np.arange(8) * np.timedelta64(86_400, "s")
    z = np.array([1.0, 2, 4, 8, 16, 32, 64, 128])
    r = walk.rows([walk.Table("a", days, np.stack([z, -z], 1), z, True, (0,))], 3, 2)
    assert r.x[0].tolist() == [[-3, -1], [-2, -2], [0, -4]] and r.at[0] == 2
    assert r.y[0].tolist() == [4, 12] and r.first[0] == days[3] and r.final[0] == days[4]
    assert np.isnan(r.y[-1]).all() and np.isnat(r.final[-1]) and len(r.at) == 6
    assert "4 rows; a window of 3 after the 0 that features need, and a horizon of 2, want 5" in refused(
        lambda: walk.rows([walk.Table("a", days[:4], z[:4, None], z[:4], True)], 3, 2)
    )


def test_windows_that_would_not_fit_are_refused_before_they_are_made() -> None:
    days = np.datetime64("2006-01-01", "s") + np.arange(200_000) * np.timedelta64(3600, "s")
    table = walk.Table("a", days, np.zeros((200_000, 8)), np.zeros(200_000), True)
    assert "config.data.window: windows of 1000 rows" in refused(lambda: walk.rows([table], 1000, 1))


# ------------------------------------------------------------------------------------------------------------ generated
def test_generated_prices_are_what_they_are_said_to_be() -> None:
    """The sign of a return is a fair coin; its size can be foreseen; ranges hold the prices."""
    made = simulated.stocks(tickers=2, days=6000, seed=1)
    for one in made:
        values, r = one.values, np.diff(np.log(one.column("close")))
        assert (values[:, 1] >= values[:, [0, 2, 3]].max(1)).all() and (values[:, 2] <= values[:, [0, 3]].min(1)).all()
        n = len(r)
        assert abs((r > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(n)
        assert abs(np.corrcoef(np.sign(r[1:]), np.sign(r[:-1]))[0, 1]) < 4 / np.sqrt(n)
        assert np.corrcoef(np.abs(r[1:]), np.abs(r[:-1]))[0, 1] > 4 / np.sqrt(n)
    again = simulated.stocks(tickers=2, days=6000, seed=1)
    assert made[1].values.tobytes() == again[1].values.tobytes()
    assert made[0].values.tobytes() != simulated.stocks(tickers=1, days=6000, seed=2)[0].values.tobytes()


def test_shuffled_days_are_the_same_days() -> None:
    one = simulated.stocks(tickers=1, days=500, seed=0)[0]
    other = prices.shuffled(one, 0)
    for s in (one, other):
        assert (s.values[:, 1] >= s.values[:, 2]).all()
    a, b = (np.sort(np.diff(np.log(s.column("close")))) for s in (one, other))
    np.testing.assert_allclose(a, b, atol=1e-12)
    v = [np.sort(prices.variance(s, "garman_klass")[1:]) for s in (one, other)]
    np.testing.assert_allclose(v[0], v[1], rtol=1e-9)
    assert np.corrcoef(np.diff(np.log(one.column("close"))), np.diff(np.log(other.column("close"))))[0, 1] < 0.2


def test_generated_seasons_have_their_seasons() -> None:
    made = simulated.seasons(days=2922, seed=0)  # eight years
    log, t = np.log(made.values[:, 0]), np.arange(2922)
    week = [log[t % 7 == d].mean() for d in range(7)]
    assert max(week[5:]) < min(week[:5]) - 0.2  # the weekend is lower
    assert made.dates[0] == np.datetime64("2012-01-02") and log[-365:].mean() - log[:365].mean() == pytest.approx(
        0.7, abs=0.05
    )


@pytest.mark.parametrize("t", [23, 100, 199])
def test_the_market_knows_no_future_either(t: int) -> None:
    """Of every series, whichever of them is changed; and of a day it is the mean over those that have the day."""
    made = simulated.stocks(tickers=3, days=200, seed=5)
    made[2] = made[2]._replace(dates=made[2].dates[50:], values=made[2].values[50:])
    before = prices.market(made, "garman_klass")
    for k in range(3):
        start = 50 if k == 2 else 0
        after = prices.market([*made[:k], spoiled(made[k], max(0, t - start), 0), *made[k + 1 :]], "garman_klass")
        for one, old, new in zip(made, before, after, strict=True):
            past = one.dates < made[0].dates[t]
            assert old[past].tobytes() == new[past].tobytes()
            assert (old[~past] != new[~past]).any()
    logs = [np.log(prices.variance(s, "garman_klass")) for s in made]
    assert before[0][150, 1] == pytest.approx(np.mean([logs[0][150], logs[1][150], logs[2][100]]))
    assert before[0][40, 1] == pytest.approx(np.mean([logs[0][40], logs[1][40]]))
