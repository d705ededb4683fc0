"""What rows of generated tokens are worth, by n-gram models, and whether a game beats its start. Floor 5.

Quality and coverage are two different things, and a temperature trades one for the other (Caccia et al. 2020): quality
is what a model of held-out text thinks of samples, coverage what a model of the samples thinks of test text. So two
generators are compared at the temperature at which their samples are equally alike, by self-BLEU.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from umbrella import ngrams
from umbrella.data.sequences import Tokens
from umbrella.data.tokenizers import START
from umbrella.scores import interval

TESTED = 4_000  # rows of test that coverage is told of, at most
NAMES = ("judged_quality", "judged_coverage", "self_bleu", "copied")


class Told(NamedTuple):
    """What is said of rows."""

    quality: np.ndarray  # f64[N], of each row: nats per token under the model of held-out text
    coverage: np.ndarray  # f64[M], of each test row: nats per token under a model of these rows
    self_bleu: float
    copied: float  # the share of rows that stand in the training text, to the token

    @property
    def numbers(self) -> tuple[float, ...]:
        """In the order of NAMES."""
        return float(self.quality.mean()), float(self.coverage.mean()), self.self_bleu, self.copied


class Contest:
    """The text, as the judge of rows: n-gram models are made on demand, each once.

    Args:
      parts: train, validation and test.
      order: of the judge's n-grams.
      rows: how many are drawn from every generator.
    """

    def __init__(self, parts: Mapping[str, Tokens], size: int, length: int, order: int, rows: int):
        self.parts, self.size, self.length, self.order, self.rows = parts, size, length, order, rows

    @functools.cached_property
    def judge(self) -> ngrams.NGrams:
        """Of what nobody was trained on: validation and test."""
        return self._model(np.concatenate([whole_rows(self.parts[s]) for s in ("validation", "test")]))

    @functools.cached_property
    def test(self) -> np.ndarray:
        """i32[M, T], from all over the test text."""
        return some(whole_rows(self.parts["test"]), TESTED)

    @functools.cached_property
    def _train(self) -> tuple[np.ndarray, np.ndarray]:
        """(the training text, the sorted hashes of all its T tokens in a row)."""
        text = self.parts["train"].tokens.astype(np.uint64)
        return text, np.sort(hashes(np.lib.stride_tricks.sliding_window_view(text, self.length)))

    def told(self, rows: np.ndarray) -> Told:
        """Of rows i[N, T]."""
        found, known = hashes(rows.astype(np.uint64)), self._train[1]
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        return Told(
            -self.judge.score_rows(rows, START).mean(1),
            -self._model(rows).score_rows(self.test, START).mean(1),
            self_bleu(rows, self.order, self.size),
            float(np.mean(known[at] == found)),
        )

    @functools.cached_property
    def rivals(self) -> dict[str, Told]:
        """Rows of the training text, which are told what perfect samples would be, and those that n-grams write."""
        train = whole_rows(self.parts["train"])
        written = ngrams.sample_rows(self._model(train), self.rows, self.length, START, 0)
        return {"training rows": self.told(some(train, self.rows)), f"kneser_ney_{self.order}": self.told(written)}

    def _model(self, rows: np.ndarray) -> ngrams.NGrams:
        return ngrams.train_rows(rows, order=self.order, size=self.size, start=START)


def whole_rows(part: Tokens) -> np.ndarray:
    """i32[N, T]: a text cut into rows, without what is left at its end."""
    n = len(part.tokens) // part.length
    return part.tokens[: n * part.length].reshape(n, part.length)


def some(rows: np.ndarray, count: int) -> np.ndarray:
    """At most so many rows, from all over."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]


def hashes(rows: np.ndarray) -> np.ndarray:
    """u64[N] of u64[N, T]: a polynomial in an odd number, modulo 2^64. Rows that differ share one by accident alone."""
    out = np.zeros(len(rows), np.uint64)
    for t in range(rows.shape[1]):
        out = out * np.uint64(0x9E3779B97F4A7C15) + rows[:, t] + np.uint64(1)
        out ^= out >> np.uint64(29)
    return out


def self_bleu(rows: np.ndarray, order: int, size: int) -> float:
    """How alike rows i[N, T] are, in [0, 1]: the BLEU of each with all others as references, up to `order` tokens.

    Precisions are of all rows together, as in BLEU of a corpus, so none of a single row is zero; all rows being equally
    long, there is no penalty for short ones. 0 when no n-gram of some length occurs in two rows.

    Source: Zhu et al. 2018, section 2.2; Papineni et al. 2002, section 2.3.
    """
    logs = []
    for n in range(1, min(order, rows.shape[1]) + 1):
        cut = np.lib.stride_tricks.sliding_window_view(rows, n, axis=1)
        gram = np.unique(ngrams.number(cut.reshape(-1, n), size), return_inverse=True)[1]
        row = np.repeat(np.arange(len(rows)), cut.shape[1])
        pair, count = np.unique(gram * len(rows) + row, return_counts=True)
        gram = pair // len(rows)
        by = np.lexsort((-count, gram))  # within an n-gram, the row that has it most often comes first
        gram, count = gram[by], count[by]
        first = np.flatnonzero(np.r_[True, np.diff(gram) != 0])
        most = count[first]
        alone = np.diff(np.r_[first, len(gram)]) == 1
        second = np.where(alone, 0, count[np.minimum(first + 1, len(count) - 1)])
        which = np.cumsum(np.r_[True, np.diff(gram) != 0]) - 1
        best = most[which]  # in another row
        best[first] = second
        hit = np.minimum(count, best).sum()
        if not hit:
            return 0.0
        logs.append(np.log(hit / count.sum()))
    return float(np.exp(np.mean(logs)))


# ---------------------------------------------------------------------------------------------------------- the verdict
class Match(NamedTuple):
    """A point between two neighbouring temperatures of a generator."""

    low: int  # the index of the first
    share: float  # of the second, in [0, 1]
    temperature: float


class Gain(NamedTuple):
    """By how many nats per token a game's samples are better than its start's at equal self-BLEU, with 95 %."""

    value: float
    low: float
    high: float


def match(curve: list[Told], temperatures: tuple[float, ...], self_bleu: float) -> Match | None:
    """Where a generator's samples are alike as much as that, straight between temperatures; None when nowhere.

    Self-BLEU falls as the temperature rises, but for chance: of several places it is the one nearest to 1.
    """
    found = []
    for i, (a, b) in enumerate(zip(curve, curve[1:], strict=False)):
        if a.self_bleu != b.self_bleu and min(a.self_bleu, b.self_bleu) <= self_bleu <= max(a.self_bleu, b.self_bleu):
            share = (self_bleu - a.self_bleu) / (b.self_bleu - a.self_bleu)
            found.append(Match(i, share, temperatures[i] + share * (temperatures[i + 1] - temperatures[i])))
    return min(found, key=lambda m: abs(m.temperature - 1)) if found else None


def gains(game: Told, curve: list[Told], at: Match) -> tuple[Gain, Gain]:
    """(quality, coverage) of one seed, with intervals over rows: samples are independent, test rows are paired."""
    a, b, w = curve[at.low], curve[at.low + 1], at.share
    value = float((1 - w) * a.quality.mean() + w * b.quality.mean() - game.quality.mean())
    variance = sum(
        c**2 * t.quality.var(ddof=1) / len(t.quality)
        for c, t in ((1 - w, a), (w, b), (1.0, game))
        if len(t.quality) > 1
    )
    half = 1.96 * float(np.sqrt(variance))
    paired = mean_of((1 - w) * a.coverage + w * b.coverage - game.coverage)
    return Gain(value, value - half, value + half), paired


def mean_of(values: ArrayLike) -> Gain:
    """The mean of values f64[K], by Student's t."""
    mean, half = (float(v) for v in interval(values))
    return Gain(mean, mean - half, mean + half)


def verdict(quality: Gain | None, coverage: Gain | None, unit: str) -> str:
    """One plain sentence or two: whether the game beat its start, in both respects and beyond doubt.

    Args:
      unit: what the intervals are over, such as "3 seeds"; gains are None where nothing could be compared.
    """
    if quality is None or coverage is None:
        return (
            "The game is not shown to beat its maximum-likelihood start: at no temperature are the start's samples as "
            "much alike as the game's (self-BLEU), so there is nothing to compare at equal diversity."
        )
    wins = quality.low > 0 and coverage.low > 0
    loses = [g.high < 0 for g in (quality, coverage)]
    said = (
        "The game beats its maximum-likelihood start."
        if wins
        else (
            "The game does not beat its maximum-likelihood start"
            + (
                ": it is worse in both respects."
                if all(loses)
                else ": it is worse in one respect."
                if any(loses)
                else "."
            )
        )
    )
    parts = [
        f"{'better' if g.value >= 0 else 'worse'} by {abs(g.value):.4f} nats per token "
        f"(gain {g.value:+.4f}, 95 % interval {g.low:+.4f} to {g.high:+.4f})"
        for g in (quality, coverage)
    ]
    return (
        f"{said} At equal self-BLEU its samples are {parts[0]} under a Kneser-Ney model of held-out text, and test "
        f"text is {parts[1]} under a Kneser-Ney model of its samples. Intervals are over {unit}."
    )


def table_rows(named: Mapping[str, list[Told]]) -> tuple[tuple[Any, ...], ...]:
    """A row for each name: the means over seeds."""
    return tuple((name, *(f"{v:.4f}" for v in np.mean([t.numbers for t in each], 0))) for name, each in named.items())
