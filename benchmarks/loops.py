"""Umbrella's loop, with everything on, against the rivals."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from benchmarks import rivals
from umbrella import models, runs
from umbrella.loop import Cadence, Feed, Hooks, Outcome, fit
from umbrella.settings import SettingsError

Watch = Callable[[int, int, Any], None]  # as `watch` of umbrella.loop.fit


class More(Protocol):
    """Trains `steps` steps more, on `slots`."""

    def __call__(self, slots: Iterator[Any], steps: int, watch: Watch | None = None) -> Outcome: ...


def umbrella_loop(config: dict[str, Any], stack: contextlib.ExitStack) -> tuple[rivals.Segment, runs.Session]:
    """The loop as a run has it: averages, guard, metrics to the writers, logs and checkpoints at their cadence."""
    more, session = trained(config, stack)
    made = 0

    def segment(steps: int) -> float:
        nonlocal made
        slots = session.experiment.train_data.stream(session.seeds, made, made + steps)
        began = time.perf_counter()
        more(slots, steps)
        made += steps
        return (time.perf_counter() - began) / steps

    return segment, session


def trained(config: dict[str, Any], stack: contextlib.ExitStack) -> tuple[More, runs.Session]:
    """(what trains so many steps more, on the slots it is given, until the device is done; the session)."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="umbrella-bench-"))
    session = stack.enter_context(runs.Session(config, folder, name="benchmark", quiet=True))
    ex = session.experiment
    resident = session.place.replicated(ex.train_data.resident)
    ts, _ = session.start(resident)
    session.open_writers(0, ex.durations.total)
    hooks = Hooks(session.on_log, lambda *_: None, session.on_save)
    d = ex.durations
    cadence = Cadence(d.steps(ex.run.log_every), 0, d.steps(ex.run.checkpoint_every))
    programs, window = session.compile(ts, resident, cadence)
    held: dict[str, Any] = {"ts": ts, "step": 0}

    def more(slots: Iterator[Any], steps: int, watch: Watch | None = None) -> Outcome:
        start = held["step"]
        outcome = fit(
            held["ts"],
            programs,
            window,
            Feed(slots, lanes=session.mode_of_lanes == "own"),
            frozen=ex.frozen,
            resident=resident,
            start=start,
            total=start + steps,
            cadence=cadence,
            hooks=hooks,
            put=None if session.place.alone else session.put_slot,
            spread=session.place.sums,
            halting=True,
            watch=watch,
        )
        jax.block_until_ready(outcome.ts)
        held.update(ts=outcome.ts, step=start + steps)
        return outcome

    return more, session


def common(name: str, **more: Any) -> dict[str, Any]:
    return {
        "data": {"name": name},
        "optimizer": {"name": "adam", "learning_rate": 1e-3},
        "evals": {"test": ()},
        "ema": 0.999,
        "train_for": "1000000 steps",
        **more,
    }


def tiny_mlp(stack: contextlib.ExitStack) -> dict[str, rivals.Segment | None]:
    """64-128-10 on scikit-learn's digits, batch 64."""
    config = common(
        "digits",
        pipeline="vision",
        model={"name": "mlp", "hidden": (128,)},
        batch_size=64,
        log_every="100 steps",
        checkpoint_every="5000 steps",
    )
    ours, session = umbrella_loop(config, stack)
    arrays = {k: np.asarray(session.experiment.train_data.resident[k]) for k in ("x", "y")}
    return {
        "umbrella": ours,
        "hand-written jit": rivals.hand_written(models.MLP(out=10), rivals.ClassifierLoss(16.0), arrays, 64),
        "PyTorch": rivals.torch_mlp(arrays, 64, 16.0),
        "Lightning": rivals.lightning_mlp(arrays, 64, 16.0),
    }


def vae(stack: contextlib.ExitStack) -> dict[str, rivals.Segment | None]:
    """784-400-20 on MNIST, batch 128; on noise of MNIST's size when MNIST is not here (the time is the same)."""
    with tempfile.TemporaryDirectory() as folder:
        config = common(
            "mnist",
            pipeline="generative",
            model={"name": "vae", "hidden": (400,), "latent": 20, "activation": "relu"},
            batch_size=128,
            log_every="100 steps",
            checkpoint_every="5000 steps",
        )
        try:
            ours, session = umbrella_loop(config, stack)
        except SettingsError:
            path = Path(folder) / "noise.npz"
            rng = np.random.default_rng(0)
            x, y = rng.integers(0, 256, (60_000, 28, 28, 1), np.uint8), rng.integers(0, 10, 60_000)
            np.savez(path, x=x, y=y)
            ours, session = umbrella_loop(config | {"data": {"name": "noise", "path": str(path)}}, stack)
        arrays = {"x": np.asarray(session.experiment.train_data.resident["x"])}
    net = models.VAE(shape=(28, 28, 1), latent=20, hidden=(400,), activation="relu")
    return {"umbrella": ours, "hand-written jit": rivals.hand_written(net, rivals.VaeLoss(255.0), arrays, 128)}
