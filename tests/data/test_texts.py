"""Labelled texts and their words."""

from pathlib import Path

import numpy as np
import pytest

from umbrella import data
from umbrella.data import texts
from umbrella.data.words import Vocabulary, split
from umbrella.settings import SettingsError


def test_a_table_of_labels_and_texts(tmp_path: Path) -> None:
    """Quotes are characters, a byte-order mark is none, blank lines are nothing; text may hold further tabs."""
    path = tmp_path / "t.tsv"
    path.write_bytes('\ufeffham\tone "two\nspam\tthree\tfour\r\n\nham\tdéjà vu\n'.encode())
    found = texts.read_table(path, encoding="utf-8")
    train = found.splits["train"]
    assert [v.decode() for v in train.column("x")] == ['one "two', "three\tfour", "déjà vu"]
    assert train.column("y").tolist() == [0, 1, 0]
    assert found.info["class_names"] == ("ham", "spam") and found.info["kind"] == "text"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("ham\tone\nspam two\n", r"line 2: wanted label<TAB>text, found 'spam two'"),
        ("ham\tone\n\ttwo\n", r"line 2: wanted label<TAB>text"),
        ("ham\tone\nspam\t \n", r"line 2: wanted label<TAB>text"),
        ("ham\tone\nham\ttwo\n", r"all texts are of the class 'ham'; wanted two classes"),
        ("\n", r"no text in it"),
        ("label\ttext\nham\tone\nspam\ttwo\nham\tthree\n", r"line 1: no other text has the label 'label'; a header"),
        (b"\xff\xfeh\0a\0m\0", r"byte 3 is zero; it begins as encoding='utf-16' does"),
        (b"\x89PNG\0\n", r"byte 4 is zero; this is no text"),
        (b"ham\t\xe9t\xe9\nspam\tx\n", r"byte 4 is not utf-8 text; name what it is"),
    ],
)
def test_a_table_is_refused_with_its_line(content: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=words):
        data.load(name="mine", path=str(path))


def test_what_is_there_twice_counts_once(tmp_path: Path) -> None:
    """And is told of; the same text under another label is another row."""
    path = tmp_path / "t.tsv"
    path.write_text("a\tone\nb\ttwo\na\tone\nb\tone\nb\ttwo\n")
    found = texts.read_table(path, encoding="utf-8")
    train = found.splits["train"]
    assert train.column("x").tolist() == [b"one", b"two", b"one"] and train.column("y").tolist() == [0, 1, 1]
    assert found.source.endswith(", without 2 copies")


def test_wide_characters_are_text_when_they_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes("a\tone\nb\ttwo\n".encode("utf-16"))
    assert texts.read_table(path, encoding="utf-16").splits["train"].column("x").tolist() == [b"one", b"two"]


def test_a_folder_with_a_file_for_each_class(tmp_path: Path) -> None:
    """Called the same, the ending tells the classes; else the name. An encoding is what the user says it is."""
    for folder, files in {"endings": ("r.pos", "r.neg"), "names": ("pos.txt", "neg.txt")}.items():
        (tmp_path / folder).mkdir()
        for file, line in zip(files, (b"caf\xe9 good", b"bad"), strict=True):
            (tmp_path / folder / file).write_bytes(line + b"\n" + line + b" again\n")
        found = data.load(name="mine", path=str(tmp_path / folder), encoding="windows-1252", validation=0.0)
        assert found.info["class_names"] == ("neg", "pos")
        every = {bytes(v).decode() for s in (found.train, found.test) for v in s.column("x")}
        assert every == {"café good", "café good again", "bad", "bad again"}
    with pytest.raises(SettingsError, match=r"pos\.txt: byte 3 is not utf-8 text"):
        data.load(name="mine", path=str(tmp_path / "names"))
    with pytest.raises(SettingsError, match="no such encoding"):
        data.load(name="mine", path=str(tmp_path / "names"), encoding="utf-7000")
    (tmp_path / "names" / "neg.md").write_text("worse\n")
    with pytest.raises(SettingsError, match="two files for one class among"):
        data.load(name="mine", path=str(tmp_path / "names"), encoding="latin-1")


@pytest.mark.parametrize("name", ["digits", "t.csv"])
def test_an_encoding_is_refused_where_it_would_do_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,target\n1,2\n")
    path = str(tmp_path / name) if "." in name else None
    with pytest.raises(SettingsError, match="takes no encoding='utf-8'"):
        data.load(name=name, path=path, encoding="utf-8")


@pytest.mark.slow
def test_docstrings_are_the_packages_own() -> None:
    """Sentences that are known, each once, under the package that says them."""
    found = data.load(name="docstrings")
    assert found.info["class_names"] == ("numpy", "scikit-learn", "scipy")
    both = [(bytes(x).decode(), int(y)) for s in found[3:6] for x, y in zip(s.column("x"), s.column("y"), strict=True)]
    assert len(both) == len({x for x, _ in both}) > 5000
    assert ("Transform features by scaling each feature to a given range.", 1) in both
    assert ("Return the shape of an array.", 0) in both


def test_a_vocabulary_by_hand() -> None:
    """In "b a b . c b a": b 3, a 2, "." and c 1. Four places are padding, unknown, b and a: two words are left out."""
    made = Vocabulary.of(["b a b . c", "B a"], most=4)
    assert made.words == ("", "?", "b", "a") and made.counts.tolist() == [0, 2, 3, 2]
    assert made.encode(["a z b", "", "b b b b b"], 4).tolist() == [[3, 1, 2, 0], [0, 0, 0, 0], [2, 2, 2, 2]]
    assert Vocabulary.of(["b a b . c", "B a"], most=10, least=2).words == ("", "?", "b", "a")
    assert Vocabulary.of(["b a b . c"], most=10).words == ("", "?", "b", ".", "a", "c")  # ties by alphabet
    assert made.decode(np.array([3, 1, 0])) == "a ?"


def test_words_are_lower_case_and_signs_are_words() -> None:
    assert split("It isn't\u00a0Ärger-frei, 3.5!") == ["it", "isn't", "ärger", "-", "frei", ",", "3", ".", "5", "!"]
