"""Pairs of texts: how they are read and split, what is refused, and the words of numbers."""

from pathlib import Path

import pytest

from umbrella.data import pairs
from umbrella.data.numbers import english, french
from umbrella.data.splits import overlap
from umbrella.settings import SettingsError

WORDS = {  # as grammars print them
    0: ("zero", "zéro"),
    16: ("sixteen", "seize"),
    17: ("seventeen", "dix-sept"),
    21: ("twenty-one", "vingt et un"),
    22: ("twenty-two", "vingt-deux"),
    70: ("seventy", "soixante-dix"),
    71: ("seventy-one", "soixante et onze"),
    77: ("seventy-seven", "soixante-dix-sept"),
    80: ("eighty", "quatre-vingts"),
    81: ("eighty-one", "quatre-vingt-un"),
    91: ("ninety-one", "quatre-vingt-onze"),
    99: ("ninety-nine", "quatre-vingt-dix-neuf"),
    100: ("one hundred", "cent"),
    101: ("one hundred and one", "cent un"),
    200: ("two hundred", "deux cents"),
    201: ("two hundred and one", "deux cent un"),
    280: ("two hundred and eighty", "deux cent quatre-vingts"),
    1000: ("one thousand", "mille"),
    2021: ("two thousand and twenty-one", "deux mille vingt et un"),
    80_000: ("eighty thousand", "quatre-vingt mille"),
    200_200: ("two hundred thousand two hundred", "deux cent mille deux cents"),
    999_999: (
        "nine hundred and ninety-nine thousand nine hundred and ninety-nine",
        "neuf cent quatre-vingt-dix-neuf mille neuf cent quatre-vingt-dix-neuf",
    ),
}


@pytest.mark.parametrize("n", WORDS)
def test_numbers_in_words(n: int) -> None:
    assert (english(n), french(n)) == WORDS[n]


def test_every_number_has_its_own_words() -> None:
    some = [*range(10_000), *range(10_000, 1_000_000, 997)]
    assert len({english(n) for n in some}) == len({french(n) for n in some}) == len(some)
    for wrong in (-1, 1_000_000):
        with pytest.raises(ValueError, match="there are words for"):
            french(wrong)


def file(folder: Path, text: str, name: str = "p.tsv") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


LINES = "".join(f"s{i % 20}\tt{i}\tmore\n" for i in range(60)) + "\n" + "s0\tt0\n"


def test_no_source_of_test_or_validation_is_in_train(tmp_path: Path) -> None:
    d = pairs.load(name="pairs", path=file(tmp_path, LINES), held_out=5, validation=0.2)
    of = {s: set(pairs.texts(getattr(d, s)).sources) for s in pairs.SPLITS}
    assert {s: len(v) for s, v in of.items()} == {"train": 12, "validation": 3, "test": 5}
    assert len(set.union(*of.values())) == 20 and overlap(d) == {"validation": 0, "test": 0}
    everything = [p for s in pairs.SPLITS for p in zip(*pairs.texts(getattr(d, s)), strict=True)]
    assert sorted(everything) == sorted((f"s{i % 20}", f"t{i}") for i in range(60))  # the copy once
    other = pairs.load(name="pairs", path=file(tmp_path, LINES), held_out=5, validation=0.2, split_seed=1)
    assert set(pairs.texts(other.test).sources) == of["test"]
    assert set(pairs.texts(other.train).sources) != of["train"]


def test_translations_of_one_source_are_together() -> None:
    made = pairs.by_source(pairs.Pairs(("a", "b", "a"), ("x", "y", "z")))
    assert made == {"a": ["x", "z"], "b": ["y"]} and list(made) == ["a", "b"]


def test_a_folder_of_three_keeps_its_splits_but_for_what_is_held_out(tmp_path: Path) -> None:
    for name, text in {"x_train.tsv": "a\t1\nb\t2\nc\t3\n", "x_val.tsv": "b\t4\n", "x_test_2016.tsv": "d\t5\n"}.items():
        file(tmp_path, text, name)
    file(tmp_path, "not a pair", "fra.txt")
    d = pairs.load(name="pairs", path=str(tmp_path))
    assert pairs.texts(d.train) == (("a", "c"), ("1", "3"))
    assert pairs.texts(d.validation) == (("b",), ("4",)) and "without 1 of train" in d.source


def test_numbers_are_a_set_without_a_file() -> None:
    d = pairs.load(name="numbers", rows=100)
    assert [len(getattr(d, s)) for s in pairs.SPLITS] == [72, 8, 20] and "made by rule" in d.source
    assert d.fingerprint == pairs.load(name="numbers", rows=100).fingerprint
    assert d.fingerprint != pairs.load(name="numbers", rows=101).fingerprint
    value = {english(n): n for n in range(10_000)}  # half of them are below this
    small = [(s, t) for s, t in zip(*pairs.texts(d.train), strict=True) if s in value]
    assert len(small) > 20 and all(t == french(value[s]) for s, t in small)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\tb\nno tab\n", r"p.tsv: line 2: wanted source<TAB>target, found 'no tab'"),
        ("a\tb\n\n\tb\n", r"p.tsv: line 3: wanted source<TAB>target"),
        ("a\t \n", r"p.tsv: line 1: wanted source<TAB>target"),
        ("\n", r"p.tsv: no pair in it"),
        ("a\tb\nc\td\n", r"2 distinct sources are too few to hold out 1,000"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as e:
        pairs.load(name="pairs", path=file(tmp_path, text), held_out=1000)
    assert "\n" not in str(e.value)


def test_other_refusals(tmp_path: Path) -> None:
    (tmp_path / "latin.tsv").write_bytes("été\tx".encode("latin-1"))
    file(tmp_path, "a\tb", "train.tsv")
    cases = {
        r"name='pairs': whose\? Give path": dict(name="pairs"),
        "name='numbers': are made by rule": dict(name="numbers", path="x"),
        "no such file or folder": dict(name="pairs", path=str(tmp_path / "none.tsv")),
        "latin.tsv: byte 0 is not utf-8 text": dict(name="pairs", path=str(tmp_path / "latin.tsv")),
        "wanted one .tsv file with 'val' or 'dev' in its name, found none": dict(name="pairs", path=str(tmp_path)),
        "there are numbers for 500,000": dict(name="numbers", rows=500_001),
        "held_out=1: a folder has its own": dict(name="pairs", path=str(tmp_path), held_out=1),
    }
    for told, given in cases.items():
        with pytest.raises(SettingsError, match=told):
            pairs.load(**given)
