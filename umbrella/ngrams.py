"""N-gram language models by interpolated, modified Kneser-Ney smoothing: the rival of every language model here, and
the judge of generated text. Floor 0: NumPy.

    model = train(tokens, order=6, size=70)
    -model.log_probability(contexts, targets).mean()      # nats per token
"""

from typing import NamedTuple

import numpy as np

_ROOM = 2**62  # an n-gram is one number, in base `size`


class Level(NamedTuple):
    """What is known of the n-grams of one length, sorted by their number."""

    grams: np.ndarray  # i64[G]
    counts: np.ndarray  # i64[G], at the highest level how often, below it after how many different tokens
    contexts: np.ndarray  # i64[C], all but the last token of each
    totals: np.ndarray  # i64[C], the sum of counts
    reserved: np.ndarray  # f64[C], what the discounts take from a context, of its total
    discounts: np.ndarray  # f64[4], of a count of 0, 1, 2, 3 and more

    @property
    def masses(self) -> np.ndarray:
        """f64[G + 1]: the sum of what the discounts leave of the counts before each n-gram."""
        return np.concatenate([[0.0], np.cumsum(self.counts - self.discounts[np.minimum(self.counts, 3)])])


class NGrams(NamedTuple):
    """P(token | the tokens before it), that of a shorter context filling what longer ones leave open."""

    levels: tuple[Level, ...]  # of 1, 2, ..., N tokens
    size: int

    @property
    def order(self) -> int:
        return len(self.levels)

    def probability(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """f64[B], of targets i[B] after contexts i[B, C]; the last N - 1 tokens of a context count, and with C < N - 1
        those that there are."""
        contexts, targets = np.asarray(contexts, np.int64), np.asarray(targets, np.int64)
        p = np.full(len(targets), 1.0 / self.size)
        for n, level in enumerate(self.levels[: contexts.shape[1] + 1], 1):
            context = number(contexts[:, contexts.shape[1] - n + 1 :], self.size)
            count = _look(level.grams, level.counts, context * self.size + targets)
            total = _look(level.contexts, level.totals, context)
            left = _look(level.contexts, level.reserved, context)
            known = total > 0
            own = np.maximum(count - level.discounts[np.minimum(count, 3)], 0)
            p = np.where(known, (own + left * p) / np.maximum(total, 1), p)
        return p

    def log_probability(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """f64[B], in nats."""
        return np.log(self.probability(contexts, targets))

    def score_rows(self, rows: np.ndarray, start: int) -> np.ndarray:
        """f64[B, T]: the log probability of every token of rows i[B, T], after those before it in its row."""
        whole, reach = _behind(rows, self.order, start), self.order - 1
        each = [self.log_probability(whole[:, t : t + reach], whole[:, t + reach]) for t in range(np.shape(rows)[1])]
        return np.stack(each, 1)

    def draw(self, contexts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """i64[B], a token after each of contexts i[B, C], C >= N - 1.

        The probability is a mixture: what the discounts leave of a context's counts, and the shorter context. So one
        number decides at each length, from the longest on, whether the token comes from there, and which it is.
        """
        contexts = np.asarray(contexts, np.int64)
        out = np.full(len(contexts), -1)
        for n in range(self.order, 0, -1):
            level, open_ = self.levels[n - 1], np.flatnonzero(out < 0)
            context = number(contexts[open_, contexts.shape[1] - n + 1 :], self.size)
            u = rng.random(len(open_)) * _look(level.contexts, level.totals, context)
            mass = level.masses
            low = np.searchsorted(level.grams, context * self.size)
            high = np.searchsorted(level.grams, (context + 1) * self.size)
            found = u < mass[high] - mass[low]
            low, high = low[found], high[found]
            index = np.clip(np.searchsorted(mass, mass[low] + u[found], side="right") - 1, low, high - 1)
            out[open_[found]] = level.grams[index] % self.size
        return np.where(out < 0, rng.integers(0, self.size, len(out)), out)

    def score(self, before: np.ndarray, tokens: np.ndarray, chunk: int = 200_000) -> np.ndarray:
        """f64[T]: the log probability of every one of tokens i[T], after those before it, `before` i[C] among them."""
        whole = np.concatenate([np.asarray(before), np.asarray(tokens)]).astype(np.int64)
        reach, first = self.order - 1, len(before)
        out = np.empty(len(tokens))
        early = min(max(0, reach - first), len(tokens))  # with less before them than a whole context
        for i in range(early):
            out[i] = self.log_probability(whole[None, : first + i], whole[first + i :][:1])[0]
        rows = np.lib.stride_tricks.sliding_window_view(whole, reach + 1)[first + early - reach :]
        for i in range(0, len(tokens) - early, chunk):
            part = rows[i : i + chunk]
            out[early + i : early + i + len(part)] = self.log_probability(part[:, :-1], part[:, -1])
        return out


def train(tokens: np.ndarray, *, order: int, size: int) -> NGrams:
    """The model of one long sequence.

    Args:
      tokens: i[T], in [0, size).
      order: N, tokens of the longest n-grams; size ** N must be below 2^62.
      size: of the vocabulary. Tokens that never occur have a probability, too.

    Raises:
      ValueError: fewer than N tokens, a token that is none, or numbers that are too large.

    Source: Chen and Goodman 1999, section 3: three discounts for each length, from the counts of counts (eq. 17); lower
    lengths count the different tokens before an n-gram (eq. 16), and the shortest is interpolated with 1 / size.
    """
    tokens = np.asarray(tokens, np.int64)
    _check(tokens, order, size)
    found = np.unique(number(np.lib.stride_tricks.sliding_window_view(tokens, order), size), return_counts=True)
    levels = [_level(*found, size)]
    for n in range(order - 1, 0, -1):
        # An n-gram counts by how many different tokens precede it; the first of the text is preceded by none, and
        # counts as if it were by one, so that whatever is a context is known at all lengths.
        longer = levels[0].grams % size**n
        first = number(tokens[None, :n], size)
        levels.insert(0, _level(*np.unique(np.concatenate([longer, first]), return_counts=True), size))
    return NGrams(tuple(levels), size)


def train_rows(rows: np.ndarray, *, order: int, size: int, start: int) -> NGrams:
    """The model of rows i[B, T] that have nothing to do with each other: N - 1 times `start` stands before each, which
    is context and never a target.

    Raises:
      ValueError: as `train`.
    """
    rows = np.asarray(rows, np.int64)
    _check(rows.ravel(), order, size)
    cut = np.lib.stride_tricks.sliding_window_view(_behind(rows, order, start), order, axis=1).reshape(-1, order)
    levels = [_level(*np.unique(number(cut, size), return_counts=True), size)]
    for n in range(order - 1, 0, -1):
        levels.insert(0, _level(*np.unique(levels[0].grams % size**n, return_counts=True), size))
    return NGrams(tuple(levels), size)


def sample_rows(model: NGrams, rows: int, length: int, start: int, seed: int) -> np.ndarray:
    """i64[rows, length] from a model of rows."""
    rng, reach = np.random.default_rng(seed), model.order - 1
    out = np.full((rows, reach + length), start, np.int64)
    for t in range(length):
        out[:, reach + t] = model.draw(out[:, t : reach + t], rng)
    return out[:, reach:]


def fits(size: int, order: int) -> bool:
    """Whether n-grams of so many tokens, of a vocabulary of so many, are numbers of 62 bits.

    >>> fits(70, 6), fits(20_000, 5)
    (True, False)
    """
    return size**order < _ROOM


def number(rows: np.ndarray, size: int) -> np.ndarray:
    """i64[B] from i64[B, n]: each row as a number in base `size`.

    >>> number(np.array([[1, 2, 3]]), 10).tolist()
    [123]
    """
    out = np.zeros(len(rows), np.int64)
    for i in range(rows.shape[1]):
        out = out * size + rows[:, i]
    return out


def _check(tokens: np.ndarray, order: int, size: int) -> None:
    if order < 1 or len(tokens) < order:
        raise ValueError(f"{len(tokens)} tokens do not make n-grams of {order}")
    if not fits(size, order):
        raise ValueError(f"n-grams of {order} of {size:,} tokens do not fit into 62 bits")
    if tokens.min() < 0 or tokens.max() >= size:
        raise ValueError(f"tokens from {tokens.min()} to {tokens.max()}, for a vocabulary of {size}")


def _behind(rows: np.ndarray, order: int, start: int) -> np.ndarray:
    """i64[B, N - 1 + T]: rows i[B, T] behind N - 1 times `start`."""
    return np.pad(np.asarray(rows, np.int64), ((0, 0), (order - 1, 0)), constant_values=start)


def _level(grams: np.ndarray, counts: np.ndarray, size: int) -> Level:
    contexts, start = np.unique(grams // size, return_index=True)
    discounts = _discounts(counts)
    return Level(
        grams,
        counts,
        contexts,
        np.add.reduceat(counts, start),
        np.add.reduceat(discounts[np.minimum(counts, 3)], start),
        discounts,
    )


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Chen and Goodman 1999, eq. 17: D_i = i - (i + 1) Y n_{i+1} / n_i with Y = n_1 / (n_1 + 2 n_2). Where counts of
    counts are missing, as in a short text, a discount is that of the count below it, and 1/2 at first."""
    n = np.array([np.sum(counts == i) for i in range(1, 5)], np.float64)
    y = n[0] / (n[0] + 2 * n[1]) if n[0] and n[1] else 0.0
    out = [0.0]
    for i in (1, 2, 3):
        exact = i - (i + 1) * y * n[i] / n[i - 1] if y and n[i - 1] and n[i] else np.nan
        out.append(float(exact) if 0 < exact < i else (out[-1] or 0.5))
    return np.array(out)


def _look(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values at the keys wanted, 0 where there is none."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
