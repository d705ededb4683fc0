"""The loop with a step of one parameter: what happens when, what is averaged over what, and how it stops."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import umbrella as um
from tests.helpers import bits, copy, tmap
from tests.test_pipelines import vision
from tests.test_step import LR, at, quadratic, sgd
from umbrella.environment import CompileMeter
from umbrella.loop import Cadence, Diverged, Feed, Hooks, Interrupts, Outcome, Window, compile_step, fit, steps_per_call
from umbrella.step import guard, program
from umbrella.train_state import TrainState, create

STEP = guard(sgd(quadratic()), "halt")
BATCH = {"x": jnp.zeros(2)}
START = create(quadratic().init, STEP, jax.random.key(0), BATCH)
WINDOW = Window.of(jax.eval_shape(program(STEP), START, {}, {}, BATCH)[1])
PROGRAMS = {k: compile_step(program(STEP, steps=k), WINDOW) for k in (1, 4)}


def x_of(step: int) -> np.ndarray:
    return np.array([np.sin(step), 3 + np.cos(2 * step)], np.float32)


def slots(start: int, *, bad: int = -1, at_step: Callable[[int], None] = lambda step: None) -> Iterator[Any]:
    """The slots from `start` on; `at_step` is called when one is asked for; step `bad` is not finite."""
    step = start
    while True:
        at_step(step)
        yield {"x": x_of(step) * (np.float32(np.nan) if step == bad else np.float32(1))}
        step += 1


class Seen:
    """Hooks that write down what they are called with, and may do something besides."""

    def __init__(self, **also: Callable[[int], None]) -> None:
        self.log: list[tuple[int, dict[str, Any]]] = []
        self.calls: list[tuple[str, int]] = []
        self.w: dict[int, float] = {}  # at each save
        self._also = also

    def hooks(self) -> Hooks:
        return Hooks(self._log, self._evaluate, self._save)

    def at(self, kind: str) -> list[int]:
        return [step for name, step in self.calls if name == kind]

    def _note(self, kind: str, step: int) -> None:
        self.calls.append((kind, step))
        self._also.get(kind, lambda step: None)(step)

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        self.log.append((step, metrics))
        self._note("log", step)

    def _evaluate(self, step: int, ts: TrainState) -> None:
        assert int(ts.step) == step
        self._note("evaluate", step)

    def _save(self, step: int, ts: TrainState) -> None:
        assert int(ts.step) == step
        self.w[step] = at(ts)
        self._note("save", step)


def run(
    total: int,
    cadence: Cadence,
    seen: Seen,
    *,
    start: int = 0,
    ts: Any = None,
    calls: tuple[int, ...] = (1,),
    **kw: Any,
) -> Outcome:
    ts = copy(START) if ts is None else ts
    programs = {k: PROGRAMS[k] for k in calls}
    feed = Feed(slots(start, **kw))
    return fit(
        ts,
        programs,
        WINDOW,
        feed,
        frozen={},
        resident={},
        start=start,
        total=total,
        cadence=cadence,
        hooks=seen.hooks(),
        halting=True,
    )


def by_hand(total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(w before each step and after the last, losses, gradient norms): w <- w - lr (w - mean x), in f64."""
    w, ell, norm = [2.0], [], []
    for step in range(total):
        x = x_of(step).astype(np.float64)
        ell.append(0.5 * np.mean((w[-1] - x) ** 2))
        norm.append(abs(w[-1] - x.mean()))
        w.append(w[-1] - LR * (w[-1] - x.mean()))
    return np.array(w), np.array(ell), np.array(norm)


# ---- when
@pytest.mark.parametrize("calls", [(1,), (1, 4)])
def test_hooks_are_called_at_their_steps(calls: tuple[int, ...]) -> None:
    """And at the last step; a save closes a window, so that a run that is resumed there has the same windows."""
    seen = Seen()
    out = run(23, Cadence(5, 8, 10), seen, calls=calls)
    assert seen.at("evaluate") == [8, 16, 23]
    assert seen.at("save") == [10, 20, 23]
    assert seen.at("log") == [5, 10, 15, 20, 23]
    assert (int(out.ts.step), out.signum) == (23, None)
    at_the_end = [kind for kind, step in seen.calls if step == 23]
    assert at_the_end == ["log", "evaluate", "save"]


def test_what_is_never_due() -> None:
    """0 is never; the last step is saved all the same, and logged."""
    seen = Seen()
    run(7, Cadence(0, 0, 0), seen)
    assert seen.calls == [("log", 7), ("save", 7)]
    seen = Seen()
    run(7, Cadence(3, 0, 0), seen)
    assert seen.calls == [("log", 3), ("log", 6), ("log", 7), ("save", 7)]


@pytest.mark.parametrize("calls", [(1,), (1, 4)])
def test_metrics_are_the_means_over_each_window(calls: tuple[int, ...]) -> None:
    seen = Seen()
    out = run(23, Cadence(5, 8, 7), seen, calls=calls)
    w, ell, norm = by_hand(23)
    assert at(out.ts) == pytest.approx(w[23], rel=1e-5)
    before = 0
    for step, metrics in seen.log:
        assert metrics["loss"] == pytest.approx(ell[before:step].mean(), rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm[before:step].mean(), rel=1e-4)
        assert metrics["skipped"] == 0
        before = step
    assert seen.at("log") == [5, 7, 10, 14, 15, 20, 21, 23]
    for step, value in seen.w.items():
        assert value == pytest.approx(w[step], rel=1e-5)


def test_a_resumed_run_has_the_windows_of_the_whole_one() -> None:
    """Saved at 10 and gone on from there, it logs at the same steps the same numbers, to the bit."""
    whole, kept = Seen(), {}
    first = run(10, Cadence(4, 0, 5), Seen(save=lambda step: kept.update(at=step)))
    run(23, Cadence(4, 0, 5), whole)
    again = Seen()
    run(23, Cadence(4, 0, 5), again, start=kept["at"], ts=first.ts)
    assert again.log == [(step, metrics) for step, metrics in whole.log if step > 10]
    assert again.at("log") == [12, 15, 16, 20, 23]


def test_a_run_that_starts_between_two_logs_logs_at_the_next() -> None:
    seen, (_, ell, _) = Seen(), by_hand(10)
    ts = run(7, Cadence(5, 0, 0), Seen()).ts
    run(10, Cadence(5, 0, 0), seen, start=7, ts=ts)
    assert seen.at("log") == [10]
    assert seen.log[0][1]["loss"] == pytest.approx(ell[7:10].mean(), rel=1e-5)


def test_a_run_that_is_done_does_nothing() -> None:
    seen = Seen()
    out = run(7, Cadence(5, 5, 5), seen, start=7)
    assert seen.calls == []
    assert bits(out.ts, START)


# ---- divergence
def test_a_run_that_diverges_names_the_step() -> None:
    seen, asked = Seen(), []
    with pytest.raises(Diverged, match="not finite at step 7") as error:
        run(100, Cadence(5, 0, 0), seen, bad=7, at_step=asked.append)
    assert error.value.step == 7
    assert max(asked) < 15  # it is noticed a log late at most: at 10, or at 15
    assert seen.at("save") == []


def test_a_state_that_diverged_is_neither_evaluated_nor_saved() -> None:
    seen = Seen()
    with pytest.raises(Diverged):
        run(100, Cadence(50, 8, 8), seen, bad=7)
    assert (seen.at("evaluate"), seen.at("save")) == ([], [])


# ---- signals
def kill_at(step: int, signum: int = signal.SIGTERM) -> Callable[[int], None]:
    return lambda now: os.kill(os.getpid(), signum) if now == step else None


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_saves(signum: int) -> None:
    handlers, seen = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], Seen()
    out = run(100, Cadence(5, 3, 50), seen, at_step=kill_at(7, signum))
    assert (out.signum, int(out.ts.step)) == (signum, 8)
    assert seen.at("save") == [8]
    assert seen.at("log") == [5, 8]
    assert seen.at("evaluate") == [3, 6]  # an evaluation would keep whoever asked waiting
    w, ell, _ = by_hand(8)
    assert at(out.ts) == pytest.approx(w[8], rel=1e-5)
    assert seen.log[-1][1]["loss"] == pytest.approx(ell[5:].mean(), rel=1e-5)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("hook", ["log", "evaluate", "save"])
def test_a_signal_during_a_hook_saves_as_well(hook: str) -> None:
    """Wherever it arrives, the run stops with its last step saved and every window logged."""
    seen = Seen(**{hook: kill_at(20)})
    out = run(100, Cadence(5, 10, 20 if hook == "save" else 0), seen)
    assert out.signum == signal.SIGTERM
    assert seen.at("save")[-1:] == [int(out.ts.step)]
    assert seen.at("log")[-1] == int(out.ts.step)
    assert int(out.ts.step) <= 26


def test_a_signal_at_the_last_step_is_a_finished_run_that_was_asked_to_stop() -> None:
    seen = Seen()
    out = run(8, Cadence(5, 0, 0), seen, at_step=kill_at(7))
    assert (out.signum, int(out.ts.step), seen.at("save")) == (signal.SIGTERM, 8, [8])


def test_the_handlers_are_restored_after_an_error() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    def fail(step: int) -> None:
        raise RuntimeError("no more data")

    with pytest.raises(RuntimeError, match="no more data"):
        run(8, Cadence(5, 0, 0), Seen(), at_step=fail)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_a_second_termination_kills() -> None:
    """In a process of its own: it outlives the first signal and not the second."""
    script = """
import os, signal, time
from umbrella.loop import Interrupts
with Interrupts() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print("asked", stop.signum, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    print("alive", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"asked {int(signal.SIGTERM)}\n"
    assert done.returncode == -signal.SIGTERM


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Interrupts() as stop:
            inside.append((stop.signum, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(None, before)]


# ---- speed
def test_two_hundred_steps_compile_nothing() -> None:
    run(20, Cadence(10, 0, 0), Seen(), calls=(1, 4))
    ts, meter = copy(START), CompileMeter()
    try:
        run(200, Cadence(10, 50, 100), Seen(), ts=ts, calls=(1, 4))
        assert meter.count == 0
    finally:
        meter.close()


def test_seconds_are_counted_where_they_are_spent() -> None:
    """8 waits of 5 ms for data, 2 evaluations of 20 ms, 1 save of 40 ms; and the parts add up to the whole."""
    seen = Seen(evaluate=lambda step: time.sleep(0.02), save=lambda step: time.sleep(0.04))
    began = time.perf_counter()
    spent = run(8, Cadence(4, 4, 8), seen, at_step=lambda step: time.sleep(0.005)).seconds
    whole = time.perf_counter() - began
    assert spent.keys() == {"total", "step", "data_wait", "evaluate", "checkpoint"}
    assert spent["data_wait"] >= 0.04
    assert spent["evaluate"] >= 0.04
    assert spent["checkpoint"] >= 0.04
    assert 0 < spent["step"] <= whole - 0.12
    assert spent["total"] == pytest.approx(sum(v for k, v in spent.items() if k != "total"))
    assert spent["total"] <= whole


# ---- windows, feeds
def test_a_window_of_lanes_gives_a_value_for_each() -> None:
    """Two lanes at different states see the same batch: losses (2 - 1)^2 / 2 and (5 - 1)^2 / 2, then averaged."""
    lanes = tmap(lambda v: jnp.stack([v, v]), START.replace(key=jax.random.key_data(START.key)))
    lanes = lanes.replace(key=jax.random.wrap_key_data(lanes.key))
    lanes.params["model"]["w"] = jnp.asarray([2.0, 5.0])
    make = program(STEP, lanes="shared")
    batch = {"x": jnp.ones(3)}
    window = Window.of(jax.eval_shape(make, lanes, {}, {}, batch)[1], 2)
    call, sums = compile_step(make, window), window.zeros()
    ts, sums = call(lanes, sums, {}, {}, batch)
    np.testing.assert_allclose(window.compute(sums)["loss"], [0.5, 8.0])
    ts, sums = call(ts, sums, {}, {}, batch)
    np.testing.assert_allclose(window.compute(sums)["loss"], [0.5 * (1 + 0.81) / 2, 8 * (1 + 0.81) / 2], rtol=1e-6)
    assert window.compute(sums)["skipped"].tolist() == [0, 0]


@pytest.mark.parametrize("lanes", [False, True])
def test_a_feed_gives_slots_one_by_one_or_stacked(lanes: bool) -> None:
    """Several steps go on a new axis, after the lanes' if there is one."""
    each = [{"idx": np.full((2, 3), i)} for i in range(6)]
    feed = Feed(iter(each), lanes=lanes)
    assert feed()["idx"].shape == (2, 3)
    several = feed(4)["idx"]
    assert several.shape == ((2, 4, 3) if lanes else (4, 2, 3))
    np.testing.assert_array_equal(several[0, :, 0] if lanes else several[:, 0, 0], [1, 2, 3, 4])
    assert feed()["idx"][0, 0] == 5


@pytest.mark.parametrize(
    ("flops", "cadence", "total", "backend", "wanted"),
    [
        (1e9, Cadence(10, 10, 10), 100, "cpu", 1),  # a large step: calling it costs nothing
        (1e9, Cadence(10, 10, 10), 100, "gpu", 10),
        (1e6, Cadence(50, 100, 0), 1000, "cpu", 10),  # the largest divisor of 50 in 4..16
        (1e6, Cadence(7, 0, 0), 21, "cpu", 7),
        (1e6, Cadence(3, 5, 0), 30, "cpu", 8),  # no divisor: eight, and single steps where something is due
        (1e6, Cadence(0, 0, 0), 32, "cpu", 16),
    ],
)
def test_how_many_steps_a_call_makes(flops: float, cadence: Cadence, total: int, backend: str, wanted: int) -> None:
    assert steps_per_call(flops, cadence, total, backend=backend) == wanted


def test_an_evaluation_does_not_pay_for_the_steps_that_it_waits_for(tmp_path: Any) -> None:
    """Calls run ahead of the device, so the first who looks waits for all of them."""
    config = vision(
        model=dict(name="mlp", hidden=(1024, 1024)), batch_size=512, train_for="12 steps", eval_every="12 steps"
    )
    r = um.run({**config, "data": dict(name="digits", validation=0.02)}, workdir=tmp_path, quiet=True)
    # 12 steps of 512 rows against 2 evaluations of 29 rows and one of 359.
    assert r.summary["seconds"]["step"] > r.summary["seconds"]["evaluate"] * 0.5
