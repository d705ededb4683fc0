"""The data of the pipeline `series`: series as windows, cut by the dates of a walk forward. Floor 5."""

import hashlib
import pathlib
from collections.abc import Generator
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from umbrella import data
from umbrella.data import Data, Dataset, dates, prices, series, simulated, walk
from umbrella.data.dates import written as dates_of
from umbrella.data.sources import Rows, info
from umbrella.data.streams import stacked
from umbrella.data.walk import Fold, Scales, Table, Walk
from umbrella.experiment import RunSettings
from umbrella.settings import Count, Natural, Range, SettingsError

Target = Literal["return", "volatility", "level"]
Share = Annotated[float, Range(lambda v: 0 < v < 1, "must be in (0, 1)")]


class Walked(NamedTuple):
    """What a pipeline knows of a walk beside its rows."""

    target: Target
    tables: list[Table]
    rows: walk.Rows
    folds: tuple[Fold, ...]
    members: dict[str, np.ndarray]  # part -> bool[K, N]
    scales: Scales
    horizon: int
    logs: bool  # whether a level is the exponential of what is forecast
    period: int  # of the seasons, 1 for none
    prices: bool
    beside: int  # how many of the last features are not of the series' own past: the calendar, other columns
    notes: tuple[str, ...]

    def own(self, forecast: Any, z: Any, xp: Any = np) -> Any:
        """A forecast of y in the units that people read: a log return; the level; the standard deviation of a day.

        Args:
          forecast: f[B, H].
          z: f[B, 1], the last known value.
          xp: the module of the arrays.
        """
        if self.target == "return":
            return forecast
        if self.target == "volatility":
            return xp.exp(0.5 * forecast)
        return xp.exp(z + forecast) if self.logs else z + forecast

    @property
    def unit(self) -> str:
        return {"return": "log return", "volatility": "standard deviation of a day", "level": "level"}[self.target]


def stocks(
    *,
    name: Literal["stocks"],
    path: str | None = None,
    target: Target = "volatility",
    window: Count = 22,
    horizon: Count = 1,
    test: Share = 0.2,
    validation: Share = 0.1,
    folds: Count = 1,
    walk: Walk = "expanding",
    estimator: prices.Estimator = "garman_klass",
    market: bool = True,
    missing: series.Missing = "drop",
    dates: dates.Order = "found",
    shuffled: bool = False,
    tickers: Count = 8,
    days: Count = 2500,
    seed: Natural = 0,
) -> Dataset:
    """Daily prices as windows of their features (`umbrella.data.prices`).

    Args:
      path: a .csv file with date, open, high, low, close and volume, or a folder of one for each ticker. None: prices
        are generated (`umbrella.data.simulated.stocks`), and a note says so.
      target: what is forecast for 1 .. horizon days ahead. "return": the log return from the last day on; "level": the
        same, told as a price; "volatility": the log of that day's variance by its range.
      window: days that a model sees.
      test, validation, folds, walk: see `umbrella.data.walk.folds`.
      estimator: of a day's variance.
      market: a model sees the mean return and log variance of all series on each day, too.
      missing: what an empty field means, see `umbrella.data.series.read_csv`.
      dates: the order of day and month.
      shuffled: the days of each series in another order: a check, nothing can be foreseen then.
      tickers, days, seed: of generated prices; the seed also shuffles.

    Raises:
      SettingsError: what the file has, or the settings, do not fit.
    """
    if path is None:
        found = simulated.stocks(tickers=tickers, days=days, seed=seed)
        source = f"GENERATED prices (GJR-GARCH, {tickers} series of {days} days, seed {seed})"
        notes: tuple[str, ...] = (
            "No file was given: these prices are generated. Their volatility can be foreseen, their direction cannot.",
        )
    else:
        place = pathlib.Path(path).expanduser()
        found = series.read_prices(place, order=dates, missing=missing)
        source, notes = f"prices {path}", series.collected(found)
    if shuffled:
        found = [prices.shuffled(s, seed + i) for i, s in enumerate(found)]
        source, notes = f"{source}, days shuffled", (*notes, "The days of every series are shuffled: a check.")
    tables = []
    beside = prices.market(found, estimator) if market else [np.empty((len(s.dates), 0)) for s in found]
    for one, others in zip(found, beside, strict=True):
        known = np.concatenate([prices.features(one, estimator), others], 1)
        z = np.log(one.column("close")) if target != "volatility" else np.log(prices.variance(one, estimator))
        tables.append(Table(one.name, one.dates, known, z, target != "volatility"))
    cut = {"test": test, "validation": validation, "count": folds, "walk": walk}
    more = {"target": target, "logs": True, "period": 1, "prices": True, "beside": beside[0].shape[1], "notes": notes}
    names = (*prices.FEATURES, *(prices.MARKET if market else ()))
    return _windows(path or name, source, tables, names, window, horizon, cut, more)


def dated(
    *,
    name: Literal["series"],
    path: str | None = None,
    date: str | None = None,
    value: str | None = None,
    inputs: tuple[str, ...] = (),
    target: Literal["level", "return"] = "level",
    log: bool = False,
    period: Count = 1,
    calendar: bool = True,
    window: Count = 28,
    horizon: Count = 1,
    test: Share = 0.2,
    validation: Share = 0.1,
    folds: Count = 1,
    walk: Walk = "expanding",
    missing: series.Missing = "refuse",
    dates: dates.Order = "found",
    days: Count = 2500,
    seed: Natural = 0,
) -> Dataset:
    """A column of a .csv file with dates, as windows of its values and of what is known beside them.

    Args:
      path: the file. None: a series with a trend and seasons is generated (`umbrella.data.simulated.seasons`), and a
        note says so.
      date, value: the columns of dates and of what is forecast; None for the first that holds a date and the first that
        holds numbers.
      inputs: other columns that a model sees, up to the origin.
      target: "level", the value for 1 .. horizon rows ahead; "return", its change from the last one. A model says the
        change in both cases.
      log: of the logarithms of the values, which must be positive: for what grows by shares.
      period: rows of a season, for the seasonal naive rival and the scale of MASE; 1 for none.
      calendar: a model sees the day of the week and of the year (and the hour, where there are hours) of every row.
      window: rows that a model sees.
      test, validation, folds, walk: see `umbrella.data.walk.folds`.
      missing: what an empty field means, see `umbrella.data.series.read_csv`.
      dates: the order of day and month.
      days, seed: of the generated series.

    Raises:
      SettingsError: what the file has, or the settings, do not fit.
    """
    if path is None:
        for key, given in (("date", date), ("value", value), ("inputs", inputs or None)):
            if given is not None:
                raise SettingsError(f"config.data.{key}: {given!r} names a column, but config.data.path names no file")
        one = simulated.seasons(days=days, seed=seed)
        source = f"GENERATED series (trend, year, week, noise; {days} days, seed {seed})"
        notes: tuple[str, ...] = (
            "No file was given: this series is generated, with a trend, a year, a week and noise.",
        )
    else:
        place = pathlib.Path(path).expanduser()
        if not place.is_file():
            raise SettingsError(f"{place}: no such file")
        wanted = () if value is None else (value, *inputs)
        one = series.read_csv(place, date=date, columns=wanted, order=dates, missing=missing)
        if value is None and inputs:
            raise SettingsError("config.data.inputs: which column is forecast? Name it with config.data.value")
        source, notes = f"series {path}, column {one.columns[0]}", series.collected([one])
    z = one.values[:, 0]
    if log:
        if (z <= 0).any():
            i = int(np.argmax(z <= 0))
            day = dates_of(one.dates[[i]])[0]
            raise SettingsError(
                f"config.data.log: {one.columns[0]!r} is {z[i]:g} on {day}; logs want positive values; set it to False"
            )
        z = np.log(z)
    steps = np.r_[0.0, np.diff(z)]
    beside = one.values[:, 1 : 1 + len(inputs)]
    features = [z[:, None], steps[:, None], beside] + ([_calendar(one.dates)] if calendar else [])
    table = Table(one.name, one.dates, np.concatenate(features, 1), z, True, (0,))
    clock = ("week, sine", "week, cosine", "year, sine", "year, cosine", "day, sine", "day, cosine")
    names = ("value", "change", *inputs, *(clock if calendar else ()))
    cut = {"test": test, "validation": validation, "count": folds, "walk": walk}
    more = {"target": target, "logs": log, "period": period, "prices": False, "notes": notes}
    more["beside"] = len(names) - 2
    return _windows(path or name, source, [table], names, window, horizon, cut, more)


def _calendar(when: np.ndarray) -> np.ndarray:
    """f64[T, 6]: sine and cosine of where a date is in its week, its year and its day."""
    seconds = when.astype("datetime64[s]").astype(np.int64)
    year = when.astype("datetime64[Y]")
    start, end = (y.astype("datetime64[s]").astype(np.int64) for y in (year, year + 1))
    day = 86_400
    shares = ((seconds - 4 * day) % (7 * day) / (7 * day), (seconds - start) / (end - start), seconds % day / day)
    return np.stack([f(2 * np.pi * share) for share in shares for f in (np.sin, np.cos)], 1)


def _windows(
    name: str,
    source: str,
    tables: list[Table],
    features: tuple[str, ...],
    window: int,
    horizon: int,
    cut: dict[str, Any],
    more: dict[str, Any],
) -> Dataset:
    found = walk.rows(tables, window, horizon)
    cuts = walk.folds(np.concatenate([t.dates for t in tables]), **cut)
    members = walk.members(found, cuts)
    for part, those in members.items():
        if not those.any(1).all():
            k = int(np.argmin(those.any(1)))
            raise SettingsError(
                f"config.data: no {part} row in fold {k + 1} of {len(cuts)}: a window of {window} and a horizon of "
                f"{horizon} rows do not fit; raise data.{part if part != 'train' else 'test'} or shorten them"
            )
    _refuse_still(tables, cuts, members, found, more)
    digest = hashlib.blake2b(repr((more["target"], more["logs"], horizon, cuts)).encode(), digest_size=16)
    for t in tables:
        digest.update(t.name.encode() + t.dates.tobytes() + t.z.tobytes() + t.features.tobytes())
    anchor = np.concatenate([t.z[found.at[found.series == k]] for k, t in enumerate(tables)]).astype(np.float32)
    codes = {"z": anchor, **dates.numbers(np.where(np.isnat(found.first), found.begins, found.first))}
    parts = {part: walk.arrays(found, those, codes) for part, those in members.items()}
    walked = Walked(
        tables=tables,
        rows=found,
        folds=cuts,
        members=members,
        scales=walk.scales(found, members["train"], tables),
        horizon=horizon,
        **{**more, "notes": (*more["notes"], *map(_said, cuts))},
    )
    about = {**info("series", found.x.shape[1:], features=features), "walk": walked}
    # A row that is tested by one fold is trained on by the next: that is no overlap, so none is looked for.
    test: Any = parts["test"] if len(cuts) == 1 else Rows(parts["test"], np.arange(len(parts["test"])))
    return Dataset(name, source, digest.hexdigest(), parts["train"], parts["validation"], test, about)


def _refuse_still(
    tables: list[Table], cuts: tuple[Fold, ...], members: dict[str, np.ndarray], found: Any, more: dict[str, Any]
) -> None:
    """That every series moves in the training and the test part of every fold: errors are told by those of
    persistence, and of what stands still these are zero."""
    period = more["period"]
    for k, fold in enumerate(cuts):
        for s, t in enumerate(tables):
            z = t.z[(t.dates >= fold.train) & (t.dates < fold.validation)]
            if len(z) <= period:
                raise SettingsError(
                    f"config.data.period: {period} rows are a season, and {t.name!r} has {len(z)} training rows in "
                    f"fold {k + 1} of {len(cuts)}; say less, or raise what is trained on"
                )
            at = found.at[members["test"][k] & (found.series == s)]
            after = t.z[np.minimum(at + 1, len(t.z) - 1)] - t.z[at]
            still = "training" if not np.abs(np.diff(z)).any() else "test"
            if still == "training" or (len(at) and not np.abs(after).any()):
                raise SettingsError(
                    f"config.data: {t.name!r} does not move in the {still} part of fold {k + 1} of {len(cuts)}: there "
                    "is nothing to forecast; leave it out"
                )


def _said(fold: Fold) -> str:
    a, b, c, d = dates_of(np.array([fold.train, fold.validation, fold.test, fold.end]))
    return f"Trained on {a} to before {b}, validated to before {c}, tested to before {d}."


def in_turn(whole: Data, dataset: Dataset, run: RunSettings) -> Data:
    """Training data of which seed run.seed + i reads the rows of fold i mod K, and no others.

    A slot says which fold its rows are of: "fold" i32[B]. Epochs and steps are counted by the rows of all folds, so an
    early fold goes through its own rows more often.
    """
    walked: Walked = dataset.info["walk"]
    first, last = (np.asarray(dataset.train.column(k)) for k in ("from", "to"))
    groups = [np.flatnonzero((first <= k) & (k <= last)) for k in range(len(walked.folds))]

    def slot(seed: int, step: int) -> dict[str, np.ndarray]:
        fold = (int(seed) - run.seed) % len(groups)
        position = int(step) * run.batch_size + np.arange(run.batch_size)
        rows = groups[fold][data.order(int(seed), len(groups[fold]), position)]
        return {"idx": rows.astype(np.int32), "fold": np.full(run.batch_size, fold, np.int32)}

    def stream(seeds: tuple[int, ...], start: int, stop: int) -> Generator[dict[str, np.ndarray], None, None]:
        return (stacked(slot, seeds, step) for step in range(start, stop))

    return whole._replace(slot=slot, stream=stream)
