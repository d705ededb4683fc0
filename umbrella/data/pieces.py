"""The tokens of a tokenizer in the place of a vocabulary of words: for classifiers that go on from a language model.
Floor 4."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from umbrella.data import tokenizers
from umbrella.data.tokenizers import Tokenizer


class Pieces(NamedTuple):
    """As `umbrella.data.words.Vocabulary`, by a tokenizer that was learnt elsewhere; texts are left as they are.

    >>> pieces = Pieces.of(tokenizers.train("char", ["abba"]), ["ab", "b"])
    >>> pieces.encode(["ba!"], 4).tolist(), pieces.counts[5:].tolist()
    ([[6, 5, 1, 0]], [1, 2])
    """

    tokenizer: Tokenizer
    counts: np.ndarray  # i64[V], how often each was seen
    texts: np.ndarray  # i64[V], in how many texts each was seen
    size: int  # how many texts there were
    tokens: str = "pieces"

    @classmethod
    def of(cls, tokenizer: Tokenizer, texts: Sequence[str]) -> "Pieces":
        """With the counts of the training texts."""
        counts, where = np.zeros((2, tokenizer.size), np.int64)
        for text in texts:
            found = tokenizer.encode(text)
            np.add.at(counts, found, 1)
            where[np.unique(found)] += 1
        return cls(tokenizer, counts, where, len(texts))

    @property
    def words(self) -> tuple[str, ...]:
        return self.tokenizer.pieces

    @property
    def idf(self) -> np.ndarray:
        """f64[V]: log((1 + N) / (1 + n)) + 1 of a token that is in n of N texts."""
        return np.asarray(np.log((1 + self.size) / (1 + self.texts)) + 1)

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """i32[N, length]: the first `length` tokens of every text, then padding."""
        return tokenizers.padded(self.tokenizer, texts, length)

    def longest(self, texts: Sequence[str], share: float = 99.0) -> int:
        """How many tokens `share` of 100 texts have at most; at least 1."""
        return max(1, int(np.percentile([len(self.tokenizer.encode(t)) for t in texts], share, method="higher")))
