"""csv and npz: what is read, and the one line for everything that cannot be."""

import csv
import pathlib

import numpy as np
import pytest

from umbrella.data import load
from umbrella.settings import SettingsError

GOOD = "a,b,target\n1,2,no\n3,4,yes\n5,6,no\n7,8,yes\n"


def table(tmp_path: pathlib.Path, content: str | bytes) -> str:
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def everything(data, column):
    return np.concatenate([s.column(column) for s in (data.train, data.validation, data.test)])


def test_a_table_is_read_exactly(tmp_path):
    data = load(name=table(tmp_path, GOOD), validation=0)
    x, y = everything(data, "x"), everything(data, "y")
    rows = sorted(zip(x.tolist(), y.tolist(), strict=True))
    assert rows == [([1, 2], 0), ([3, 4], 1), ([5, 6], 0), ([7, 8], 1)]
    assert x.dtype == np.float32 and y.dtype == np.int32
    assert data.info["class_names"] == ("no", "yes") and data.info["features"] == ("a", "b")
    assert data.info["kind"] == "tabular" and data.info["shape"] == (2,) and data.info["classes"] == 2


def test_numbers_with_a_fraction_are_a_regression_target(tmp_path):
    data = load(name=table(tmp_path, "a,price\n1,1.5\n2,2.5\n3,1.5\n4,2.5\n"), target="price", validation=0)
    assert data.info["classes"] is None
    y = everything(data, "y")
    assert y.dtype == np.float32 and sorted(y.tolist()) == [1.5, 1.5, 2.5, 2.5]


def test_whole_numbers_that_repeat_are_classes_in_increasing_order(tmp_path):
    rows = "".join(f"{i},{(3, 10)[i % 2]}\n" for i in range(10))
    data = load(name=table(tmp_path, "a,y\n" + rows), validation=0)
    assert data.info["class_names"] == ("3", "10")


def test_a_misspelt_target_is_corrected(tmp_path):
    with pytest.raises(SettingsError, match="did you mean 'target'"):
        load(name=table(tmp_path, GOOD), target="targat")


def npz(tmp_path, **arrays) -> str:
    np.savez(tmp_path / "a.npz", **arrays)
    return str(tmp_path / "a.npz")


def test_npz_images_get_a_channel_and_labels_32_bits(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 5), np.uint8)
    data = load(
        name=npz(tmp_path, x_train=x, y_train=np.arange(20) % 4, x_test=x[:5], y_test=np.arange(5) % 4), validation=0
    )
    np.testing.assert_array_equal(data.train.column("x"), x[..., None])
    np.testing.assert_array_equal(data.test.column("x"), x[:5, ..., None])
    assert data.info["shape"] == (4, 5, 1) and data.info["scale"] == 255 and data.info["classes"] == 4
    assert data.train.column("y").dtype == np.int32


def test_npz_tables_are_32_bits_and_other_columns_keep_their_names(tmp_path):
    data = load(name=npz(tmp_path, x=np.ones((10, 3)), y=np.linspace(0, 1, 10)[:, None], group=np.arange(10)))
    assert data.info["kind"] == "tabular" and data.train.column("x").dtype == np.float32
    assert data.train.column("y").shape == (len(data.train),) and data.info["classes"] is None
    assert "group" in data.train.__getitems__(np.array([0]))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (dict(x=np.zeros((3, 2))), "no array 'y'"),
        (dict(images=np.zeros(3)), "no array 'x_train'; it has images"),
        (dict(x=np.zeros((3, 2)), y=np.zeros(4, int)), "different lengths: x 3, y 4"),
        (dict(x=np.zeros((3, 2)), y=np.array([0, -1, 1])), "row 1: label -1 is below 0"),
        (dict(x=np.array([[1.0], [np.nan]]), y=np.arange(2)), "row 1: NaN"),
        (dict(x=np.zeros((3, 2)), y=np.zeros(3, complex)), "dtype complex128"),
        (dict(x=np.float32(1), y=np.zeros(3)), "a single number"),
    ],
)
def test_npz_errors(tmp_path, arrays, words):
    with pytest.raises(SettingsError) as e:
        load(name=npz(tmp_path, **arrays))
    assert words in str(e.value) and "a.npz" in str(e.value)


def test_the_csv_module_is_left_as_it_was():
    assert csv.field_size_limit() == 131072
