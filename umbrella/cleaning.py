"""Telling the rows of a set to keep from those that a model finds strange, and how far to trust it. Floor 4."""

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from umbrella.artifacts import Table
from umbrella.data import Dataset, tables
from umbrella.data.origins import Origins, origins
from umbrella.settings import SettingsError

SPLITS = ("train", "validation", "test")
Told = tuple[tuple[str, int], list[str]]  # (split, number in it), the fields of its row


class Cleaned(NamedTuple):
    """What was written, and what is said of it."""

    files: tuple[Path, Path]  # kept.csv, flagged.csv
    words: str
    table: Table


def clean(
    folder: Path,
    dataset: Dataset,
    score: Callable[[Mapping[str, Any]], Any],
    columns: tuple[str, ...],
    *,
    rate: float,
    where: Mapping[str, Any],
    batch_size: int = 500,
) -> Cleaned:
    """Scores every row of all splits and writes kept.csv and flagged.csv into `folder`, both or none.

    The threshold is the largest that flags at least the share `rate` of the validation rows, and so at least one: rows
    that were not trained on, and are taken to be sound. Of sound rows it flags that share, whatever the model; what it
    does to test rows says how well that holds. With strange rows among those of validation the threshold is too high,
    never too low. A row is flagged when its score is the threshold or more, or is no number.

    A .csv file's rows are written as they stand there, and two columns behind: score and split (score_ and split_ where
    it has columns of these names); of a folder of images there are the columns file, score, split; of any other set
    split, row (from 0, of the split as `umbrella.data.load` gives it), score. The stranger, the higher the score;
    flagged.csv has the strangest first, kept.csv the order of the file.

    Args:
      score: rows -> f64[B].
      columns: of the rows that it is given.
      rate: in (0, 1).
      where: the settings of the data set.

    Raises:
      SettingsError: there are no validation rows to choose a threshold by, or a part of train was chosen; the files
        cannot be written.
    """
    if not len(dataset.validation):
        raise SettingsError(
            "--mode=clean: no validation rows to choose a threshold by; set config.data.validation and train again"
        )
    if not 0 < rate < 1:
        raise SettingsError(f"config.clean.rate: {rate:g} of the rows are none to look at; set it in (0, 1)")
    parts = {name: getattr(dataset, name) for name in SPLITS}
    place = origins({k: len(v) for k, v in parts.items()}, **where)
    scores = {name: _scored(source, score, columns, batch_size) for name, source in parts.items()}
    strange = {k: np.where(np.isnan(v), np.inf, v) for k, v in scores.items()}  # what is no number is strange, too
    least = math.ceil(rate * len(strange["validation"]) - 1e-9)
    threshold = float(np.sort(strange["validation"])[-least])
    flagged = {k: v >= threshold for k, v in strange.items()}
    header, rows = _rows(place, scores)
    keep: list[tuple[float, list[str]]] = []
    out: list[tuple[float, list[str]]] = []
    for (name, i), row in rows:
        (out if flagged[name][i] else keep).append((strange[name][i], row))
    out.sort(key=lambda pair: -pair[0])
    files = (folder / "kept.csv", folder / "flagged.csv")
    _write(files, header, ([row for _, row in keep], [row for _, row in out]))
    n, k = len(scores["test"]), int(flagged["test"].sum())
    low, high = stats.binomtest(k, n).proportion_ci(0.95, "exact") if n else (0.0, 1.0)
    words = (
        f"kept {len(keep):,} rows and flagged {len(out):,}: a score of {threshold:.6g} or more, which flags "
        f"{flagged['validation'].mean():.2%} of {len(flagged['validation']):,} validation rows and "
        f"{k / max(n, 1):.2%} of {n:,} test rows (95 % interval {low:.2%} to {high:.2%})"
    )
    told = tuple(
        (name, len(v), int(flagged[name].sum()), f"{flagged[name].mean():.4f}", f"{np.median(v):.5g}", f"{v.max():.5g}")
        for name, v in strange.items()
        if len(v)
    )
    caption = (
        f"Rows flagged as strange, with a score of {threshold:.6g} or more. The threshold was chosen on validation for "
        f"a false-positive rate of {rate:g}, which test confirms or not: {k / max(n, 1):.4f} there, 95 % interval "
        f"{low:.4f} to {high:.4f}, if all of its rows are sound."
    )
    return Cleaned(files, words, Table(("split", "rows", "flagged", "share", "median score", "largest"), told, caption))


def _scored(source: Any, score: Callable[[Mapping[str, Any]], Any], columns: tuple[str, ...], size: int) -> np.ndarray:
    """f64[N], by batches of one size: the last one repeats its last row."""
    n, out = len(source), [np.zeros(0)]
    for start in range(0, n, size):
        rows = source.__getitems__(np.arange(start, start + size).clip(max=n - 1))
        out.append(np.asarray(score({k: rows[k] for k in columns}), np.float64)[: n - start])
    return np.concatenate(out)


def _rows(place: Origins, scores: Mapping[str, np.ndarray]) -> tuple[list[str], list[Told]]:
    """(header, ((split, number in it), fields) of every row, in the order of the file)."""
    every = [(name, i) for name, v in scores.items() for i in range(len(v))]
    if place.kind == "csv":
        assert place.path is not None
        lines = list(tables.fields(place.path))
        at = {int(place.rows[name][i]): (name, i) for name, i in every}
        told = [(at[number], [*row, _number(scores, at[number]), at[number][0]]) for number, row in lines[1:]]
        header = lines[0][1]
        return [*header, *(_free(name, header) for name in ("score", "split"))], told
    if place.kind == "image":
        told = [((name, i), [place.files[name][i], _number(scores, (name, i)), name]) for name, i in every]
        return ["file", "score", "split"], sorted(told, key=lambda row: row[1][0])
    return ["split", "row", "score"], [((n, i), [n, str(place.rows[n][i]), _number(scores, (n, i))]) for n, i in every]


def _free(name: str, header: list[str]) -> str:
    while name in (other.strip() for other in header):
        name += "_"
    return name


def _number(scores: Mapping[str, np.ndarray], at: tuple[str, int]) -> str:
    return f"{scores[at[0]][at[1]]:.8g}"


def _write(files: tuple[Path, Path], header: list[str], rows: tuple[list[list[str]], list[list[str]]]) -> None:
    """Both files are there in full before either takes its name."""
    folder = files[0].parent
    parts = [path.with_name(path.name + ".tmp") for path in files]
    in_place = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, lines in zip(parts, rows, strict=True):
            text = "".join(",".join(map(_field, line)) + "\n" for line in (header, *lines))
            # The bytes of a file's name that are no UTF-8 are written as they are.
            with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as f:
                f.write(text)
        for part, path in zip(parts, files, strict=True):
            os.replace(part, path)
            in_place = True
    except BaseException as error:
        with contextlib.suppress(OSError):
            for path in (*parts, *(files if in_place else ())):  # one of two would be of another threshold
                path.unlink(missing_ok=True)
            folder.rmdir()  # unless there is something in it
        if isinstance(error, OSError):
            raise SettingsError(f"{folder}: cannot be written: {error.strerror or error}") from None
        raise


def _field(text: str) -> str:
    """As csv.writer has it, which forgets the carriage return before Python 3.13."""
    return '"' + text.replace('"', '""') + '"' if not text or any(c in text for c in ',"\r\n') else text
