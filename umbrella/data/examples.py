"""The examples of a prepared set: records to columns. Floor 4."""

import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from umbrella.data import records
from umbrella.data.images import decode, stack
from umbrella.data.sources import Columns, Source, info, narrow
from umbrella.settings import SettingsError

IMAGES = "Image"
LABELS = "ClassLabel"


class Examples:
    """A source that reads one split of a prepared set as it is asked; it travels to a worker process as its path.

    Lists of different lengths are padded to the longest of the batch: whole numbers with -1, others with NaN, text with
    nothing. Nested features are named "outer/inner".
    """

    def __init__(self, root: str, split: str, size: int | None = None):
        self.root, self.split, self.size = root, split, size
        self.names = _renamed(_builder(root).info)

    def __len__(self) -> int:
        return int(_builder(self.root).info.splits[self.split].num_examples)

    def __getitems__(self, indices: np.ndarray) -> Columns:
        return self._read(indices, pixels=True)

    def column(self, name: str) -> np.ndarray:
        chunks = np.array_split(np.arange(len(self)), max(1, len(self) // 4096))
        if name == "x" and self._images():
            return np.concatenate([self._read(c, pixels=True)[name] for c in chunks])
        return np.concatenate([self._read(c, pixels=False)[name] for c in chunks])

    def __reduce__(self) -> tuple[Any, ...]:
        return Examples, (self.root, self.split, self.size)

    def _images(self) -> dict[str, Any]:
        features = _builder(self.root).info.features
        return {k: f for k, f in features.items() if type(f).__name__ == IMAGES and f.np_dtype == np.uint8}

    def _read(self, indices: np.ndarray, *, pixels: bool) -> Columns:
        import tensorflow_datasets as tfds

        if len(indices) == 0:
            return {k: v[:0] for k, v in self._read(np.zeros(1, np.int64), pixels=pixels).items()}
        features, images = _builder(self.root).info.features, self._images()
        skip = {k: tfds.decode.SkipDecoding() for k in images}
        raw = records.read(_builder(self.root), self.split, indices)
        where = [f"{self.root}: {self.split} example {i}" for i in indices]
        rows = []
        for record, at in zip(raw, where, strict=True):
            try:
                rows.append(_flat(features.deserialize_example_np(record, decoders=skip)))
            except Exception as e:  # whatever a damaged record makes of the parser
                raise SettingsError(f"{at}: damaged ({type(e).__name__}); prepare the set again") from None
        out: Columns = {}
        for key in rows[0]:
            values = [row[key] for row in rows]
            if key in images:
                if pixels:
                    channels = images[key].shape[-1]
                    decoded = [
                        decode(v, a, channels=channels, size=self.size) for v, a in zip(values, where, strict=True)
                    ]
                    out[self.names.get(key, key)] = stack(decoded, where)
            else:
                out[self.names.get(key, key)] = _together(values, key)
        if "y" in out and (classes := _classes(self.root)) and out["y"].dtype.kind == "i":
            bad = (out["y"] >= classes) | (out["y"] < -1)  # -1: withheld
            if bad.any():
                i = int(np.argmax(bad))
                raise SettingsError(f"{where[i]}: label {out['y'][i]} is not one of the {classes} classes")
        return out


def describe(root: str, splits: Mapping[str, Source] | Mapping[str, Columns], size: int | None) -> dict[str, Any]:
    """The info of a prepared set, from its metadata and its first rows."""
    meta = _builder(root).info
    names = _renamed(meta)
    back = {v: k for k, v in names.items()}
    x: Any = meta.features[back["x"]] if "x" in back else None
    first = {k: s if isinstance(s, dict) else s.__getitems__(np.arange(min(64, len(s)))) for k, s in splits.items()}
    hidden = tuple(k for k, s in first.items() if "y" in s and len(s["y"]) and (s["y"] == -1).all())
    if "train" in hidden:
        raise SettingsError(f"{root}: the training labels are withheld (-1)")
    image = x is not None and type(x).__name__ == IMAGES
    text = any(type(f).__name__ == "Text" for f in meta.features.values())
    shape = tuple(int(d) for d in next(iter(first.values()))["x"].shape[1:]) if "x" in back else None
    kind = "image" if image else "text" if text else "tabular"
    classes = _classes(root)
    known = list(meta.features[back["y"]].names) if classes else []
    scale = 255 if image and x.np_dtype == np.uint8 else None
    return info(kind, shape, scale=scale, classes=classes, class_names=tuple(known) or None, hidden=hidden)


def pad(rows: np.ndarray, width: int, dtype: np.dtype) -> np.ndarray:
    """rows [N, W] as [N, width] of `dtype`: -1, NaN or nothing stands where a row has ended."""
    filler: Any = {"f": np.nan, "i": -1}.get(dtype.kind, 0 if dtype.kind in "ub" else b"")
    out = np.full((len(rows), width), filler, dtype)
    out[:, : rows.shape[1]] = rows
    return out


@functools.lru_cache(maxsize=8)
def _builder(root: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        _check_classes(json.loads((pathlib.Path(root) / "features.json").read_text(encoding="utf-8")), root)
        return tfds.builder_from_directory(root)
    except SettingsError:
        raise
    except Exception as e:  # json, protobuf and TFDS errors alike: the metadata is not what TFDS wrote
        raise SettingsError(f"{root}: damaged metadata ({type(e).__name__}); prepare the set again") from None


def _check_classes(value: Any, root: str) -> None:
    """TFDS imports the module of every class that features.json names; a file must not choose what is imported."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            named = key in ("pythonClassName", "python_class_name", "type") and isinstance(inner, str)
            if named and "." in inner and not re.fullmatch(r"tensorflow_datasets\.core\.features\.\w+\.\w+", inner):
                raise SettingsError(f"{root}: features.json names {inner!r}, which is no class of TFDS's own; not read")
            _check_classes(inner, root)
    elif isinstance(value, list):
        for inner in value:
            _check_classes(inner, root)


def _renamed(meta: Any) -> dict[str, str]:
    """Which features are x and y: the supervised keys, or image and label, or the one text and the label."""
    keys, features = meta.supervised_keys, meta.features
    if keys and len(keys) == 2 and all(isinstance(k, str) for k in keys):
        return {keys[0]: "x", keys[1]: "y"} if keys[0] != keys[1] else {keys[0]: "x"}
    if keys and len(keys) == 2 and isinstance(keys[1], str):
        return {keys[1]: "y"}
    if "label" not in features:
        return {"image": "x"} if "image" in features else {}
    texts = [k for k, f in features.items() if type(f).__name__ == "Text"]
    x = ["image"] if "image" in features else texts if len(texts) == 1 else []
    return {**{k: "x" for k in x}, "label": "y"}


def _classes(root: str) -> int | None:
    meta = _builder(root).info
    y: Any = next((meta.features[k] for k, v in _renamed(meta).items() if v == "y"), None)
    return int(y.num_classes) if type(y).__name__ == LABELS and y.num_classes else None


def _flat(example: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for k, v in example.items():
        out |= _flat(v, f"{prefix}{k}/") if isinstance(v, Mapping) else {prefix + k: v}
    return out


def _together(values: list[Any], key: str) -> np.ndarray:
    """One column [B, ...] of the values of a feature."""
    rows = [np.asarray(v) for v in values]
    if any(r.dtype == object for r in rows):
        rows = [np.array([_bytes(v) for v in r.ravel()] or [b""]).reshape(r.shape or ()) for r in rows]
    if len({r.shape for r in rows}) > 1:
        if {r.ndim for r in rows} != {1}:
            raise SettingsError(f"column {key!r}: rows of different shapes, which this reader does not know")
        width, dtype = max(len(r) for r in rows), np.result_type(*{r.dtype for r in rows if r.size} or {rows[0].dtype})
        return narrow(np.concatenate([pad(r[None].astype(dtype), width, dtype) for r in rows]))
    return narrow(np.stack(rows))


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
