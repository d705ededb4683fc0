"""Texts as numbers: of their words or characters, or of runs of them. Floor 4."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

PAD, UNKNOWN = 0, 1  # of every vocabulary
_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def split(text: str) -> list[str]:
    """The words and signs of a text, in lower case.

    >>> split("It's 5 o'clock -- NOW!")
    ["it's", '5', "o'clock", '-', '-', 'now', '!']
    """
    return _WORD.findall(text.lower())


def without(text: str, word: str) -> str:
    """The text without any of the places where `split` finds the word; all else as it was.

    >>> without("Call Now, or CALL us back", "call")
    '  Now, or   us back'
    """
    return _WORD.sub(lambda found: " " if found[0].lower() == word else found[0], text)


class Tokens(NamedTuple):
    """What a text is cut into: words or characters, in lower case; or all runs of them of some lengths.

    Of single ones the order is kept. Of runs every one counts once, the shorter ones first: whether it is there, not
    how often (Wang and Manning 2012); the order of the runs says nothing more.

    >>> Tokens("words", (1, 2)).of("to be or to be")
    ['to', 'be', 'or', 'to be', 'be or', 'or to']
    >>> Tokens("characters").of("Hi !")
    ['h', 'i', ' ', '!']
    """

    kind: Literal["words", "characters"] = "words"
    runs: tuple[int, int] = (1, 1)  # the shortest and the longest

    @property
    def ordered(self) -> bool:
        return self.runs == (1, 1)

    def of(self, text: str) -> list[str]:
        """The tokens of a text. Whatever blanks there are between characters count as one."""
        parts, between = (split(text), " ") if self.kind == "words" else (list(" ".join(text.lower().split())), "")
        if self.ordered:
            return parts
        low, high = self.runs
        runs = (between.join(parts[i : i + n]) for n in range(low, high + 1) for i in range(len(parts) - n + 1))
        return list(dict.fromkeys(runs))


class Vocabulary(NamedTuple):
    """Which word has which number: its place in `words`. The first two stand for padding and for any other word."""

    words: tuple[str, ...]
    counts: np.ndarray  # i64[V], how often each was seen
    texts: np.ndarray  # i64[V], in how many texts each was seen
    size: int  # how many texts there were
    tokens: Tokens = Tokens()

    @classmethod
    def of(cls, texts: Sequence[str], most: int, least: int = 1, tokens: Tokens = Tokens()) -> "Vocabulary":  # noqa: B008
        """The `most` commonest words, padding and unknown among them, that occur `least` times; ties by alphabet."""
        seen: Counter[str] = Counter()
        where: Counter[str] = Counter()
        for text in texts:
            found = tokens.of(text)
            seen.update(found)
            where.update(set(found))
        common = sorted((w for w, n in seen.items() if n >= least), key=lambda w: (-seen[w], w))[: max(0, most - 2)]
        rest = sum(seen.values()) - sum(seen[w] for w in common) if tokens.ordered else 0
        return cls(
            ("", "?", *common),
            np.array([0, rest, *(seen[w] for w in common)], np.int64),
            np.array([0, 0, *(where[w] for w in common)], np.int64),
            len(texts),
            tokens,
        )

    @property
    def idf(self) -> np.ndarray:
        """f64[V]: log((1 + N) / (1 + n)) + 1 of a word that is in n of N texts, as scikit-learn has it."""
        return np.asarray(np.log((1 + self.size) / (1 + self.texts)) + 1)

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """i32[N, length]: the first `length` words of every text, then padding. Unknown runs are left out.

        >>> Vocabulary.of(["a b a"], most=3).encode(["a c a", ""], 4).tolist()
        [[2, 1, 2, 0], [0, 0, 0, 0]]
        """
        number = {w: i for i, w in enumerate(self.words) if i > UNKNOWN}
        out = np.full((len(texts), length), PAD, np.int32)
        for row, text in enumerate(texts):
            words = self._known(text, number)[:length]
            out[row, : len(words)] = words
        return out

    def _known(self, text: str, number: dict[str, int]) -> list[int]:
        if self.tokens.ordered:
            return [number.get(w, UNKNOWN) for w in self.tokens.of(text)]
        return [number[w] for w in self.tokens.of(text) if w in number]

    def longest(self, texts: Sequence[str], share: float = 99.0) -> int:
        """How many tokens that it encodes `share` of 100 texts have at most; at least 1."""
        number = {w: i for i, w in enumerate(self.words) if i > UNKNOWN}
        long = [len(self._known(text, number)) for text in texts]
        return max(1, int(np.percentile(long, share, method="higher")))

    def decode(self, tokens: np.ndarray) -> str:
        """The words of i32[T], without padding."""
        return " ".join(self.words[t] for t in tokens if t != PAD)
