"""What a pipeline shows besides numbers: pictures, text, points, matrices, curves, tables. Values, and `save`. Floor 4.

A pipeline's artifact function returns one of these values; the loop saves it under WORKDIR/artifacts; the report reads
the files. Pictures are PNG, text is .txt, the rest is JSON in which every number is finite or null.
"""

import csv
import io
import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

INDEX = "index.json"
_SIDE = 56  # pixels, the least side of a picture in the grid: an 8x8 digit becomes 56x56
_GAP = 4  # pixels between pictures, transparent


class Images(NamedTuple):
    """Pictures in a grid, row by row. images f32[N, H, W, C] in [0, 1], C 1 or 3; `rows`: a label each, or none."""

    images: np.ndarray
    columns: int
    caption: str
    rows: tuple[str, ...] = ()


class Text(NamedTuple):
    """Plain text, shown as it is."""

    text: str
    caption: str


class Scatter(NamedTuple):
    """Points in the plane. points f32[N, 2]; labels i32[N], the class of each; `names` of the classes, by label."""

    points: np.ndarray
    labels: np.ndarray
    caption: str
    names: tuple[str, ...] = ()


class Matrix(NamedTuple):
    """A table of numbers shown as heat, such as a confusion matrix. values f32[R, C]; rows are the true classes."""

    values: np.ndarray
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    caption: str


class Curves(NamedTuple):
    """Lines in one chart. series: name -> (x f32[N], y f32[N]).

    `bands`: name of a series -> (low f32[N], high f32[N]), shaded around it; `dashed`: the names of lines to compare
    with, not of results.
    """

    series: Mapping[str, tuple[np.ndarray, np.ndarray]]
    x_label: str
    y_label: str
    caption: str
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]] = {}
    dashed: tuple[str, ...] = ()


class Table(NamedTuple):
    """Rows of numbers and text under column names; every row as long as `columns`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str


Artifact = Images | Text | Scatter | Matrix | Curves | Table


def save(directory: Path, name: str, value: Artifact) -> None:
    """Write `value` to a file in `directory` (made when missing) and enter it in index.json there; a name is replaced.

    index.json is a list of {"name", "kind", "file", "caption"}; images add "rows", "columns", "width" and "height" in
    pixels, and "not_finite", the number of pictures that held such values, when there are any. Values outside [0, 1]
    are clipped. In the file's name everything but letters, digits, dot, dash and underscore becomes an underscore, so
    it stays inside `directory`.

    Raises: TypeError when `value` is no artifact; ValueError when its shapes do not fit.
    """
    directory = Path(directory)
    kind = type(value).__name__.lower()
    extra: dict[str, Any] = {}
    if isinstance(value, Images):
        data, extra = _png(value)
        suffix = ".png"
    elif isinstance(value, Text):
        data, suffix = value.text.encode("utf-8", "replace"), ".txt"
    elif isinstance(value, (Scatter, Matrix, Curves, Table)):
        _check(value)
        data, suffix = _dump({"kind": kind} | value._asdict()), ".json"
    else:
        raise TypeError(
            f"{name!r} is a {type(value).__name__}; an artifact is Images, Text, Scatter, Matrix, Curves or Table."
        )

    directory.mkdir(parents=True, exist_ok=True)
    file = _stem(name) + suffix
    _replace(directory / file, data)
    old = read_index(directory)
    entry = {"name": name, "kind": kind, "file": file, "caption": value.caption} | extra
    at = next((i for i, e in enumerate(old) if e["name"] == name), len(old))
    _replace(directory / INDEX, _dump(old[:at] + [entry] + old[at + 1 :]))
    if at < len(old) and old[at]["file"] != file:  # the kind has changed
        (directory / Path(str(old[at]["file"])).name).unlink(missing_ok=True)


def read_index(directory: Path) -> list[dict[str, Any]]:
    """The entries of index.json, in the order of their first saving; empty when there is none or it cannot be read."""
    try:
        entries = json.loads((Path(directory) / INDEX).read_bytes())
    except (OSError, ValueError):
        return []
    need = ("name", "kind", "file")
    return (
        [e for e in entries if isinstance(e, dict) and all(k in e for k in need)] if isinstance(entries, list) else []
    )


def _stem(name: str) -> str:
    """A file name for `name`. What had to be changed gets a checksum, so two names never share a file."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".")[:80]
    if safe == name and safe and safe.lower() != "index":
        return safe
    return f"{safe or 'artifact'}-{zlib.crc32(name.encode('utf-8', 'replace')):08x}"


def _png(value: Images) -> tuple[bytes, dict[str, Any]]:
    """The grid as PNG, each picture enlarged by whole numbers; gaps and missing cells are transparent."""
    from PIL import Image

    x = np.asarray(value.images, np.float32)
    if x.ndim != 4 or x.shape[0] < 1 or x.shape[-1] not in (1, 3) or value.columns < 1:
        raise ValueError(f"Images takes [N, H, W, 1 or 3] and columns >= 1, not {x.shape} and {value.columns}.")
    n, h, w, c = x.shape
    rows, columns = -(-n // value.columns), min(n, value.columns)
    if value.rows and len(value.rows) != rows:
        raise ValueError(f"Images has {len(value.rows)} row labels for {rows} rows.")
    broken = int(np.sum(~np.isfinite(x).all(axis=(1, 2, 3))))
    x = np.round(255 * np.clip(np.nan_to_num(x, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)).astype(np.uint8)
    scale = max(1, -(-_SIDE // max(h, w)))
    x = x.repeat(scale, axis=1).repeat(scale, axis=2)
    h, w = h * scale, w * scale
    grid = np.zeros((rows * (h + _GAP) - _GAP, columns * (w + _GAP) - _GAP, c + 1), np.uint8)
    for i, picture in enumerate(x):
        top, left = i // columns * (h + _GAP), i % columns * (w + _GAP)
        grid[top : top + h, left : left + w, :c] = picture
        grid[top : top + h, left : left + w, c] = 255
    out = io.BytesIO()
    Image.fromarray(grid, "LA" if c == 1 else "RGBA").save(out, "PNG", optimize=True)
    extra: dict[str, Any] = {
        "rows": list(value.rows),
        "columns": columns,
        "width": grid.shape[1],
        "height": grid.shape[0],
    }
    return out.getvalue(), extra | ({"not_finite": broken} if broken else {})


def _check(value: Scatter | Matrix | Curves | Table) -> None:
    """Raises ValueError with the shapes when they do not fit."""
    if isinstance(value, Scatter):
        points, labels = np.shape(value.points), np.shape(value.labels)
        if len(points) != 2 or points[1] != 2 or labels != points[:1]:
            raise ValueError(f"Scatter takes points [N, 2] and labels [N], not {points} and {labels}.")
    elif isinstance(value, Matrix):
        if np.shape(value.values) != (len(value.row_names), len(value.column_names)):
            raise ValueError(
                f"Matrix takes [R, C] with R row names and C column names, not {np.shape(value.values)}, "
                f"{len(value.row_names)} and {len(value.column_names)}."
            )
    elif isinstance(value, Curves):
        for name, (x, y) in value.series.items():
            if np.ndim(x) != 1 or np.shape(x) != np.shape(y):
                raise ValueError(f"Curves takes x [N] and y [N], not {np.shape(x)} and {np.shape(y)} for {name!r}.")
        for name, band in value.bands.items():
            if name not in value.series or {np.shape(b) for b in band} != {np.shape(value.series[name][0])}:
                raise ValueError(f"Curves has a band for {name!r} that fits no series.")
    else:
        lengths = {len(row) for row in value.rows}
        if lengths - {len(value.columns)}:
            raise ValueError(f"Table has {len(value.columns)} columns and rows of {sorted(lengths)}.")


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as an npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, allow_pickle=False, **arrays)
    temporary.replace(path)


def save_table(path: Path, table: Table) -> Path:
    """Write a table as a csv file in UTF-8, whole or not at all; returns the path."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows((table.columns, *table.rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, text.getvalue().encode("utf-8", "replace"))
    return path


def _dump(value: Any) -> bytes:
    return json.dumps(_jsonable(value), allow_nan=False, ensure_ascii=False).encode("utf-8", "replace")


def _jsonable(value: Any) -> Any:
    """`value` with arrays as lists, float32 by its shortest decimal form, and null for what is not finite."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    array = np.asarray(value)
    if array.ndim:
        return [_jsonable(v) for v in array]
    if array.dtype == np.float32:
        return _jsonable(float(str(array[()])))
    if array.dtype.kind in "biuU":
        return array.item()
    return _jsonable(float(array))


def _replace(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
