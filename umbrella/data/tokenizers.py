"""Text as numbers and back: by character, by word, by byte pairs. Floor 4.

    tokenizer = train("bpe", texts, size=1000)
    tokenizer.decode(tokenizer.encode("any text\n")) == "any text\n"

A tokenizer is a value: `to_json` says all of it, `from_json` makes it anew, and both ways lead to the same bytes. None
adds START or END by itself.
"""

import base64
import binascii
import collections
import dataclasses
import functools
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from umbrella.settings import SettingsError, near

PAD, UNKNOWN, START, END, MASK = range(5)  # of every tokenizer
SPECIALS = ("<pad>", "<unk>", "<start>", "<end>", "<mask>")
REPLACEMENT = "\ufffd"  # what UNKNOWN is decoded to
KINDS = ("char", "whitespace", "bpe")
_BYTES = 256  # pieces of "bpe" that stand for one byte of UTF-8, behind the specials
_SPACE = "\u2581"  # how sentencepiece writes a space


class Tokenizer(Protocol):
    """What every kind can do."""

    @property
    def kind(self) -> str: ...  # one of KINDS

    @property
    def size(self) -> int: ...  # numbers there are, specials included

    @property
    def pieces(self) -> tuple[str, ...]: ...  # what each number is, to be looked at

    def encode(self, text: str) -> np.ndarray:
        """i32[T] in [0, size), none of them a special but UNKNOWN."""

    def decode(self, tokens: np.ndarray) -> str:
        """The text of i32[T]; UNKNOWN is U+FFFD, the other specials are nothing. IndexError: a number of no piece."""

    def to_json(self) -> dict[str, Any]: ...


def train(kind: str, texts: Iterable[str], *, size: int | None = None) -> Tokenizer:
    """A tokenizer of what the texts consist of; the same texts in the same order give the same tokenizer.

    Args:
      kind: "char", the characters of the texts in the order of Unicode; "whitespace", the words between white space,
        the commonest first, which forgets what stood between them; "bpe", byte pairs by sentencepiece (Sennrich,
        Haddow and Birch 2016; Kudo and Richardson 2018), in which what was never seen is written by its bytes: any text
        comes back as it was. Its merges cross neither spaces nor ends of lines.
      size: specials included. "char" and "whitespace": at most so many, the commonest; None is all. "bpe": exactly so
        many.

    Raises:
      SettingsError: no such kind; no text; a size that the texts do not permit.

    >>> tokenizer = train("char", ["abba"])
    >>> tokenizer.encode("bac").tolist(), tokenizer.size
    ([6, 5, 1], 7)
    """
    if kind not in KINDS:
        raise SettingsError(f"tokenizer {kind!r}: there is none{near(kind, KINDS)}")
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise SettingsError(f"tokenizer {kind!r}: there is no text to learn it from")
    if size is not None and size <= len(SPECIALS):
        raise SettingsError(f"tokenizer {kind!r}: size={size}: must be more than the {len(SPECIALS)} special tokens")
    if kind == "bpe":
        return _trained(texts, size)
    parts = collections.Counter(p for text in texts for p in (text if kind == "char" else text.split()))
    common = sorted(parts, key=lambda p: (-parts[p], p))[: None if size is None else size - len(SPECIALS)]
    return Listed(kind, tuple(sorted(common) if kind == "char" else common))


def from_json(value: Any) -> Tokenizer:
    """The tokenizer that `to_json` wrote.

    Raises:
      SettingsError: it is no such thing, or not whole.
    """
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind not in KINDS or set(value) != {"kind", "proto" if kind == "bpe" else "parts"}:
        raise SettingsError(f"tokenizer: wanted what to_json gives, a kind of {', '.join(KINDS)}; found {value!r:.60}")
    if kind == "bpe":
        return _read(value["proto"])
    parts = value["parts"]
    fits = isinstance(parts, Sequence) and not isinstance(parts, str) and all(isinstance(p, str) and p for p in parts)
    if fits and kind == "char":
        fits = all(len(p) == 1 for p in parts)
    if not (fits and len(set(parts)) == len(parts)):
        raise SettingsError(f"tokenizer {kind!r}: its parts must be different texts; found {parts!r:.60}")
    return Listed(kind, tuple(parts))


def padded(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, *, start: bool = False, end: bool = False
) -> np.ndarray:
    """i32[N, length]: every text, cut where it is longer, then PAD; behind START and before END where wanted.

    A text that is cut keeps its END.
    """
    out = np.full((len(texts), length), PAD, np.int32)
    room = length - start - end
    if room < 1:
        raise SettingsError(f"length={length}: leaves no room for a token")
    for row, text in enumerate(texts):
        tokens = tokenizer.encode(text)[:room]
        whole = [*([START] * start), *tokens, *([END] * end)]
        out[row, : len(whole)] = whole
    return out


# ------------------------------------------------------------------------------------------------------------- by parts
@dataclasses.dataclass(frozen=True)
class Listed:
    """A number a part: a character, or a word that stands between white space, decoded with one space between."""

    kind: str
    parts: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(SPECIALS) + len(self.parts)

    @property
    def pieces(self) -> tuple[str, ...]:
        return SPECIALS + self.parts

    @functools.cached_property
    def _number(self) -> dict[str, int]:
        return {part: i for i, part in enumerate(self.parts, len(SPECIALS))}

    def encode(self, text: str) -> np.ndarray:
        parts = text if self.kind == "char" else text.split()
        return np.fromiter((self._number.get(part, UNKNOWN) for part in parts), np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        out = []
        for token in np.asarray(tokens).tolist():
            if not 0 <= token < self.size:
                raise IndexError(f"token {token}: there are {self.size}")
            if token >= len(SPECIALS):
                out.append(self.parts[token - len(SPECIALS)])
            elif token == UNKNOWN:
                out.append(REPLACEMENT)
        return ("" if self.kind == "char" else " ").join(out)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "parts": list(self.parts)}


# -------------------------------------------------------------------------------------------------------- by byte pairs
class BytePairs:
    """Byte pairs: a trained model of sentencepiece. Two are equal when their models are, byte for byte."""

    kind = "bpe"

    def __init__(self, proto: bytes) -> None:
        """RuntimeError: the bytes are no model."""
        import sentencepiece  # 0.1 s, so not for those who have other tokens

        self.proto = proto
        self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self._literal = [len(SPECIALS) + byte for byte in _SPACE.encode()]

    @property
    def size(self) -> int:
        return int(self._model.get_piece_size())

    @property
    def pieces(self) -> tuple[str, ...]:
        return tuple(self._model.id_to_piece(i) for i in range(self.size))

    def encode(self, text: str) -> np.ndarray:
        text.encode()  # a lone surrogate is no text: UnicodeEncodeError says where
        out: list[int] = []
        for i, part in enumerate(text.split(_SPACE)):  # a sign that is in the text is spelt, or it would become a space
            out += self._literal if i else []
            out += self._model.encode(part) if part else []
        return np.array(out, np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return str(self._model.decode(np.asarray(tokens).tolist()))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "proto": base64.b64encode(self.proto).decode()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BytePairs) and other.proto == self.proto

    def __hash__(self) -> int:
        return hash(self.proto)


def _trained(texts: list[str], size: int | None) -> BytePairs:
    import sentencepiece

    # A line with one of these signs, which sentencepiece keeps for itself, would be left out as a whole.
    lines = [line for text in texts for line in re.sub(f"[\0\u2585{_SPACE}]", "\n", text).splitlines() if line]
    taken = len(SPECIALS) + _BYTES
    characters = len(set().union(*lines))
    if size is None or size <= taken + characters:
        wanted = f"{taken} for specials and bytes, {characters} for the characters, and some for pairs"
        raise SettingsError(f"tokenizer 'bpe': size={size}: must be at least {taken + characters + 1:,}: {wanted}")
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=2**30,  # longer ones are left out, and here that is none
            num_threads=1,
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=START,
            eos_id=END,
            pad_piece=SPECIALS[PAD],
            unk_piece=SPECIALS[UNKNOWN],
            bos_piece=SPECIALS[START],
            eos_piece=SPECIALS[END],
            control_symbols=[SPECIALS[MASK]],
            unk_surface=REPLACEMENT,
            minloglevel=5,  # silent: what goes wrong is raised
        )
    except RuntimeError as e:
        most = str(e).rpartition("<= ")[2].rstrip(".")
        if "too high" in str(e) and most.isdigit():
            raise SettingsError(f"tokenizer 'bpe': size={size:,}: the text has pairs for {int(most):,} only") from None
        raise SettingsError(f"tokenizer 'bpe': size={size}: {e}") from None
    return BytePairs(out.getvalue())


def _read(proto: Any) -> BytePairs:
    try:
        found = BytePairs(base64.b64decode(proto, validate=True))
    except (TypeError, ValueError, binascii.Error, RuntimeError):
        raise SettingsError(f"tokenizer 'bpe': its proto is no model of sentencepiece; found {proto!r:.40}") from None
    if found.pieces[: len(SPECIALS)] != SPECIALS or found.size < len(SPECIALS) + _BYTES:
        raise SettingsError("tokenizer 'bpe': a model of sentencepiece, and none of those that are trained here")
    return found
