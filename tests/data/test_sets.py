"""scikit-learn's sets, those that TensorFlow Datasets prepared, and the command line."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from umbrella.data import batches, corpus, load, streaming
from umbrella.data.__main__ import main
from umbrella.settings import SettingsError

ROOT = pathlib.Path(__file__).parents[2]
PREPARED = pathlib.Path(os.environ.get("TFDS_DATA_DIR") or ROOT.parent / "shared" / "data" / "tfds")
TFRECORD = PREPARED.parent / "tfds_tfrecord"
needs_sets = pytest.mark.skipif(not (PREPARED / "mnist").is_dir(), reason="no prepared sets: set TFDS_DATA_DIR")
needs_tfrecord = pytest.mark.skipif(not (TFRECORD / "mnist").is_dir(), reason="no sets in tfrecord format")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def whole(source):
    return source.__getitems__(np.arange(len(source)))


def rows_of(data, column):
    return np.concatenate([s.column(column) for s in data[3:6]])


# --------------------------------------------------------------------------------------------------------- scikit-learn
def test_digits_are_scikit_learns_exactly():
    from sklearn.datasets import load_digits

    data, theirs = load(name="digits"), load_digits()
    ours = sorted((x.tobytes(), int(y)) for x, y in zip(rows_of(data, "x"), rows_of(data, "y"), strict=True))
    images = theirs.images.astype(np.uint8)
    assert ours == sorted((x.tobytes(), int(y)) for x, y in zip(images, theirs.target, strict=True))
    assert data.info == {
        "kind": "image",
        "shape": (8, 8, 1),
        "scale": 16,
        "classes": 10,
        "class_names": tuple("0123456789"),
        "features": None,
        "hidden": (),
    }
    assert data.train.column("x").dtype == np.uint8 and data.train.column("x").max() == 16
    # 1797 = 359 for the test, then 144 of 1438 for validation.
    assert [len(s) for s in data[3:6]] == [1294, 144, 359]


@pytest.mark.parametrize(
    ("name", "n", "features", "classes"),
    [("iris", 150, 4, 3), ("wine", 178, 13, 3), ("breast_cancer", 569, 30, 2), ("diabetes", 442, 10, None)],
)
def test_tables_of_scikit_learn(name, n, features, classes):
    data = load(name=name)
    x, y = rows_of(data, "x"), rows_of(data, "y")
    assert x.shape == (n, features) and x.dtype == np.float32 and len(data.info["features"]) == features
    assert data.info["classes"] == classes and y.dtype == (np.float32 if classes is None else np.int32)
    assert data.info["kind"] == "tabular" and data.info["shape"] == (features,)


def test_a_set_is_the_same_every_time():
    a, b = load(name="wine"), load(name="wine")
    assert a.fingerprint == b.fingerprint
    np.testing.assert_array_equal(a.train.column("x"), b.train.column("x"))


# ----------------------------------------------------------------------------------------------------------------- TFDS
@needs_sets
def test_mnist_rows_are_those_of_tfds():
    import tensorflow_datasets as tfds

    data = load(name="mnist", path=str(PREPARED), in_memory=False, validation=0)
    theirs = tfds.data_source("mnist", split="train", data_dir=str(PREPARED))
    assert len(data.train) == 60000 and len(data.test) == 10000
    assert data.info["shape"] == (28, 28, 1) and data.info["classes"] == 10 and data.info["scale"] == 255
    rows = np.array([0, 1, 59999, 77])
    ours = data.train.__getitems__(rows)
    assert ours["x"].dtype == np.uint8 and ours["y"].dtype == np.int32 and ours["y"][0] == 4
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(ours["x"][i], theirs[int(row)]["image"])
        assert ours["y"][i] == theirs[int(row)]["label"]


@needs_sets
@needs_tfrecord
def test_tfrecord_equals_array_record():
    one = load(name="mnist", path=str(PREPARED), in_memory=False, validation=0)
    other = load(name="mnist", path=str(TFRECORD), in_memory=False, validation=0)
    for split in ("train", "test"):
        a, b = (getattr(d, split).__getitems__(np.arange(100)) for d in (one, other))
        for k in a:
            np.testing.assert_array_equal(a[k], b[k])
    assert other.source == "TFDS mnist 3.0.1 (tfrecord)" and other.info == one.info


@needs_sets
def test_running_text_of_a_set_without_labels():
    """Tiny shakespeare has one column, "text"; its splits are one text each, 90, 5 and 5 %."""
    data = corpus.load(name="tiny_shakespeare", path=str(PREPARED), cache=False)
    assert [len(s) for s in data[3:6]] == [1003854, 55770, 55770]
    assert corpus.text_of(data.train.column("x")[:14]) == "First Citizen:"


@needs_sets
def test_text_with_an_official_validation_split():
    data = load(name="glue/sst2", path=str(PREPARED), cache=False)
    assert [len(s) for s in data[3:6]] == [67349, 872, 1821]  # the official sizes
    assert data.info["kind"] == "text" and data.info["hidden"] == ("test",)
    assert data.train.column("x").dtype.kind == "S" and set(data.train.column("y").tolist()) == {0, 1}
    assert next(iter(batches(data.validation, 8))).keys() == {"idx", "y", "mask"}


@needs_sets
@pytest.mark.parametrize("name", ["titanic", "movielens/100k-movies", "tiny_shakespeare"])
def test_lazy_equals_decoded_equals_cached(name):
    kept = load(name=name, path=str(PREPARED))
    again = load(name=name, path=str(PREPARED))
    for a, b in zip(kept[3:6], again[3:6], strict=True):
        for k, v in whole(a).items():
            np.testing.assert_array_equal(v, whole(b)[k])
    lazy = load(name=name, path=str(PREPARED), in_memory=False)
    assert lazy.info == kept.info and lazy.fingerprint == kept.fingerprint
    for a, b in zip(kept[3:6], lazy[3:6], strict=True):
        assert len(a) == len(b)
        columns = b.__getitems__(np.arange(min(len(b), 20)))
        for k, v in a.__getitems__(np.arange(min(len(a), 20))).items():
            if v.dtype.kind == "S" or v.ndim == 1:  # lists are padded to the longest of a batch
                np.testing.assert_array_equal(v, columns[k])


@needs_sets
def test_movies_have_lists_padded_with_minus_one():
    genres = load(name="movielens/100k-movies", path=str(PREPARED), cache=False).train.column("movie_genres")
    assert genres.ndim == 2 and genres.min() == -1 and (genres[:, 0] >= 0).all()


@needs_sets
def test_a_lazy_set_is_read_by_a_worker():
    data = streaming(load(name="mnist", path=str(PREPARED), in_memory=False, validation=0).test, 4, workers=1)
    (slot,) = data.stream((0,), 3, 4)
    for k, v in data.slot(0, 3).items():
        np.testing.assert_array_equal(slot[k], v)


def copied(source: pathlib.Path, tmp_path: pathlib.Path, name: str) -> pathlib.Path:
    shutil.copytree(source / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


# ------------------------------------------------------------------------------------------------------------ not there


# --------------------------------------------------------------------------------------------------------- command line
def test_list_and_describe(capsys):
    assert main(["list"]) == 0 and "digits" in capsys.readouterr().out
    assert main(["describe", "iris"]) == 0
    out = capsys.readouterr().out
    assert load(name="iris").fingerprint in out and "float32[108, 4]" in out


class Builder:
    data_dir = "somewhere/mnist/3.0.1"

    def __init__(self, error=None):
        self.error = error

    def download_and_prepare(self):
        if self.error:
            raise self.error


@pytest.mark.parametrize("error", [None, OSError("no network\nat all")])
@pytest.mark.parametrize("name", ["mnist", "glue/sst2"])
def test_prepare_asks_tfds_for_array_record(name, error, capsys, monkeypatch, tmp_path):
    import importlib.util

    import tensorflow_datasets as tfds

    asked = {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda *a: object())
    monkeypatch.setattr(tfds, "builder", lambda n, **k: asked.update(k, name=n) or Builder(error))
    assert main(["prepare", name, "--data_dir", str(tmp_path)]) == (2 if error else 0)
    assert asked == {"name": name, "data_dir": str(tmp_path), "file_format": "array_record"}
    out, err = capsys.readouterr()
    assert ("no network at all" in err and err.count("\n") == 1) if error else "somewhere" in out


def test_the_keyword_parameters_are_settings():
    from umbrella import settings

    assert settings.check(load, {"name": "iris"})["validation"] == 0.1
    for wrong in (
        {"validation": 1.0},
        {"size": 0},
        {"split_seed": -1},
        {"name": ""},
        {"in_memory": 3},
        {"nmae": "iris"},
    ):
        with pytest.raises(SettingsError):
            settings.check(load, {"name": "iris"} | wrong)


@pytest.mark.parametrize("command", [["prepare", "mnits"], ["prepare", "digits"], ["describe", "digist"]])
def test_user_errors_on_the_command_line_are_one_line(command, capsys):
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


@needs_sets
def test_no_tensorflow_on_the_way_to_a_batch():
    code = (
        "import sys; from umbrella.data import load, batches; "
        f"d = load(name='titanic', path={str(PREPARED)!r}, cache=False); next(iter(batches(d.test, 5))); "
        "print('tensorflow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert out.stdout == "False\n", out.stderr


def test_a_few_rows_of_every_class():
    whole, few, other = (
        load(name="digits"),
        load(name="digits", per_class=5),
        load(name="digits", per_class=5, split_seed=1),
    )
    assert np.bincount(few.train.column("y")).tolist() == [5] * 10
    known = {row.tobytes() for row in whole.train.column("x")}
    assert all(row.tobytes() in known for row in few.train.column("x"))
    np.testing.assert_array_equal(few.test.column("x"), whole.test.column("x"))
    assert few.train.column("x").tobytes() != other.train.column("x").tobytes()
    for more, words in (
        (dict(per_class=5, rows=9), "which of the two"),
        (dict(per_class=900), "training rows of class"),
        (dict(name="diabetes", per_class=5), "has no classes; use rows"),
    ):
        with pytest.raises(SettingsError, match=words):
            load(**{"name": "digits", **more})
