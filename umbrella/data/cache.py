"""Decoded sets on disk, so that the second start is instant. Floor 4.

$XDG_CACHE_HOME/umbrella/data/<key>/ holds one .npy for each column of each split, and a manifest.json with
their digests, which is sealed by its own. An entry that does not match its manifest is made anew; a cache that cannot
be written is done without.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from umbrella import manifest
from umbrella.data.files import digest
from umbrella.data.sources import Arrays, Columns

FORMAT = 2
Made = tuple[dict[str, Columns], dict[str, Any]]


def folder() -> pathlib.Path:
    """Where decoded sets are kept: $XDG_CACHE_HOME/umbrella/data, or ~/.cache/umbrella/data."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(root) / "umbrella" / "data"


def keep(key: str, make: Callable[[], Made], *, disk: bool = True) -> tuple[dict[str, Arrays], dict[str, Any]]:
    """What make() returns, from disk where it has been made before: ({split: memory-mapped columns}, info).

    Args:
      key: a file name that names content, format and options.
      disk: False only calls make().
    """
    if not disk:
        splits, info = make()
        return {k: Arrays(v) for k, v in splits.items()}, info
    entry = folder() / key
    if (found := _read(entry)) is not None:
        return found
    splits, info = make()
    with contextlib.suppress(OSError):
        _write(entry, splits, info)
        if (found := _read(entry)) is not None:
            return found
    return {k: Arrays(v) for k, v in splits.items()}, info


def _read(entry: pathlib.Path) -> tuple[dict[str, Arrays], dict[str, Any]] | None:
    """The entry, or None when it is not there, is not ours, or is not what was written."""
    try:
        if not _ours(entry):
            return None
        told = manifest.unseal((entry / "manifest.json").read_bytes())
        if told["format"] != FORMAT:
            return None
        splits: dict[str, Arrays] = {}
        for split, columns in told["splits"].items():
            for file, written in columns.values():
                if pathlib.PurePath(file).name != file or digest(entry / file) != written:
                    return None
            splits[split] = Arrays.mapped({name: str(entry / file) for name, (file, _) in columns.items()})
        return splits, {k: tuple(v) if isinstance(v, list) else v for k, v in told["info"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _ours(entry: pathlib.Path) -> bool:
    """Whether nobody else can have written it."""
    for place in (entry.parent, entry):
        stat = place.lstat()
        foreign = hasattr(os, "getuid") and stat.st_uid != os.getuid()
        if place.is_symlink() or foreign or stat.st_mode & 0o022:
            return False
    return True


def _write(entry: pathlib.Path, splits: dict[str, Columns], info: dict[str, Any]) -> None:
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not entry.parent.is_symlink():
        entry.parent.chmod(0o700)
    draft = pathlib.Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))  # mode 0700
    try:
        listed: dict[str, dict[str, list[str]]] = {}
        for i, (split, columns) in enumerate(splits.items()):
            listed[split] = {}
            for j, (name, column) in enumerate(columns.items()):
                file = f"{i}_{j}.npy"
                np.save(draft / file, column, allow_pickle=False)
                listed[split][name] = [file, digest(draft / file)]
        body = {"format": FORMAT, "splits": listed, "info": info}
        (draft / "manifest.json").write_bytes(manifest.seal(body))
        if entry.is_symlink() or entry.exists():
            # Whoever has the old one mapped keeps it: files go when the last reader does.
            old = pathlib.Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
            entry.rename(old / "old")
            shutil.rmtree(old, ignore_errors=True)
        draft.rename(entry)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
