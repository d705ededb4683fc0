"""A run, from a config to what it leaves behind: train, evaluate, sample, predict. Floor 5.

`run` is what launch.py calls, and what a notebook calls as `um.run(config)`.
"""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from umbrella import (
    answers,
    artifacts,
    cleaning,
    distributed,
    environment,
    parallel,
    pipelines,
    placement,
    profiling,
    report,
    settings,
    summary,
)
from umbrella._report.text import direction
from umbrella.blame import first_bad_leaf
from umbrella.checkpoint import Checkpoints, Mismatch
from umbrella.data import batches
from umbrella.data.streams import stacked
from umbrella.evaluation import evaluate
from umbrella.experiment import Experiment
from umbrella.lock import STALE, Lock
from umbrella.loop import Cadence, Compiled, Diverged, Feed, Hooks, Outcome, Window, compile_step, fit, steps_per_call
from umbrella.objective import Ctx, View
from umbrella.settings import SettingsError, near
from umbrella.starting import brief, check_kept, graft, scratch, seeds_of
from umbrella.step import Side, program
from umbrella.train_state import TrainState, parameter_count
from umbrella.workdir import Claim, claim, config_hash, evaluated_with, jsonable, plain, write_json
from umbrella.writers import JsonlWriter, TensorBoardWriter, Terminal, Writers

HIDDEN = ("objective", "grad_norm", "skipped")  # from the terminal; the files have them
WHILE_TRAINING = ("train_eval", "validation")  # the evaluations at a cadence; the others are made once, at the end
MOST_ROLLBACKS = 10  # without a checkpoint in between
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
    with Session(config, workdir, init_from=init_from, name=name, command=command, quiet=quiet) as session:
        return session.train()


class Session:
    """One config in one workdir. A context manager: it holds checkpoints and log writers open."""

    def __init__(
        self,
        config: Mapping[str, Any],
        workdir: str | os.PathLike[str] | None,
        *,
        init_from: str | os.PathLike[str] | None = None,
        name: str | None = None,
        command: str | None = None,
        quiet: bool = False,
        profile: profiling.Span | None = None,
        trains: bool = True,
    ):
        self.began = time.perf_counter()
        self.meter = environment.CompileMeter()
        self.config = plain(config)
        self.name = name or str(self.config.get("pipeline"))
        self.command = command
        self.quiet = quiet or not distributed.is_first()
        self.profile = profile
        self.trains = trains  # else what is in the workdir is asked, and its config stays
        self.init_from = None if init_from is None else Path(init_from)
        if self.init_from is not None and not (self.init_from / "checkpoints").is_dir():
            raise SettingsError(f"--init_from={init_from}: no checkpoints there; give the workdir of a run")
        self.experiment = pipelines.build(self.config)
        run = self.experiment.run
        self.seeds = seeds_of(run)
        self.lanes = run.seeds if run.seeds > 1 else None
        there = {"devices": jax.device_count(), "seeds": run.seeds}
        self.mesh = parallel.mesh(settings.call(parallel.shape_of, run.mesh, "mesh.", there))
        parallel.check_divides(run.batch_size, self.mesh)
        shapes = jax.eval_shape(partial(scratch, self.experiment), self.experiment.train_data.resident)
        compiler = parallel.compiler(run)
        parallel.check_offload(run)
        if compiler != "jit":
            parallel.check_mapped(shapes, self.mesh, run, self.experiment.settings["microbatches"])
        rules = self._rules(shapes)
        how: dict[str, Any] = {"rules": rules, "compiler": compiler, "offload": run.offload}
        self.place = placement.Placement(self.mesh, lanes=self.mode_of_lanes, **how)
        self.frozen = self.place.replicated(self.experiment.frozen)
        self._share = self.place.share(run.batch_size) if distributed.several() else None
        self._data = self.experiment.train_data
        if self._share is not None and self._data.share is not None:
            self._data = self._data.share(self._share)
        self.workdir, self._lock, self._is_new = self._claim(workdir)
        try:
            self.checkpoints = Checkpoints(
                self.workdir / "checkpoints",
                keep=run.keep_checkpoints,
                keep_every=self.experiment.durations.steps(run.keep_every),
                rank=None if run.keep_best is None else self._rank,
            )
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        self.history: list[dict[str, Any]] = []
        self.results: dict[str, dict[str, Any]] = {}
        self._evaluated = True  # whether what is gone on from was evaluated, where its step is one of those that are
        self._earlier = 0.0  # seconds of the processes that trained what this one goes on from
        self.started_at = 0  # the step from which `train` went on
        self.rollbacks: list[dict[str, int]] = []  # {"step": that was not finite, "to": whose state it went on from}
        self._rolled_back_in_a_row = 0  # without a checkpoint in between
        self._unwritten: list[str] = []  # the names of results that no line tells of yet
        self._validated = -1  # the step of the last validation
        self._best: tuple[float, int] | None = None  # (rank, step) of the best one, when there is patience
        self._writers = Writers()
        self._compiled_in = {"evaluate": 0.0, "checkpoint": 0.0}  # seconds of the compiler, by what waited for it
        own = f"profile/{jax.process_index()}" if distributed.several() else "profile"
        self._trace = None if profile is None else profiling.Trace(profile, self.workdir / own)
        for note in self.experiment.notes:
            self._say(note)

    def __enter__(self) -> "Session":
        return self

    def _claim(self, workdir: str | os.PathLike[str] | None) -> tuple[Path, Lock | None, bool]:
        """(the folder, its lock, whether it is new); where several processes train, the first one's."""
        told = self.experiment
        if distributed.several():
            # All of it, also what a resume may change: processes that log after other steps wait for ever.
            distributed.check_same("the config", json.dumps(jsonable(told.settings), sort_keys=True))
            distributed.check_same("the data set", told.dataset.fingerprint)
        held: list[Claim] = []

        def take() -> str:
            # What restarts processes whose host was lost does so before the lock of the lost one is stale.
            patience = STALE + 15 if distributed.several() else 0.0
            held.append(claim(workdir, self.name, told.settings, trains=self.trains, patience=patience, say=self._say))
            return str(held[0].path)

        path = Path(distributed.told_by_first(take, raises=(SettingsError,)))
        return (path, held[0].lock, held[0].is_new) if held else (path, None, False)

    def __exit__(self, kind: type[BaseException] | None, *exc: Any) -> None:
        with contextlib.ExitStack() as stack:
            if kind is not None and distributed.several():  # which of the others are still there to wait for?
                stack.callback(self._writers.close)
                stack.callback(self.checkpoints.abandon)
                if self._lock is not None:
                    stack.callback(self._lock.release)
                if self._is_new and issubclass(kind, SettingsError):
                    stack.callback(shutil.rmtree, self.workdir, ignore_errors=True)
                return
            if self._is_new and kind is not None and issubclass(kind, SettingsError):
                stack.callback(shutil.rmtree, self.workdir, ignore_errors=True)  # a mistake leaves nothing behind
            if self._trace is not None:
                stack.callback(self._trace.close, None)
            if self._lock is not None:
                stack.callback(self._lock.release)
            for close in (self.meter.close, self.checkpoints.close, self._writers.close):
                stack.callback(close)  # the last first, and every one of them

    # ------------------------------------------------------------------------------------------------------------ train
    def train(self, *, until: int | None = None) -> Result:
        """Everything: restore or create, train, evaluate on test, artifacts, baselines, summary, report.

        `until` stops a run after that step as if it were its last; the schedules are those of the whole.
        """
        ex, d = self.experiment, self.experiment.durations
        resident = self.place.replicated(ex.train_data.resident)
        ts, start = self.start(resident)
        total = d.total if until is None else min(until, d.total)
        self.started_at = start
        cadence = Cadence(d.steps(ex.run.log_every), d.steps(ex.run.eval_every), d.steps(ex.run.checkpoint_every))
        self.open_writers(start, total)

        self._check_keep_best(ts)
        step = self.compile(ts, resident, cadence)
        spent = dict.fromkeys(("compile", "total", "step", "data_wait", "evaluate", "checkpoint"), 0.0)
        before, at = self.meter.seconds, start
        if 0 < start < total and cadence.evaluate and start % cadence.evaluate == 0 and not self._evaluated:
            clock = time.perf_counter()
            self.on_evaluate(start, ts)  # for which a signal left no time
            spent["evaluate"] += time.perf_counter() - clock
        if self._lost_patience(start):  # when it was stopped, and is now resumed
            total = start
        if self.profile is not None and self.profile.stop > total - start:
            hint = f"end at {total - start} or before" if total - start > 1 else "train for longer"
            span = f"--profile={self.profile.start}:{self.profile.stop}"
            raise SettingsError(f"{span}: only {total - start:,} steps are to be made; {hint}")
        halting = "bad_step" in ts.opt_state.get("guard", {})
        hooks = Hooks(self.on_log, self.on_evaluate, self.on_save)
        while True:
            try:
                outcome = self._fit(ts, step, resident, at, total, cadence, hooks, halting)
                break
            except Diverged as error:
                spent = {k: v + error.seconds.get(k, 0.0) for k, v in spent.items()}
                if not self._may_roll_back():
                    ts = self._before(error.step, resident, step)
                    leaf = self._blame(ts, resident, error.step)
                    self._finish(ts, "diverged", spent, start, None)
                    raise Diverged(error.step, ts, leaf) from None
                ts, at = self._roll_back(error.step, resident), error.step + 1
        ts, ended = outcome.ts, outcome.signum
        if self._trace is not None:
            self._trace.close(ts)
        spent = {k: v + outcome.seconds.get(k, 0.0) for k, v in spent.items()}
        spent["step"] -= self.meter.seconds - before - sum(self._compiled_in.values())
        for name, seconds in self._compiled_in.items():
            spent[name] -= seconds
        if at == total > start:  # the bad step was the last
            self.on_save(total, ts)
        trained = _at(ts)
        if ended is None and self._best is not None and self._best[1] != trained:
            ts = self._back_to_best(ts)
        if ended is None:
            clock, before = time.perf_counter(), self.meter.seconds
            self._say("Trained. Now what is evaluated once, and what there is to show.")
            self.evaluate_all(ts)
            self.review(ts)
            spent["evaluate"] += time.perf_counter() - clock - (self.meter.seconds - before)
        self.checkpoints.wait()
        if self._trace is not None and ended is None:
            self._tell_profile(ts, resident, *step)
        told = self._finish(ts, "finished" if ended is None else "interrupted", spent, start, ended, trained)
        return Result(ts, self.history, told, self.workdir, ex)

    def _fit(
        self,
        ts: TrainState,
        step: tuple[dict[int, Compiled], Window],
        resident: Any,
        start: int,
        total: int,
        cadence: Cadence,
        hooks: Hooks,
        halting: bool,
    ) -> Outcome:
        # The export of a trace may hold Python's lock for longer than others wait for a sign of life.
        watched = contextlib.nullcontext() if self._trace else distributed.watched(self._give_up)
        with watched, contextlib.closing(self._slots(start, total)) as slots:
            return fit(
                ts,
                *step,
                Feed(slots, lanes=self.mode_of_lanes == "own"),
                frozen=self.frozen,
                resident=resident,
                start=start,
                total=total,
                cadence=cadence,
                hooks=hooks,
                put=None if self.place.alone else self.put_slot,
                spread=self.place.sums,
                halting=halting,
                in_step=not self.place.alone and jax.default_backend() == "cpu",
                watch=self._trace,
                ask=distributed.Poll() if distributed.several() else None,
            )

    def _give_up(self) -> None:
        """What is left to do where a process ends at once."""
        if self._lock is not None:
            self._lock.release()

    def put_slot(self, slot: Any, steps: int) -> Any:
        """A slot of the stream to the devices: the `put=` of `umbrella.loop.fit`."""
        return self.place.slot(slot, self._share if self._data.share is not None else None, steps=steps)

    def _blame(self, ts: TrainState, resident: Any, step: int) -> str | None:
        """What was not finite first, looked for on one device."""
        shared, seeds = self.mode_of_lanes == "shared", self.seeds if self.lanes else None
        ts, resident = distributed.local(ts), distributed.local(resident)
        return distributed.told_by_first(
            lambda: first_bad_leaf(self.experiment, ts, resident, step, seeds, shared=shared)
        )

    def _tell_profile(self, ts: TrainState, resident: Any, programs: Mapping[int, Compiled], window: Window) -> None:
        """The costliest operations, as an artifact and on the terminal. What goes wrong here costs the run nothing."""
        assert self._trace is not None
        if not self._trace.steps:
            self._say("Note: --profile: no call began within these steps, so nothing was traced.")
            return
        try:
            sums, texts = self.place.sums(window.zeros()), []
            for steps in sorted(self._trace.calls):
                with contextlib.closing(self._slots(0, steps)) as slots:
                    slot = self.put_slot(Feed(slots, lanes=self.mode_of_lanes == "own")(steps), steps)
                lowered = programs[steps].lower(ts, sums, self.frozen, resident, slot)
                texts.append(lowered.compile().as_text())
            if not distributed.is_first():
                return
            devices = self.mesh.size // jax.process_count()  # those that the trace tells of
            made = profiling.costliest(self._trace.folder, self._trace.steps, texts, devices=devices)
            artifacts.save(self._artifacts, "costliest", made)
        except Exception as error:
            logging.exception("--profile")
            self._say(f"Note: --profile: there is a trace but no table of it: {type(error).__name__}: {error}")
            return
        if max(self._trace.calls) > 1:
            self._say(f"Calls of {max(self._trace.calls)} steps are traced whole.")
        self._say(
            "\n".join((made.caption, *("  ".join(f"{v:>12}" for v in row) for row in (made.columns, *made.rows))))
        )
        self._say(f"The trace, for TensorBoard or Perfetto, is in {self._trace.folder}.")

    @property
    def mode_of_lanes(self) -> Any:
        return None if self.lanes is None else self.experiment.run.order

    def start(self, resident: Any, *, say: bool = True) -> tuple[TrainState, int]:
        """The state to go on from and its step. Order of precedence: resume, init_from, scratch; it says which."""
        template = self.place.template(jax.eval_shape(lambda: scratch(self.experiment, resident)))
        try:
            found = self.checkpoints.restore(template)
        except Mismatch as error:
            what = f"its checkpoint is of another program: {brief(error)}"
            raise SettingsError(f"--workdir={self.workdir}: {what}") from None
        if found is not None:
            ts, meta = self.place.state(found[0]), found[1]
            check_kept(self.experiment.kept, meta.get("kept", {}), self.workdir)
            self._evaluated = bool(meta.get("evaluated", True))
            if say:  # else it is this process's own
                self._earlier = float(meta.get("seconds", 0.0))
            self.rollbacks = self.rollbacks or list(meta.get("rollbacks", []))
            if self._patience and meta.get("best"):
                self._best = (float(meta["best"][0]), int(meta["best"][1]))
            step = _at(ts)
            what = "Resuming {} at step {}." if self.trains else "Read {} as it was at step {}."
            self._say(what.format(self.workdir, step), say)
            before, now = meta["config"].get("train_for"), self.experiment.run.train_for
            schedule = self.experiment.settings["optimizer"]["schedule"]
            if self.trains and before != now and schedule != "constant":
                self._say(
                    f"Note: train_for was {before!r}, is {now!r}; the {schedule} schedule is now that of the whole, "
                    "so the learning rate goes on from another value than it had.",
                    say,
                )
            return ts, step
        if self.experiment.run.fresh and self.init_from is None:
            raise SettingsError("config.fresh: is about what is not taken from another run; give --init_from=DIR")
        ts = self.place.create(partial(scratch, self.experiment), resident)
        if self.init_from is not None:
            ts = graft(self.experiment, ts, self.init_from, self._say)
            self._say(f"Starting {self.workdir} from the parameters of {self.init_from}.", say)
        else:
            self._say(f"Starting {self.workdir} from scratch.", say)
        return self.place.state(ts), 0

    def _rules(self, ts: TrainState) -> parallel.Rules:
        """By which arrays are cut: the user's rules and ours."""
        lead = int(self.lanes is not None)
        paths = {k: v.shape[lead:] for k, v in parallel.paths_of(ts.params).items()}
        return parallel.rules_of(self.experiment.run.shard, paths)

    def compile(self, ts: TrainState, resident: Any, cadence: Cadence) -> tuple[dict[int, Compiled], Window]:
        """The program of one step, and the one of several steps when a step is small; compiled when first called."""
        ex = self.experiment
        slot = self._slot(0)
        make = partial(program, ex.step, fetch=ex.train_data.fetch, lanes=self.mode_of_lanes)
        mapped = self.place.compiler != "jit"
        told = self.place.jit(ts)(make()) if mapped else self.place.near(make())
        on = self.place.slot(slot) if mapped or distributed.several() else slot
        window = Window.of(jax.eval_shape(told, ts, self.frozen, resident, on)[1], self.lanes)
        if self.lanes:
            side = self._side(make, ts, resident, slot) if ex.run.lanes == "auto" else ex.run.lanes
            make = partial(make, side=side, apart=self.mesh if self.place.apart else None)
        one = compile_step(make(), window, jit=self.place.jit(ts, sums=True))
        k = ex.run.steps_per_call
        if k is None:
            lowered = one.lower(ts, self.place.sums(window.zeros()), self.frozen, resident, self.place.slot(slot))
            flops = (lowered.cost_analysis() or {}).get("flops", math.inf) / len(self.seeds)
            k = steps_per_call(flops, cadence, ex.durations.total, backend=jax.default_backend())
        if k == 1 or mapped:
            return {1: one}, window
        return {1: one, k: compile_step(make(steps=k), window, jit=self.place.jit(ts, sums=True, steps=k))}, window

    def lowered(self) -> tuple[TrainState, Any]:
        """(the shapes of the state, with where its arrays lie; the program of a step, not yet compiled). No array is
        made and nothing is put on a device but a step's slot."""
        ex, d = self.experiment, self.experiment.durations
        resident = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, ex.train_data.resident))
        ts = self.place.template(jax.eval_shape(partial(scratch, ex), resident))
        cadence = Cadence(d.steps(ex.run.log_every), d.steps(ex.run.eval_every), d.steps(ex.run.checkpoint_every))
        programs, window = self.compile(ts, resident, cadence)
        slot = self.place.slot(self._slot(0))
        return ts, programs[1].lower(ts, self.place.sums(window.zeros()), self.frozen, resident, slot)

    def _side(self, make: Callable[..., Any], ts: TrainState, resident: Any, slot: Any) -> Side:
        """Written out where the step has convolutions and runs on a CPU, side by side otherwise; measured in
        benchmarks/.

        By what the program is and not by the clock: two runs of a config must not differ in their last bits.
        """
        if jax.default_backend() != "cpu":
            return "vmap"
        found = jax.make_jaxpr(self.place.near(make()))(ts, self.frozen, resident, slot)
        return "unroll" if "conv_general_dilated" in str(found) else "vmap"

    def _rank(self, meta: Mapping[str, Any]) -> float | None:
        """Of a checkpoint, by its validation; the lower the better."""
        metric = str(self.experiment.run.keep_best)
        value = (meta.get("validation") or {}).get(metric)
        value = value["mean"] if isinstance(value, dict) else value
        return None if value is None else -direction(metric) * value

    def _check_keep_best(self, ts: TrainState) -> None:
        """Before anything is trained: is there such a metric, and can it be better?"""
        metric, told = self.experiment.run.keep_best, self.experiment.evals.get("validation")
        if metric is None:
            return
        if told is None:
            raise SettingsError("config.keep_best: there is no validation split; set config.data.validation")
        view = jax.eval_shape(lambda ts: ts.eval_view() if self.lanes is None else ts.eval_view().lane(0), ts)
        ctx = Ctx(jax.random.key(EVAL_KEY), jax.numpy.int32(0), self.experiment.frozen, train=False)
        batch = dict(next(iter(told.batches)))
        names = jax.eval_shape(lambda v: told.objective.apply(v.params, v.state, batch, ctx)[1].metrics, view)
        if metric not in names:
            raise SettingsError(f"config.keep_best: no validation metric {metric!r}{near(metric, names)}")
        if not direction(metric):
            raise SettingsError(
                f"config.keep_best: whether a high or a low {metric!r} is better, its name does not say"
            )

    def _slots(self, start: int, total: int) -> Any:
        return self._data.stream(self._seen, start, total)

    def _slot(self, step: int) -> Any:
        """One slot, whole, made in this process: workers take seconds to start."""
        return stacked(self._data.slot, self._seen, step)

    @property
    def _seen(self) -> tuple[int, ...]:
        """The seeds whose orders of the data are read."""
        return self.seeds[:1] if self.mode_of_lanes == "shared" else self.seeds

    # ------------------------------------------------------------------------------------------------------------ hooks
    def open_writers(self, start: int, total: int) -> None:
        resume = start or None
        if not distributed.is_first():
            return
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

    def on_evaluate(self, step: int, ts: TrainState) -> bool:
        before = self.meter.seconds
        for name in WHILE_TRAINING:
            if name in self.experiment.evals:
                self.results[name] = self._evaluate(name, ts.eval_view())
                self._write(step, name, self.results[name])
        self._validated = step
        self._compiled_in["evaluate"] += self.meter.seconds - before
        rank = self._rank({"validation": self.summarised()["validation"]}) if self._patience else None
        if rank is not None and math.isfinite(rank) and (self._best is None or rank < self._best[0]):
            self._best = (rank, step)
        return self._lost_patience(step)

    @property
    def _patience(self) -> int:
        """In steps, a whole number of validations; 0 for endless."""
        steps, run = self.experiment.durations.steps, self.experiment.run
        every = max(1, steps(run.eval_every))
        return max(1, round(steps(run.patience) / every)) * every if run.patience != "never" else 0

    def _lost_patience(self, step: int) -> bool:
        return self._best is not None and step - self._best[1] >= self._patience > 0

    def _back_to_best(self, ts: TrainState) -> TrainState:
        """The state of the best validation, as the result of a run with patience."""
        assert self._best is not None
        self.checkpoints.wait()
        found = self.checkpoints.restore(self.place.template(ts), step=self._best[1])
        assert found is not None
        for name in WHILE_TRAINING:
            self.results.pop(name, None)  # of the last state
        self._say(
            f"The best {self.experiment.run.keep_best} on validation was at step {self._best[1]}: that is the result."
        )
        return self.place.state(found[0])

    def on_save(self, step: int, ts: TrainState) -> None:
        meta = {
            "config": self.experiment.settings,
            "config_hash": config_hash(self.experiment.settings),
            "position": step,
            "seeds": list(self.seeds),
            "rollbacks": self.rollbacks,
            "validation": self.summarised().get("validation") if self._validated == step else None,
            "best": self._best,
            "evaluated": self._validated == step,
            "seconds": self._earlier + time.perf_counter() - self.began,
            "kept": self.experiment.kept,
        }
        before = self.meter.seconds
        self.checkpoints.save(step, ts, meta)
        self._rolled_back_in_a_row = 0
        self._compiled_in["checkpoint"] += self.meter.seconds - before

    def _may_roll_back(self) -> bool:
        return self.experiment.rolls_back and self._rolled_back_in_a_row < MOST_ROLLBACKS

    def _roll_back(self, step: int, resident: Any) -> TrainState:
        """The state of the last checkpoint, or the first one, as the state after `step`: the batches between are left
        out."""
        self.checkpoints.wait()
        ts, to = self.start(resident, say=False)
        self._rolled_back_in_a_row += 1
        self.rollbacks.append({"step": step, "to": to})
        self._say(f"Not finite at step {step}. Going on at step {step + 1} from the state of step {to}.")
        return ts.replace(step=ts.step * 0 + (step + 1))

    def _before(
        self,
        step: int,
        resident: Any,
        compiled: tuple[dict[int, Compiled], Window],
    ) -> TrainState:
        """The state before `step`, made again from the last checkpoint: the guard of a run that halts keeps none.

        A signal ends it sooner.
        """
        self.checkpoints.wait()
        self._say(f"Not finite at step {step}. Making the state before it again, to see what went wrong first.")
        ts, start = self.start(resident, say=False)
        if self._rolled_back_in_a_row:  # the way that led here
            start = self.rollbacks[-1]["step"] + 1
            ts = ts.replace(step=ts.step * 0 + start)
        nothing = Hooks(*[lambda *_: None] * 3)
        if self._trace is not None:  # what follows is no training
            self._trace.close(None)
            self._trace = None
        return self._fit(ts, compiled, resident, start, step, Cadence(0, 0, 0), nothing, halting=False).ts

    # ----------------------------------------------------------------------------------------------- after the training
    def _evaluate(self, name: str, view: View) -> dict[str, Any]:
        told = self.experiment.evals[name]
        key = jax.random.key(EVAL_KEY)
        put: Any = None if self.place.alone else self.place.rows
        found = told.batches
        if distributed.several() and isinstance(found, batches):
            share = self.place.share(found.size)
            found, put = found.share(share), partial(self.place.rows, share=share)
        out = evaluate(told.objective, view, found, key, frozen=self.frozen, lanes=self.lanes, put=put)
        return {k: np.asarray(v) if self.lanes else v for k, v in out.items()}

    def evaluate_all(self, ts: TrainState) -> dict[str, dict[str, Any]]:
        """Every evaluation, on the averaged parameters where there are some; test is looked at here and only here."""
        for name in self.experiment.evals:
            if name in WHILE_TRAINING and name in self.results:
                continue
            self.results[name] = self._evaluate(name, ts.eval_view())
            self._unwritten.append(name)
        return self.results

    def summarised(self) -> dict[str, Any]:
        """The results so far, as in summary.json."""
        return summary.metrics_of(self.experiment, self.results)

    def review(self, ts: TrainState) -> list[Path]:
        """What the pipeline says of all seeds side by side: adds to the results, makes the artifacts, returns these."""
        view, step = ts.eval_view(), _at(ts)
        if distributed.several():
            view = distributed.local(view)
            if not distributed.is_first():
                distributed.meet()
                return []
        elif self.place.apart or self.place.cutting:  # what follows is of all seeds and whole arrays
            view = jax.device_put(view, jax.local_devices()[0])
        views = view if self.lanes else jax.tree.map(lambda x: x[None], view)
        told = self.experiment.review(views, jax.random.key(EVAL_KEY))
        for name, metrics in told.metrics.items():
            self._unwritten += [] if name in self.results else [name]
            self.results[name] = {**self.results.get(name, {}), **metrics}
        for name in self._unwritten:
            self._write(step, name, self.results[name])  # nowhere but in the history when no training is going on
        self._unwritten = []
        folder = self._artifacts
        for name, value in told.artifacts:
            artifacts.save(folder, name, value)
        if told.rows:
            artifacts.save_arrays(folder / "rows.npz", told.rows)
        distributed.meet()
        return [folder / entry["file"] for entry in artifacts.read_index(folder)]

    def predict(self, ts: TrainState) -> Path:
        """Predictions for every row of the test split, as WORKDIR/artifacts/predictions.npz."""
        return answers.predictions(self.experiment, ts.eval_view(), jax.random.key(EVAL_KEY), self._artifacts)

    def read(self, ts: TrainState, path: Path) -> Path:
        """What the first seed says of every line of a file, as WORKDIR/artifacts/answers.csv."""
        return answers.of_file(self.experiment, self._first(ts), self._trained_on, path, self._artifacts)

    def clean(self, ts: TrainState) -> cleaning.Cleaned:
        """Every row of the set scored by the first seed, and told apart."""
        return answers.cleaned(self.experiment, self._first(ts), self._trained_on, self._artifacts)

    def _first(self, ts: TrainState) -> View:
        """What the first seed is evaluated with."""
        return ts.eval_view() if self.lanes is None else ts.eval_view().lane(0)

    @property
    def _artifacts(self) -> Path:
        return self.workdir / "artifacts"

    def _trained_on(self) -> str:
        """The fingerprint of the data that the run in this workdir saw."""
        return str(summary.read(self.workdir)["data"]["fingerprint"])

    def _finish(
        self,
        ts: TrainState,
        status: str,
        seconds: Mapping[str, float],
        start: int,
        signum: int | None,
        trained: int | None = None,
    ) -> dict[str, Any]:
        """Writes the summary and the report, and returns the summary."""
        step, guard = _at(ts), ts.opt_state.get("guard", {})
        skipped = int(np.sum(distributed.fetch(guard["skipped"]))) if "skipped" in guard else 0
        trained, params = step if trained is None else trained, parameter_count(ts.params) // len(self.seeds)
        told = {"status": status, "step": step, "trained_to": trained, "params": params, "skipped": skipped}
        if signum is not None:
            told["signal"] = signum
        return self._by_first(lambda: self._sum_up(told, seconds, start))

    def _by_first(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What it makes in the first process; in the others what of it is JSON."""
        held: list[dict[str, Any]] = []

        def run() -> Any:
            held.append(make())
            return jsonable(held[0])

        told = distributed.told_by_first(run, raises=(SettingsError,))
        return held[0] if held else dict(told)

    def _sum_up(self, told: Mapping[str, Any], seconds: Mapping[str, float], start: int) -> dict[str, Any]:
        ex = self.experiment
        rivals = ex.baselines() if ex.run.baselines and told["status"] == "finished" else {}
        made = summary.summary_of(
            ex,
            start=start,
            metrics=self.summarised(),
            baselines=rivals,
            seconds={
                **seconds,
                "compile": self.meter.seconds,
                "total": time.perf_counter() - self.began,
                "earlier": self._earlier,
            },
            config_name=self.name,
            workdir=str(self.workdir),
            command=self.command,
            compile_count=self.meter.count,
            rollbacks=self.rollbacks,
            **told,
        )
        write_json(self.workdir / "summary.json", made)
        self._writers.close()
        report.write(self.workdir)
        return made

    def amend(self) -> dict[str, Any]:
        """Puts the results so far into the summary of a run that is over, and writes its report anew."""

        def make() -> dict[str, Any]:
            told = summary.read(self.workdir)
            told["metrics"] |= self.summarised()
            told["evaluated_with"] = evaluated_with(self.experiment.settings)
            write_json(self.workdir / "summary.json", told)
            report.write(self.workdir)
            return told

        return self._by_first(make)

    def _say(self, text: str, say: bool = True) -> None:
        logging.info("%s", text)
        if say and not self.quiet:
            with contextlib.suppress(BrokenPipeError):  # who read what it says has gone; the training is not for that
                print(text, flush=True)


def _at(ts: TrainState) -> int:
    """How many steps a state has seen, of the lane that has seen most."""
    return int(np.max(distributed.fetch(ts.step)))
