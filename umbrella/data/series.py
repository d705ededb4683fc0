"""Series: numbers with a date each, from .csv files. Floor 4."""

import pathlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from umbrella.data import dates as dated
from umbrella.data.files import fingerprint
from umbrella.data.tables import fields
from umbrella.settings import SettingsError, near

DATES = ("date", "datetime", "timestamp", "time", "ds", "day", "month")  # tried in this order, whatever their case
PRICES = ("open", "high", "low", "close", "volume")
Missing = Literal["refuse", "drop", "previous"]
MOST_DROPPED = 0.05  # the share of rows above which a file is refused: such a file is not what it is taken for


class Series(NamedTuple):
    """One series. Dates increase strictly; nothing is missing."""

    name: str
    dates: np.ndarray  # datetime64[s][T]
    values: np.ndarray  # f64[T, C]
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what was done to the file, in plain lines

    def column(self, name: str) -> np.ndarray:
        """f64[T]"""
        return self.values[:, self.columns.index(name)]


def read_csv(
    path: pathlib.Path,
    *,
    date: str | None = None,
    columns: tuple[str, ...] = (),
    order: dated.Order = "found",
    missing: Missing = "refuse",
) -> Series:
    """A .csv file with a header and a column of dates, oldest first in what is returned.

    Rows in another order are sorted, and a note says so; two rows of one date are refused. A step that is longer than
    the commonest one is said in a note: steps are counted in rows.

    Args:
      date: the column of dates; None takes the one that is named like one (DATES), or whose first entry is one.
      columns: which to read, whatever their case; () for every other column whose first entry that is not empty is a
        number.
      order: of day and month, see `umbrella.data.dates.read`.
      missing: what an empty field means. "refuse"; "drop": the row is left out; "previous": the value of the row before
        stands there, which uses nothing of the future. Both are said in a note.

    Raises:
      SettingsError: one line with file, row (the header is row 1) and column.
    """
    rows = fields(path)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    _check_header(path, header)
    table = [(line, row) for line, row in rows]
    if not table:
        raise SettingsError(f"{path}: a header and no rows")
    for line, row in table:
        if len(row) != len(header):
            raise SettingsError(f"{path}: row {line}: {len(row)} fields, but the header has {len(header)}")
    # Of every column the first entry that is not empty, by which it is known what the column holds.
    first = [next((row[i] for _, row in table if row[i].strip()), "") for i in range(len(header))]
    at = _date_column(path, header, first, date)
    wanted = _columns(path, header, first, at, columns)
    lines = [line for line, _ in table]
    when = dated.read([row[at] for _, row in table], path, lines, header[at], order)
    values = np.array([[_value(path, line, header[i], row[i]) for i in wanted] for line, row in table])
    when, values, lines, notes = _in_order(path, header[at], when, values, lines)
    values, when, more = _filled(path, values, when, lines, [header[i] for i in wanted], missing)
    told = (*notes, *more, *_gaps(path, when))
    return Series(path.stem, when, values, tuple(header[i] for i in wanted), told)


def read_prices(path: pathlib.Path, *, order: dated.Order = "found", missing: Missing = "drop") -> list[Series]:
    """Daily open, high, low, close and volume: a .csv file, or a folder of one for each ticker, in order of names.

    The columns are PRICES, whatever their case; the others are not looked at. An opening or closing price outside of
    the day's range widens the range to it, which a note counts: sources mix prices of several markets.

    Raises:
      SettingsError: as for `read_csv`; no such file, or a folder without any; prices that are not positive, or a high
        below the low.
    """
    if not path.exists():
        raise SettingsError(f"{path}: no such file or folder")
    files = csv_files(path)
    if not files:
        raise SettingsError(f"{path}: a folder without .csv files; wanted one for each ticker")
    found, wide = [], 0
    for file in files:
        made, days = _ranged(file, read_csv(file, columns=PRICES, order=order, missing=missing))
        found.append(made)
        wide += days
    if wide:
        rows = sum(len(s.dates) for s in found)
        note = f"On {wide} of {rows:,} days the range was widened to hold the opening and closing price."
        found[0] = found[0]._replace(notes=(*found[0].notes, note))
    return found


def source_of(path: pathlib.Path) -> str:
    """The fingerprint of a file, or of the .csv files of a folder."""
    files = csv_files(path)
    return fingerprint(files[0].parent, files)


def csv_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The file, or those of a folder that end in .csv, whatever its case, and are not hidden; by name."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix.lower() == ".csv" and not p.name.startswith("."))


# --------------------------------------------------------------------------------------------------------------- header
def _check_header(path: pathlib.Path, header: list[str]) -> None:
    if not header:
        raise SettingsError(f"{path}: an empty file; wanted a header, and rows with a date and numbers")
    for i, name in enumerate(header):
        if not name or name in header[:i]:
            raise SettingsError(f"{path}: row 1, column {i + 1}: {'no name' if not name else f'{name!r} again'}")


def _date_column(path: pathlib.Path, header: list[str], first: list[str], date: str | None) -> int:
    if date is not None:
        if date not in header:
            raise SettingsError(f"{path}: no column {date!r}{near(date, header)}")
        return header.index(date)
    small = [name.lower() for name in header]
    named = [small.index(name) for name in DATES if name in small]
    found = [i for i in named if dated.is_date(first[i])] or [i for i, v in enumerate(first) if dated.is_date(v)]
    if not found:
        i = named[0] if named else 0
        raise SettingsError(
            f"{path}: no column holds a date: {header[i]!r} begins with {first[i][:40]!r}; write dates as 2006-01-03, "
            "or name their column with config.data.date"
        )
    return found[0]


def _columns(path: pathlib.Path, header: list[str], first: list[str], at: int, columns: tuple[str, ...]) -> list[int]:
    if not columns:
        found = [i for i, v in enumerate(first) if i != at and _float(v) is not None]
        if not found:
            raise SettingsError(f"{path}: no column of numbers beside that of the dates, {header[at]!r}")
        return found
    small = [name.lower() for name in header]
    out = []
    for name in columns:
        place = header.index(name) if name in header else small.index(name.lower()) if name.lower() in small else None
        if place is None:
            raise SettingsError(f"{path}: no column {name!r}{near(name, header)}")
        if place == at:
            raise SettingsError(f"{path}: column {name!r} is the date; name another")
        out.append(place)
    return out


# ----------------------------------------------------------------------------------------------------------------- rows
def _float(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)  # Python reads 1_000 as 1000
    except ValueError:
        return None


def _value(path: pathlib.Path, line: int, column: str, text: str) -> float:
    """The number, NaN for an empty field."""
    if not text.strip():
        return float("nan")
    value = _float(text)
    if value is None or not np.isfinite(value):
        raise SettingsError(f"{path}: row {line}, column {column!r}: {text[:40]!r} is no number")
    return value


def _in_order(
    path: pathlib.Path, column: str, when: np.ndarray, values: np.ndarray, lines: list[int]
) -> tuple[np.ndarray, np.ndarray, list[int], tuple[str, ...]]:
    step = np.diff(when).astype(int)
    notes: tuple[str, ...] = ()
    if len(step) and not (step >= 0).all():
        order = np.argsort(when, kind="stable")
        when, values, lines = when[order], values[order], [lines[i] for i in order]
        how = "newest first" if (step <= 0).all() else "not in order of their dates"
        notes = (f"{path.name}: the rows were {how} and have been sorted.",)
        step = np.diff(when).astype(int)
    if len(twice := np.flatnonzero(step == 0)):
        a, b = sorted((lines[twice[0]], lines[twice[0] + 1]))
        raise SettingsError(f"{path}: row {b}, column {column!r}: the date {when[twice[0]]} again (row {a} has it)")
    return when, values, lines, notes


def _filled(
    path: pathlib.Path, values: np.ndarray, when: np.ndarray, lines: list[int], names: list[str], missing: Missing
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    empty = np.isnan(values)
    bad = np.flatnonzero(empty.any(1))
    if not len(bad):
        return values, when, ()
    where = f"row {lines[bad[0]]}, column {names[int(np.argmax(empty[bad[0]]))]!r}"
    if missing == "refuse":
        raise SettingsError(
            f"{path}: {where}: is empty; with config.data.missing='drop' such rows are left out, with 'previous' the "
            "value before stands there"
        )
    if len(bad) > max(1, MOST_DROPPED * len(when)):
        raise SettingsError(f"{path}: {where}: is empty, as are fields of {len(bad)} of {len(when)} rows; too many")
    said = ", ".join(dated.written(when[bad][:3])) + (", ..." if len(bad) > 3 else "")
    if missing == "drop":
        keep = ~empty.any(1)
        note = f"{path.name}: left out for an empty field: {said} (the change of the next row is then that of two)."
        return values[keep], when[keep], (note,)
    if empty[0].any():
        raise SettingsError(f"{path}: {where}: is empty, and there is no row before; leave the row out")
    values = values.copy()
    for i in bad:
        values[i] = np.where(empty[i], values[i - 1], values[i])
    return values, when, (f"{path.name}: empty fields stand for the value before: {said}.",)


def _gaps(path: pathlib.Path, when: np.ndarray) -> tuple[str, ...]:
    """What is said of steps that are longer than the commonest one; of daily rows, than a week."""
    step = np.diff(when).astype(int)
    if not len(step):
        return ()
    kinds, counts = np.unique(step, return_counts=True)
    common = int(kinds[np.argmax(counts)])
    day = 86_400
    longest = 7 * day if common == day and (step == 3 * day).mean() > 0.1 else common  # markets close at weekends
    if 28 * day <= common <= 31 * day:  # months are not of one length
        longest = 31 * day
    over = np.flatnonzero(step > longest)
    if not len(over):
        return ()
    i = over[np.argmax(step[over])]
    a, b = dated.written(when[[i, i + 1]])
    counted = f"{len(over)} gap{'s' * (len(over) > 1)}"
    return (f"{path.name}: {counted} in its dates, the longest from {a} to {b}; steps are counted in rows.",)


# --------------------------------------------------------------------------------------------------------------- prices
def _ranged(path: pathlib.Path, made: Series) -> tuple[Series, int]:
    """Prices that are ones, and on how many days the range had to be widened."""
    by: Mapping[str, np.ndarray] = dict(zip(PRICES, made.values.T, strict=True))
    for name in PRICES:
        wrong = by[name] < 0 if name == "volume" else by[name] <= 0
        if wrong.any():
            i = int(np.argmax(wrong))
            raise SettingsError(f"{path}: {_day(made, i)}, column {name!r}: {by[name][i]:g} is no {name}")
    if (wrong := by["high"] < by["low"]).any():
        i = int(np.argmax(wrong))
        raise SettingsError(f"{path}: {_day(made, i)}: the high {by['high'][i]:g} is below the low {by['low'][i]:g}")
    high = np.maximum(by["high"], np.maximum(by["open"], by["close"]))
    low = np.minimum(by["low"], np.minimum(by["open"], by["close"]))
    days = int(((high > by["high"]) | (low < by["low"])).sum())
    values = np.stack([by["open"], high, low, by["close"], by["volume"]], 1)
    return made._replace(values=values, columns=PRICES), days


def _day(made: Series, i: int) -> str:
    return dated.written(made.dates[[i]])[0]


def collected(found: list[Series]) -> tuple[str, ...]:
    """The notes of all, those that say the same of several files as one."""
    who: dict[str, list[str]] = {}
    for series in found:
        for note in series.notes:
            file, colon, rest = note.partition(".csv: ")
            who.setdefault(rest if colon else "", []).append(file + ".csv" if colon else note)
    alone = who.pop("", [])
    return (*(f"{', '.join(files)}: {rest}" for rest, files in who.items()), *alone)
