"""One long sequence of tokens: windows of it to train on, and every token scored once. Floor 4.

Two streams. `windows` are rows that have nothing to do with each other, cut anew in every epoch; `tracks` are rows that
go on where the last batch's ended, for models that keep a state. In both a batch is a pure function of (seed, step).
"""

from collections.abc import Generator, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from umbrella.data.sources import Columns
from umbrella.data.streams import Data, Slot, order, stacked
from umbrella.settings import SettingsError


class Tokens:
    """A split: tokens i32[N] as rows of T targets, "x" i32[B, T] and "y" i32[B, T], the tokens one further on.

    The last row ends with the last token, and overlaps the one before it where T does not divide them.

    Args:
      before: i32[C], what stands before the first token: context alone, never a target. Without it the first token is
        no target either.
    """

    def __init__(self, tokens: np.ndarray, length: int, before: np.ndarray | None = None):
        self.tokens, self.length = tokens.astype(np.int32), length
        self.before = np.zeros(0, np.int32) if before is None else before.astype(np.int32)
        self.whole = np.concatenate([self.before, self.tokens])  # once: rows are cut from it batch by batch

    def __len__(self) -> int:
        targets = len(self.tokens) - (len(self.before) == 0)
        return max(0, -(-targets // self.length)) if len(self.tokens) + len(self.before) > self.length else 0

    def __getitems__(self, indices: np.ndarray) -> Columns:
        whole, first = self.whole, max(1, len(self.before))
        start = np.minimum(first + np.asarray(indices, np.int64) * self.length, len(whole) - self.length) - 1
        cut = whole[start[:, None] + np.arange(self.length + 1)[None]]
        return {"x": cut[:, :-1], "y": cut[:, 1:], "fresh": np.ones(len(cut), np.float32)}

    def column(self, name: str) -> np.ndarray:
        return self.__getitems__(np.arange(len(self)))[name]


def windows(source: Tokens, batch_size: int) -> Data:
    """Rows of T tokens and their next ones. Every epoch goes once through the text, in an order and with cuts of its
    own: all cuts of an epoch are moved by the same number of tokens, which leaves up to 2 T - 2 out at its ends.

    Raises:
      SettingsError: the text is too short for one row.
    """
    if len(source.tokens) < source.length + 1:
        raise SettingsError(
            f"config.length: the training text has {len(source.tokens):,} tokens, too few for one row of "
            f"{source.length:,} and the token after it; say less"
        )
    n = max(1, (len(source.tokens) - source.length) // source.length)
    most = len(source.tokens) - 1 - n * source.length  # that cuts may be moved by

    def slot(seed: int, step: int) -> Slot:
        position = int(step) * batch_size + np.arange(batch_size)
        start = order(int(seed), n, position) * source.length
        epochs, which = np.unique(position // n, return_inverse=True)  # one or two: a generator takes 15 us to make
        moved = np.array([_moved(int(seed), int(e), most) for e in epochs])
        return {"start": (start + moved[which]).astype(np.int32)}

    return _data(source, slot, batch_size, n)


def tracks(source: Tokens, batch_size: int) -> Data:
    """Rows that go on: row b of step t + 1 begins where row b of step t ended. "fresh" is 1 where a track begins.

    The text is cut into as many tracks as a batch has rows, all of one length. At the end of a pass they begin again,
    moved by some tokens.

    Raises:
      SettingsError: the text is too short for so many tracks.
    """
    track = (len(source.tokens) - 1) // batch_size
    turns = (track - 1) // source.length or track // source.length
    if not turns:
        raise SettingsError(
            f"config.batch_size: {len(source.tokens):,} tokens do not make {batch_size:,} tracks of at least "
            f"{source.length:,}; say less, or set config.length lower"
        )
    most = track - turns * source.length

    def slot(seed: int, step: int) -> Slot:
        turn, i = divmod(int(step), turns)
        start = np.arange(batch_size) * track + i * source.length + _moved(int(seed), turn, most)
        return {"start": start.astype(np.int32), "fresh": np.full(batch_size, i == 0, np.float32)}

    return _data(source, slot, batch_size, turns * batch_size)


def _moved(seed: int, epoch: int, most: int) -> int:
    return int(np.random.default_rng([seed, epoch, 7]).integers(0, most + 1)) if epoch else 0


def _data(source: Tokens, slot: Any, batch_size: int, size: int) -> Data:
    def fetch(resident: Any, slot: Any) -> dict[str, Any]:
        rows = slot["start"][:, None] + jnp.arange(source.length + 1)[None]
        cut = resident["tokens"][rows]
        fresh = slot.get("fresh", jnp.ones(cut.shape[0], jnp.float32))
        return {"x": cut[:, :-1], "y": cut[:, 1:], "fresh": fresh}

    def stream(seeds: tuple[int, ...], start: int, stop: int) -> Generator[Slot, None, None]:
        return (stacked(slot, seeds, step) for step in range(start, stop))

    return Data({"tokens": source.tokens}, slot, fetch, stream, size, batch_size)


class sliding:
    """Evaluation batches in which every token of a split is a target exactly once, after at least T - stride others.

    Each row is moved by `stride` against the one before and scores its last `stride` tokens; "mask" f32[B, T] has 1
    there. The context of the first tokens is what stands before the split.

    Args:
      size: rows of a batch.

    Raises:
      SettingsError: no such stride.
      ValueError: less than a row of tokens stand before the split.
    """

    def __init__(self, source: Tokens, size: int, stride: int):
        if not 1 <= stride <= source.length:
            raise SettingsError(f"config.stride: {stride}: must be from 1 to config.length, {source.length}")
        _check_before(source, source.length)
        self.source, self.size, self.stride = source, size, stride

    @property
    def rows(self) -> int:
        return -(-len(self.source.tokens) // self.stride)

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def __iter__(self) -> Iterator[Columns]:
        length, stride, n = self.source.length, self.stride, len(self.source.tokens)
        whole = self.source.whole
        first = len(self.source.before)  # of the targets, in `whole`
        for start in range(0, self.rows, self.size):
            row = np.arange(start, start + self.size)
            end = first + np.minimum((row + 1) * stride, n)  # of the targets, exclusive
            target = end[:, None] - length + np.arange(length)[None]
            scored = (target >= first + (row * stride)[:, None]) & (row < self.rows)[:, None]
            x, y = whole[target - 1], whole[target]
            yield {"x": x, "y": y, "fresh": np.ones(self.size, np.float32), "mask": scored.astype(np.float32)}


class following:
    """Evaluation batches for a model that keeps a state: every token of a split is a target exactly once.

    The split is cut into `size` tracks; a batch has the next T tokens of each. Every track reads `warm` tokens before
    its first target.

    Raises:
      ValueError: no more than `warm` tokens stand before the split.
    """

    def __init__(self, source: Tokens, size: int, warm: int):
        _check_before(source, warm + 1)
        self.source, self.size, self.warm = source, size, warm
        self.track = -(-len(source.tokens) // size)

    def __len__(self) -> int:
        return -(-(self.warm + self.track) // self.source.length)

    def __iter__(self) -> Iterator[Columns]:
        length, n = self.source.length, len(self.source.tokens)
        whole = self.source.whole
        first = len(self.source.before)
        begin = np.arange(self.size)[:, None] * self.track
        for i in range(len(self)):
            at = i * length - self.warm + np.arange(length)[None]  # in a track
            target = first + begin + at
            scored = (at >= 0) & (at < self.track) & (begin + at < n)
            x, y = whole[np.minimum(target, len(whole)) - 1], whole[np.minimum(target, len(whole) - 1)]
            fresh = np.full(self.size, i == 0, np.float32)
            yield {"x": x, "y": y, "fresh": fresh, "mask": scored.astype(np.float32)}


def _check_before(source: Tokens, least: int) -> None:
    if len(source.before) < least:
        raise ValueError(f"{len(source.before)} tokens stand before the split, wanted {least} for context")
