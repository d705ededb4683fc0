"""Checkpoints that are verified, never torn and never silently replaced. Floor 4: Orbax plus a manifest.

Orbax alone restores flipped bits as wrong weights, casts dtypes and saves NaN without a word. Here step N is a
checkpoint only once `N/MANIFEST.json` exists (see `umbrella.manifest`), and no array is read before every file has been
checked.

Arrays are stored flat, by path ("params/model/Dense_0/kernel"), typed PRNG keys as their uint32 data: what comes back
is decided by the caller's template and the manifest, never by types or names found in a file.

Where several processes train, on a file system that they share, each writes the parts of arrays that are its own; the
first looks after the folder: it checks, writes manifests, and removes. Then every method is for every process, and what
goes wrong in one is raised in all.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from umbrella import distributed, manifest
from umbrella.manifest import CheckpointError, Corrupt, Leaf, Manifest, NewerFormat

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Corrupt",
    "Mismatch",
    "NewerFormat",
    "NonFinite",
    "NothingVerified",
    "SaveFailed",
    "StepExists",
    "digests",
    "read_meta",
    "restore_params",
]

_PACKAGES = ("umbrella-jax", "jax", "jaxlib", "orbax-checkpoint", "flax", "optax", "numpy")
_MAY_BE_INFINITE = ("opt_state", "state")  # "best loss so far" starts at inf; NaN is refused there as everywhere
_MOST_LINES = 20
LAST_SECONDS = 30.0  # that a process which has to go gives a save that is under way


class NonFinite(CheckpointError):
    """The tree holds NaN or inf, and was not saved over a good checkpoint."""


class StepExists(CheckpointError):
    """The directory already holds this step, or a later one, of another run."""


class SaveFailed(CheckpointError):
    """An earlier save did not become a checkpoint; raised by the next save, wait or close."""


class Mismatch(CheckpointError):
    """The checkpoint and the template differ; the message lists every path."""


class NothingVerified(CheckpointError):
    """There were checkpoints, and none passes verification."""


_ERRORS = (CheckpointError, Corrupt, Mismatch, NewerFormat, NonFinite, NothingVerified, SaveFailed, StepExists)
_OTHER = "another process failed to write its part"


class Checkpoints:
    """The checkpoints of one run: asynchronous verified saves, verified restores, retention.

    The last `keep` steps stay, every multiple of `keep_every` (0: none), and the one of the lowest `rank`: of a step's
    meta, None for a step that has no part in it; the earliest of equals. Owns Orbax's manager and one background
    thread. One run at a time may hold a directory.

    with Checkpoints(workdir / "checkpoints") as checkpoints:
        found = checkpoints.restore(template)  # None in a fresh directory
        checkpoints.save(step, ts, {"config": config, "seed": seed})
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 3,
        keep_every: int = 0,
        rank: Callable[[Mapping[str, Any]], float | None] | None = None,
    ):
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least one checkpoint must stay")
        self.directory = Path(directory).absolute()
        self.keep, self.keep_every, self.rank = keep, keep_every, rank
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._own: set[int] = set()  # steps that this object saved or restored
        self._reported = False
        distributed.by_first(self._make_directory, raises=_ERRORS)
        logging.get_absl_logger().addFilter(_not_orbax)
        self._manager = _manager(self.directory)

    def save(self, step: int, tree: Any, meta: Mapping[str, Any]) -> bool:
        """Start to save `tree` (a TrainState) with `meta` (JSON; tuples come back as lists).

        Once it returns, `tree` may be donated. It waits for an earlier save first, so at most one is in flight. False
        when this object has saved or restored this very step already: nothing to do.

        Raises NonFinite, StepExists, SaveFailed (this save, or an earlier one), CheckpointError (meta is not JSON).
        """
        self.wait()
        existing = self.steps()
        if step in self._own and step in existing:
            return False
        if existing and step <= existing[-1]:
            raise StepExists(
                f"step {step} cannot be saved: {self.directory} holds step {existing[-1]}, of another run or newer "
                f"than the step restored; use another directory or move the later steps away"
            )
        meta = _as_json(meta)
        leaves = _leaves(tree)
        _require_finite(step, leaves)
        nbytes = _nbytes(leaves)
        distributed.by_first(lambda: self._make_way(step, nbytes), raises=_ERRORS)
        failed: Exception | None = None
        try:
            self._manager.reload()  # it remembers steps that were removed or set aside since
            arrays = {path: _data(x) for path, x in leaves.items() if x.size}  # Orbax refuses arrays of size zero
            # force: the manager would decline, in silence, a step below an unfinished one
            self._manager.save(step, args=ocp.args.StandardSave(arrays), force=True)
        except (OSError, ValueError, RuntimeError) as error:
            failed = error
        if distributed.most(int(failed is not None)):
            self._restart()
            raise self._failed(step, nbytes, failed or RuntimeError(_OTHER)) from failed
        described = {path: _leaf(x) for path, x in leaves.items()}
        self._pending = self._thread.submit(self._finish, step, described, meta, nbytes)
        return True

    def restore(self, template: Any, *, step: int | None = None) -> tuple[Any, dict[str, Any]] | None:
        """The newest verified step (or `step`) as (tree like `template`, meta); None when nothing was ever saved here.

        `template` has arrays or jax.ShapeDtypeStruct leaves. Each restored leaf owns its buffer and lies on the
        sharding of its template leaf; on the default device, uncommitted, where that has none. A corrupt step is
        renamed to `N.corrupt` and the next older one is tried, unless `step` was asked for.

        Raises Mismatch before any array is read, NothingVerified, NewerFormat, Corrupt (only when `step` is given).
        """
        self.wait()
        wanted = _leaves(template)
        if step is None and distributed.is_first():
            self._steps()  # says what a kill left behind, before anything is trained
        found = _chosen(self.directory, step, wanted, on_corrupt=self._set_aside)
        if found is not None:
            self._own = {found[0]}
            logging.info("restored step %d from %s", found[0], self.directory)
            return _like(template, _read(self.directory / str(found[0]), wanted)), found[1]
        aside = distributed.told_by_first(lambda: manifest.survey(self.directory).aside)
        if not aside:
            return None
        raise NothingVerified(
            f"no verified checkpoint is left in {self.directory}, and training does not start over by itself; "
            f"set aside: {', '.join(aside)}. Use another directory, or move these away to start from scratch"
        )

    def steps(self) -> list[int]:
        """Steps that have a manifest, ascending by number; in-flight and unfinished ones are not among them."""
        return list(distributed.told_by_first(self._steps))

    def _steps(self) -> list[int]:
        survey = manifest.survey(self.directory)
        if not self._reported and self._pending is None:
            self._reported = True
            for name in survey.unfinished:
                logging.warning("%s has no manifest, so it is no checkpoint: ignored", self.directory / name)
        return survey.steps

    def wait(self) -> None:
        """Return once the last save has its manifest. Raises SaveFailed when it got none."""
        if self._pending is None:
            return
        error = self._pending.exception()  # blocks; an interrupt here loses nothing
        self._pending = None
        if distributed.most(int(error is not None)) and error is None:
            error = SaveFailed(f"the last step was not saved in {self.directory}: {_OTHER}")
        if error is not None:
            self._restart()
            raise error

    def close(self) -> None:
        """Wait, then let go of threads. Raises SaveFailed when the last save got no manifest."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()
            logging.get_absl_logger().removeFilter(_not_orbax)

    def abandon(self) -> None:
        """Lets this process's part of a save that is under way be written, and waits for nobody's consent: for a
        process that leaves others."""
        if self._pending is not None:
            with suppress(TimeoutError):
                self._pending.exception(timeout=LAST_SECONDS)
        self._thread.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and distributed.several():  # which of the others are still there to wait for?
            self.abandon()
            return
        try:
            self.close()
        except CheckpointError as own:
            if error is None:
                raise
            logging.error("%s", own)  # the first error is the one to raise

    def _finish(self, step: int, leaves: dict[str, Leaf], meta: dict[str, Any], nbytes: int) -> None:
        """In the background: once Orbax has committed, write the manifest; only then retire older steps."""
        try:
            self._manager.wait_until_finished()
            if distributed.is_first():
                manifest.write(self.directory / str(step), step, leaves, meta, _versions())
        except Exception as error:  # whatever it was, it must reach the loop, as one class
            raise self._failed(step, nbytes, error) from error
        self._own.add(step)
        if not distributed.is_first():
            return
        try:
            self._retire()
        except OSError as error:
            raise SaveFailed(f"step {step} is saved, but older ones in {self.directory} stay: {error}") from error

    def _retire(self) -> None:
        """Remove the steps that need not stay, and what our own killed processes left."""
        survey = manifest.survey(self.directory)
        stay = {*survey.steps[-self.keep :], *self._best(survey.steps)}
        stay |= {step for step in survey.steps if self.keep_every and step % self.keep_every == 0}
        old = [step for step in survey.steps if step not in stay]
        ours = manifest.read_journal(self.directory) | set(old)
        manifest.write_journal(self.directory, ours)
        for step in old:
            folder = self.directory / str(step)
            (folder / manifest.NAME).unlink()  # from here on it is unfinished, whenever this process is killed
            shutil.rmtree(folder)
        for name in survey.unfinished:
            if manifest.number(name) in ours:
                shutil.rmtree(self.directory / name)
                logging.info("removed the unfinished %s", self.directory / name)
        manifest.write_journal(self.directory, set())

    def _best(self, steps: list[int]) -> list[int]:
        """The step of the lowest rank, as a list; of none when no step has one."""
        ranked = []
        for step in steps if self.rank is not None else ():
            with suppress(CheckpointError):  # one that cannot be read is not the best
                value = self.rank(manifest.read(self.directory / str(step)).meta)  # type: ignore[misc]
                if value is not None and np.isfinite(value):
                    ranked.append((value, step))
        return [min(ranked)[1]] if ranked else []

    def _make_way(self, step: int, nbytes: int) -> None:
        """The folder as a step is to find it, and the step in the journal."""
        self._make_directory()
        try:
            self._clear(step)
            manifest.write_journal(self.directory, manifest.read_journal(self.directory) | {step})
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(step, nbytes, error) from error

    def _clear(self, step: int) -> None:
        """Make way for a step: remove what a killed process of ours left of it, set aside what is not ours."""
        ours = step in manifest.read_journal(self.directory)
        unfinished = {name for name in manifest.survey(self.directory).unfinished if manifest.number(name) == step}
        for path in (self.directory / name for name in sorted(unfinished | {str(step)})):
            if ours and path.name in unfinished:
                shutil.rmtree(path)
            elif os.path.lexists(path):
                logging.error("%s was in the way and is no checkpoint: now %s", path, manifest.set_aside(path))

    def _failed(self, step: int, nbytes: int, error: Exception) -> SaveFailed:
        """Free the space of a failed save and say what was needed."""
        # Other threads of Orbax may still be writing into the folder that is being removed.
        for _ in range(20 if distributed.is_first() else 0):
            with suppress(OSError, CheckpointError):
                self._clear(step)
                break
            time.sleep(0.05)
        space = f" ({nbytes:,} bytes needed)"
        with suppress(OSError):
            space = f" ({nbytes:,} bytes needed, {shutil.disk_usage(self.directory).free:,} free)"
        return SaveFailed(f"step {step} was not saved in {self.directory}{space}: {_reason(error)}")

    def _set_aside(self, folder: Path) -> None:
        self._own.discard(int(folder.name))
        try:
            logging.error("the step was set aside as %s", manifest.set_aside(folder))
        except OSError as error:
            raise CheckpointError(f"{folder} is corrupt and cannot be set aside: {error.strerror}") from error

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.directory} cannot be made: {error.strerror}") from error
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise CheckpointError(f"{self.directory} cannot be written to")

    def _restart(self) -> None:
        """A new manager: the old one would raise a failed save's error again and again."""
        with suppress(Exception):
            self._manager.close()
        self._manager = _manager(self.directory)


def restore_params(
    directory: Path, template: Any, *, step: int | None = None, fresh: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """Only the sub-trees that `template` names, from the newest verified step (or `step`) of any run: (tree, meta).

    `template` is a View or a dict such as {"params": ..., "ema": ...}, whose children are compared and restored as in
    `Checkpoints.restore`. Paths that start with one of `fresh` ("params/model/head") are not looked up: the template's
    own arrays are returned there. The directory is only read: a corrupt step is passed over, not set aside.

    Raises Mismatch before any array is read, NothingVerified, NewerFormat, Corrupt (only when `step` is given).
    """
    directory = Path(directory).absolute()
    every = _leaves(template)
    if unused := [prefix for prefix in fresh if not any(_under(path, prefix) for path in every)]:
        raise Mismatch(f"fresh names no path of the template: {', '.join(unused)}")
    names = _children(template)

    def is_looked_up(path: str) -> bool:
        return path.split("/")[0] in names and not any(_under(path, prefix) for prefix in fresh)

    wanted = {path: x for path, x in every.items() if is_looked_up(path)}
    found = _chosen(directory, step, wanted, scope=is_looked_up)
    if found is None:
        raise NothingVerified(f"no verified checkpoint in {directory}")
    kept = {path: jnp.copy(x) for path, x in every.items() if path not in wanted}
    return _like(template, _read(directory / str(found[0]), wanted) | kept), found[1]


def digests(tree: Any) -> dict[str, str]:
    """path -> SHA-256 of dtype, shape and bytes: equal for two trees that are equal to the bit."""
    out = {}
    for path, x in _leaves(tree).items():
        head = f"{_leaf(x)} ".encode()
        out[path] = hashlib.sha256(head + np.ascontiguousarray(distributed.fetch(_data(x))).tobytes()).hexdigest()
    return out


def saved_paths(directory: Path) -> frozenset[str]:
    """The leaf paths ("params/model/head/kernel") in the newest step with an intact manifest; none without one."""

    def read() -> list[str]:
        for folder in manifest.candidates(Path(directory).absolute(), None):
            try:
                return sorted(manifest.read(folder).leaves)
            except Corrupt as error:
                logging.error("%s", error)
        return []

    return frozenset(distributed.told_by_first(read, raises=_ERRORS))


def fits_newest(directory: Path, template: Any) -> int | None:
    """The newest step with an intact manifest, whose arrays have the template's paths, shapes and dtypes; None when
    there is none. No array is read.

    Raises Mismatch, NewerFormat.
    """
    for folder in manifest.candidates(Path(directory).absolute(), None):
        try:
            _require_fit(folder, manifest.read(folder), _leaves(template))
            return int(folder.name)
        except Corrupt as error:
            logging.error("%s", error)
    return None


def read_meta(directory: Path, step: int | None = None) -> dict[str, Any] | None:
    """What `save` was given as meta for the newest step (or `step`) with an intact manifest; None when there is none.

    Raises Corrupt (only when `step` is given), NewerFormat.
    """
    for folder in manifest.candidates(Path(directory).absolute(), step):
        try:
            return manifest.read(folder).meta
        except Corrupt as error:
            logging.error("%s", error)
            if step is not None:
                raise
    return None


def _chosen(
    directory: Path, step: int | None, wanted: Mapping[str, Any], **how: Any
) -> tuple[int, dict[str, Any]] | None:
    """(step, meta) of `_verified`, which the first process alone looks for; it tells the others."""

    def look() -> tuple[int, dict[str, Any]] | None:
        found = _verified(directory, step, wanted, **how)
        return None if found is None else (found[1].step, found[1].meta)

    told = distributed.told_by_first(look, raises=_ERRORS)
    return None if told is None else (told[0], told[1])


def _verified(
    directory: Path,
    step: int | None,
    wanted: Mapping[str, Any],
    *,
    scope: Callable[[str], bool] = lambda path: True,
    on_corrupt: Callable[[Path], None] = lambda folder: None,
) -> tuple[Path, Manifest] | None:
    """The newest step (or `step`) that fits `wanted` and is intact; `scope` says which saved paths are compared."""
    for folder in manifest.candidates(directory, step):
        try:
            found = manifest.read(folder)
            _require_fit(folder, found, wanted, scope)
            manifest.verify(folder, found)
            return folder, found
        except Corrupt as error:
            logging.error("%s", error)
            on_corrupt(folder)
            if step is not None:
                raise
    return None


def _require_fit(
    folder: Path, found: Manifest, wanted: Mapping[str, Any], scope: Callable[[str], bool] = lambda path: True
) -> None:
    saved = {path: leaf for path, leaf in found.leaves.items() if scope(path)}
    lines = manifest.differences(saved, {path: _leaf(x) for path, x in wanted.items()})
    if lines:
        more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
        raise Mismatch("\n  ".join([f"{folder} does not fit the template:", *lines[:_MOST_LINES], *more]))


def _leaves(tree: Any) -> dict[str, Any]:
    """Arrays by path. Raises CheckpointError on a leaf that is no array, or when two paths read the same."""
    leaves: dict[str, Any] = {}
    for keys, x in jax.tree_util.tree_leaves_with_path(tree):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in leaves:
            raise CheckpointError(f"two leaves have the path {path!r}")
        if not (hasattr(x, "shape") and hasattr(x, "dtype")):
            raise CheckpointError(f"{path} is no array but {type(x).__name__}")
        leaves[path] = x
    return leaves


def _children(tree: Any) -> set[str]:
    """Names of the sub-trees that a template asks for; a child that is None asks for nothing."""
    children = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is not tree)
    return {jax.tree_util.keystr(keys, simple=True) for keys, child in children if child is not None}


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def _leaf(x: Any) -> Leaf:
    return Leaf(tuple(x.shape), str(x.dtype))


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _nbytes(leaves: Mapping[str, Any]) -> int:
    return sum(x.nbytes for x in leaves.values())


def _like(template: Any, arrays: Mapping[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[path] for path in _leaves(template)])


def _read(folder: Path, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Arrays by path, each in a buffer of its own. The folder is verified and the paths compared by now."""
    # StandardRestore can neither restore some of the paths, nor forget the devices of the run that saved.
    how = {path: _restore_args(x) for path, x in wanted.items() if 0 not in x.shape}
    args = ocp.args.PyTreeRestore(item=dict.fromkeys(how, 0), restore_args=how, partial_restore=True)
    raw: dict[str, Any] = {}
    if how:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            raw = reader.restore(folder / "default", args=args)
    arrays = {}
    for path, x in wanted.items():
        if 0 in x.shape:
            arrays[path] = jnp.zeros(x.shape, x.dtype, device=_sharding(x))
        else:
            y = jnp.copy(raw.pop(path))  # what Orbax returns may be a view of its own memory
            arrays[path] = jax.random.wrap_key_data(y, dtype=x.dtype) if _is_key(x) else y
        if _leaf(arrays[path]) != _leaf(x):
            raise CheckpointError(f"{path} was read as {_leaf(arrays[path])} instead of {_leaf(x)}")
    return arrays


def _restore_args(x: Any) -> ocp.RestoreArgs:
    sharding = _sharding(x)
    return ocp.RestoreArgs(restore_type=np.ndarray) if sharding is None else ocp.ArrayRestoreArgs(sharding=sharding)


def _sharding(x: Any) -> jax.sharding.Sharding | None:
    """None for what may move freely: numpy, structs without a sharding, arrays that are not committed to a device."""
    if isinstance(x, jax.Array) and not x.committed:
        return None
    return getattr(x, "sharding", None)


def _require_finite(step: int, leaves: Mapping[str, Any]) -> None:
    checked = {path: x for path, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    if not checked:
        return
    nan_only = tuple(path.split("/")[0] in _MAY_BE_INFINITE for path in checked)
    bad = np.asarray(distributed.fetch(_any_bad(list(checked.values()), nan_only)))
    paths = [path for path, is_bad in zip(checked, bad, strict=True) if is_bad]
    if paths:
        more = f" and {len(paths) - _MOST_LINES} more" if len(paths) > _MOST_LINES else ""
        raise NonFinite(f"step {step} is not saved: not finite: {', '.join(paths[:_MOST_LINES])}{more}")


@functools.partial(jax.jit, static_argnums=1)
def _any_bad(leaves: list[jax.Array], nan_only: tuple[bool, ...]) -> jax.Array:
    """bool[len(leaves)], computed where the leaves are: only that many bytes travel to the host."""
    near = jax.device_put(leaves, jax.memory.Space.Device)  # some may lie in the host's memory
    return jnp.stack(
        [jnp.any(jnp.isnan(x) if nan else ~jnp.isfinite(x)) for x, nan in zip(near, nan_only, strict=True)]
    )


def _as_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(meta), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"meta is not JSON: {error}") from error


def _not_orbax(record: Any) -> bool:
    """Orbax logs a failed save five times, with the traceback of each of its threads, before it raises it."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _reason(error: Exception) -> str:
    """One line. TensorStore tells of a failed write in a nest of paths, with the reason of the system at its end."""
    text = " ".join(str(error).split())
    system = re.search(r": ([^:]+) \[os_error_code=", text)
    return system[1] if system else f"{type(error).__name__}: {text}"


@functools.cache
def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _manager(directory: Path) -> ocp.CheckpointManager:
    """Retention is not Orbax's: an older step may go only once the newer one has its manifest."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None, enable_async_checkpointing=True, lightweight_initialize=True
    )
    return ocp.CheckpointManager(directory, options=options)
