"""Tokenizers: what they promise of any text, and what they refuse."""

import base64
import json
import random

import numpy as np
import pytest

from umbrella.data import tokenizers
from umbrella.data.tokenizers import END, MASK, PAD, START, UNKNOWN, BytePairs, Tokenizer, from_json, padded, train
from umbrella.settings import SettingsError

TEXT = "the cat sat on the mat\n  and the rat ate\tthe hat; that is that\n" * 5
SIGNS = [
    *" \n\t\r\0é▁▅😀\ufffd\ufeff\u0301\u2028\x85",
    "👩‍👩‍👧",
    "the ",
    "  ",
    "<pad>",
    "<0x41>",
    "<unk>",
    "你好",
    "e\u0301",
]


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return train("bpe", [TEXT], size=300)


def texts(n: int) -> list[str]:
    """Texts of what is hard and of characters from all of Unicode, without the lone halves of UTF-16 pairs."""
    draw = random.Random(0)

    def sign() -> str:
        some = chr(draw.randrange(0xD800)), chr(draw.randrange(0xE000, 0x110000)), draw.choice(SIGNS)
        return draw.choice(some)

    return ["".join(sign() for _ in range(draw.randrange(12))) for _ in range(n)]


def test_byte_pairs_lose_nothing(pieces: Tokenizer) -> None:
    for text in ["", " ", "\n", " a ", "\t\n x \n\n", TEXT, *SIGNS, *texts(2000)]:
        tokens = pieces.encode(text)
        assert tokens.dtype == np.int32 and tokens.ndim == 1
        assert tokens.size == 0 or (tokens.min() > MASK and tokens.max() < pieces.size)
        assert pieces.decode(tokens) == text


def test_byte_pairs_pair_what_is_frequent_and_spell_what_is_new(pieces: Tokenizer) -> None:
    assert len(pieces.encode("the")) == 1  # 20 times in the text
    assert pieces.encode("é").tolist() == [5 + 0xC3, 5 + 0xA9]  # U+00E9 in UTF-8, by its bytes behind five specials
    assert all("\n" not in p for p in pieces.pieces)


def test_two_trainings_give_the_same_bytes(pieces: Tokenizer) -> None:
    again = train("bpe", [TEXT], size=300)
    assert isinstance(again, BytePairs) and isinstance(pieces, BytePairs)
    assert again.proto == pieces.proto and again.to_json() == pieces.to_json()
    assert train("bpe", [TEXT], size=299).to_json() != pieces.to_json()


def test_training_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    train("bpe", ["one\0 two ▅ three ▁ four"], size=280)  # its own signs do not cost it the line
    with pytest.raises(SettingsError):
        train("bpe", [TEXT], size=9000)
    assert capfd.readouterr() == ("", "")


def test_characters() -> None:
    t = train("char", ["cab", "a\nb"])
    assert t.pieces == ("<pad>", "<unk>", "<start>", "<end>", "<mask>", "\n", "a", "b", "c")  # in the order of Unicode
    assert t.encode("abz\n").tolist() == [6, 7, UNKNOWN, 5] and t.decode(t.encode("abz\n")) == "ab\ufffd\n"
    assert train("char", ["cab", "a\nb"], size=7).pieces[5:] == ("a", "b")  # the two that occur twice


def test_words() -> None:
    t = train("whitespace", ["B b a.\n b", "c B"], size=8)
    assert t.pieces[5:] == ("B", "b", "a.")  # two, two and one; ties in the order of Unicode: B, b and a., c
    assert t.encode("a.  b\tc").tolist() == [7, 6, UNKNOWN] and t.decode(t.encode("a.  b\tc")) == "a. b \ufffd"


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_json_gives_the_same_tokenizer(kind: str) -> None:
    t = train(kind, [TEXT], size=300)
    again = from_json(json.loads(json.dumps(t.to_json())))
    assert again == t and again.size == t.size == len(t.pieces)
    assert again.encode(TEXT).tolist() == t.encode(TEXT).tolist()


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_specials_are_no_text(kind: str) -> None:
    t = train(kind, [TEXT], size=300)
    some = t.encode("the cat")
    around = np.array([START, *some, END, PAD, PAD, MASK], np.int32)
    assert t.decode(around) == t.decode(some) == "the cat"
    assert t.decode(np.array([UNKNOWN])) == "\ufffd"
    assert not set(t.encode("<pad> <start> <mask>").tolist()) & {PAD, START, END, MASK}
    with pytest.raises(IndexError):
        t.decode(np.array([t.size]))


def test_padded() -> None:
    t = train("char", ["abc"])
    assert padded(t, ["ab", "abcabc", ""], 5, start=True, end=True).tolist() == [
        [START, 5, 6, END, PAD],
        [START, 5, 6, 7, END],  # cut to three, and ended
        [START, END, PAD, PAD, PAD],
    ]
    with pytest.raises(SettingsError, match="length=2: leaves no room"):
        padded(t, ["a"], 2, start=True, end=True)


@pytest.mark.parametrize(
    ("kind", "given", "size", "told"),
    [
        ("bqe", ["a"], 300, "did you mean 'bpe'"),
        ("char", [" \n", ""], None, "there is no text"),
        ("whitespace", ["a"], 5, "size=5: must be more than the 5 special"),
        ("bpe", [TEXT], 9000, r"size=9,000: the text has pairs for \d+ only"),
        ("bpe", ["abc"], 264, "size=264: must be at least 265"),  # 5 + 256 + 3 and one pair
        ("bpe", ["abc"], None, "size=None: must be at least 265"),
    ],
)
def test_what_cannot_be_trained_is_refused(kind: str, given: list[str], size: int | None, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as e:
        train(kind, given, size=size)
    assert "\n" not in str(e.value)


def test_what_is_no_tokenizer_is_refused(pieces: Tokenizer) -> None:
    assert isinstance(pieces, BytePairs)
    cut = base64.b64encode(pieces.proto[:-60]).decode()
    for value in (
        None,
        {},
        {"kind": "bpe"},
        {"kind": "bpe", "proto": 3},
        {"kind": "bpe", "proto": "é"},
        {"kind": "bpe", "proto": ""},
        {"kind": "bpe", "proto": cut},
        {"kind": "char", "parts": "abc"},
        {"kind": "char", "parts": ["a", "a"]},
        {"kind": "char", "parts": ["ab"]},
        {"kind": "whitespace", "parts": [1]},
        {"kind": "whitespace", "parts": ["a"], "more": 1},
    ):
        with pytest.raises(SettingsError, match="tokenizer") as e:
            from_json(value)
        assert "\n" not in str(e.value)


def test_a_lone_surrogate_is_no_text(pieces: Tokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        pieces.encode("a\ud800")
