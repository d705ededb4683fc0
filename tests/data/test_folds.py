"""Folds, and an official validation split to test on."""

from pathlib import Path

import numpy as np
import pytest

from umbrella.data import Dataset, load
from umbrella.data.splits import dealt
from umbrella.settings import SettingsError


def table(tmp_path: Path) -> str:
    path = tmp_path / "t.tsv"
    path.write_text("".join(f"{('no', 'yes')[i % 3 == 0]}\tnumber {i}\n" for i in range(50)))
    return str(path)


def texts(data: Dataset, split: str) -> list[bytes]:
    return list(map(bytes, getattr(data, split).column("x")))


def test_every_row_is_tested_once_and_never_where_it_trains(tmp_path: Path) -> None:
    """50 rows in 4 folds: 12 or 13 each. Of the 17 that say yes each has 4 or 5."""
    folds = [load(name=table(tmp_path), folds=4, fold=k, validation=0.2) for k in range(4)]
    for data in folds:
        parts = [set(texts(data, s)) for s in ("train", "validation", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 50
        assert len(parts[2]) in (12, 13) and data.test.column("y").sum() in (4, 5)
    assert len({t for data in folds for t in texts(data, "test")}) == 50


def test_the_folds_are_the_same_every_time(tmp_path: Path) -> None:
    """Whatever chooses the validation rows."""
    a, b = (load(name=table(tmp_path), folds=4, fold=1, split_seed=s) for s in (0, 1))
    assert texts(a, "test") == texts(b, "test") and texts(a, "validation") != texts(b, "validation")


def test_without_labels_rows_are_dealt_alike() -> None:
    assert sorted(np.bincount(dealt(None, 11, 3)).tolist()) == [3, 4, 4]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (dict(folds=4, fold=4), "fold=4: must be below folds=4"),
        (dict(fold=1), "fold=1: must be below folds=None"),
        (dict(folds=1), "folds=1: would leave nothing to train on"),
        (dict(folds=26), "has 50 examples, fewer than two for each"),
        (dict(tested_on="validation"), "has no official validation split with labels"),
    ],
)
def test_what_cannot_be_cut(how: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        load(name=table(tmp_path), **how)  # type: ignore[arg-type]


def test_an_official_validation_split_takes_the_place_of_test(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.npz", np.random.default_rng(0)
    sizes = {"train": 40, "validation": 6, "test": 8}
    arrays = {f"x_{s}": rng.normal(size=(n, 2)).astype(np.float32) for s, n in sizes.items()}
    np.savez(path, **arrays, **{f"y_{s}": np.arange(n) % 2 for s, n in sizes.items()})
    data = load(name=str(path), tested_on="validation", validation=0.1)
    np.testing.assert_array_equal(data.test.column("x"), arrays["x_validation"])
    assert (len(data.train), len(data.validation)) == (36, 4)
    with pytest.raises(SettingsError, match="folds=2: .* has an official test split; leave folds out"):
        load(name=str(path), folds=2)
