"""Windows of series, and the folds of a walk forward: what is trained on ends before what is held out. Floor 4.

A row is a series at one of its days, the origin: x is what was known by then, y what came after. The folds are cut by
dates, the same for all series, and a row is of a fold's training part when the last day of its y is before the first
day of validation; so with a horizon of several days the origins just before a cut are in no part (the embargo).
"""

from typing import Literal, NamedTuple

import numpy as np

from umbrella.data.sources import LIMIT, Arrays
from umbrella.settings import SettingsError

Walk = Literal["expanding", "rolling"]


class Table(NamedTuple):
    """What a series is to a forecaster."""

    name: str
    dates: np.ndarray  # datetime64[s][T]
    features: np.ndarray  # f64[T, F], of day t by what is known on day t; NaN until there is enough past
    z: np.ndarray  # f64[T], what is forecast
    change: bool  # whether a model is to say z_{t+h} - z_t, and not z_{t+h}
    last: tuple[int, ...] = ()  # features of which a window holds the difference to its last day


class Fold(NamedTuple):
    """Dates datetime64[s] of the first day of each part; the last part ends before `end`."""

    train: np.datetime64
    validation: np.datetime64
    test: np.datetime64
    end: np.datetime64


class Rows(NamedTuple):
    """All rows of all series, whether or not what comes after is known."""

    x: np.ndarray  # f32[N, W, F]
    y: np.ndarray  # f32[N, H], NaN where it is not known
    series: np.ndarray  # i32[N]
    at: np.ndarray  # i64[N], the origin
    begins: np.ndarray  # datetime64[s][N], the first day of x
    first: np.ndarray  # datetime64[s][N], the first day of y; NaT where it is not known
    final: np.ndarray  # datetime64[s][N], the last day of y; NaT where it is not known


def folds(dates: np.ndarray, *, test: float, validation: float, count: int, walk: Walk) -> tuple[Fold, ...]:
    """The walk: the last share of the days is tested, in `count` blocks, each by a model of the days before it.

    Args:
      dates: datetime64[s][T] of all series, in any order.
      test, validation: shares of the distinct days: all blocks together; and just before each block.
      walk: "expanding", every fold is trained from the first day on; "rolling", on as many days as the first fold.

    Raises:
      SettingsError: too few days for a day in every part.
    """
    days = np.unique(dates)
    n, held = len(days), max(1, round(len(days) * validation))
    tested = round(n * test)
    cuts = np.linspace(n - tested, n, count + 1).round().astype(int)
    if tested < count or cuts[0] - held < 2:
        raise SettingsError(
            f"config.data: {n} days are too few for {count} fold{'s' * (count > 1)} with test={test:g} and "
            f"validation={validation:g}"
        )
    never = days[-1] + np.timedelta64(1, "D")
    out = []
    for k in range(count):
        start = cuts[k] - cuts[0] if walk == "rolling" else 0
        end = days[cuts[k + 1]] if cuts[k + 1] < n else never
        out.append(Fold(days[start], days[cuts[k] - held], days[cuts[k]], end))
    return tuple(out)


def rows(tables: list[Table], window: int, horizon: int) -> Rows:
    """Every origin with a whole window of features.

    Raises:
      SettingsError: a series shorter than a window and a horizon, or windows that would not fit into memory.
    """
    width = tables[0].features.shape[1]
    if (size := sum(len(t.z) for t in tables) * window * width * 4) > LIMIT:
        raise SettingsError(
            f"config.data.window: windows of {window} rows and {width} features would take {size >> 20:,} MB, more "
            f"than the {LIMIT >> 20:,} MB that are kept in memory; make them shorter, or leave out columns"
        )
    parts = [_of_one(k, t, window, horizon) for k, t in enumerate(tables)]
    return Rows(*(np.concatenate(p) for p in zip(*parts, strict=True)))


def _of_one(k: int, t: Table, window: int, horizon: int) -> Rows:
    warm = int(np.isnan(t.features).any(1).sum())
    origins = np.arange(warm + window - 1, len(t.z))
    if len(t.z) < warm + window + horizon:
        raise SettingsError(
            f"{t.name}: {len(t.z)} rows; a window of {window} after the {warm} that features need, and a horizon of "
            f"{horizon}, want {warm + window + horizon} at least"
        )
    x = np.moveaxis(np.lib.stride_tricks.sliding_window_view(t.features[warm:], window, 0), -1, 1).copy()
    for i in t.last:
        x[:, :, i] -= x[:, -1:, i]
    ahead = origins[:, None] + np.arange(1, horizon + 1)
    known = ahead[:, -1] < len(t.z)
    y = t.z[np.minimum(ahead, len(t.z) - 1)] - (t.z[origins, None] if t.change else 0)
    y[~known] = np.nan
    first, final = (
        np.where(known, t.dates[np.minimum(ahead[:, i], len(t.z) - 1)], np.datetime64("NaT")) for i in (0, -1)
    )
    return Rows(
        x.astype(np.float32),
        y.astype(np.float32),
        np.full(len(origins), k, np.int32),
        origins,
        t.dates[origins - window + 1],
        first,
        final,
    )


def members(r: Rows, walk: tuple[Fold, ...]) -> dict[str, np.ndarray]:
    """{"train", "validation", "test"}: bool[K, N], the rows of each part of each fold."""
    known = ~np.isnat(r.final)
    out: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for f in walk:
        out["train"].append(known & (r.begins >= f.train) & (r.final < f.validation))
        out["validation"].append(known & (r.first >= f.validation) & (r.final < f.test))
        out["test"].append(known & (r.first >= f.test) & (r.first < f.end))
    return {k: np.stack(v) for k, v in out.items()}


class Scales(NamedTuple):
    """By what a fold's model sees a series, from rows of its training part alone. f32[K, S, ...]."""

    x_mean: np.ndarray  # [K, S, F]
    x_sd: np.ndarray
    y_mean: np.ndarray  # [K, S, H]
    y_sd: np.ndarray


def scales(r: Rows, train: np.ndarray, tables: list[Table]) -> Scales:
    """Mean and standard deviation of every feature and of every step ahead; 1 for what does not vary.

    Raises:
      SettingsError: a series has fewer than two training rows in a fold.
    """
    K, S = len(train), len(tables)
    out = [np.empty((K, S, n), np.float32) for n in (r.x.shape[2], r.x.shape[2], r.y.shape[1], r.y.shape[1])]
    for k in range(K):
        for s in range(S):
            those = train[k] & (r.series == s)
            if those.sum() < 2:
                raise SettingsError(
                    f"{tables[s].name}: {those.sum()} training rows in fold {k + 1} of {K}; it starts too late, or the "
                    "window is too long"
                )
            x, y = r.x[those].astype(np.float64), r.y[those].astype(np.float64)
            for place, value in zip(out, (x.mean((0, 1)), x.std((0, 1)), y.mean(0), y.std(0)), strict=True):
                place[k, s] = value
    for sd in (out[1], out[3]):
        sd[sd < 1e-12] = 1
    return Scales(*out)


def arrays(r: Rows, those: np.ndarray, codes: dict[str, np.ndarray]) -> Arrays:
    """The rows of a part, of any fold: x, y, and i32[N] series, "from" and "to", the first and last fold it is of.

    Args:
      those: bool[K, N].
      codes: more columns [N].
    """
    kept = np.flatnonzero(those.any(0))
    fold = {"from": those[:, kept].argmax(0), "to": len(those) - 1 - those[::-1, kept].argmax(0)}
    columns = {"x": r.x[kept], "y": r.y[kept], "series": r.series[kept]}
    return Arrays(
        {**columns, **{k: v.astype(np.int32) for k, v in fold.items()}, **{k: v[kept] for k, v in codes.items()}}
    )
