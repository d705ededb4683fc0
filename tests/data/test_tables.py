"""csv and npz: what is read, and the one line for everything that cannot be."""

import csv
import io
import pathlib
import pickle

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


@pytest.mark.parametrize(
    "variant", ["\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD.replace("1,2", '"1","2"'), GOOD + "\n"]
)
def test_a_byte_order_mark_crlf_quotes_and_blank_lines_change_nothing(tmp_path, variant):
    plain, other = load(name=table(tmp_path, GOOD)), load(name=table(tmp_path, variant))
    np.testing.assert_array_equal(plain.train.column("x"), other.train.column("x"))
    np.testing.assert_array_equal(plain.test.column("y"), other.test.column("y"))


def test_numbers_with_a_fraction_are_a_regression_target(tmp_path):
    data = load(name=table(tmp_path, "a,price\n1,1.5\n2,2.5\n3,1.5\n4,2.5\n"), target="price", validation=0)
    assert data.info["classes"] is None
    y = everything(data, "y")
    assert y.dtype == np.float32 and sorted(y.tolist()) == [1.5, 1.5, 2.5, 2.5]


def test_whole_numbers_that_repeat_are_classes_in_increasing_order(tmp_path):
    rows = "".join(f"{i},{(3, 10)[i % 2]}\n" for i in range(10))
    data = load(name=table(tmp_path, "a,y\n" + rows), validation=0)
    assert data.info["class_names"] == ("3", "10")


def test_a_quoted_newline_is_part_of_a_field(tmp_path):
    data = load(name=table(tmp_path, GOOD.replace("no", '"n\no"')), validation=0)
    assert data.info["class_names"] == ("n\no", "yes")


BAD = {
    "ragged": (GOOD + "9,10\n", "row 6: 2 fields, but the header has 3"),
    "long": (GOOD + "9,10,no,1\n", "row 6: 4 fields"),
    "word": (GOOD.replace("4", "four"), "row 3, column 'b': 'four' is no number"),
    "underscore": (GOOD.replace("4", "4_0"), "row 3, column 'b'"),
    "gap": (GOOD.replace("4", ""), "row 3, column 'b': is empty"),
    "no label": (GOOD + "9,10,\n", "row 6, column 'target': is empty"),
    "nan": (GOOD.replace("4", "nan"), "row 3, column 'b': 'nan' is not finite"),
    "infinite": (GOOD.replace("4", "1e99"), "row 3, column 'b': '1e99' is not finite"),
    "empty": ("", "an empty file"),
    "header only": ("a,b,target\n", "a header and no rows"),
    "no target": ("a,b\n1,2\n", "which column is the target"),
    "only target": ("target\n1\n", "at least one more column"),
    "twice": ("a,a,target\n1,2,3\n", "row 1, column 2: 'a' again"),
    "unnamed": (",b,target\n1,2,3\n", "row 1, column 1: no name"),
    "quote": ('a,target\n"1,2\n', "not well-formed csv"),
    "huge field": (GOOD + "9," + "1" * 10**6 + ",no\n", "row 6: not well-formed csv"),
    "latin-1": (GOOD.encode() + b"9,10,\xe9\n", "not UTF-8"),
    "slip": ("a,target\n1,0.5\n2,1.5\n3,oops\n4,2\n", "row 4, column 'target': 'oops' is no number"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_table_names_file_row_and_column(tmp_path, case):
    content, words = BAD[case]
    with pytest.raises(SettingsError) as e:
        load(name=table(tmp_path, content))
    assert words in str(e.value) and "t.csv" in str(e.value) and "\n" not in str(e.value)


def test_a_misspelt_target_is_corrected(tmp_path):
    with pytest.raises(SettingsError, match="did you mean 'target'"):
        load(name=table(tmp_path, GOOD), target="targat")


def test_random_damage_gives_typed_errors_only(tmp_path):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.ones((6, 2), np.float32), y=np.arange(6) % 2)
    for suffix, good in (("csv", GOOD.encode()), ("npz", buffer.getvalue())):
        for i in range(300):
            damaged = bytearray(good)
            for at in rng.integers(0, len(good), 1 + i % 4):
                damaged[at] = rng.integers(0, 256)
            path = tmp_path / f"damaged.{suffix}"
            path.write_bytes(bytes(damaged[: rng.integers(0, len(good))] if i % 3 == 0 else damaged))
            try:
                load(name=str(path))
            except SettingsError as e:
                assert "\n" not in str(e)


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


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("column", ["x", "extra"])
def test_a_pickled_object_is_refused_and_does_not_run(tmp_path, column):
    canary = tmp_path / "canary"
    arrays = {"x": np.zeros((2, 1)), "y": np.arange(2), column: np.array([Canary(str(canary))] * 2, object)}
    path = npz(tmp_path, **arrays)
    canary.unlink(missing_ok=True)
    with pytest.raises(SettingsError, match="pickled"):
        load(name=path)
    renamed = tmp_path / "b.npz"
    renamed.write_bytes(pickle.dumps(Canary(str(canary))))
    with pytest.raises(SettingsError, match="no npz"):
        load(name=str(renamed))
    assert not canary.exists()


def test_a_shape_that_the_file_does_not_hold_is_refused_before_it_is_allocated(tmp_path):
    import zipfile

    header = io.BytesIO()
    claims = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**3)}
    np.lib.format.write_array_header_1_0(header, claims)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as z:
        z.writestr("x.npy", header.getvalue())
    with pytest.raises(SettingsError, match="which is not what it holds"):
        load(name=str(tmp_path / "bomb.npz"))


def test_the_csv_module_is_left_as_it_was():
    assert csv.field_size_limit() == 131072
