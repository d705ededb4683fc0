"""What a set of files is, in one word that depends on their content only. Floor 4."""

import hashlib
import pathlib
from collections.abc import Iterable

WHOLE = 64 * 1024**2  # files up to this size are read in full, larger ones in three places
PART = 4 * 1024**2


def digest(path: pathlib.Path) -> str:
    """32 hex digits of a file's size and content; of a file over 64 MiB 4 MiB at start, middle and end are read.

    Raises:
      OSError: it cannot be read.
    """
    size = path.stat().st_size
    h = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as f:
        if size <= WHOLE:
            while block := f.read(PART):
                h.update(block)
        else:
            for at in (0, size // 2, size - PART):
                f.seek(at)
                h.update(f.read(PART))
    return h.hexdigest()


def said(error: Exception) -> str:
    """What a library's error says, in one short line; its kind where it says nothing."""
    lines = str(error).split("\n") if str(error).strip() else [type(error).__name__]
    return " ".join(lines[0].split())[:120]


def fingerprint(root: pathlib.Path, files: Iterable[pathlib.Path]) -> str:
    """32 hex digits of the files' content and their names below `root`, in any order."""
    h = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        h.update(f"{path.relative_to(root).as_posix()}\0{digest(path)}\n".encode("utf-8", "surrogateescape"))
    return h.hexdigest()
