"""Work in other processes, results in order: Grain, with what it needs outside of an absl application. Floor 4."""

import atexit
import contextlib
import math
import os
import shutil
import sys
import types
import weakref
from collections.abc import Callable, Generator, Iterator

import numpy as np

from umbrella.settings import SettingsError

Slot = dict[str, np.ndarray]
# Results that the workers keep ready, all together: as many calls as JAX lets run ahead of a CPU. When the loop has
# waited for the device, after an evaluation say, it asks for that many at once, and has them.
AHEAD = 32
SHARED = "/dev/shm"
ROOM = 2**26  # bytes that they may take, if that leaves two in each buffer


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
    buffered = _buffered(sum(v.nbytes for v in make(start).values()), workers, _free())
    steps = grain.MapDataset.range(start, stop).map(make)
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffered)
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


def _buffered(nbytes: int, workers: int, free: float) -> int:
    """How many results each of a worker's two buffers holds, one on Grain's side of the process and one on ours.

    Args:
      nbytes: of a result.
      free: bytes of shared memory.

    >>> _buffered(100_000, 2, 1e9), _buffered(3_000_000, 2, 1e9), _buffered(40_000_000, 2, 1e9)
    (8, 5, 2)

    Raises:
      SettingsError: there is no room for one. A full /dev/shm kills a worker with a bus error; containers often have 64
        MB of it.
    """

    def need(buffered: int) -> int:  # each worker has one more in its hands, and the loop has one
        return nbytes * (workers * (2 * buffered + 1) + 1)

    buffered = max(2, min(AHEAD // (2 * workers), ROOM // (2 * workers * max(1, nbytes))))
    while buffered > 1 and need(buffered) > free:
        buffered -= 1
    if need(buffered) > free:
        raise SettingsError(
            f"{workers} data workers need {need(buffered) >> 20} MB of shared memory and {SHARED} has "
            f"{int(free) >> 20} MB: use workers=0, a smaller batch, or more of it (docker: --shm-size)"
        )
    return buffered


def _free() -> float:
    return shutil.disk_usage(SHARED).free if os.path.isdir(SHARED) else math.inf


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
