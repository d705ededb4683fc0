"""The only Python training loop. Floor 4.

It keeps the device busy and otherwise stays out of the way: calls are made ahead of the device, metrics are read
one log late, so that the device never waits for Python.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import distributed
from umbrella.metrics import Mean
from umbrella.objective import PyTree
from umbrella.step import Program
from umbrella.train_state import TrainState

Compiled = Any  # a jitted (ts, sums, frozen, resident, slot) -> (ts, sums)


class Diverged(Exception):
    """A loss or a gradient was not finite at `step`. `ts` is the state before that step, where it was made again."""

    def __init__(
        self,
        step: int,
        ts: TrainState | None = None,
        leaf: str | None = None,
        seconds: Mapping[str, float] | None = None,
    ):
        where = "" if leaf is None else f"; first bad leaf: {leaf}"
        super().__init__(f"the loss or its gradient was not finite at step {step}{where}")
        self.step = step
        self.ts = ts
        self.seconds = dict(seconds or {})  # as in Outcome


class Cadence(NamedTuple):
    """In steps; 0 is never."""

    log: int
    evaluate: int
    save: int

    def next(self, step: int, total: int) -> int:
        """The first step after `step` at which something happens."""
        return min([total, *((step // c + 1) * c for c in self if c)])


class Hooks(NamedTuple):
    """What happens at a cadence. Each gets the number of steps done; none may change the state.

    An evaluation that returns True makes its step the last one.
    """

    log: Callable[[int, dict[str, np.ndarray]], None]  # training metrics, averaged since the last log
    evaluate: Callable[[int, TrainState], bool | None]
    save: Callable[[int, TrainState], None]


class Outcome(NamedTuple):
    ts: TrainState
    signum: int | None  # the signal that stopped the run, after a save
    seconds: dict[str, float]  # total, step, data_wait, evaluate, checkpoint


def fit(
    ts: TrainState,
    programs: Mapping[int, Compiled],
    window: "Window",
    feed: "Feed",
    *,
    frozen: PyTree,
    resident: PyTree,
    start: int,
    total: int,
    cadence: Cadence,
    hooks: Hooks,
    put: Callable[[PyTree, int], PyTree] | None = None,
    spread: Callable[[PyTree], PyTree] = jax.device_put,
    halting: bool = False,
    in_step: bool = False,
    watch: Callable[[int, int, PyTree], None] | None = None,
    ask: Callable[[int, int | None, bool], int | None] | None = None,
) -> Outcome:
    """Trains from step `start` to step `total`.

    Args:
      programs: steps per call -> from `compile_step`; 1 must be there, and one more may be. Calls of k steps begin at
        multiples of k, so the way in which a run is cut into calls depends on nothing but the step.
      feed: the slots from `start` on.
      put: (host slot, steps it is for) -> device slot. None hands the host's arrays to the compiled program: on one
        device that is the same, and takes 1 us where `device_put` takes 20.
      spread: what all devices hold: host -> devices.
      in_step: waits for every call before the next. Several devices of one CPU need it: their collectives share its
        threads, and of two calls in flight each can hold what the other waits for.
      watch: called before every call, with its first step, how many it makes, and what the calls so far will give.
      ask: where several processes train, the signal that one of them got, once all know; see
        `umbrella.distributed.Poll`.
      halting: whether the step is guarded by "halt", so that opt_state["guard"] tells of a bad step.

    Raises:
      Diverged: with `halting`, at the first log after the bad step, whose number it holds. Nothing was saved since.
    """
    spent = {"data_wait": 0.0, "evaluate": 0.0, "checkpoint": 0.0}
    began = clock = time.perf_counter()
    inwards = "allow" if put is None else "disallow"
    late: tuple[int, jax.Array] | None = None  # a closed window, read when the device has long finished it

    def seconds() -> dict[str, float]:
        whole = time.perf_counter() - began
        return {"total": whole, "step": whole - sum(spent.values()), **spent}

    def log(at: int, closed: jax.Array) -> None:
        told = window.compute(closed)
        if halting and np.any(told["skipped"]):
            raise Diverged(_bad_step(ts), seconds=seconds())
        hooks.log(at, told)

    with Interrupts() as stop:
        step, sums, most = start, spread(window.zeros()), max(programs)

        def stopped(due: bool) -> int | None:
            return stop.signum if ask is None else ask(step, stop.signum, due)

        signum = stopped(True)
        while step < total and signum is None:
            due = cadence.next(step, total)
            # What goes to the device goes there on purpose: the slot, and nothing else is on the host.
            with jax.transfer_guard("disallow"), jax.transfer_guard_host_to_device(inwards):
                while step < due and signum is None:
                    steps = most if step % most == 0 and step + most <= due else 1
                    if watch is not None:
                        watch(step, steps, sums)
                    clock = time.perf_counter()
                    slot = feed(steps) if put is None else put(feed(steps), steps)
                    spent["data_wait"] += time.perf_counter() - clock
                    ts, sums = programs[steps](ts, sums, frozen, resident, slot)
                    if in_step:
                        jax.block_until_ready(sums)
                    step += steps
                    signum = stopped(False)
            evaluating = _due(step, cadence.evaluate) or (step >= total and bool(cadence.evaluate))
            saving = _due(step, cadence.save) or step >= total
            signum = signum or stopped(evaluating or saving)  # to ask is to wait for the device: a log does not
            last = step >= total or signum is not None
            saving = saving or last
            ready = [late] if late is not None else []
            late = None
            if _due(step, cadence.log) or saving:  # a window ends at a save, too, so that a resumed run has the same
                late, sums = (step, sums), spread(window.zeros())
            if last or saving:  # the state is looked at now, so nothing may be known later
                ready, late = [*ready, *([late] if late is not None else [])], None
            for closed in ready:
                log(*closed)
            if evaluating or saving:  # both wait for the device: the time until then is that of the steps
                jax.block_until_ready(ts.step)
            if evaluating and signum is None:
                clock = time.perf_counter()
                if hooks.evaluate(step, ts):
                    total, saving = step, True
                spent["evaluate"] += time.perf_counter() - clock
                signum = stopped(True)
            if saving or signum is not None:  # a signal may have come during the evaluation
                if late is not None:
                    log(*late)
                    late = None
                clock = time.perf_counter()
                hooks.save(step, ts)
                spent["checkpoint"] += time.perf_counter() - clock
                signum = signum or stopped(True)
    return Outcome(ts, signum, seconds())


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _bad_step(ts: TrainState) -> int:
    """The first step that was not finite, of any lane."""
    bad = np.asarray(distributed.fetch(ts.opt_state["guard"]["bad_step"]))
    return int(bad[bad >= 0].min())


class Feed:
    """The slots of consecutive steps, one at a time or several stacked on a new axis (after the lanes')."""

    def __init__(self, slots: Iterator[PyTree], *, lanes: bool = False):
        self._slots, self._axis = slots, int(lanes)

    def __call__(self, steps: int = 1) -> PyTree:
        if steps == 1:
            return next(self._slots)
        several = [next(self._slots) for _ in range(steps)]
        return jax.tree.map(lambda *x: np.stack(x, axis=self._axis), *several)


def steps_per_call(flops: float, cadence: Cadence, total: int, *, backend: str) -> int:
    """How many steps a call should make: several when a step is so small that calling it costs more than running it.

    On CPU a step of 3 MFLOP takes 78 us by itself and 56 us in a scan of eight; a large one loses intra-op parallelism
    in there. It depends on nothing that varies from run to run: the same steps in other calls may round otherwise.

    Args:
      flops: of one step.
      cadence: calls are to end where something is due, so a divisor of all of it is taken when there is a good one.
    """
    small = 5e7 if backend == "cpu" else 1e10
    if flops > small:
        return 1
    common = math.gcd(total, *(c for c in cadence if c))
    return next((k for k in range(16, 3, -1) if common % k == 0), 8)


class Window(NamedTuple):
    """Metric states packed into one vector, so that adding them up costs a step one argument and one addition.

    Every state must be of sums (Mean, Confusion, ...); `umbrella.metrics.Collect` is for evaluation only.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    lanes: int | None

    @classmethod
    def of(cls, told: dict[str, Any], lanes: int | None = None) -> "Window":
        """From the metrics that a step returns, or their `jax.eval_shape`."""
        leaves, treedef = jax.tree.flatten(told)
        return cls(treedef, tuple(x.shape[0 if lanes is None else 1 :] for x in leaves), lanes)

    def zeros(self) -> np.ndarray:
        """Empty sums, f32[M] or f32[K, M], on the host."""
        size = sum(math.prod(s) for s in self.shapes)
        return np.zeros((size,) if self.lanes is None else (self.lanes, size), np.float32)

    def pack(self, told: dict[str, Any]) -> jax.Array:
        lead = () if self.lanes is None else (self.lanes,)
        return jnp.concatenate([x.astype(jnp.float32).reshape((*lead, -1)) for x in jax.tree.leaves(told)], axis=-1)

    def compute(self, sums: Any) -> dict[str, Any]:
        """name -> value, or [K] values with lanes; read from the device here. Means of a phase of training that was
        not on (`umbrella.phases.during`) are left out; those that were undone as not finite are NaN."""
        flat = np.asarray(distributed.fetch(sums), np.float64)
        each = [self._states(row) for row in (flat[None] if self.lanes is None else flat)]
        undone = any("skipped" in states and states["skipped"].total > 0 for states in each)
        told = {}
        for name in each[0]:
            if undone or not all(isinstance(s[name], Mean) and s[name].count == 0 for s in each):
                told[name] = [s[name].compute() for s in each]
        return {name: v[0] if self.lanes is None else np.asarray(v) for name, v in told.items()}

    def _states(self, flat: np.ndarray) -> dict[str, Any]:
        ends = np.cumsum([math.prod(s) for s in self.shapes])[:-1]
        leaves = [part.reshape(s) for part, s in zip(np.split(flat, ends), self.shapes, strict=True)]
        states: dict[str, Any] = jax.tree.unflatten(self.treedef, leaves)
        return states


def compile_step(run: Program, window: Window, *, jit: Callable[..., Any] = jax.jit) -> Compiled:
    """(ts, sums, frozen, resident, slot) -> (ts, sums + the step's metrics), donating ts and sums."""

    def call(
        ts: TrainState, sums: jax.Array, frozen: PyTree, resident: PyTree, slot: PyTree
    ) -> tuple[TrainState, jax.Array]:
        ts, told = run(ts, frozen, resident, slot)
        return ts, sums + window.pack(told)

    return jit(call, donate_argnums=(0, 1))


class Interrupts:
    """SIGINT and SIGTERM become a request to stop after the step; a second one stops at once. Restores the handlers.

    At once is by the handlers that Python starts with, so the second SIGTERM ends even what runs outside of Python.

    Outside the main thread, where Python cannot handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, signum: int, frame: Any) -> None:
        self.signum = signum
        if self._before:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _restore(self) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
        self._before = {}

    def __exit__(self, *exc: Any) -> None:
        self._restore()
