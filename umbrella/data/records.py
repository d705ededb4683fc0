"""Records of a prepared set by number: array_record through TFDS, tfrecord by its framing. Floor 4.

A tfrecord file is a sequence of: length u64, masked CRC-32C of the length u32, the record, masked CRC-32C of the record
u32, all little-endian. There is no index, so one pass over the lengths makes it.
"""

import functools
import pathlib
import struct
from typing import Any

import numpy as np

from umbrella.data.files import said
from umbrella.settings import SettingsError

CHECKED = 2**28  # bytes: files up to this size are read in full once


def read(builder: Any, split: str, indices: np.ndarray) -> list[bytes]:
    """The serialised examples at `indices` i64[B] of a split.

    Args:
      builder: a tfds.core.DatasetBuilder whose set is on disk.

    Raises:
      SettingsError: a file is missing, cut short or altered.
    """
    root = str(builder.info.data_dir)
    try:
        if builder.info.file_format.value == "array_record":
            return list(_array_records(builder, root, split).__getitems__([int(i) for i in indices]))
        return [_record(root, split, tuple(map(str, builder.info.splits[split].filepaths)), int(i)) for i in indices]
    except SettingsError:
        raise
    except Exception as e:  # the array_record library raises RuntimeError, ValueError and IndexError on damaged files
        raise SettingsError(f"{root}: split {split!r} cannot be read ({said(e)}); prepare the set again") from None


def crc32c(blocks: np.ndarray) -> np.ndarray:
    """CRC-32C (Castagnoli) of each row of u8[N, L], as u32[N].

    >>> hex(int(crc32c(np.frombuffer(b"123456789", np.uint8)[None])[0]))
    '0xe3069283'
    """
    crc = np.full(len(blocks), 0xFFFFFFFF, np.uint32)
    table = _table()
    for column in blocks.T:
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> np.uint32(8))
    return crc ^ np.uint32(0xFFFFFFFF)


@functools.lru_cache(maxsize=32)
def _array_records(builder: Any, root: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)


def _record(root: str, split: str, paths: tuple[str, ...], i: int) -> bytes:
    ends, files = _shards(paths)
    shard = int(np.searchsorted(ends, i, side="right"))
    if i < 0 or shard == len(files):
        raise SettingsError(f"{root}: split {split!r} has {ends[-1]} records, not {i + 1}; prepare the set again")
    content, offsets, lengths = files[shard]
    row = i - (int(ends[shard - 1]) if shard else 0)
    start = int(offsets[row]) + 12
    return content[start : start + int(lengths[row])].tobytes()


@functools.lru_cache(maxsize=16)
def _shards(paths: tuple[str, ...]) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """(cumulative record counts, [(content, offsets, lengths) of each file])."""
    files = [_index(pathlib.Path(p)) for p in paths]
    return np.cumsum([len(offsets) for _, offsets, _ in files]), files


def _index(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = path.stat().st_size
    if size == 0:
        return np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64)
    content = np.memmap(path, np.uint8, "r")
    view, at = memoryview(content.data), 0
    offsets: list[int] = []
    lengths: list[int] = []
    while at < size:
        length = struct.unpack_from("<Q", view, at)[0] if at + 16 <= size else size
        if at + 16 + length > size:
            raise SettingsError(f"{path}: cut short at record {len(offsets)}; prepare the set again")
        offsets.append(at)
        lengths.append(length)
        at += 16 + length
    where = np.array(offsets, np.int64)
    heads = content[where[:, None] + np.arange(12)]
    _check(path, crc32c(heads[:, :8]), heads[:, 8:], np.arange(len(where)))
    # The records, many of one length at a time; in the files of large sets only the lengths are checked.
    sizes = np.array(lengths, np.int64)
    if size > CHECKED:
        return content, where, sizes
    for length in np.unique(sizes[sizes <= 2**16]):
        rows = np.flatnonzero(sizes == length)
        for some in np.array_split(rows, max(1, len(rows) * int(length) >> 24)):
            block = content[where[some, None] + np.arange(12, 16 + length)]
            _check(path, crc32c(block[:, :-4]), block[:, -4:], some)
    return content, where, sizes


def _check(path: pathlib.Path, crc: np.ndarray, stored: np.ndarray, rows: np.ndarray) -> None:
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
    wrong = masked != np.ascontiguousarray(stored).view("<u4")[:, 0]
    if wrong.any():
        raise SettingsError(f"{path}: record {rows[np.argmax(wrong)]} is damaged (checksum); prepare the set again")


@functools.cache
def _table() -> np.ndarray:
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> np.uint32(1)) ^ np.uint32(0x82F63B78), crc >> np.uint32(1))
    return crc
