"""Dates as people write them, read strictly: one way of writing for a whole column. Floor 4."""

import datetime
import pathlib
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from umbrella.settings import SettingsError

Order = Literal["found", "day first", "month first"]
_TIME = r"(?:[T ](?P<H>\d{1,2}):(?P<M>\d{2})(?::(?P<S>\d{2})(?:\.0+)?)?)?Z?"
_FORMATS = {
    "YYYY-MM-DD": rf"(?P<y>\d{{4}})-(?P<m>\d{{1,2}})-(?P<d>\d{{1,2}}){_TIME}",
    "YYYY/MM/DD": rf"(?P<y>\d{{4}})/(?P<m>\d{{1,2}})/(?P<d>\d{{1,2}}){_TIME}",
    "YYYYMMDD": r"(?P<y>(?:18|19|20|21)\d{2})(?P<m>\d{2})(?P<d>\d{2})",
    "YYYY-MM": r"(?P<y>\d{4})-(?P<m>\d{1,2})",
    "DD.MM.YYYY": rf"(?P<d>\d{{1,2}})\.(?P<m>\d{{1,2}})\.(?P<y>\d{{4}}){_TIME}",
    "DD/MM/YYYY": rf"(?P<d>\d{{1,2}})[/-](?P<m>\d{{1,2}})[/-](?P<y>\d{{4}}){_TIME}",
    "MM/DD/YYYY": rf"(?P<m>\d{{1,2}})[/-](?P<d>\d{{1,2}})[/-](?P<y>\d{{4}}){_TIME}",
}
FORMATS = {name: re.compile(pattern, re.ASCII) for name, pattern in _FORMATS.items()}
_EITHER = {"day first": "DD/MM/YYYY", "month first": "MM/DD/YYYY"}


def is_date(text: str) -> bool:
    """Whether this could be a date in one of FORMATS.

    >>> is_date("2006-01-03"), is_date("3.1.2006"), is_date("20060103"), is_date("10.34"), is_date("2006-13-03")
    (True, True, True, False, False)
    """
    return any(_read(text, pattern) is not None for pattern in FORMATS.values())


def read(texts: Sequence[str], path: pathlib.Path, places: Sequence[int], column: str, order: Order) -> np.ndarray:
    """datetime64[s][N], of texts that are all written in the same of FORMATS.

    A time of day may follow; one that names a zone other than Z is refused, as a clock that is put back would give an
    hour twice.

    Args:
      places: the row of the file that each is from.
      order: of day and month where both are digits with a slash or a dash between. "found": the one by which all of
        them are dates.

    Raises:
      SettingsError: names file, row and column: no date in any format, another format than the rows before, or days and
        months that could be either.
    """
    kept = {name: p for name, p in FORMATS.items() if order == "found" or name not in _EITHER.values()}
    kept |= {_EITHER[order]: FORMATS[_EITHER[order]]} if order != "found" else {}
    for text, row in zip(texts, places, strict=True):
        left = {name: p for name, p in kept.items() if _read(text, p) is not None}
        if not left:
            so_far = "" if len(kept) > 2 else f", while the rows before are {' or '.join(kept)}"
            raise SettingsError(
                f"{path}: row {row}, column {column!r}: {text[:40]!r} is no date{so_far}; write all as YYYY-MM-DD"
            )
        kept = left
    if len(kept) > 1:
        raise SettingsError(
            f"{path}: column {column!r}: all dates fit {' and '.join(kept)}, such as {texts[0]!r}; say which with "
            "config.data.dates='day first' or 'month first'"
        )
    ((_, pattern),) = kept.items()
    found = [_read(text, pattern) for text in texts]
    return np.array(found, "datetime64[s]")


def _read(text: str, pattern: re.Pattern[str]) -> datetime.datetime | None:
    match = pattern.fullmatch(text.strip())
    if match is None:
        return None
    parts = {"m": 1, "d": 1, "H": 0, "M": 0, "S": 0} | {k: int(v) for k, v in match.groupdict().items() if v}
    try:
        return datetime.datetime(parts["y"], parts["m"], parts["d"], parts["H"], parts["M"], parts["S"])
    except ValueError:
        return None


def numbers(dates: np.ndarray) -> dict[str, np.ndarray]:
    """Dates datetime64[s][N] as what a device can hold: "date" i32[N] as 20060103, "time" i32[N] as 153000.

    >>> {k: v.tolist() for k, v in numbers(np.array(["2006-01-03T15:30:00"], "datetime64[s]")).items()}
    {'date': [20060103], 'time': [153000]}
    """
    day = dates.astype("datetime64[D]")
    year = dates.astype("datetime64[Y]")
    month = dates.astype("datetime64[M]")
    years, months = year.astype(int) + 1970, (month - year.astype("datetime64[M]")).astype(int) + 1
    days = (day - month.astype("datetime64[D]")).astype(int) + 1
    seconds = (dates - day.astype("datetime64[s]")).astype(int)
    time = seconds // 3600 * 10_000 + seconds // 60 % 60 * 100 + seconds % 60
    return {"date": (years * 10_000 + months * 100 + days).astype(np.int32), "time": time.astype(np.int32)}


def written(dates: np.ndarray) -> list[str]:
    """Dates as ISO text, without the time of day where none has one."""
    whole = bool((dates == dates.astype("datetime64[D]")).all())
    return [str(d) for d in (dates.astype("datetime64[D]") if whole else dates)]
