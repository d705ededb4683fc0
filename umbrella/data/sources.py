"""What a data set is once it is read: named columns, examples first. Floor 4."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from umbrella.settings import SettingsError

Columns = dict[str, np.ndarray]
LIMIT = 2 * 1024**3  # bytes: sets that decode to less are kept in memory


@runtime_checkable
class Source(Protocol):
    """Examples by number. Columns are "x" and "y" where a set has an input and a target; others have their own name."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitems__(self, indices: np.ndarray) -> Columns:
        """The rows `indices` i64[B], in that order, of every column: {name: [B, ...]}."""
        ...

    def column(self, name: str) -> np.ndarray:
        """One whole column [N, ...]; a lazy source reads it without decoding the others."""
        ...


class Dataset(NamedTuple):
    """A data set, read or ready to be read.

    Images are u8[N, H, W, C], labels i32[N], tabular inputs f32[N, F], regression targets f32[N], text bytes S[N].
    """

    name: str  # as the user wrote it
    source: str  # where it came from, in words
    fingerprint: str  # of its content: equal for equal files, wherever they lie
    train: Source
    validation: Source  # has no rows when nothing was held out
    test: Source
    info: dict[str, Any]
    # "kind" ("image" | "tabular" | "text" | "array"); "shape" of one x; "scale", the largest value of a u8 image;
    # "classes"; "class_names"; "features", the names of x's columns; each None where it does not apply; and "hidden",
    # the splits whose labels are withheld (all -1)


class Arrays:
    """A source that lies in memory, or in memory-mapped files.

    >>> Arrays({"x": np.arange(6).reshape(3, 2)}).__getitems__(np.array([2, 0]))["x"].tolist()
    [[4, 5], [0, 1]]

    Raises:
      SettingsError: no columns, or columns of different lengths.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays: Columns = dict(arrays)
        lengths = {k: len(v) for k, v in self.arrays.items()}
        if not lengths:
            raise SettingsError("a data set needs at least one column")
        if len(set(lengths.values())) > 1:
            raise SettingsError(f"columns of different lengths: {', '.join(f'{k} {n}' for k, n in lengths.items())}")
        self._length = next(iter(lengths.values()))
        self._files: dict[str, str] = {}

    def __len__(self) -> int:
        return self._length

    def __getitems__(self, indices: np.ndarray) -> Columns:
        return {k: np.asarray(v[indices]) for k, v in self.arrays.items()}

    def column(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @classmethod
    def mapped(cls, files: Mapping[str, str]) -> "Arrays":
        """Columns in .npy files, read when they are touched; a worker process is sent the file names, not the bytes."""
        source = cls({k: np.load(path, mmap_mode="r", allow_pickle=False) for k, path in files.items()})
        source._files = dict(files)
        return source

    def __reduce__(self) -> tuple[Any, ...]:
        return (Arrays.mapped, (self._files,)) if self._files else (Arrays, (self.arrays,))


class Rows:
    """Some rows of another source, in the order given: a split of a set that is read lazily."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, indices: np.ndarray) -> Columns:
        return self.source.__getitems__(self.indices[indices])

    def column(self, name: str) -> np.ndarray:
        return self.source.column(name)[self.indices]


def sample(n: int, count: int) -> np.ndarray:
    """i64[min(n, count)]: rows of n, drawn at random without replacement, the same every time, in increasing order.

    >>> sample(3, 5).tolist(), len(sample(1000, 5))
    ([0, 1, 2], 5)
    """
    return np.sort(np.random.default_rng([0, 3, n]).permutation(n)[:count])  # epochs draw from two numbers


class Found(NamedTuple):
    """What a reader found, before anything is held out."""

    source: str
    fingerprint: str
    splits: dict[str, Source]  # "train", and "validation" and "test" where the set has them
    info: dict[str, Any]


def take(source: Source, indices: np.ndarray) -> Source:
    """The rows `indices`: a copy of arrays, a view of anything else."""
    return Arrays(source.__getitems__(indices)) if isinstance(source, Arrays) else Rows(source, indices)


def narrow(column: np.ndarray) -> np.ndarray:
    """The column in a dtype that a device holds: f64 becomes f32, wide integers i32 where they fit, text S."""
    kind, wide = column.dtype.kind, column.dtype.itemsize > 4
    if kind == "f" and column.dtype != np.float32:
        with np.errstate(over="ignore"):
            return column.astype(np.float32)
    if kind in "iu" and (wide or column.dtype == np.uint32):
        limits = np.iinfo(np.int32)
        fits = not column.size or (column.min() >= limits.min and column.max() <= limits.max)
        return column.astype(np.int32) if fits else column.astype(np.int64)
    if kind == "U":
        return np.char.encode(column, "utf-8")
    return column


def on_device(columns: Columns) -> Columns:
    """The columns that a device can hold: text stays behind."""
    return {k: v for k, v in columns.items() if v.dtype.kind in "biufc"}


def info(kind: str, shape: tuple[int, ...] | None, **rest: Any) -> dict[str, Any]:
    """The info of a Dataset, with every key present."""
    blank = {"scale": None, "classes": None, "class_names": None, "features": None, "hidden": ()}
    if unknown := set(rest) - set(blank):
        raise TypeError(f"no such entries: {sorted(unknown)}")
    return {"kind": kind, "shape": shape, **blank, **rest}
