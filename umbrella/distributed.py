"""Several processes that run one program on the devices of all: how they begin, agree, and end. Floor 0.

Every process does the same, in the same order; what is to happen once, a line on the terminal or in a file, the first
does. In a single process, which is the usual case, everything here is what it would be without this module.

What is called of "every process" waits for all of them, and must be called by all.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from umbrella.settings import SettingsError

HEARTBEAT = 50  # seconds without a sign of life after which JAX ends the others, if nothing else has by then
# For so many seconds one that watches waits for the others. JAX, which hears of each twice in HEARTBEAT, is later.
WATCH = 15
ROUND = 2.0  # seconds between two rounds of those that watch
POLL = 1.0  # seconds, about, between two questions whether one is to stop
FAREWELL_MS = 5_000
PATIENCE_MS = 24 * 3600 * 1000  # for one that still works, and shows by its heartbeat that it lives
_meetings = itertools.count()
_watches = itertools.count()
_stopping = threading.Event()
_LOSS = (
    r"Gloo \w+ failed|NCCL.*(?:remote|abort|timed? ?out)|Connection (?:reset|closed)|[Hh]eartbeat|[Cc]oordination"
    r"|UNAVAILABLE|DEADLINE_EXCEEDED"
)


class Lost(Exception):
    """Another process of this run is gone, or could not do its part; this one cannot go on alone."""


def start(
    coordinator: str, processes: int | None = None, process: int | None = None, *, patience: float = 300.0
) -> None:
    """Joins the other processes, and waits until all are there. Before anything is computed.

    Where they do not come this process ends, with one line and status 2: what waits is JAX's, and would abort.

    Args:
      coordinator: HOST:PORT of the first process, which the others can reach; or "auto", where JAX finds it and the two
        numbers by itself: under SLURM, Open MPI, Kubernetes and on Cloud TPUs.
      processes: how many there are.
      process: which of them this one is, from 0.
      patience: seconds to wait for the others.

    Raises:
      SettingsError: they do not fit, or there is no such environment.
    """
    how: dict[str, Any] = {}
    if coordinator != "auto":
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise SettingsError(f"--coordinator={coordinator}: write HOST:PORT of the first process, or auto")
        if processes is None or process is None:
            raise SettingsError(
                f"--coordinator={coordinator}: say how many processes there are and which of them this is: "
                "--processes=N --process=0, 1, .. or N - 1"
            )
        if not 0 <= process < processes:
            raise SettingsError(f"--process={process}: of {processes} processes it is one of 0 to {processes - 1}")
        how = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
        how["cluster_detection_method"] = "deactivate"
    elif processes is not None or process is not None:
        raise SettingsError("--coordinator=auto: finds the processes by itself; leave --processes and --process out")
    said = f"--coordinator={coordinator}"
    who = "" if process is None else f" (process {process} of {processes})"

    def give_up() -> None:
        hint = ""
        if process:  # the first itself waits for the others
            try:
                socket.getaddrinfo(coordinator.rpartition(":")[0].strip("[]"), None)
                hint = "; is that the address of process 0, and can it be reached from here?"
            except OSError:
                hint = "; there is no host of that name"
        print(
            f"launch.py{who}: {said}: not all processes came within {patience:g} seconds{hint}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    def tell() -> None:
        print(f"launch.py{who}: {said}: waiting for the other processes", file=sys.stderr, flush=True)

    timers = [threading.Timer(patience, give_up), threading.Timer(min(15.0, patience / 2), tell)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT, initialization_timeout=int(patience) + 60, **how
        )
    except ValueError as error:
        if coordinator != "auto":
            raise SettingsError(f"{said}: {error}") from None
        raise SettingsError(
            "--coordinator=auto: no SLURM, Open MPI, Kubernetes or Cloud TPU is found here; give "
            "--coordinator=HOST:PORT --processes=N --process=I"
        ) from None
    except RuntimeError as error:
        raise SettingsError(f"{said}: the processes did not find each other: {str(error).splitlines()[0]}") from None
    finally:
        for timer in timers:
            timer.cancel()


def joined() -> bool:
    """Whether this process was started as one of several; unlike `several` it starts no backend of JAX."""
    return bool(jax.distributed.is_initialized())


def several() -> bool:
    return jax.process_count() > 1


def is_first() -> bool:
    return jax.process_index() == 0


def told_by_first(make: Callable[[], Any], *, raises: tuple[type[Exception], ...] = ()) -> Any:
    """What `make` returns in the first process, in every one; it is JSON, and run there alone.

    Raises:
      Lost: `make` raised something in the first process, where that is raised itself. Of the classes of `raises`, whose
        only argument is a message, the same is raised in every process.
    """
    if not several():
        return make()
    from jax.experimental import multihost_utils

    told, raised = b"", None
    if is_first():
        try:
            told = json.dumps({"value": make()}).encode()
        except Exception as error:
            raised = error
            told = json.dumps({"raised": type(error).__name__, "message": str(error)}).encode()
    meet()
    with jax.transfer_guard("allow"):
        size = int(multihost_utils.broadcast_one_to_all(np.uint32(len(told))))
        text = np.frombuffer(told.ljust(size), np.uint8)[:size] if is_first() else np.zeros(size, np.uint8)
        found = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
    if raised is not None:
        raise raised
    if "raised" in found:
        kind = next((k for k in raises if k.__name__ == found["raised"]), None)
        if kind is None:
            raise Lost(f"the first process failed: {found['raised']}: {found['message']}")
        raise kind(found["message"])
    return found["value"]


def by_first(do: Callable[[], Any], *, raises: tuple[type[Exception], ...] = ()) -> None:
    """`do` in the first process alone; every process goes on when it is done. Raises as `told_by_first`."""

    def run() -> None:
        do()

    told_by_first(run, raises=raises)


def most(value: int) -> int:
    """The largest of the numbers, i32, that the processes have."""
    meet()
    return int(_all([value])[:, 0].max())


def check_same(what: str, value: str) -> None:
    """Raises SettingsError, in every process, where one has another value than the first."""
    if not several():
        return
    theirs = told_by_first(lambda: value)
    odd = np.flatnonzero(_all([int(value != theirs)])[:, 0])
    if len(odd):
        raise SettingsError(
            f"{what} of process {odd[0]} is not that of process 0; every process must be started with the same "
            "command, code and data"
        )


def is_loss(error: Exception) -> bool:
    """Whether it tells of another process that is gone, by what Gloo, NCCL and JAX's coordination service say then."""
    return isinstance(error, Lost) or re.search(_LOSS, str(error)) is not None


def fetch(tree: Any) -> Any:
    """The arrays of a tree on the host, whole, wherever they lie. For every process, unless all of it is here."""

    def of(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return jax.device_get(x)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(of, tree)


def local(tree: Any) -> Any:
    """The arrays of a tree, whole, on a device of this process, which can then compute with them alone. For every
    process."""
    if not several():
        return tree

    def of(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(of(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jax.device_put(x.addressable_data(0) if x.is_fully_replicated else fetch(x), jax.local_devices()[0])

    return jax.tree.map(of, tree)


class Poll:
    """Whether one of the processes was asked to stop, known to all after the same step: the `ask=` of
    `umbrella.loop.fit`. They ask each other about once a second, after so many steps as the first one makes in it."""

    def __init__(self) -> None:
        self._next = 0
        self._last: tuple[int, float] | None = None

    def __call__(self, step: int, signum: int | None, due: bool) -> int | None:
        """The signal, once all know of it.

        Args:
          step: so many are done.
          signum: the signal that this process got.
          due: they are to ask now; for every process at the same step.
        """
        if step < self._next and not due:
            return None
        now, steps = time.perf_counter(), 1
        if self._last is not None and step > self._last[0]:
            steps = max(1, int(POLL * (step - self._last[0]) / (now - self._last[1])))
        told = _all([signum or 0, min(steps, 10_000)])
        self._next, self._last = step + int(told[0, 1]), (step, time.perf_counter())
        agreed = int(told[:, 0].max()) or None
        if agreed:
            _stopping.set()
        return agreed


def is_stopping() -> bool:
    """Whether all have agreed to stop, so that a signal that comes now asks for what is under way."""
    return _stopping.is_set()


def leave(status: int) -> int:
    """The exit status of this process, as its last act. With a status that is not 0 it does not return where there are
    several processes: the usual end of JAX would wait minutes for those that are gone, or still wait for this one."""
    if status == 0 or not joined():
        return status
    from orbax.checkpoint import multihost

    with contextlib.suppress(Exception):  # where all leave for the same reason, each is to have the time to say it
        multihost.get_barrier_sync_fn()(key="umbrella/leave", timeout_ms=FAREWELL_MS)
        if is_first():  # it has what the others notice by that one is gone, and would be ended by
            time.sleep(WATCH + ROUND if status == 5 else 0.5)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def lost(heard: str = "") -> str:
    """What is said where another process is gone."""
    return (
        "another process of this run was lost. Start all of them again with the same command, and they go on from the "
        "last checkpoint." + f" What was heard of it: {heard}" * bool(heard)
    )


@contextlib.contextmanager
def watched(give_up: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While it is open, this process ends soon after another one is gone, with a line and status 5, wherever it waits:
    where its next sum or its share of a checkpoint would be noticed by JAX alone, which aborts. For every process.

    Each waits for the others every few seconds, by JAX's coordination service and in a thread of its own. So nothing
    may hold Python's lock for as long as WATCH meanwhile; training does not, what trains a tokenizer may. A process 0
    that is gone takes that service with it: JAX aborts the others then.

    Args:
      give_up: is called before the process ends so; nothing else is cleaned up.
    """
    if not several():
        yield
        return
    watch = _Watch(give_up)
    try:
        yield
        meet()
        watch.end()
    finally:
        watch.over = True


class _Watch:
    """The thread of `watched`: rounds, each of which begins when every process is there."""

    def __init__(self, give_up: Callable[[], None]):
        from orbax.checkpoint import multihost

        self.over = False  # what is heard from now on is told by who ended it
        self._give_up, self._turn = give_up, threading.Condition()
        self._rounds, self._ending = 0, False
        self._last: int | None = None  # round
        self._wait, self._key = multihost.get_barrier_sync_fn(), f"umbrella/watch/{next(_watches)}"
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ends it after the same round everywhere, so that none is left waiting. For every process, at once."""
        with self._turn:
            self._ending = True
            self._turn.notify()
            rounds = self._rounds
        last = most(rounds)
        with self._turn:
            self._last = last
            self._turn.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._may_go_on():
            try:
                self._wait(key=self._key, timeout_ms=1000 * WATCH)
            except Exception:
                if not self.over:
                    self._leave()
                return

    def _may_go_on(self) -> bool:
        with self._turn:
            if self._rounds:
                self._turn.wait_for(lambda: self._ending, timeout=ROUND)
            self._turn.wait_for(lambda: not self._ending or self._last is not None)
            if self.over or (self._last is not None and self._rounds >= self._last):
                return False
            self._rounds += 1
            return True

    def _leave(self) -> None:
        print(f"launch.py ({which()}): {lost()}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            self._give_up()
        if is_first():  # the others notice within a round, unless it is gone by then
            time.sleep(2 * ROUND)
        os._exit(5)


def which() -> str:
    """ "process 0 of 2"."""
    return f"process {jax.process_index()} of {jax.process_count()}"


def meet() -> None:
    """Waits until every process is here, however long one of them takes, by JAX's coordination service: Gloo gives up
    after half a minute where one is late. Signals are heard meanwhile."""
    if not several():
        return
    from orbax.checkpoint import multihost

    wait, key, raised = multihost.get_barrier_sync_fn(), f"umbrella/{next(_meetings)}", []

    def run() -> None:
        try:
            wait(key=key, timeout_ms=PATIENCE_MS)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="meet", daemon=True)
    thread.start()
    while thread.is_alive():  # in Python, where handlers of signals run
        thread.join(0.2)
    if raised:
        raise raised[0]


def _all(values: list[int]) -> np.ndarray:
    """i32[processes, V] of what each process has."""
    mine = np.asarray(values, np.int32)
    if not several():
        return mine[None]
    from jax.experimental import multihost_utils

    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, len(values))
