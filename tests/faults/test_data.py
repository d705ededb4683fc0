"""F42 to F50: data that is not as it should be."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import umbrella as um
from tests.conftest import ROOT
from tests.data.test_sets import PREPARED, TFRECORD, needs_sets, needs_tfrecord
from umbrella import cli
from umbrella.data import load
from umbrella.data.__main__ import main
from umbrella.pipelines import _classes
from umbrella.settings import SettingsError

GOOD = "a,b,target\n1,2,no\n3,4,yes\n5,6,no\n7,8,yes\n"


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def table(tmp_path: pathlib.Path, content: str | bytes) -> str:
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


# ----------------------------------------------------------------------------------------------------------------- text
@pytest.mark.parametrize(
    "variant", ["\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD.replace("1,2", '"1","2"'), GOOD + "\n"]
)
def test_F42_a_byte_order_mark_crlf_quotes_and_blank_lines_change_nothing(tmp_path, variant):
    plain, other = load(name=table(tmp_path, GOOD)), load(name=table(tmp_path, variant))
    np.testing.assert_array_equal(plain.train.column("x"), other.train.column("x"))
    np.testing.assert_array_equal(plain.test.column("y"), other.test.column("y"))


def test_F42_a_quoted_newline_is_part_of_a_field(tmp_path):
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
    "slip": ("a,target\n1,0.5\n2,1.5\n3,oops\n4,2\n", "row 4, column 'target': 'oops' is no number"),
}


@pytest.mark.parametrize("case", BAD)
def test_F42_a_malformed_table_names_file_row_and_column(tmp_path, case):
    content, words = BAD[case]
    with pytest.raises(SettingsError) as e:
        load(name=table(tmp_path, content))
    assert words in str(e.value) and "t.csv" in str(e.value) and "\n" not in str(e.value)


def test_F42_rows_that_occur_twice_are_rows(tmp_path):
    """A table without a column of dates is in no order; of two equal rows, both count."""
    data = load(name=table(tmp_path, GOOD + GOOD.split("\n", 1)[1]), validation=0)
    assert len(data.train) + len(data.test) == 8


@pytest.mark.parametrize("content", [b"\xe9", b"\xff\xfe1\x00", b"\x00"])
def test_F44_text_that_cannot_be_decoded(tmp_path, content):
    with pytest.raises(SettingsError, match="not UTF-8|no number|NUL") as e:
        load(name=table(tmp_path, GOOD.encode() + b"9," + content + b",no\n"))
    assert "t.csv" in str(e.value) and "\n" not in str(e.value)


# --------------------------------------------------------------------------------------------------------------- images
@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Three classes of ten images."""
    root = tmp_path / "fruit"
    for k, name in enumerate(("apple", "pear", "plum")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (6, 4), (9 * i, 60 * k, 1)).save(root / name / f"{i:02}.png")
    return root


def whole(source):
    return source.__getitems__(np.arange(len(source)))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(b""), "an empty file"),
        (lambda p: p.write_bytes(p.read_bytes()[:40]), "no image that can be read"),
        (lambda p: p.write_bytes(b"hello" * 20), "no image that can be read"),
        (lambda p: Image.new("RGB", (5, 4)).save(p), "5x4 pixels and 3 channels, but .* 6x4 .* size="),
        (lambda p: Image.new("I;16", (6, 4)).save(p), "8 bits per channel"),
    ],
)
def test_F43_a_bad_image_is_named(folder, damage, words, in_memory):
    damage(folder / "plum" / "07.png")
    with pytest.raises(SettingsError, match=words) as e:
        data = load(name=str(folder), in_memory=in_memory)
        for split in data[3:6]:
            whole(split)
    assert os.path.join("plum", "07.png") in str(e.value) and "\n" not in str(e.value)


def test_F43_colour_among_grey_is_an_error_not_a_loss(folder):
    Image.new("L", (6, 4)).save(folder / "apple" / "00.png")
    with pytest.raises(SettingsError, match="in colour in a set of grey"):
        load(name=str(folder))


def test_F43_huge_dimensions_are_refused_before_they_are_decoded(folder):
    """A header of 60,000 x 60,000 pixels in a file of a few bytes would unpack to 10 GB."""
    content = bytearray((folder / "plum" / "07.png").read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (folder / "plum" / "07.png").write_bytes(bytes(content))
    with pytest.raises(SettingsError) as e:
        load(name=str(folder))
    assert os.path.join("plum", "07.png") in str(e.value) and "\n" not in str(e.value)


def test_F43_the_message_says_what_resizes_and_that_does(folder):
    Image.new("RGB", (5, 4)).save(folder / "plum" / "07.png")
    with pytest.raises(SettingsError, match=r"resize them all with data.size=6 ") as e:
        load(name=str(folder))
    assert os.path.join("apple", "00.png") in str(e.value)  # the first image, which decides
    assert load(name=str(folder), size=6).info["shape"] == (6, 6, 3)


def launch(capsys, *argv: str) -> tuple[int, str]:
    status = cli.main(["launch.py", f"--config={ROOT}/configs/mlp.py", "--config.train_for=2 steps", *argv])
    return status, capsys.readouterr().err


def test_F43_a_folder_in_place_of_a_configs_set(folder, tmp_path, capsys):
    """--config.data.path alone: read, split by seed, and named for what it is, not for the set that it replaces."""
    small = ("--config.batch_size=8", "--config.evals={'test': ()}", "--config.baselines=majority")
    work = tmp_path / "w"
    status, err = launch(capsys, f"--config.data.path={folder}", f"--workdir={work}", *small)
    assert (status, err) == (0, "")
    told = json.loads((work / "summary.json").read_text())
    assert told["data"]["name"] == str(folder)
    assert [told["data"][f"n_{s}"] for s in ("train", "validation", "test")] == [22, 2, 6]
    assert list(told["baselines"]) == ["majority class"]


@pytest.mark.parametrize("held", ["val", "validation"])
def test_F43_a_folder_with_splits(folder, tmp_path, held):
    root = tmp_path / "splits"
    for split in ("train", held, "test"):
        shutil.copytree(folder, root / split)
    for name in ("apple", "pear", "plum"):
        (root / held / name / "00.png").unlink()
    data = load(name="digits", path=str(root))
    assert [len(s) for s in data[3:6]] == [30, 27, 30] and data.name == str(root)


def test_F43_on_the_command_line_a_bad_image_is_status_2(folder, tmp_path, capsys):
    (folder / "plum" / "07.png").write_bytes(b"hello" * 20)
    status, err = launch(capsys, f"--config.data.path={folder}", f"--workdir={tmp_path / 'w'}")
    assert status == 2 and err.count("\n") == 1 and os.path.join("plum", "07.png") in err


def test_F50_a_folder_without_images_is_not_taken_for_a_set(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    status, err = launch(capsys, f"--config.data.path={tmp_path / 'empty'}", f"--workdir={tmp_path / 'w'}")
    assert status == 2 and "empty: a folder without class folders of images or files of texts in it" in err


# --------------------------------------------------------------------------------------------------------------- labels
def images_npz(tmp_path: pathlib.Path, **labels: list[int]) -> dict:
    """A config on 4 x 4 images with these labels, by split."""
    from tests.faults.kit import config

    columns = {}
    for split, y in labels.items():
        columns |= {f"x_{split}": np.zeros((len(y), 4, 4), np.uint8), f"y_{split}": np.array(y)}
    np.savez(tmp_path / "a.npz", **columns)
    return config(data=dict(name=str(tmp_path / "a.npz"), validation=0.0), batch_size=2, train_for="1 step")


def test_F45_a_class_without_a_training_example_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"a.npz': no training example of class '1', '3'; give it some") as e:
        um.pipelines.build(images_npz(tmp_path, train=[0, 2, 4, 4], test=[0]))
    assert "\n" not in str(e.value)


def test_F45_a_label_that_is_no_class_is_named_by_split_and_row(tmp_path, monkeypatch):
    """What a reader let through, such as one label of a prepared set that is withheld."""
    made = images_npz(tmp_path, train=[0, 1, 1, 0], test=[0, 1, 1])
    found = load(**made["data"])
    for wrong in (-1, 2):
        columns = {**found.test.arrays, "y": np.array([0, wrong, 1], np.int32)}
        broken = found._replace(test=um.data.Arrays(columns))
        with pytest.raises(SettingsError, match=f"row 1 of test has the label {wrong}; the labels of 2 classes are 0"):
            _classes.check_labels(broken)


def test_F30_a_set_smaller_than_a_batch_is_told_of(tmp_path):
    """It is gone through more than once: F30 in test_numerics.py."""
    made = um.pipelines.build({**images_npz(tmp_path, train=[0, 1, 1], test=[0]), "batch_size": 4})
    assert made.notes == ("A batch of 4 is more than the training split has (3): it holds examples more than once.",)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (dict(y_train=np.array([0, -1, 1]), y_test=np.arange(3)), "row 1: label -1 is below 0"),
        (dict(y_train=np.array([0, 1, 1]), y_test=np.array([0, 1, 4])), "4"),
    ],
)
def test_F45_a_label_out_of_range(tmp_path, arrays, words):
    x = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x, **arrays)
    with pytest.raises(SettingsError, match=words) as e:
        load(name=str(tmp_path / "a.npz"), validation=0)
    assert "a.npz" in str(e.value) and "\n" not in str(e.value)


def test_F48_rows_of_test_that_occur_in_train_are_counted(tmp_path):
    """Three of five, by hand; and a split that we make ourselves shares no row."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (20, 4, 4), np.uint8)
    test = np.concatenate([x[[0, 5, 0]], rng.integers(0, 256, (2, 4, 4), np.uint8)])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(20) % 2, x_test=test, y_test=np.arange(5) % 2)
    assert um.data.overlap(load(name=str(tmp_path / "a.npz"), validation=0.2)) in (
        {"validation": 0, "test": n}
        for n in range(4)  # those that went into validation are in train no more
    )
    assert um.data.overlap(load(name=str(tmp_path / "a.npz"), validation=0)) == {"validation": 0, "test": 3}
    np.savez(tmp_path / "b.npz", x=x, y=np.arange(20) % 2)
    assert um.data.overlap(load(name=str(tmp_path / "b.npz"), validation=0.2)) == {"validation": 0, "test": 0}


def test_F48_an_overlap_is_told_of_in_summary_and_report(tmp_path):
    from tests.faults.kit import config

    x = np.random.default_rng(0).integers(0, 256, (40, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(40) % 2, x_test=x[:6], y_test=np.arange(6) % 2)
    where = dict(name=str(tmp_path / "a.npz"), validation=0)
    short = config(data=where, batch_size=8, train_for="3 steps")
    result = um.run(short, workdir=tmp_path / "w", quiet=True)
    assert result.summary["data"]["overlap"] == {"validation": 0, "test": 6}
    assert "6 of 6 rows of test occur in train, too" in (tmp_path / "w" / "report.html").read_text()


# ------------------------------------------------------------------------------------------------------- prepared sets
def copied(source: pathlib.Path, tmp_path: pathlib.Path, name: str) -> pathlib.Path:
    shutil.copytree(source / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


@needs_tfrecord
@pytest.mark.parametrize("where", ["length", "record", "end"])
def test_F49_a_damaged_tfrecord_file_is_named(tmp_path, where):
    base = copied(TFRECORD, tmp_path, "titanic")
    (file,) = base.rglob("*.tfrecord-*")
    content = bytearray(file.read_bytes())
    if where == "end":
        content = content[:-7]
    else:
        content[{"length": 0, "record": 100}[where]] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(SettingsError, match="cut short|checksum") as e:
        load(name="titanic", path=str(base))
    assert file.name in str(e.value) and "\n" not in str(e.value)


@needs_sets
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("*.array_record-*", b"\x00" * 100),
        ("*.array_record-*", None),
        ("features.json", b"{"),
        ("dataset_info.json", b"[1]"),
        ("dataset_info.json", b'{"splits": [], "fileFormat": "parquet"}'),
    ],
)
def test_F49_a_damaged_set_is_one_line(tmp_path, file, content):
    base = copied(PREPARED, tmp_path, "titanic")
    (path,) = base.rglob(file)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SettingsError, match="prepare") as e:
        load(name="titanic", path=str(base))
    assert "titanic" in str(e.value) and "\n" not in str(e.value)


def test_F49_a_download_whose_checksum_is_wrong_is_one_line(tmp_path, capsys, monkeypatch):
    """TFDS downloads, compares with its own checksums and removes what does not match; we say what it said."""
    import importlib.util

    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    class Builder:
        def download_and_prepare(self):
            raise NonMatchingChecksumError("Artifact https://example.org/mnist.gz has wrong checksum.\nSee the docs.")

    monkeypatch.setattr(importlib.util, "find_spec", lambda *a: object())
    monkeypatch.setattr(tfds, "builder", lambda *a, **k: Builder())
    assert main(["prepare", "mnist", "--data_dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "wrong checksum" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(name="mnist"), "run python -m umbrella.data prepare mnist"),
        (dict(name="glue/sst2"), "run python -m umbrella.data prepare glue/sst2"),
        (dict(name="digist"), "did you mean 'digits'"),
        (dict(name="mnits"), "did you mean 'mnist'"),
        (dict(name="zzzzzzzz"), "at hand: .*digits"),
        (dict(name="../../no_such"), "no data set"),
        (dict(name="no/such.csv"), "no such file"),
        (dict(name="no/such.npz"), "no such file"),
        (dict(name="mnist", path="/no/such/folder"), "no such folder"),
    ],
)
def test_F50_what_is_not_there_is_never_replaced(settings, words):
    with pytest.raises(SettingsError, match=words) as e:
        load(**settings)
    assert "\n" not in str(e.value)


def test_F39_F50_prepare_without_tensorflow_says_what_to_install(capsys, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "tensorflow" else found(n, *a))
    assert main(["prepare", "mnist"]) == 2
    err = capsys.readouterr().err
    assert "pip install -e '.[prepare]'" in err and err.count("\n") == 1
