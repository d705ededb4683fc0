"""Work in other processes, results in order: Grain, with what it needs outside of an absl application. Floor 4."""

import atexit
import contextlib
import os
import shutil
import sys
import types
import weakref
from collections.abc import Callable, Generator, Iterator

import numpy as np

from umbrella.settings import SettingsError

Slot = dict[str, np.ndarray]
AHEAD = 2  # results that each worker keeps ready


def in_order(make: Callable[[int], Slot], start: int, stop: int, workers: int) -> Generator[Slot, None, None]:
    """make(start), make(start + 1) .. make(stop - 1), computed ahead by `workers` processes.

    One element of the Grain pipeline is one whole result, so the number of workers cannot change what is in it. The
    processes are spawned, never forked: a fork after JAX has started can deadlock.

    Args:
      make: picklable and pure; what it raises is raised here.
      workers: >= 1.

    Raises:
      SettingsError: the machine's shared memory cannot hold what the workers keep ready.
    """
    results = _results(make, start, stop, workers)
    # A generator that is still open when the interpreter goes is closed while Grain's modules are still there.
    atexit.register(_close, weakref.ref(results))
    return results


def _close(reference: "weakref.ref[Generator[Slot, None, None]]") -> None:
    if (results := reference()) is not None:
        results.close()


def _results(make: Callable[[int], Slot], start: int, stop: int, workers: int) -> Generator[Slot, None, None]:
    if stop <= start:
        return
    import grain
    from absl import flags

    # Grain reads its flags, which raises outside of absl's app.run (a notebook, a plain script); defaults are fine.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    workers = min(workers, stop - start)
    _check_room(make(start), workers)
    steps = grain.MapDataset.range(start, stop).map(make)
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
    elements = iter(steps.to_iter_dataset(ahead).mp_prefetch(options))
    try:
        for i in range(stop - start):
            # A worker is started when its first result is asked for.
            with _without_main() if i < workers else contextlib.nullcontext():
                element = next(elements)
            # Copied out of the shared memory, which goes away with Grain's object.
            yield {k: np.array(v) for k, v in element.items()}
            del element
    finally:
        elements.close()


def _check_room(result: Slot, workers: int) -> None:
    """A full /dev/shm kills a worker with a bus error; containers often have 64 MB of it."""
    shm = "/dev/shm"
    if os.path.isdir(shm):
        need, free = sum(v.nbytes for v in result.values()) * workers * (AHEAD + 2), _free(shm)
        if need > free:
            raise SettingsError(
                f"{workers} data workers need {need >> 20} MB of shared memory and {shm} has {free >> 20} MB: "
                "use workers=0, a smaller batch, or more of it (docker: --shm-size)"
            )


def _free(path: str) -> int:
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the main script while processes start, so that they do not run it again.

    They need this package only. Without this a script that lacks `if __name__ == "__main__"` starts itself anew in
    every worker, one that comes from stdin cannot start any, and all others pay their imports twice.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
