"""Everything that reads a file which someone else may have written, each with a good file to damage: F60."""

import io
import json
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import umbrella as um
from tests.conftest import tfds_dir
from tests.faults.kit import damage, three_steps
from umbrella import lock, manifest, report, workdir, writers
from umbrella.checkpoint import CheckpointError
from umbrella.data import cache
from umbrella.data.images import decode
from umbrella.settings import SettingsError

TABLE = "length,width,target\n" + "".join(f"{i}.5,{i * 7 % 5},{'ab'[i % 2]}\n" for i in range(12))


class Loader(NamedTuple):
    """A reader under attack.

    Attributes:
      make: folder -> the file that is damaged; what else the reader needs is laid beside it.
      read: that file -> anything. Gets a good one, too, which must go through.
      refuses: the errors by which it may say no; the message is one line. Everything else is a fault.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    refuses: tuple[type[Exception], ...]


def written(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, x=np.arange(24, dtype=np.uint8).reshape(6, 2, 2), y=np.arange(6) % 2)
    return out.getvalue()


def image(form: str) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)).save(out, form)
    return out.getvalue()


def step_manifest(folder: Path) -> Path:
    return three_steps(folder / "run") / "3" / manifest.NAME


def read_manifest(path: Path) -> None:
    manifest.verify(path.parent, manifest.read(path.parent))


def array_of(folder: Path) -> Path:
    """The largest file of a checkpoint."""
    return max((three_steps(folder / "run") / "3").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())


def read_array(path: Path) -> None:
    step = next(p for p in path.parents if p.name == "3")
    manifest.verify(step, manifest.read(step))


SETTINGS = {"seed": 0, "model": {"name": "mlp", "hidden": (8, 4)}, "train_for": "2 epochs"}


def claim(path: Path) -> None:
    workdir.claim(path.parent, "run", SETTINGS).lock.release()


def claimed(folder: Path) -> Path:
    workdir.claim(folder / "w", "run", SETTINGS).lock.release()
    return folder / "w" / "config.json"


LINES = "".join(
    json.dumps({"step": i, "epoch": i / 2, "split": s, "seconds": i / 8, "loss": 1 / i, "nll": [1.0, 2.0]}) + "\n"
    for i in range(1, 9)
    for s in ("train", "validation")
)
SUMMARY = {
    "status": "finished",
    "step": 8,
    "metrics": {"test": {"loss": 0.5, "accuracy": {"mean": 0.5, "ci95": [0, 1]}}},
}
SUMMARY |= {"baselines": {"mean": {"loss": 1.0}}, "seconds": {"total": 3.0, "step": 2.0}}


def run_with(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        written("summary.json", json.dumps(SUMMARY))(folder)
        written("metrics.jsonl", LINES)(folder)
        written("config.json", json.dumps(SETTINGS))(folder)
        um.artifacts.save(folder / "artifacts", "scores", um.artifacts.Matrix(np.eye(2), ("a", "b"), ("a", "b"), ""))
        return folder / name

    return make


def page(path: Path) -> None:
    folder = path.parent.parent if path.parent.name == "artifacts" else path.parent
    assert report.write(folder).stat().st_size > 1000


def resumed(path: Path) -> None:
    writer = writers.JsonlWriter(path.parent, 5)
    writer.write(6, 3.0, "train", {"loss": 1.0})
    writer.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert all(s <= 5 for s in steps[:-1]) and steps[-1] == 6


def held(path: Path) -> None:
    lock.Lock(path.parent).release()


COLUMNS = {"x": np.arange(24, dtype=np.float32).reshape(12, 2), "y": np.arange(12)}


def entry(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder = folder / "umbrella" / "data" / "a-set"
        _cached(folder)
        return folder / file

    return make


def _cached(folder: Path) -> Any:
    before, cache.folder = cache.folder, lambda: folder.parent
    try:
        return cache.keep(folder.name, lambda: ({"train": dict(COLUMNS)}, {"kind": "tabular"}))
    finally:
        cache.folder = before


def read_cache(path: Path) -> None:
    """A damaged entry is made anew, so it always gives the right numbers."""
    splits, info = _cached(path.parent)
    for name, column in COLUMNS.items():
        np.testing.assert_array_equal(splits["train"].column(name), column)
    assert info == {"kind": "tabular"}


def prepared(pattern: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        base = tfds_dir()
        assert base is not None
        source = base if "tfrecord" not in pattern else base.parent / "tfds_tfrecord"
        shutil.copytree(source / "titanic", folder / "titanic")
        return next((folder / "titanic").rglob(pattern))

    return make


def read_prepared(path: Path) -> None:
    from umbrella.data import examples, records

    examples._builder.cache_clear()  # a process keeps what it has read, and files do not change under it
    records._shards.cache_clear()
    base = next(p for p in path.parents if p.name == "titanic").parent
    data = um.data.load(name="titanic", path=str(base), cache=False)
    assert data.train.column("y").dtype == np.int32


LOADERS: dict[str, Loader] = {
    "csv": Loader(written("a.csv", TABLE), lambda p: um.data.load(name=str(p)), (SettingsError,)),
    "npz": Loader(written("a.npz", npz()), lambda p: um.data.load(name=str(p)), (SettingsError,)),
    **{
        form: Loader(written(f"a.{form}", image(form)), lambda p: decode(p.read_bytes(), p.name), (SettingsError,))
        for form in ("png", "jpeg", "gif", "bmp")
    },
    "manifest of a checkpoint": Loader(step_manifest, read_manifest, (CheckpointError,)),
    "arrays of a checkpoint": Loader(array_of, read_array, (CheckpointError,)),
    "config.json": Loader(claimed, claim, (SettingsError,)),
    "metrics.jsonl, resumed": Loader(written("metrics.jsonl", LINES), resumed, ()),
    "metrics.jsonl, in the report": Loader(run_with("metrics.jsonl"), page, ()),
    "summary.json, in the report": Loader(run_with("summary.json"), page, ()),
    "config.json, in the report": Loader(run_with("config.json"), page, ()),
    "index of the artifacts": Loader(run_with("artifacts/index.json"), page, ()),
    "lock": Loader(written(".lock", json.dumps({"pid": 2**22 + 7, "host": socket.gethostname()})), held, (lock.Busy,)),
    "cached set, its manifest": Loader(entry("manifest.json"), read_cache, ()),
    "cached set, a column": Loader(entry("0_0.npy"), read_cache, ()),
}
if tfds_dir() is not None:
    LOADERS |= {
        "array_record of TFDS": Loader(prepared("*.array_record-*"), read_prepared, (SettingsError,)),
        "features.json of TFDS": Loader(prepared("features.json"), read_prepared, (SettingsError,)),
        "dataset_info.json of TFDS": Loader(prepared("dataset_info.json"), read_prepared, (SettingsError,)),
    }
    if (tfds_dir().parent / "tfds_tfrecord" / "titanic").is_dir():  # type: ignore[union-attr]
        LOADERS["tfrecord of TFDS"] = Loader(prepared("*.tfrecord-*"), read_prepared, (SettingsError,))


def attack(loader: Loader, folder: Path, times: int, seed: int = 0) -> tuple[int, int]:
    """(how often it was refused, how often it was read all the same) of `times` mutations.

    Raises whatever the reader raises that is no refusal.
    """
    path, rng = loader.make(folder), random.Random(seed)
    good = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}
    content, refused, read = good[path], 0, 0
    loader.read(path)
    for _ in range(times):
        for p, before in good.items():
            if not p.is_file() or p.read_bytes() != before:
                p.parent.mkdir(parents=True, exist_ok=True)
                p.write_bytes(before)
        path.write_bytes(next(d for d in iter(lambda: damage(content, rng), None) if d != content))
        try:
            loader.read(path)
            read += 1
        except loader.refuses as error:
            assert "\n" not in str(error), error
            refused += 1
    return refused, read
