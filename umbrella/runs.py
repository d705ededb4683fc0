"""A run, from a config to what it leaves behind: train, evaluate, sample, predict. Floor 5.

`run` is what launch.py calls, and what a notebook calls as `um.run(config)`.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import logging

from umbrella import artifacts, environment, parallel, pipelines, report
from umbrella.checkpoint import Checkpoints, Mismatch, NothingVerified, restore_params, saved_paths
from umbrella.evaluation import evaluate
from umbrella.experiment import Experiment
from umbrella.loop import Cadence, Compiled, Diverged, Feed, Hooks, Window, compile_step, fit, steps_per_call
from umbrella.objective import Ctx, View
from umbrella.settings import SettingsError
from umbrella.step import program
from umbrella.train_state import TrainState, create, parameter_count
from umbrella.workdir import claim, config_hash, plain, summarise, write_json
from umbrella.writers import JsonlWriter, TensorBoardWriter, Terminal, Writers

SECONDS = ("total", "compile", "step", "data_wait", "evaluate", "checkpoint")
HIDDEN = ("objective", "grad_norm", "skipped")  # from the terminal; the files have them
WHILE_TRAINING = ("train_eval", "validation")  # the evaluations at a cadence; the others are made once, at the end
EVAL_KEY = 20161  # evaluations draw the same noise in every run, whatever its seed


class Result(NamedTuple):
    """What `run` returns."""

    ts: TrainState
    history: list[dict[str, Any]]  # one dict per line that was logged: step, epoch, split, metrics
    summary: dict[str, Any]  # what summary.json holds
    workdir: Path
    experiment: Experiment


def run(
    config: Mapping[str, Any],
    *,
    workdir: str | os.PathLike[str] | None = None,
    init_from: str | os.PathLike[str] | None = None,
    name: str | None = None,
    command: str | None = None,
    quiet: bool = False,
) -> Result:
    """Trains as the config says, evaluates, and writes the report.

    Args:
      config: a ConfigDict or a dict, as configs/*.py make them.
      workdir: where the run lives; what is there of the same config is resumed. A new folder under runs/ when None.
      init_from: the workdir of another run whose parameters to start from. What is in `workdir` comes first.
      name: of the config, for the report.
      command: that made the run, for the report.
      quiet: nothing on the terminal.

    Raises:
      SettingsError: the config, the data or the workdir is not as it should be.
      NothingVerified: there are checkpoints in workdir, and every one is damaged.
      Diverged: a loss or gradient was not finite; the workdir keeps the last good checkpoint.
    """
    environment.use_compilation_cache()
    with Session(config, workdir, name=name, command=command, quiet=quiet) as session:
        return session.train(init_from)


class Session:
    """One config in one workdir. A context manager: it holds checkpoints and log writers open."""

    def __init__(
        self,
        config: Mapping[str, Any],
        workdir: str | os.PathLike[str] | None,
        *,
        name: str | None = None,
        command: str | None = None,
        quiet: bool = False,
    ):
        self.began = time.perf_counter()
        self.meter = environment.CompileMeter()
        self.config = plain(config)
        self.name = name or str(self.config.get("pipeline"))
        self.command = command
        self.quiet = quiet
        self.experiment = pipelines.build(self.config)
        run = self.experiment.run
        self.seeds = tuple(run.seed + k for k in range(run.seeds))
        self.lanes = run.seeds if run.seeds > 1 else None
        self.mesh = parallel.mesh()
        parallel.check_divides(run.batch_size, self.mesh)
        self.place = parallel.Placement(self.mesh, lanes=self.lanes is not None)
        self.frozen = self.place.replicated(self.experiment.frozen)
        self.workdir = claim(workdir, self.name, self.experiment.settings)
        self.checkpoints = Checkpoints(self.workdir / "checkpoints", keep=run.keep_checkpoints)
        self.history: list[dict[str, Any]] = []
        self.results: dict[str, dict[str, Any]] = {}
        self._writers = Writers()
        self._compiled_in_hooks = 0.0

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exc: Any) -> None:
        self._writers.close()
        self.checkpoints.close()
        self.meter.close()

    # ------------------------------------------------------------------------------------------------------------ train
    def train(self, init_from: str | os.PathLike[str] | None = None) -> Result:
        """Everything: restore or create, train, evaluate on test, artifacts, baselines, summary, report."""
        ex, d = self.experiment, self.experiment.durations
        resident = self.place.replicated(ex.train_data.resident)
        ts, start = self.start(resident, init_from)
        total = d.total
        cadence = Cadence(d.steps(ex.run.log_every), d.steps(ex.run.eval_every), d.steps(ex.run.checkpoint_every))
        self.open_writers(start, total)

        programs, window = self.compile(ts, resident, cadence)
        halting = "guard" in ts.opt_state
        hooks = Hooks(self.on_log, self.on_evaluate, self.on_save)
        status, ended = "finished", None
        spent = dict.fromkeys(("compile", "step", "data_wait", "evaluate", "checkpoint"), 0.0)
        before = self.meter.seconds
        try:
            with contextlib.closing(self._slots(start, total)) as slots:
                outcome = fit(
                    ts,
                    programs,
                    window,
                    Feed(slots, lanes=self.mode_of_lanes == "own"),
                    frozen=self.frozen,
                    resident=resident,
                    start=start,
                    total=total,
                    cadence=cadence,
                    hooks=hooks,
                    put=None if self.place.alone else self.place.slot,
                    spread=self.place.replicated,
                    halting=halting,
                )
            ts, ended = outcome.ts, outcome.signum
            spent |= outcome.seconds
            spent["step"] -= self.meter.seconds - before - self._compiled_in_hooks
            spent["evaluate"] -= self._compiled_in_hooks  # a save compiles next to nothing
        except Diverged as error:
            ts = self._before(error.step, resident, init_from, programs, window)
            leaf = self._blame(error.step, ts, resident)
            self._finish(ts, "diverged", spent, start, None)
            raise Diverged(error.step, ts, leaf) from None
        if ended is not None:
            status = "interrupted"
        else:
            clock, before = time.perf_counter(), self.meter.seconds
            self.evaluate_all(ts)
            self.draw(ts)
            spent["evaluate"] += time.perf_counter() - clock - (self.meter.seconds - before)
        self.checkpoints.wait()
        summary = self._finish(ts, status, spent, start, ended)
        return Result(ts, self.history, summary, self.workdir, ex)

    @property
    def mode_of_lanes(self) -> Any:
        return None if self.lanes is None else self.experiment.run.order

    def start(self, resident: Any, init_from: str | os.PathLike[str] | None = None) -> tuple[TrainState, int]:
        """The state to go on from and its step. Order of precedence: resume, init_from, scratch."""
        template = jax.eval_shape(lambda: self._create(resident))
        try:
            found = self.checkpoints.restore(template)
        except Mismatch as error:
            raise SettingsError(f"--workdir={self.workdir}: its checkpoint is of another program: {error}") from None
        if found is not None:
            ts = self.place.state(found[0])
            step = int(np.max(jax.device_get(ts.step)))
            logging.info("resuming %s at step %d", self.workdir, step)
            self._say(f"Resuming {self.workdir} at step {step}.")
            return ts, step
        ts = jax.jit(self._create)(resident)
        if init_from is not None:
            ts = self._graft(ts, Path(init_from))
            self._say(f"Starting from the parameters of {init_from}.")
        return self.place.state(ts), 0

    def _create(self, resident: Any) -> TrainState:
        ex = self.experiment
        slot = ex.train_data.slot(self.seeds[0], 0)
        batch = ex.train_data.fetch(resident, slot)
        if self.lanes is None:
            return create(ex.init, ex.step, jax.random.key(self.seeds[0]), batch, ex.frozen)
        keys = jax.vmap(jax.random.key)(np.asarray(self.seeds, np.uint32))
        return jax.vmap(lambda key: create(ex.init, ex.step, key, batch, ex.frozen))(keys)

    def _graft(self, ts: TrainState, other: Path) -> TrainState:
        if not (other / "checkpoints").is_dir():
            raise SettingsError(f"--init_from={other}: no checkpoints there; give the workdir of a run")
        try:
            saved = saved_paths(other / "checkpoints")
            scopes = [f"{part}/{k}" for part in ("params", "state") for k in getattr(ts, part)]
            added = [s for s in scopes if not any(path.startswith(s + "/") for path in saved)]  # by LoRA, say
            found, _ = restore_params(other / "checkpoints", View(ts.params, ts.state), fresh=added)
            if added:
                self._say(f"Not in {other}, so made anew: {', '.join(added)}.")
        except (Mismatch, NothingVerified) as error:
            raise SettingsError(f"--init_from={other}: {error}") from None
        ts = ts.replace(params=found.params, state=found.state)
        if ts.ema is not None:
            ema = View({k: ts.params[k] for k in ts.ema.params}, {k: ts.state[k] for k in ts.ema.state})
            ts = ts.replace(ema=ema)
        return jax.tree.map(jax.numpy.copy, ts)

    def compile(self, ts: TrainState, resident: Any, cadence: Cadence) -> tuple[dict[int, Compiled], Window]:
        """The program of one step, and the one of several steps when a step is small; compiled when first called."""
        ex = self.experiment
        with contextlib.closing(self._slots(0, 1)) as slots:
            slot = next(slots)
        make = partial(program, ex.step, fetch=ex.train_data.fetch, lanes=self.mode_of_lanes)
        window = Window.of(jax.eval_shape(make(), ts, self.frozen, resident, slot)[1], self.lanes)
        jit = self.place.jit(ts, sums=True)
        one = compile_step(make(), window, jit=jit)
        k = ex.run.steps_per_call
        if k is None:
            lowered = one.lower(ts, self.place.replicated(window.zeros()), self.frozen, resident, self.place.slot(slot))
            flops = (lowered.cost_analysis() or {}).get("flops", math.inf) / len(self.seeds)
            k = steps_per_call(flops, cadence, ex.durations.total, backend=jax.default_backend())
        if k == 1 or not self.place.alone:
            return {1: one}, window
        return {1: one, k: compile_step(make(steps=k), window, jit=jit)}, window

    def _slots(self, start: int, total: int) -> Any:
        shared = self.mode_of_lanes == "shared"
        return self.experiment.train_data.stream(self.seeds[:1] if shared else self.seeds, start, total)

    # ------------------------------------------------------------------------------------------------------------ hooks
    def open_writers(self, start: int, total: int) -> None:
        resume = start or None
        writers: list[Any] = [JsonlWriter(self.workdir, resume), TensorBoardWriter(self.workdir, resume)]
        if not self.quiet:
            size = self.experiment.run.batch_size * len(self.seeds)
            writers.append(Terminal(total, batch_size=size, start_step=start, hide=HIDDEN))
        self._writers = Writers(*writers)

    def _write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        epoch = step * self.experiment.run.batch_size / self.experiment.durations.n_train
        scalars = {k: v for k, v in metrics.items() if np.ndim(v) <= 1}
        self.history.append({"step": step, "epoch": epoch, "split": split, **scalars})
        self._writers.write(step, epoch, split, scalars)

    def on_log(self, step: int, metrics: dict[str, Any]) -> None:
        self._write(step, "train", metrics)

    def on_evaluate(self, step: int, ts: TrainState) -> None:
        before = self.meter.seconds
        for name in WHILE_TRAINING:
            if name in self.experiment.evals:
                self.results[name] = self._evaluate(name, ts.eval_view())
                self._write(step, name, self.results[name])
        self._compiled_in_hooks += self.meter.seconds - before

    def on_save(self, step: int, ts: TrainState) -> None:
        meta = {
            "config": self.experiment.settings,
            "config_hash": config_hash(self.experiment.settings),
            "position": step,
            "seeds": list(self.seeds),
        }
        before = self.meter.seconds
        self.checkpoints.save(step, ts, meta)
        self._compiled_in_hooks += self.meter.seconds - before

    def _before(
        self,
        step: int,
        resident: Any,
        init_from: str | os.PathLike[str] | None,
        programs: Mapping[int, Compiled],
        window: Window,
    ) -> TrainState:
        """The state before `step`, made again from the last checkpoint: the guard of a run that halts keeps none.

        A signal ends it sooner.
        """
        self.checkpoints.wait()
        self._say(f"Not finite at step {step}. Making the state before it again, to see what went wrong first.")
        ts, start = self.start(resident, init_from)
        nothing = Hooks(*[lambda *_: None] * 3)
        with contextlib.closing(self._slots(start, step)) as slots:
            return fit(
                ts,
                programs,
                window,
                Feed(slots, lanes=self.mode_of_lanes == "own"),
                frozen=self.frozen,
                resident=resident,
                start=start,
                total=step,
                cadence=Cadence(0, 0, 0),
                hooks=nothing,
                put=None if self.place.alone else self.place.slot,
                spread=self.place.replicated,
            ).ts

    def _blame(self, step: int, ts: TrainState, resident: Any) -> str | None:
        """The first leaf that is not finite when step `step` is made on the state before it; the lanes in turn."""
        ex = self.experiment
        if int(np.max(jax.device_get(ts.step))) < step:
            return None

        def looked_at(params: Any, ts: TrainState, batch: Any) -> tuple[Any, Any]:
            ctx = Ctx(jax.random.fold_in(ts.key, step), jax.numpy.int32(step), ex.frozen, ema=ts.ema)
            loss, aux = ex.objective.apply(params, ts.state, batch, ctx)
            return loss, {"batch": dict(batch), "outputs": aux.outputs, "loss": loss}

        look = jax.jit(jax.grad(looked_at, has_aux=True))
        for k, seed in enumerate(self.seeds):
            lane = ts if self.lanes is None else jax.tree.map(lambda x, k=k: x[k], ts)
            slot = ex.train_data.slot(self.seeds[0] if self.mode_of_lanes == "shared" else seed, step)
            gradient, seen = look(lane.params, lane, ex.train_data.fetch(resident, slot))
            seen |= {"gradient": gradient, "norm of the gradient": optax.tree.norm(gradient)}
            for part in ("batch", "outputs", "loss", "gradient", "norm of the gradient"):  # as they are computed
                for path, leaf in jax.tree_util.tree_leaves_with_path({part: seen[part]}):
                    if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(jax.device_get(leaf)).all():
                        name = jax.tree_util.keystr(path, simple=True, separator="/")
                        return name if self.lanes is None else f"{name} of seed {seed}"
        return "none when the step is made again alone"

    # ----------------------------------------------------------------------------------------------- after the training
    def _evaluate(self, name: str, view: View) -> dict[str, Any]:
        told = self.experiment.evals[name]
        key = jax.random.key(EVAL_KEY)
        out = evaluate(told.objective, view, told.batches, key, frozen=self.experiment.frozen, lanes=self.lanes)
        return {k: np.asarray(v) if self.lanes else v for k, v in out.items()}

    def evaluate_all(self, ts: TrainState) -> dict[str, dict[str, Any]]:
        """Every evaluation, on the averaged parameters where there are some; test is looked at here and only here."""
        step = int(np.max(jax.device_get(ts.step)))
        for name in self.experiment.evals:
            if name in WHILE_TRAINING and name in self.results:
                continue
            self.results[name] = self._evaluate(name, ts.eval_view())
            self._write(step, name, self.results[name])  # nowhere but in the history when no training is going on
        return self.results

    def summarised(self) -> dict[str, Any]:
        """The results so far, as in summary.json."""
        return {name: summarise(m) for name, m in self.results.items()}

    def draw(self, ts: TrainState) -> list[Path]:
        """Makes the artifacts of the first seed; returns the files."""
        view = ts.eval_view() if self.lanes is None else ts.eval_view().lane(0)
        folder = self.workdir / "artifacts"
        for name, fn in self.experiment.artifacts.items():
            artifacts.save(folder, name, fn(view, jax.random.key(EVAL_KEY)))
        return [folder / entry["file"] for entry in artifacts.read_index(folder)]

    def predict(self, ts: TrainState) -> Path:
        """Predictions for every row of the test split, as WORKDIR/artifacts/predictions.npz; by the first seed."""
        ex = self.experiment
        view = ts.eval_view() if self.lanes is None else ts.eval_view().lane(0)
        fn = jax.jit(ex.predict)
        parts, size = [], ex.run.eval_batch_size or ex.run.batch_size
        for start in range(0, len(ex.dataset.test), size):
            index = np.arange(start, start + size).clip(max=len(ex.dataset.test) - 1)  # the last batch repeats a row
            rows = {"x": ex.dataset.test.__getitems__(index)["x"]}
            parts.append(jax.device_get(fn(view, rows, jax.random.key(EVAL_KEY))))
        n = len(ex.dataset.test)
        told = {k: np.concatenate([p[k] for p in parts])[:n] for k in parts[0]}
        path = self.workdir / "artifacts" / "predictions.npz"
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **told)  # type: ignore[arg-type]
        temporary.replace(path)
        return path

    def _finish(
        self, ts: TrainState, status: str, seconds: Mapping[str, float], start: int, signum: int | None
    ) -> dict[str, Any]:
        ex = self.experiment
        baselines = ex.baselines() if ex.run.baselines and status == "finished" else {}
        step = int(np.max(jax.device_get(ts.step)))
        spent = {**seconds, "compile": self.meter.seconds, "total": time.perf_counter() - self.began}
        made = (step - start) * ex.run.batch_size * len(self.seeds)
        data = ex.dataset
        summary = {
            "status": status,
            "config_name": self.name,
            "workdir": str(self.workdir),
            "command": self.command,
            "step": step,
            "epochs": step * ex.run.batch_size / ex.durations.n_train,
            "seeds": len(self.seeds),
            "metrics": self.summarised(),
            "baselines": baselines,
            "better": ex.better,
            "params": parameter_count(ts.params) // len(self.seeds),
            "compile_count": self.meter.count,
            "examples_per_second": made / spent["step"] if spent["step"] > 0 else 0.0,
            "seconds": {k: max(0.0, spent[k]) for k in SECONDS},
            "peak_rss_mb": environment.peak_rss_mb(),
            "device": environment.device(),
            "versions": environment.versions(),
            "git": environment.git_revision(),
            "data": {
                "name": data.name,
                "source": data.source,
                "fingerprint": data.fingerprint,
                "n_train": len(data.train),
                "n_validation": len(data.validation),
                "n_test": len(data.test),
            },
        }
        if signum is not None:
            summary["signal"] = signum
        write_json(self.workdir / "summary.json", summary)
        self._writers.close()
        report.write(self.workdir)
        return summary

    def amend(self) -> dict[str, Any]:
        """Puts the results so far into the summary of a run that is over, and writes its report anew."""
        path = self.workdir / "summary.json"
        try:
            summary = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            raise SettingsError(f"--workdir={self.workdir}: no summary.json that can be read; train first") from None
        summary["metrics"] |= self.summarised()
        write_json(path, summary)
        report.write(self.workdir)
        return summary

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)
