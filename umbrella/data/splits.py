"""What is held out of a set that does not say so itself. Floor 4."""

import hashlib
from typing import Any

import numpy as np

from umbrella.data.sources import Arrays, Dataset, Found, Source, take
from umbrella.settings import SettingsError

TEST = 0.2  # the share that a set without an official test split gives up for one
PLAIN = 2**19  # sets with more rows are split without looking at the classes: the shares come out even by themselves


def carve(
    found: Found, *, validation: float, split_seed: int, fold: tuple[int, int] | None = None
) -> tuple[Source, Source, Source]:
    """(train, validation, test) of what a reader found.

    A missing test split is carved from train and depends on nothing but the set; then a missing validation split is
    carved from what is left, by `split_seed`. Official splits are used as they are.

    Args:
      fold: (k, n): the test split is part k of n, see `dealt`, of a set that has no official one.

    Raises:
      SettingsError: validation is outside [0, 1), the set is too small to give up the rows, or it has an official test
        split and is to be cut into folds.
    """
    if not 0 <= validation < 1:
        raise SettingsError(f"validation={validation}: must be in [0, 1)")
    if "train" not in found.splits:
        raise SettingsError(f"{found.source}: it has no split 'train', only {', '.join(sorted(found.splits))}")
    train, test, held = (found.splits.get(k) for k in ("train", "test", "validation"))
    assert train is not None
    if fold is not None:
        if test is not None:
            raise SettingsError(f"folds={fold[1]}: {found.source} has an official test split; leave folds out")
        train, test = _fold(train, *fold, found)
    if test is None:
        train, test = _divide(train, TEST, (0, 1), found)
    if held is None:
        train, held = _divide(train, validation, (split_seed, 2), found)
    return train, held, test


def held_out(y: np.ndarray | None, n: int, share: float, seed: tuple[int, ...], *, least: int = 0) -> np.ndarray:
    """The sorted rows i64[round(n * share)] to hold out, at least one when share > 0.

    With labels every class gives its share, by largest remainders: no class is off by a whole example or more.

    Args:
      y: i32[n] labels, or None to draw from all rows alike.
      least: of every class at least so many, or all that there are, at the cost of the largest classes.

    >>> y = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> y[held_out(y, 8, 0.5, (0,))].tolist()
    [0, 0, 1, 1]
    """
    rng = np.random.default_rng(seed)
    total = max(1, round(n * share)) if share > 0 else 0
    if y is None:
        return np.sort(rng.permutation(n)[:total])
    groups = [np.flatnonzero(y == c) for c in np.unique(y)]
    exact = np.array([len(g) * total / n for g in groups])
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    floor = np.minimum([len(g) for g in groups], least)
    for c in np.flatnonzero(counts < floor):
        while counts[c] < floor[c] and (counts > floor).any():
            counts[np.argmax(np.where(counts > floor, counts, -1))] -= 1
            counts[c] += 1
    return np.sort(np.concatenate([rng.permutation(g)[:c] for g, c in zip(groups, counts, strict=True)]))


def dealt(y: np.ndarray | None, n: int, folds: int) -> np.ndarray:
    """i64[n]: which of `folds` parts every row is in, at random, but always the same way.

    With labels the classes are dealt out one after the other: of every class, and of all rows, no part has more than
    one above another.

    Args:
      y: i32[n] labels, or None to deal all rows alike.

    >>> y = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    >>> [np.bincount(y[dealt(y, 8, 3) == k]).tolist() for k in range(3)]
    [[2, 1], [2, 1], [1, 1]]
    """
    rng = np.random.default_rng((0, 7))
    groups = [np.arange(n)] if y is None else [np.flatnonzero(y == c) for c in np.unique(y)]
    out = np.empty(n, np.int64)
    out[np.concatenate([rng.permutation(g) for g in groups])] = np.arange(n) % folds
    return out


def overlap(data: Dataset) -> dict[str, int] | None:
    """How many rows of "validation" and of "test" have an x that occurs in train, to the bit; by hash.

    A result on such rows is not one on new data. None for a set that is not in memory: reading it all would take long.
    """
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    if not all(isinstance(s, Arrays) and "x" in s.arrays for s in splits.values()):
        return None
    hashes = {
        k: [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in s.column("x")] for k, s in splits.items()
    }
    train = set(hashes.pop("train"))
    return {k: sum(h in train for h in those) for k, those in hashes.items()}


def _divide(source: Source, share: float, seed: tuple[int, ...], found: Found) -> tuple[Source, Source]:
    n = len(source)
    if share == 0:
        return source, take(source, np.zeros(0, np.int64))
    if n < 2:
        raise SettingsError(f"{found.source}: {n} training examples are too few to hold some out; use validation=0")
    rows = held_out(_labels(source, found.info), n, share, seed)
    if len(rows) >= n:
        raise SettingsError(f"{found.source}: holding out {share:g} of {n} training examples leaves none to train on")
    kept = np.ones(n, bool)
    kept[rows] = False
    return take(source, np.flatnonzero(kept)), take(source, rows)


def _fold(source: Source, fold: int, folds: int, found: Found) -> tuple[Source, Source]:
    """(the other parts, part `fold`)."""
    n = len(source)
    if n < 2 * folds:
        raise SettingsError(f"folds={folds}: {found.source} has {n} examples, fewer than two for each; use fewer folds")
    part = dealt(_labels(source, found.info), n, folds)
    return take(source, np.flatnonzero(part != fold)), take(source, np.flatnonzero(part == fold))


def _labels(source: Source, info: dict[str, Any]) -> np.ndarray | None:
    return source.column("y") if info["classes"] and len(source) <= PLAIN else None
