"""Batches of rows of about one length, cut to it: less padding, and a program for each of a few shapes. Floor 4.

The stream of positions is the same as everywhere (umbrella.data.streams). It is taken `window` batches at a time: their
rows are sorted by length, dealt out to batches, and the batches put in a random order. So every epoch sees every row
once, and a batch is still a pure function of (seed, step).
"""

import functools
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from umbrella.data.sources import Arrays, Columns
from umbrella.data.streams import Data, Slot, order

WIDE = "wide_"  # of a slot's entries that say by their shape alone how long a side of this batch is


class Side(NamedTuple):
    """Columns [N, T, ...] that are cut together, and how much of each row there is."""

    columns: tuple[str, ...]
    lengths: np.ndarray  # i64[N], from 1 to T


def bucketed(
    source: Arrays, batch_size: int, sides: Mapping[str, Side], *, multiple: int = 8, window: int = 16
) -> Data:
    """As `umbrella.data.in_memory`, with sides of a batch as long as its longest row, rounded up to a multiple.

    The first batch is as long as the columns are. Several seeds that run as one program are cut to the longest of
    theirs. Calls of several steps need slots of one shape, so `steps_per_call` must be 1.

    Args:
      sides: name -> Side; a batch is sorted by the last one first.
      multiple: T / multiple is how many lengths of a side there may be, each combination a compilation.
      window: batches that are sorted at a time; more are sorted better and shuffled less.
    """
    n, names = len(source), tuple(sides)
    most = {k: source.arrays[s.columns[0]].shape[1] for k, s in sides.items()}
    keys = tuple(s.lengths for s in sides.values())

    @functools.lru_cache(maxsize=16)
    def dealt(seed: int, which: int) -> np.ndarray:
        """i64[window, B]: the rows of the batches of a window."""
        rows = order(seed, n, (which * window) * batch_size + np.arange(window * batch_size))
        rows = rows[np.lexsort([k[rows] for k in keys])].reshape(window, batch_size)
        return rows[np.random.default_rng([seed, 9, which]).permutation(window)]

    def rows_of(seed: int, step: int) -> np.ndarray:
        which, place = divmod(int(step), window)
        return np.asarray(dealt(int(seed), which)[place])

    def slot(seed: int, step: int) -> Slot:
        return stacked((seed,), step)

    def stacked(seeds: tuple[int, ...], step: int) -> Slot:
        rows = np.stack([rows_of(seed, step) for seed in seeds])
        out = {"idx": rows.astype(np.int32)}
        for k in names:
            wide = min(most[k], -(-int(sides[k].lengths[rows].max()) // multiple) * multiple)
            wide = wide if step else most[k]  # the first slots of all seeds are stacked to initialise their parameters
            out[WIDE + k] = np.zeros((*rows.shape, wide), np.int8)
        return {k: v[0] for k, v in out.items()} if len(seeds) == 1 else out

    def fetch(resident: Any, slot: Any) -> dict[str, jax.Array]:
        wide = {c: slot[WIDE + k].shape[-1] for k, s in sides.items() for c in s.columns}
        return {k: (v[:, : wide[k]] if k in wide else v)[slot["idx"]] for k, v in resident.items()}

    def stream(seeds: tuple[int, ...], start: int, stop: int) -> Generator[Slot, None, None]:
        return (stacked(tuple(seeds), step) for step in range(start, stop))

    resident: Columns = dict(source.arrays)
    return Data(resident, slot, fetch, stream, n, batch_size)
