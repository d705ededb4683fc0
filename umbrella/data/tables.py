"""Tables of numbers: .csv and .npz. Floor 4."""

import csv
import math
import os
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from umbrella.data.files import fingerprint, said
from umbrella.data.sources import Arrays, Columns, Found, Source, info, narrow
from umbrella.settings import SettingsError, near

TARGETS = ("target", "label", "y")  # tried in this order when no target is named
MOST_CLASSES = 100
Place = tuple[int, str]  # row of the file, column


def read_csv(path: pathlib.Path, *, target: str | None, labelled: bool = True) -> Found:
    """A file with a header, comma separated, all numbers except perhaps the target.

    A target that is text, or whole numbers with at most 100 distinct values that each occur twice on average, is a
    class (in alphabetical or increasing order); other numbers are regression targets. A byte-order mark and CRLF are
    fine.

    Args:
      target: the name of the target column; None takes the one named target, label or y.
      labelled: False for a table without a target: every column is an input, and there is no y.

    Raises:
      SettingsError: names file, row (the header is row 1, as in a spreadsheet) and column.
    """
    rows = _rows(path)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    if not header:
        raise SettingsError(f"{path}: an empty file; wanted a header and rows of numbers")
    for i, name in enumerate(header):
        if not name or name in header[:i]:
            raise SettingsError(f"{path}: row 1, column {i + 1}: {'no name' if not name else f'{name!r} again'}")
    aim = header.index(_target(path, header, target)) if labelled else -1
    inputs, targets, lines = [], [], []
    for line, fields in rows:
        if len(fields) != len(header):
            raise SettingsError(f"{path}: row {line}: {len(fields)} fields, but the header has {len(header)}")
        inputs.append([_number(v, path, (line, header[i])) for i, v in enumerate(fields) if i != aim])
        targets.append(fields[aim].strip() if labelled else "")
        lines.append(line)
    if not inputs:
        raise SettingsError(f"{path}: a header and no rows")
    features = tuple(name for i, name in enumerate(header) if i != aim)
    if not features:
        raise SettingsError(f"{path}: only the target {header[aim]!r}; wanted at least one more column")
    x = np.array(inputs, np.float32)
    if not labelled:
        about = info("tabular", x.shape[1:], features=features)
        return Found(f"table {path}", fingerprint(path.parent, [path]), {"train": Arrays({"x": x})}, about)
    y, names = _classes(targets, [(line, header[aim]) for line in lines], path)
    about = info("tabular", x.shape[1:], classes=names and len(names), class_names=names, features=features)
    return Found(f"table {path}", fingerprint(path.parent, [path]), {"train": Arrays({"x": x, "y": y})}, about)


def read_npz(path: pathlib.Path) -> Found:
    """Arrays x and y, or x_train, y_train and x_test, y_test (and x_validation, y_validation); others keep their name.

    x and y beside x_test and y_test are the training split. u8[N, H, W] or u8[N, H, W, C] are images. Whole-numbered y
    are labels, counted from 0 (there are as many classes as the training split needs); other numbers are targets.

    Raises:
      SettingsError: no npz, cut short, pickled objects, x or y missing, different lengths, NaN; a label that is
        negative, does not fit into 32 bits or is none of the training split's; splits of different kinds.
    """
    arrays = _load(path)
    splits = {}
    for split, columns in _splits(path, arrays).items():
        splits[split] = {k: _column(v, f"{path}: {k} ({split})") for k, v in columns.items()}
    x, y = splits["train"]["x"], splits["train"]["y"]
    labels, image = _whole(y), x.dtype == np.uint8 and x.ndim in (3, 4)
    for split, columns in splits.items():
        # Bytes beside fractions: one of the two would be divided by 255 and the other not.
        if (columns["x"].dtype == np.uint8) != (x.dtype == np.uint8):
            raise SettingsError(f"{path}: x ({split}) is {columns['x'].dtype}, x (train) {x.dtype}; save both alike")
        if labels and not _whole(columns["y"]):
            raise SettingsError(
                f"{path}: y ({split}) is {_words(columns['y'])}, but y (train) holds labels; save whole numbers"
            )
    classes = _count(path, splits) if labels else None
    for split, columns in splits.items():
        if image and columns["x"].ndim == 3:
            columns["x"] = columns["x"][..., None]
        if not image and columns["x"].dtype.kind in "iub":
            columns["x"] = columns["x"].astype(np.float32)
        columns["y"] = columns["y"].astype(np.int32 if labels else np.float32)
        if columns["x"].shape[1:] != splits["train"]["x"].shape[1:]:
            raise SettingsError(f"{path}: x ({split}) is {columns['x'].shape[1:]} a row, x (train) {x.shape[1:]}")
    kind = "image" if image else "tabular" if x.ndim == 2 else "array"
    about = info(kind, splits["train"]["x"].shape[1:], scale=255 if image else None, classes=classes)
    sources: dict[str, Source] = {}
    for split, columns in splits.items():
        try:
            sources[split] = Arrays(columns)
        except SettingsError as e:
            raise SettingsError(f"{path}: {split}: {e}") from None
    return Found(f"arrays {path}", fingerprint(path.parent, [path]), sources, about)


# ------------------------------------------------------------------------------------------------------------------ csv
def lines(path: pathlib.Path) -> list[int]:
    """The row number (the header is row 1) of every example of a .csv file."""
    return [number for number, _ in _rows(path)][1:]


def fields(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """(row number, fields) of the header and of every example."""
    return _rows(path)


def _rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """(row number, fields) of every row that is not blank."""
    number = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            for number, fields in enumerate(csv.reader(f, strict=True), 1):
                if fields:
                    yield number, fields
    except csv.Error as e:
        raise SettingsError(f"{path}: row {number + 1}: not well-formed csv ({e})") from None
    except UnicodeDecodeError as e:
        raise SettingsError(f"{path}: after row {number}: not UTF-8 text ({e.reason}); save it as UTF-8") from None
    except OSError as e:
        raise SettingsError(f"{path}: cannot be read ({e.strerror})") from None


def _target(path: pathlib.Path, header: list[str], target: str | None) -> str:
    if target is None:
        found = [name for name in TARGETS if name in header]
        if not found:
            raise SettingsError(f"{path}: which column is the target? Name it with target=...{near('target', header)}")
        return found[0]
    if target not in header:
        raise SettingsError(f"{path}: no column {target!r}{near(target, header)}")
    return target


def _number(text: str, path: pathlib.Path, place: Place) -> float:
    value = _float(text)
    if value is None:
        said = "is empty" if not text.strip() else f"{text[:40]!r} is no number"
        raise SettingsError(f"{path}: row {place[0]}, column {place[1]!r}: {said}")
    if not abs(value) <= 3.4e38:
        raise SettingsError(f"{path}: row {place[0]}, column {place[1]!r}: {text[:40]!r} is not finite in 32 bits")
    return value


def _float(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)  # Python reads 1_000 as 1000
    except ValueError:
        return None


def _classes(texts: list[str], places: list[Place], path: pathlib.Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """(i32[N], class names) or (f32[N], None)."""
    for text, (line, name) in zip(texts, places, strict=True):
        if not text:
            raise SettingsError(f"{path}: row {line}, column {name!r}: is empty")
    values = [_float(text) for text in texts]
    numbers = [v for v in values if v is not None]
    # One word among numbers is a slip, words throughout are classes.
    if len(numbers) >= max(1, len(texts) / 2):
        numbers = [_number(text, path, place) for text, place in zip(texts, places, strict=True)]
        distinct = sorted(set(numbers))
        whole = all(v == math.floor(v) and "." not in t for v, t in zip(numbers, texts, strict=True))
        if not (whole and len(distinct) <= min(MOST_CLASSES, len(numbers) // 2)):
            return np.array(numbers, np.float32), None
        return np.searchsorted(distinct, numbers).astype(np.int32), tuple(str(int(v)) for v in distinct)
    names, labels = np.unique(texts, return_inverse=True)
    return labels.astype(np.int32), tuple(str(n) for n in names)


# ------------------------------------------------------------------------------------------------------------------ npz
def _load(path: pathlib.Path) -> Columns:
    try:
        with zipfile.ZipFile(path) as z:
            _check_size(path, z)
        with np.load(path, allow_pickle=False) as npz:
            return {name: npz[name] for name in npz.files}
    except SettingsError:
        raise
    except OSError as e:
        raise SettingsError(f"{path}: cannot be read ({e.strerror or e})") from None
    except Exception as e:  # zipfile and numpy raise many kinds on a damaged file
        if "allow_pickle" in str(e):
            raise SettingsError(f"{path}: holds pickled objects, which can run code; save plain arrays") from None
        raise SettingsError(f"{path}: no npz file that can be read ({said(e)})") from None


def _splits(path: pathlib.Path, arrays: Columns) -> dict[str, Columns]:
    """{split: its columns, by names without a suffix}, every split with x and y."""
    ends = {"train": "_train", "validation": "_validation", "test": "_test"}
    plain = "x" in arrays or "y" in arrays
    official = any(f"{name}{end}" in arrays for name in "xy" for end in ends.values())
    if plain and any(f"{name}_train" in arrays for name in "xy"):
        raise SettingsError(f"{path}: {', '.join(sorted(arrays))}: which are trained on? Leave out x and y, or *_train")
    if official:
        splits = {k: {n.removesuffix(e): v for n, v in arrays.items() if n.endswith(e)} for k, e in ends.items()}
        if plain:
            splits["train"] = {n: v for n, v in arrays.items() if not n.endswith(tuple(ends.values()))}
    else:
        splits = {"train": arrays if plain else {}}
    splits = {k: v for k, v in splits.items() if v or k == "train"}
    for split, columns in splits.items():
        for name in ("x", "y"):
            if name not in columns:
                full = name if plain and split == "train" else f"{name}{ends[split]}"
                raise SettingsError(f"{path}: no array {full!r}; it has {', '.join(sorted(arrays)) or 'nothing'}")
    return splits


def _whole(y: np.ndarray) -> bool:
    """Whether these are labels."""
    return y.dtype.kind in "iub" and y.ndim == 1


def _words(y: np.ndarray) -> str:
    return f"{y.dtype}[{', '.join(map(str, y.shape))}]"


def _count(path: pathlib.Path, splits: dict[str, Columns]) -> int:
    """How many classes the training labels count; every label of every split is one of them."""
    most = np.iinfo(np.int32).max
    classes = int(splits["train"]["y"].max(initial=0)) + 1
    for split, columns in splits.items():
        y = columns["y"]
        for bad, why in (
            (y < 0, "is below 0"),
            (y > most, "does not fit into 32 bits; number the classes from 0"),
            (y >= classes, f"is none of the {classes} classes of y (train)"),
        ):
            if bad.any():
                row = int(np.argmax(bad))
                raise SettingsError(f"{path}: y ({split}), row {row}: label {y[row]} {why}")
    return classes


def _check_size(path: pathlib.Path, z: zipfile.ZipFile) -> None:
    """Refuses what claims more than it holds, or more than this machine has, before any of it is allocated."""
    for member in z.infolist():
        with z.open(member) as f:
            version = np.lib.format.read_magic(f)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(f)
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize + f.tell() != member.file_size:
                raise SettingsError(f"{path}: {member.filename} claims shape {shape}, which is not what it holds")
    total = sum(member.file_size for member in z.infolist())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else total
    if total > memory:
        raise SettingsError(f"{path}: unpacks to {total >> 20} MB, more than this machine has ({memory >> 20} MB)")


def _column(column: np.ndarray, where: str) -> np.ndarray:
    if column.ndim == 0:
        raise SettingsError(f"{where}: a single number, wanted one row per example")
    if column.dtype.kind not in "biufSU":
        raise SettingsError(f"{where}: dtype {column.dtype} is not supported; save numbers or text")
    column = narrow(column)
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        row = int(np.argwhere(~np.isfinite(column))[0][0])
        raise SettingsError(f"{where}, row {row}: NaN or infinite in 32 bits")
    return column[:, 0] if where.split(": ")[-1].startswith("y ") and column.shape[1:] == (1,) else column
