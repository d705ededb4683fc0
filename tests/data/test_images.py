"""Folders of images, what is held out, and the cache of decoded sets."""

import json
import os
import pathlib
import shutil
import stat

import numpy as np
import pytest
from PIL import Image

from umbrella.data import cache, load
from umbrella.data.splits import held_out
from umbrella.settings import SettingsError

COUNTS = {"apple": 10, "pear": 20, "plum": 30}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """60 images; every pixel of an image is 3 * its number."""
    root, number = tmp_path / "fruit", 0
    for name, count in COUNTS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (6, 4), (3 * number, 0, 1)).save(root / name / f"{i:02}.png")
            number += 1
    return root


def whole(source):
    return source.__getitems__(np.arange(len(source)))


def test_pixels_labels_and_shares(folder):
    data = load(name=str(folder), validation=0.25)
    assert data.info["class_names"] == ("apple", "pear", "plum") and data.info["shape"] == (4, 6, 3)
    # 20 % of 10, 20, 30, then a quarter of the remaining 8, 16, 24.
    for split, counts in ((data.test, [2, 4, 6]), (data.validation, [2, 4, 6]), (data.train, [6, 12, 18])):
        assert np.bincount(split.column("y")).tolist() == counts
    rows = [whole(s) for s in (data.train, data.validation, data.test)]
    x, y = np.concatenate([r["x"] for r in rows]), np.concatenate([r["y"] for r in rows])
    number = x[:, 0, 0, 0].astype(int) // 3
    assert sorted(number.tolist()) == list(range(60))  # every image once
    assert y.tolist() == [0 if n < 10 else 1 if n < 30 else 2 for n in number]
    assert (x == x[:, :1, :1]).all() and (x[..., 2] == 1).all() and x.dtype == np.uint8


def test_lazy_equals_in_memory_equals_cached(folder):
    sets = [
        load(name=str(folder), in_memory=m, cache=c)
        for m, c in ((False, True), (True, False), (True, True), (None, True))
    ]
    for data in sets[1:]:
        assert data.fingerprint == sets[0].fingerprint and data.info == sets[0].info
        for one, other in zip(data[3:6], sets[0][3:6], strict=True):
            for k, v in whole(one).items():
                np.testing.assert_array_equal(v, whole(other)[k])


def test_the_test_split_does_not_depend_on_the_seed_and_the_validation_split_does(folder):
    a, b = load(name=str(folder), split_seed=0), load(name=str(folder), split_seed=1)
    np.testing.assert_array_equal(a.test.column("x"), b.test.column("x"))
    assert (a.validation.column("x") != b.validation.column("x")).any()


def test_nothing_held_out(folder):
    data = load(name=str(folder), validation=0)
    assert len(data.validation) == 0 and len(data.train) == 48


def test_official_splits_are_used(folder, tmp_path):
    root = tmp_path / "split"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for name in COUNTS:
            os.symlink(folder / name, root / split / name)
    data = load(name=str(root), validation=0)
    assert len(data.train) == len(data.test) == 60


def test_resizing_and_grey(folder):
    assert load(name=str(folder), size=8).info["shape"] == (8, 8, 3)
    for path in folder.glob("*/*.png"):
        Image.open(path).convert("L").save(path)
    assert load(name=str(folder)).info["shape"] == (4, 6, 1)


def test_an_empty_class_folder_and_a_folder_of_nothing(folder, tmp_path):
    (folder / "quince").mkdir()
    with pytest.raises(SettingsError, match="quince: no images"):
        load(name=str(folder))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SettingsError, match="without class folders"):
        load(name=str(tmp_path / "nothing"))


# ---------------------------------------------------------------------------------------------------------------- cache
def entries():
    return [p for p in cache.folder().iterdir() if not p.name.startswith(".")]


def test_the_cache_is_private_mapped_and_complete(folder):
    load(name=str(folder))
    (entry,) = entries()
    for place in (cache.folder(), entry):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert [p for p in cache.folder().iterdir() if p != entry] == []  # no drafts left
    data = load(name=str(folder), validation=0)
    assert isinstance(cache.keep(entry.name, lambda: pytest.fail("made again"))[0]["train"].arrays["x"], np.memmap)
    assert len(data.train) == 48


@pytest.mark.parametrize(
    "damage",
    [
        lambda e: (e / "0_0.npy").write_bytes((e / "0_0.npy").read_bytes()[:-10]),
        lambda e: (e / "0_0.npy").write_bytes(b"\x00" * 500 + (e / "0_0.npy").read_bytes()[500:]),
        lambda e: (e / "0_1.npy").unlink(),
        lambda e: (e / "manifest.json").write_text("{"),
        lambda e: (e / "manifest.json").write_text("[]"),
        lambda e: (e / "manifest.json").write_text(json.dumps({"format": 0})),
        lambda e: e.chmod(0o777),
    ],
)
def test_a_damaged_cache_is_made_anew(folder, damage):
    good = whole(load(name=str(folder)).train)
    (entry,) = entries()
    damage(entry)
    again = whole(load(name=str(folder)).train)
    for k in good:
        np.testing.assert_array_equal(good[k], again[k])
    assert entries() == [entry]
    assert cache.keep(entry.name, lambda: pytest.fail("not made anew"))


def test_one_altered_bit_of_the_data_is_noticed(folder):
    good = whole(load(name=str(folder)).train)["x"]
    file = entries()[0] / "0_0.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    np.testing.assert_array_equal(good, whole(load(name=str(folder)).train)["x"])


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load(name=str(folder), validation=0).train) == 48


def test_changed_files_are_another_set(folder):
    first = load(name=str(folder))
    Image.new("RGB", (6, 4), (255, 255, 255)).save(folder / "pear" / "03.png")
    second = load(name=str(folder))
    assert first.fingerprint != second.fingerprint
    assert any((s.column("x") == 255).all(axis=(1, 2, 3)).any() for s in second[3:6])


def test_a_mapped_source_travels_as_its_file_names(folder):
    import pickle

    load(name=str(folder))
    source = cache.keep(entries()[0].name, lambda: pytest.fail("made again"))[0]["train"]
    sent = pickle.dumps(source)
    assert len(sent) < 1000 < source.arrays["x"].nbytes
    np.testing.assert_array_equal(pickle.loads(sent).arrays["x"], source.arrays["x"])


# --------------------------------------------------------------------------------------------------------------- shares
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_shares_are_off_by_less_than_one_example(share):
    y = np.random.default_rng(0).integers(0, 7, 500)
    rows = held_out(y, 500, share, (0,))
    assert len(rows) == round(500 * share) == len(set(rows.tolist()))
    taken, there = np.bincount(y[rows], minlength=7), np.bincount(y)
    assert (np.abs(taken - there * share) < 1).all()


def test_a_rare_class_keeps_a_row_where_every_class_must():
    """Of 204 rows 20: 200 / 204 of them is 19.6, so the four of class 1 get .4, which is none."""
    y = np.r_[np.zeros(200, int), np.ones(4, int)]
    assert np.bincount(y[held_out(y, 204, 20 / 204, (0,))], minlength=2).tolist() == [20, 0]
    assert np.bincount(y[held_out(y, 204, 20 / 204, (0,), least=1)]).tolist() == [19, 1]
    assert len(held_out(np.arange(9), 9, 2 / 9, (0,), least=1)) == 2  # more classes than rows


def test_two_folders_of_one_split_are_refused(folder):
    for name in ("train", "val", "validation"):
        shutil.copytree(folder, folder.parent / "both" / name)
    with pytest.raises(SettingsError, match="val, validation: two of these are the same split"):
        load(name="both", path=str(folder.parent / "both"))


@pytest.mark.parametrize("validation", [-0.1, 1.0, 2])
def test_validation_outside_its_range(validation):
    with pytest.raises(SettingsError, match=r"must be in \[0, 1\)"):
        load(name="iris", validation=validation)
