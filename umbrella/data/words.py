"""Words as numbers. Floor 4."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PAD, UNKNOWN = 0, 1  # of every vocabulary
_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def split(text: str) -> list[str]:
    """The words and signs of a text, in lower case.

    >>> split("It's 5 o'clock -- NOW!")
    ["it's", '5', "o'clock", '-', '-', 'now', '!']
    """
    return _WORD.findall(text.lower())


class Vocabulary(NamedTuple):
    """Which word has which number: its place in `words`. The first two stand for padding and for any other word."""

    words: tuple[str, ...]
    counts: np.ndarray  # i64[V], how often each was seen

    @classmethod
    def of(cls, texts: Sequence[str], most: int, least: int = 1) -> "Vocabulary":
        """The `most` commonest words, padding and unknown among them, that occur `least` times; ties by alphabet."""
        seen = Counter(word for text in texts for word in split(text))
        common = sorted((w for w, n in seen.items() if n >= least), key=lambda w: (-seen[w], w))[: max(0, most - 2)]
        rest = sum(seen.values()) - sum(seen[w] for w in common)
        return cls(("", "?", *common), np.array([0, rest, *(seen[w] for w in common)], np.int64))

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """i32[N, length]: the first `length` words of every text, then padding.

        >>> Vocabulary.of(["a b a"], most=3).encode(["a c a", ""], 4).tolist()
        [[2, 1, 2, 0], [0, 0, 0, 0]]
        """
        number = {w: i for i, w in enumerate(self.words) if i > UNKNOWN}
        out = np.full((len(texts), length), PAD, np.int32)
        for row, text in enumerate(texts):
            words = [number.get(w, UNKNOWN) for w in split(text)[:length]]
            out[row, : len(words)] = words
        return out

    def decode(self, tokens: np.ndarray) -> str:
        """The words of i32[T], without padding."""
        return " ".join(self.words[t] for t in tokens if t != PAD)
