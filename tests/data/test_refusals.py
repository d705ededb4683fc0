"""What a data set refuses, and what it keeps: settings that its reader does not take, arrays that contradict one
another, memory that grows with the number of epochs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tfds_dir
from umbrella.data import in_memory, load, order, streams
from umbrella.data.sources import Arrays
from umbrella.settings import SettingsError

BYTES = np.random.default_rng(0).integers(0, 256, (10, 4, 4), np.uint8)
HALVES = np.arange(10) % 2


def said(**settings: Any) -> str:
    """The one line that load says."""
    with pytest.raises(SettingsError) as error:
        load(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "a.npz", **arrays)
    return str(folder / "a.npz")


# --------------------------------------------------------------------------------------------------- permutations kept
def test_permutations_are_kept_within_their_bytes_whatever_the_number_of_epochs() -> None:
    """1,000 numbers of 4 bytes are 4,000 bytes: of a budget of 10,000, two fit. What is kept changes no order."""
    kept = streams._Permutations(budget=10_000)
    for epoch in range(60):
        wanted = np.random.default_rng([3, epoch]).permutation(1000)
        np.testing.assert_array_equal(kept.get(3, 1000, epoch), wanted)
        assert kept.nbytes <= 10_000
    assert kept.nbytes == 8_000
    assert kept.get(3, 1000, 59) is kept.get(3, 1000, 59)


def test_seeds_side_by_side_keep_one_permutation_each_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seeds of 4,000 bytes over a budget of 10,000: each is drawn once an epoch, not once a step."""
    kept, drawn = streams._Permutations(budget=10_000), []
    monkeypatch.setattr(streams, "_KEPT", kept)
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(tuple(seed)) or real(seed))
    data = in_memory(Arrays({"x": np.zeros((1000, 1))}), 100)
    for _ in data.stream((0, 1, 2, 3, 4), 0, 20):  # 20 steps of 100 rows are two epochs
        assert kept.nbytes <= 5 * 4000 + 4000
    assert sorted(drawn) == [(seed, epoch) for seed in range(5) for epoch in range(2)]


def test_small_permutations_do_not_pile_up() -> None:
    kept = streams._Permutations(budget=2**20, most=8)
    for epoch in range(50):
        kept.get(0, 3, epoch)
    assert len(kept._kept) == 8 and kept.nbytes == 8 * 3 * 4
    assert sorted(order(0, 3, np.arange(3)).tolist()) == [0, 1, 2]


# ------------------------------------------------------------------------------------- settings that do not apply here
TAKES = {
    "digits": ("comes with scikit-learn", {"target", "size", "in_memory"}),
    "a.csv": ("is a table", {"size", "in_memory"}),
    "a.npz": ("is an .npz file", {"target", "size", "in_memory"}),
    "images": ("is a folder of images", {"target"}),
}
GIVEN: dict[str, Any] = {"target": "y", "size": 8, "in_memory": False}


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("setting", GIVEN)
def test_a_setting_does_something_or_is_refused(name: str, setting: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,y\n1,0\n2,1\n3,0\n4,1\n")
    npz(tmp_path, x=BYTES, y=HALVES)
    for i, image in enumerate(BYTES):
        (tmp_path / "images" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / str(i % 2) / f"{i}.png")
    where = name if name == "digits" else str(tmp_path / name)
    kind, refuses = TAKES[name]
    if setting in refuses:
        told = said(name=where, **{setting: GIVEN[setting]})
        assert f"{kind} and takes no {setting}={GIVEN[setting]!r}" in told and "leave it out" in told
        return
    data = load(name=where, **{setting: GIVEN[setting]})
    if setting == "size":
        assert data.info["shape"] == (8, 8, 1)
    if setting == "in_memory":
        assert not isinstance(data.train, Arrays)


def test_what_a_set_always_does_may_be_asked_for() -> None:
    assert len(load(name="digits", in_memory=True, cache=False).train) > 0


@pytest.mark.skipif(tfds_dir() is None, reason="MNIST is not here: set TFDS_DATA_DIR")
def test_a_prepared_set_takes_a_size_where_it_has_images() -> None:
    where = str(tfds_dir())
    assert load(name="mnist", path=where, size=14, in_memory=False).info["shape"] == (14, 14, 1)
    assert "takes no target='label'" in said(name="mnist", path=where, target="label")
    if (Path(where) / "titanic").is_dir():
        assert "is a prepared set without images and takes no size=8" in said(name="titanic", path=where, size=8)


# ------------------------------------------------------------------------------------------------------------ npz files
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        # 2^33 is 0 in 32 bits: all ten labels would be class 0.
        (dict(x=BYTES, y=np.arange(10) * 2**33), "y (train), row 1: label 8589934592 does not fit into 32 bits"),
        (dict(x=BYTES, y=np.arange(10) + 2**31 - 9), "row 9: label 2147483648 does not fit into 32 bits"),
        # .7 cut off would be class 0.
        (
            dict(x_train=BYTES, y_train=HALVES, x_test=BYTES, y_test=HALVES * 0.7),
            "y (test) is float32[10], but y (train) holds labels",
        ),
        (
            dict(x_train=BYTES, y_train=HALVES, x_test=BYTES, y_test=np.eye(2, dtype=int)[HALVES]),
            "y (test) is int32[10, 2], but y (train) holds labels",
        ),
        # Fractions in [0, 1] would be divided by 255 once more.
        (
            dict(x_train=BYTES, y_train=HALVES, x_test=BYTES / 255, y_test=HALVES),
            "x (test) is float32, x (train) uint8",
        ),
        (
            dict(x_train=BYTES / 255, y_train=HALVES, x_test=BYTES, y_test=HALVES),
            "x (test) is uint8, x (train) float32",
        ),
        (
            dict(x_train=BYTES, y_train=HALVES, x_test=BYTES, y_test=HALVES * 5),
            "y (test), row 1: label 5 is none of the 2 classes of y (train)",
        ),
        (
            dict(x_train=BYTES, y_train=HALVES, x_validation=BYTES, y_validation=HALVES + 1),
            "y (validation), row 1: label 2 is none of the 2 classes",
        ),
        (dict(x_train=BYTES, y_train=HALVES, x_test=BYTES, y_test=HALVES - 1), "y (test), row 0: label -1 is below 0"),
        (dict(x=BYTES, y=HALVES, x_train=BYTES, y_train=HALVES), "which are trained on?"),
        (dict(x=BYTES, y=HALVES, x_test=BYTES), "no array 'y_test'; it has x, x_test, y"),
        (dict(x=BYTES, x_test=BYTES, y_test=HALVES), "no array 'y'; it has x, x_test, y_test"),
    ],
)
def test_arrays_that_contradict_one_another(arrays: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    told = said(name=npz(tmp_path, **arrays))
    assert words in told and "a.npz" in told


def test_x_and_y_beside_x_test_and_y_test_are_the_training_split(tmp_path: Path) -> None:
    """All arrays of one length, so that x_test could be taken for one more column of x."""
    name = npz(tmp_path, x=BYTES, y=HALVES, x_test=255 - BYTES, y_test=1 - HALVES, row=np.arange(10))
    data = load(name=name, validation=0)
    np.testing.assert_array_equal(data.train.column("x")[..., 0], BYTES)
    np.testing.assert_array_equal(data.train.column("row"), np.arange(10))
    np.testing.assert_array_equal(data.test.column("x")[..., 0], 255 - BYTES)
    np.testing.assert_array_equal(data.test.column("y"), 1 - HALVES)
    assert data.test.__getitems__(np.zeros(1, np.int64)).keys() == {"x", "y"}


def test_a_column_that_only_ends_like_a_split_is_a_column(tmp_path: Path) -> None:
    data = load(name=npz(tmp_path, x=BYTES, y=HALVES, in_test=HALVES), validation=0)
    assert data.train.__getitems__(np.zeros(1, np.int64)).keys() == {"x", "y", "in_test"}


def test_fewer_classes_in_test_and_labels_of_one_bit_are_fine(tmp_path: Path) -> None:
    data = load(name=npz(tmp_path, x_train=BYTES, y_train=HALVES > 0, x_test=BYTES, y_test=0 * HALVES), validation=0)
    assert data.info["classes"] == 2 and data.train.column("y").dtype == data.test.column("y").dtype == np.int32


# ------------------------------------------------------------------------------------------------ tables without labels
def test_only_a_csv_file_can_be_without_a_target(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("ham\tcall me\nspam\tcall now\n")
    (tmp_path / "pictures" / "one").mkdir(parents=True)
    Image.fromarray(BYTES[0]).save(tmp_path / "pictures" / "one" / "0.png")
    (tmp_path / "texts").mkdir()
    for word in ("ham", "spam"):
        (tmp_path / "texts" / f"{word}.txt").write_text("call me\n")
    names = ["digits", "iris", "docstrings", npz(tmp_path, x=BYTES, y=HALVES)]
    for name in (*names, *(str(tmp_path / n) for n in ("a.tsv", "pictures", "texts"))):
        told = said(name=name, labelled=False)
        assert "takes no labelled=False: that says of a .csv file whether it has a target; leave it out" in told, name


def test_a_table_has_a_target_or_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{i},{i % 2}\n" for i in range(20)))
    path = str(tmp_path / "t.csv")
    assert said(name=path, labelled=False, target="b") == "target='b' and labelled=False: which of the two?"
    dataset = load(name=path, labelled=False)
    assert dataset.info["features"] == ("a", "b") and dataset.info["classes"] is None
    assert set(dataset.train.__getitems__(np.arange(1))) == {"x"}
    assert "per_class=1" in said(name=path, labelled=False, per_class=1)
