"""Sets that TensorFlow Datasets prepared, in array_record or tfrecord format, without TensorFlow. Floor 4."""

import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from umbrella.data import bundled
from umbrella.data import cache as caching
from umbrella.data.examples import Examples, describe
from umbrella.data.files import fingerprint
from umbrella.data.sources import LIMIT, Columns, Found, Source
from umbrella.settings import SettingsError, near

CHUNK = 4096  # records that are decoded at a time
FORMATS = ("array_record", "tfrecord")


def read(name: str, data_dir: str | None, *, size: int | None, in_memory: bool | None, cache: bool) -> Found:
    """A prepared set: "mnist", "glue/sst2" or "mnist:3.0.1".

    Raises:
      SettingsError: it is not on disk (with the command that fetches it), of an unknown name or format, or damaged.
    """
    root = place(name, data_dir)
    meta = _json(root / "dataset_info.json")
    files = [p for p in root.iterdir() if p.is_file() and not p.name.startswith(".")]
    key, form = fingerprint(root, files), str(meta.get("fileFormat", "tfrecord"))
    where = f"TFDS {name.split(':')[0]} {root.name} ({form})"
    if form not in FORMATS:
        raise SettingsError(f"{root}: prepared as {form}, wanted {' or '.join(FORMATS)}; prepare it again")
    small = _decoded_bytes(root, meta, size) < LIMIT
    if not (small if in_memory is None else in_memory):
        sources: dict[str, Source] = {k: Examples(str(root), k, size) for k in _splits(meta)}
        return Found(where, key, sources, describe(str(root), sources, size))

    def make() -> caching.Made:
        lazy: dict[str, Source] = {k: Examples(str(root), k, size) for k in _splits(meta)}
        splits = {k: _whole(s) for k, s in lazy.items()}
        return splits, describe(str(root), splits, size)

    splits, about = caching.keep(f"tfds-{key}-{size or 'as-is'}", make, disk=cache)
    return Found(where, key, dict(splits), about)


def resizes(name: str, data_dir: str | None) -> bool:
    """Whether `size` does something to a prepared set: it has images of bytes, or does not say what it has.

    Raises:
      SettingsError: it is not on disk.
    """
    images = _images(place(name, data_dir))
    return images is None or any(i.get("dtype", "uint8") == "uint8" for i in images)


def default_dir(data_dir: str | None = None) -> pathlib.Path:
    """Where prepared sets lie: data_dir, $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def is_prepared(name: str, data_dir: pathlib.Path) -> bool:
    """Whether `name`, with or without its version, lies below data_dir."""
    return bool(_versions(name, data_dir))


def on_disk(data_dir: pathlib.Path) -> list[str]:
    """The names of the sets below data_dir, "glue/sst2" with its config."""
    infos = [*data_dir.glob("*/*/dataset_info.json"), *data_dir.glob("*/*/*/dataset_info.json")]
    return sorted({p.parent.parent.relative_to(data_dir).as_posix() for p in infos})


def catalogue() -> dict[str, str | None]:
    """Every set that TFDS can prepare: {name: the module to import first, or None}.

    Some are registered by the import of TFDS, the older ones only when their own module is imported.
    """
    import tensorflow_datasets as tfds

    root = pathlib.Path(tfds.__file__).parent
    older = {
        p.stem: f"tensorflow_datasets.{p.parent.name}.{p.stem}"
        for p in root.glob("*/*.py")
        if p.parent.name not in ("core", "proto", "scripts", "testing")
        and not p.stem.endswith(("_test", "_utils", "__"))
    }
    return {**older, **dict.fromkeys(tfds.list_builders(with_community_datasets=False))}


def place(name: str, data_dir: str | None) -> pathlib.Path:
    """The folder of a prepared set, of its highest version unless the name gives one.

    Raises:
      SettingsError: not there.
    """
    base = default_dir(data_dir)
    if found := _versions(name, base):
        return max(found, key=lambda p: [int(n) if n.isdigit() else -1 for n in p.name.split(".")])
    plain = name.split(":")[0]
    here = on_disk(base)
    if configs := [n for n in here if n.startswith(plain + "/")]:
        raise SettingsError(f"{name}: which one? {', '.join(configs)}")
    known = catalogue()
    if plain.split("/")[0] in known:
        below = f" --data_dir {data_dir}" if data_dir else ""
        raise SettingsError(f"{name} is not in {base}: run python -m umbrella.data prepare {name}{below}")
    if plain in here:
        raise SettingsError(f"{name}: {base} has only {', '.join(p.name for p in _versions(plain, base))}")
    hint = near(plain, {*bundled.NAMES, *here, *known}) if len(here) + len(known) else ""
    if "one of" in hint:  # TFDS knows thousands
        hint = f" (at hand: {', '.join([*bundled.NAMES, *here])})"
    raise SettingsError(f"no data set {name!r}{hint}")


def _versions(name: str, base: pathlib.Path) -> list[pathlib.Path]:
    match = re.fullmatch(r"(\w[\w.-]*(?:/\w[\w.-]*)?)(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        return []
    plain, version = match.groups()
    folders = [p.parent for p in (base / plain).glob(f"{version or '*'}/dataset_info.json")]
    return sorted(p for p in folders if re.fullmatch(r"\d+\.\d+\.\d+", p.name))


def _splits(meta: dict[str, Any]) -> list[str]:
    return [s["name"] for s in meta["splits"] if s["name"] in ("train", "validation", "test")]


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(s["name"], str) for s in value["splits"]):
            raise ValueError("a split without a name")
        return dict(value)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise SettingsError(f"{path}: damaged ({type(e).__name__}: {e}); prepare the set again") from None


def _decoded_bytes(root: pathlib.Path, meta: dict[str, Any], size: int | None) -> int:
    """About how much memory the decoded set takes. Needs no import: features.json has the shapes."""
    rows = sum(int(n) for s in meta["splits"] for n in s.get("shardLengths", []))
    stored = sum(int(s.get("numBytes", 0)) for s in meta["splits"])
    images = _images(root)
    if images is None:
        return stored
    try:
        shapes = [[int(d) for d in i["shape"].get("dimensions", [])] for i in images]
    except (ValueError, KeyError, TypeError, AttributeError):
        return stored
    pixels = sum(size * size * 3 if size else int(np.prod(s)) if s and min(s) > 0 else 2**18 for s in shapes)
    return stored + rows * pixels


def _images(root: pathlib.Path) -> list[dict[str, Any]] | None:
    """What features.json says of the features that are images; None where it says nothing that can be read."""
    try:
        features = json.loads((root / "features.json").read_text())["featuresDict"]["features"]
        return [dict(f["image"]) for f in features.values() if "image" in f]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _whole(source: Source) -> Columns:
    """Every column of a source, decoded a chunk at a time into arrays allocated once."""
    n, out = len(source), dict[str, np.ndarray]()
    for start in range(0, n, CHUNK):
        rows = np.arange(start, min(start + CHUNK, n))
        for k, v in source.__getitems__(rows).items():
            if k not in out:
                out[k] = np.empty((n, *v.shape[1:]), v.dtype)
            elif v.dtype != out[k].dtype or v.shape[1:] != out[k].shape[1:]:
                out[k], v = _widened(out[k], v, k)
            out[k][rows] = v
    return out


def _widened(old: np.ndarray, new: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Room for longer text, larger numbers or longer lists than in the chunks before."""
    from umbrella.data.examples import pad

    if old.dtype.kind != new.dtype.kind or old.ndim != new.ndim or old.ndim > 2:
        raise SettingsError(f"column {name!r}: rows of shape {old.shape[1:]} and {new.shape[1:]}; images need size=...")
    width = max(old.shape[1:] + new.shape[1:], default=0)
    dtype = np.promote_types(old.dtype, new.dtype)
    return (pad(old, width, dtype), pad(new, width, dtype)) if old.ndim == 2 else (old.astype(dtype), new)
