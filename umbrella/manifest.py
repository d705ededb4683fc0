"""What makes a folder a checkpoint: a manifest of every file and every array in it. Floor 0, standard library only.

`MANIFEST.json` is written last, to a temporary name and then renamed, so a folder with a manifest is complete. Its
first line is the SHA-256 of all that follows, hence a changed bit in the manifest itself is seen before a word of it is
parsed. It promises durability too: `write` calls fsync on every file that it lists before the manifest gets its name.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

NAME = "MANIFEST.json"  # in each step folder
JOURNAL = "UNFINISHED"  # beside them
FORMAT = 1  # a reader refuses a larger number; raise it when an older reader would misunderstand the file


class CheckpointError(Exception):
    """Anything that goes wrong with a checkpoint."""


class Corrupt(CheckpointError):
    """A checkpoint is not what its manifest says; the message names the file."""


class NewerFormat(CheckpointError):
    """A checkpoint was written by a newer version than this one."""


class Leaf(NamedTuple):
    """Shape and dtype of one array, written `float32[3,4]`; a typed PRNG key is `key<fry>[]`.

    >>> Leaf.parse("bfloat16[8,128]")
    Leaf(shape=(8, 128), dtype='bfloat16')
    """

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @staticmethod
    def parse(text: str) -> "Leaf":
        match = re.fullmatch(r"([\w<>]+)\[((?:\d+(?:,\d+)*)?)\]", text, re.ASCII)
        if not match:
            raise ValueError(f"not an array: {text!r}")
        return Leaf(tuple(int(n) for n in match[2].split(",") if n), match[1])


class File(NamedTuple):
    size: int
    sha256: str


class Manifest(NamedTuple):
    step: int
    leaves: dict[str, Leaf]  # by path: "params/model/Dense_0/kernel"
    files: dict[str, File]  # by path relative to the folder, "/" between parts
    meta: dict[str, Any]  # the caller's own, JSON
    versions: dict[str, str]


def write(
    folder: Path, step: int, leaves: Mapping[str, Leaf], meta: Mapping[str, Any], versions: Mapping[str, str]
) -> None:
    """Hash and fsync every file under `folder`, then write the manifest: temporary name, fsync, rename, fsync."""
    files = {name: _digest(path, sync=True) for name, path in _files(folder).items()}
    for directory in {path.parent for path in _files(folder).values()} | {folder, folder.parent}:
        _sync_directory(directory)
    body = {
        "format": FORMAT,
        "step": step,
        "meta": dict(meta),
        "versions": dict(versions),
        "leaves": {path: str(leaf) for path, leaf in leaves.items()},
        "files": {name: file._asdict() for name, file in files.items()},
    }
    temporary = folder / f"{NAME}.tmp"
    with open(temporary, "wb") as out:
        out.write(seal(body))
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, folder / NAME)
    _sync_directory(folder)


def read(folder: Path) -> Manifest:
    """The manifest of a step folder.

    Raises Corrupt when it is not to the bit what was written, or belongs to another step; NewerFormat.
    """
    path = folder / NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise Corrupt(f"corrupt: {path}: missing") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        body = unseal(text)
    except ValueError as error:
        raise Corrupt(f"corrupt: {path}: {error}") from error
    try:
        if body["format"] > FORMAT:
            raise NewerFormat(
                f"{path} has format {body['format']}, this version reads up to format {FORMAT}; "
                f"it was written by {body.get('versions')}"
            )
        manifest = Manifest(
            step=int(body["step"]),
            leaves={str(name): Leaf.parse(leaf) for name, leaf in body["leaves"].items()},
            files={_inside(name): File(int(f["size"]), str(f["sha256"])) for name, f in body["files"].items()},
            meta=dict(body["meta"]),
            versions={str(name): str(version) for name, version in body["versions"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Corrupt(f"corrupt: {path}: not a manifest ({type(error).__name__}: {error})") from error
    if str(manifest.step) != folder.name:
        raise Corrupt(f"corrupt: {path}: it belongs to step {manifest.step}")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Raises Corrupt, naming the file, unless `folder` holds the files of its manifest, to the bit, and no others."""
    found = _files(folder)
    for name in sorted(manifest.files.keys() - found.keys()):
        raise Corrupt(f"corrupt: {folder / name}: missing")
    for name in sorted(found.keys() - manifest.files.keys()):
        raise Corrupt(f"corrupt: {found[name]}: not in the manifest")
    for name, file in manifest.files.items():  # all sizes first: that costs nothing
        size = found[name].stat().st_size
        if size != file.size:
            raise Corrupt(f"corrupt: {found[name]}: {size} bytes instead of {file.size}")
    for name, file in manifest.files.items():
        if _digest(found[name]).sha256 != file.sha256:
            raise Corrupt(f"corrupt: {found[name]}: its SHA-256 is not the one in the manifest")


def differences(saved: Mapping[str, Leaf], wanted: Mapping[str, Leaf]) -> list[str]:
    """One readable line for each path that is missing, superfluous, or of another shape or dtype."""
    lines = [f"missing in the checkpoint: {path} {leaf}" for path, leaf in wanted.items() if path not in saved]
    lines += [f"not in the template: {path} {leaf}" for path, leaf in saved.items() if path not in wanted]
    for path in (path for path in wanted if path in saved):
        for field in Leaf._fields:
            theirs, ours = getattr(saved[path], field), getattr(wanted[path], field)
            if theirs != ours:
                lines.append(f"{field}: {path} is {theirs} in the checkpoint, {ours} in the template")
    return lines


class Survey(NamedTuple):
    steps: list[int]  # with a manifest, ascending
    unfinished: list[str]  # Orbax's temporary folders, and steps without a manifest
    aside: list[str]  # N.corrupt


def survey(directory: Path) -> Survey:
    """Sort the folders by their names alone: no time stamp is trusted, no link followed, other names are left alone."""
    found = Survey([], [], [])
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.is_symlink() or not path.is_dir():
            continue
        if re.fullmatch(r"0|[1-9][0-9]*", path.name):
            if (path / NAME).is_file():
                found.steps.append(int(path.name))
            else:
                found.unfinished.append(path.name)
        elif re.fullmatch(r"[0-9]+\.orbax-checkpoint-tmp(-[0-9]+)?", path.name):
            found.unfinished.append(path.name)
        elif re.fullmatch(r"[0-9]+\.corrupt(\.[0-9]+)?", path.name):
            found.aside.append(path.name)
    found.steps.sort()
    return found


def number(name: str) -> int | None:
    """The step of a folder: 12 for "12" and "12.orbax-checkpoint-tmp"; None for a name that is no step's."""
    match = re.match(r"[0-9]+(?=$|\.)", name, re.ASCII)
    return int(match[0]) if match else None


def read_journal(directory: Path) -> set[int]:
    """Steps that a process of ours began to write or to remove: unfinished folders of no other steps are ours."""
    path = directory / JOURNAL
    return {int(word) for word in path.read_text().split() if word.isdecimal()} if path.is_file() else set()


def write_journal(directory: Path, steps: set[int]) -> None:
    temporary = directory / f"{JOURNAL}.tmp"
    temporary.write_text("".join(f"{step}\n" for step in sorted(steps)))
    os.replace(temporary, directory / JOURNAL)


def candidates(directory: Path, step: int | None) -> list[Path]:
    """Folders to try, newest step first."""
    steps = survey(directory).steps
    if step is None:
        return [directory / str(n) for n in reversed(steps)]
    if step not in steps:
        raise CheckpointError(f"no step {step} in {directory}; there are {steps}")
    return [directory / str(step)]


def set_aside(folder: Path) -> Path:
    """Rename step N, which is no checkpoint, to `N.corrupt`, or `N.corrupt.2`... when that exists; the new path."""
    names = (f"{folder.name}.corrupt{suffix}" for suffix in ("", *(f".{n}" for n in range(2, 10_000))))
    aside = next(folder.with_name(name) for name in names if not os.path.lexists(folder.with_name(name)))
    return folder.rename(aside)


def seal(body: Mapping[str, Any]) -> bytes:
    """JSON whose first line is the SHA-256 of all that follows."""
    rest = json.dumps(body, indent=1, allow_nan=False).split("\n", 1)[1].encode()
    return _seal(rest) + rest


def unseal(text: bytes) -> dict[str, Any]:
    """What was sealed, without its first line. Raises ValueError when it is not that to the bit."""
    head, newline, rest = text.partition(b"\n")
    if head + newline != _seal(rest):
        raise ValueError("its content does not have the SHA-256 of its first line")
    body: dict[str, Any] = json.loads(text)
    del body["sha256"]
    return body


def _seal(rest: bytes) -> bytes:
    return b'{"sha256": "' + hashlib.sha256(rest).hexdigest().encode() + b'",\n'


def _inside(name: str) -> str:
    """`name` itself, if it is a plain relative path that stays inside the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or ".." in parts or name.startswith("/") or re.search(r"[\\\0:]", name):
        raise ValueError(f"unsafe path {name!r}")
    return name


def _files(folder: Path) -> dict[str, Path]:
    """Every file under `folder` but the manifest, by relative path. A link or device is corrupt, never followed."""
    found = {}
    for root, directories, names in os.walk(folder, followlinks=False):
        for path in (Path(root, name) for name in (*directories, *names)):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[path.relative_to(folder).as_posix()] = path
            elif not stat.S_ISDIR(mode):
                raise Corrupt(f"corrupt: {path}: neither a file nor a folder")
    found.pop(NAME, None)
    return dict(sorted(found.items()))


def _digest(path: Path, *, sync: bool = False) -> File:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if sync:
                os.fsync(file.fileno())
            return File(os.fstat(file.fileno()).st_size, digest)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    """A disk that cannot give the bytes back is corrupt; no permission or no free file descriptor is not."""
    kind, word = (Corrupt, "corrupt: ") if error.errno == errno.EIO else (CheckpointError, "")
    return kind(f"{word}{path}: cannot be read: {error.strerror}")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
