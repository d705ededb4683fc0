"""The training stream and the evaluation batches. Floor 4.

The stream is an endless sequence of positions. Position q is in epoch q // n, at rank q % n of that epoch's
permutation; step t takes positions tB .. tB + B - 1. So a batch is a pure function of (seed, step), every epoch sees
every example once, no batch is partial, a batch may straddle two epochs, and going on after a stop needs nothing but
the step.
"""

import collections
import dataclasses
import functools
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np

from umbrella.data import workers as processes
from umbrella.data.sources import Arrays, Columns, Source, on_device
from umbrella.settings import SettingsError

Slot = dict[str, np.ndarray]


class Share(NamedTuple):
    """Rows start .. stop - 1 of a batch of `of` rows: those that a process has to do with."""

    start: int
    stop: int
    of: int


class Data(NamedTuple):
    """What a training loop reads. The batch is fetch(resident, slot), inside the compiled program."""

    resident: Columns  # what goes to the device once, [N, ...]
    slot: Callable[[int, int], Slot]  # (seed, step) -> what goes to the device for that step; host, pure
    fetch: Callable[[Any, Any], Any]  # umbrella.step.gather or umbrella.step.stream
    # (seeds, start, stop) -> slots start .. stop - 1; several seeds are stacked [K]. Close it to end its workers early.
    stream: Callable[[tuple[int, ...], int, int], Generator[Slot, None, None]]
    size: int  # examples in an epoch
    batch_size: int
    # The same, whose stream has only a process's rows of every batch. None: slots are small, and every process makes
    # whole ones.
    share: Callable[[Share], "Data"] | None = None


def in_memory(source: Source, batch_size: int, *, resample: bool = False, named: bool = False) -> Data:
    """The whole set on the device; a slot is {"idx": i32[B]}, the rows to gather there. Text columns stay behind.

    Args:
      source: an Arrays.
      resample: every seed reads its own `bootstrap` sample of the rows instead of all of them.
      named: a batch has the columns "id" and "epoch", i32[B]: which example a row is, and how often it was seen before.

    Raises:
      SettingsError: the source is empty or lazy, or batch_size < 1.
    """
    from umbrella.step import gather

    _check(source, batch_size)
    if not isinstance(source, Arrays):
        raise SettingsError(
            "this set is read lazily and does not lie in memory: use streaming, or load(in_memory=True)"
        )
    slot = _slot(_Indices(len(source), batch_size, resample), len(source), batch_size, resample=resample, named=named)

    def stream(seeds: tuple[int, ...], start: int, stop: int) -> Generator[Slot, None, None]:
        return (stacked(slot, seeds, step) for step in range(start, stop))

    return Data(on_device(source.arrays), slot, gather, stream, len(source), batch_size)


def streaming(
    source: Source,
    batch_size: int,
    *,
    workers: int = 2,
    resample: bool = False,
    named: bool = False,
    share: Share | None = None,
) -> Data:
    """Batches read on the host; a slot is the batch itself. Text columns stay behind.

    Args:
      workers: processes that read ahead; 0 reads in this one. The batches are the same to the bit.
      resample: as in `in_memory`.
      named: as for `in_memory`.
      share: the stream's slots have only these rows of their batches, and no others are read.

    Raises:
      SettingsError: the source is empty, batch_size < 1 or workers < 0.
    """
    from umbrella.step import stream as fetch

    _check(source, batch_size)
    if workers < 0:
        raise SettingsError(f"workers={workers}: must be >= 0")

    def of(share: Share | None) -> Callable[[int, int], Slot]:
        batch = _Batch(source, batch_size, resample, share)
        return _slot(batch, len(source), batch_size, resample=resample, named=named, share=share)

    slot, part = of(None), of(share)

    def stream(seeds: tuple[int, ...], start: int, stop: int) -> Generator[Slot, None, None]:
        make = functools.partial(stacked, part, tuple(seeds))
        if workers:
            return processes.in_order(make, start, stop, workers)
        return (make(step) for step in range(start, stop))

    def shared(share: Share) -> Data:
        return streaming(source, batch_size, workers=workers, resample=resample, named=named, share=share)

    return Data({}, slot, fetch, stream, len(source), batch_size, shared)


def order(seed: int, n: int, position: np.ndarray) -> np.ndarray:
    """Which example stands at each position of the endless shuffled sequence of n examples.

    Args:
      position: i64[...], >= 0.

    Returns:
      i64[...] in [0, n). Positions kn .. kn + n - 1 are a permutation of range(n), a different one for each k and seed.

    >>> sorted(order(0, 5, np.arange(5, 10)).tolist())
    [0, 1, 2, 3, 4]
    """
    epoch, rank = np.divmod(np.asarray(position, np.int64), n)
    out = np.empty(rank.shape, np.int64)
    for e in np.unique(epoch):
        here = epoch == e
        out[here] = _permutation(seed, n, int(e))[rank[here]]
    return out


def bootstrap(seed: int, n: int) -> np.ndarray:
    """i32[n], read-only: n of n rows, drawn with replacement (Breiman 1996); on average 1 - 1/e of them occur.

    The integer weights of bagging as rows that occur so many times: an epoch then costs what it always does.
    """
    return _drawn(seed, n)


@functools.lru_cache(maxsize=64)
def _drawn(seed: int, n: int) -> np.ndarray:
    drawn = np.random.default_rng([seed, 4, n]).integers(0, n, n).astype(np.int32)  # permutations draw from two numbers
    drawn.setflags(write=False)
    return drawn


class batches:
    """Evaluation batches: every example once, in order, all batches of exactly `size` rows.

    The last one is padded by repeating its last row. "mask" f32[size] is 1 for an example and 0 for padding; a mask
    that the source has already is multiplied by it. Text columns stay behind.

    >>> [b["mask"].tolist() for b in batches(Arrays({"x": np.arange(3)}), 2)]
    [[1.0, 1.0], [1.0, 0.0]]

    Raises:
      SettingsError: the source is empty, or size < 1.
    """

    def __init__(self, source: Source, size: int, share: Share | None = None):
        _check(source, size)
        self.source, self.size, self._share = source, size, share

    def share(self, share: Share) -> "batches":
        """The same, which has, and reads, only these rows of every batch."""
        return batches(self.source, self.size, share)

    def __len__(self) -> int:
        return -(-len(self.source) // self.size)

    def __iter__(self) -> Iterator[Columns]:
        n = len(self.source)
        for start in range(0, n, self.size):
            rows = _of(self._share, np.arange(start, start + self.size))
            mask = (rows < n).astype(np.float32)
            batch = on_device(self.source.__getitems__(np.minimum(rows, n - 1)))
            own = batch.get("mask")
            yield {**batch, "mask": mask if own is None else own * mask.reshape(-1, *[1] * (own.ndim - 1))}


# ----------------------------------------------------------------------------------------------------- slots, picklable
@dataclasses.dataclass(frozen=True)
class _Indices:
    n: int
    batch_size: int
    resample: bool = False

    def __call__(self, seed: int, step: int) -> Slot:
        slot = self._of_all(seed, step)
        return {"idx": bootstrap(int(seed), self.n)[slot["idx"]]} if self.resample else slot

    def _of_all(self, seed: int, step: int) -> Slot:
        seed, start = int(seed), int(step) * self.batch_size
        epoch, rank = divmod(start, self.n)
        if rank + self.batch_size <= self.n:  # within an epoch: a slice, as fast as it gets
            return {"idx": _permutation(seed, self.n, epoch)[rank : rank + self.batch_size].astype(np.int32)}
        return {"idx": order(seed, self.n, np.arange(start, start + self.batch_size)).astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class _Batch:
    source: Source
    batch_size: int
    resample: bool = False
    share: Share | None = None

    def __call__(self, seed: int, step: int) -> Slot:
        rows = _of(self.share, _Indices(len(self.source), self.batch_size, self.resample)(seed, step)["idx"])
        return on_device(self.source.__getitems__(rows.astype(np.int64)))


@dataclasses.dataclass(frozen=True)
class _Named:
    """A slot, and which example each of its rows is."""

    slot: Callable[[int, int], Slot]
    n: int
    batch_size: int
    resample: bool
    share: Share | None = None

    def __call__(self, seed: int, step: int) -> Slot:
        position = int(step) * self.batch_size + _of(self.share, np.arange(self.batch_size))
        rows = order(int(seed), self.n, position)
        told = {"id": bootstrap(int(seed), self.n)[rows] if self.resample else rows, "epoch": position // self.n}
        return {**self.slot(seed, step), **{k: v.astype(np.int32) for k, v in told.items()}}


def _slot(
    slot: Callable[[int, int], Slot],
    n: int,
    batch_size: int,
    *,
    resample: bool,
    named: bool,
    share: Share | None = None,
) -> Callable[[int, int], Slot]:
    return _Named(slot, n, batch_size, resample, share) if named else slot


def _of(share: Share | None, rows: np.ndarray) -> np.ndarray:
    return rows if share is None else rows[share.start : share.stop]


def stacked(slot: Callable[[int, int], Slot], seeds: tuple[int, ...], step: int) -> Slot:
    """The slot of a step: of one seed as it is, of several with a leading axis [K]."""
    slots = [slot(seed, step) for seed in seeds]
    return slots[0] if len(slots) == 1 else {k: np.stack([s[k] for s in slots]) for k in slots[0]}


def _permutation(seed: int, n: int, epoch: int) -> np.ndarray:
    """i32[n] or i64[n], read-only: the order of one epoch."""
    if seed < 0:
        raise SettingsError(f"seed={seed}: must be >= 0")
    return _KEPT.get(seed, n, epoch)


class _Permutations:
    """The permutations that were used last, so that a step costs a slice and not a shuffle.

    At most `most` of them and at most `budget` bytes; but the newest of each of the last `seeds` seeds of the set that
    is being read stays whatever its size: seeds that run side by side would draw all of theirs again at every step.
    """

    def __init__(self, budget: int, seeds: int = 64, most: int = 256):
        self.nbytes = 0
        self._budget, self._seeds, self._most = budget, seeds, most
        self._kept: collections.OrderedDict[tuple[int, int, int], np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, seed: int, n: int, epoch: int) -> np.ndarray:
        key = (seed, n, epoch)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            shuffled = np.random.default_rng([seed, epoch]).permutation(n).astype(np.int32 if n < 2**31 else np.int64)
            shuffled.setflags(write=False)
            self._kept[key] = shuffled
            self.nbytes += shuffled.nbytes
            if self._full():
                self._shrink(n)
            return shuffled

    def _full(self) -> bool:
        return self.nbytes > self._budget or len(self._kept) > self._most

    def _shrink(self, n: int) -> None:
        newest: dict[int, tuple[int, int, int]] = {}
        for key in reversed(self._kept):  # from the last use to the first
            if key[1] == n and len(newest) < self._seeds:
                newest.setdefault(key[0], key)
        needed = set(newest.values())
        for key in [k for k in self._kept if k not in needed]:
            if not self._full():
                return
            self.nbytes -= self._kept.pop(key).nbytes


_KEPT = _Permutations(budget=32 * 2**20)


def _check(source: Source, batch_size: int) -> None:
    if len(source) == 0:
        raise SettingsError("the data set has no examples: nothing to make batches of")
    if batch_size < 1:
        raise SettingsError(f"batch size {batch_size}: must be >= 1")
