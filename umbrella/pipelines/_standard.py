"""What pipelines with a single objective share, once. One with several players writes its own. Floor 5."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from umbrella import data, optim, parallel, settings, transforms
from umbrella.experiment import Durations, Evaluation, Experiment, RunSettings
from umbrella.gradients import grad_of, microbatch
from umbrella.objective import Array, Batch, Objective, Params, State, Transform, View, chain
from umbrella.settings import Count, Fraction
from umbrella.step import ema, guard, then, update

Resolve = Callable[[Params, State], Params]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """The keys of every config whose pipeline has one objective."""

    data: dict
    optimizer: dict
    techniques: tuple[str, ...] = ()  # the leftmost touches the batch first
    evals: dict[str, tuple[str, ...]]  # on test: name -> techniques, such as {"test": (), "robust": ("pgd40",)}
    ema: Fraction = 0.0  # decay; 0 for none
    microbatches: Count = 1  # slices of a batch, in turn, to save memory
    trainable: tuple[str, ...] = ()  # the scopes that are trained, such as ("lora",); all when empty
    on_nonfinite: Literal["raise", "skip", "rollback"] = "raise"


class Problem(NamedTuple):
    """What a pipeline knows of its problem."""

    columns: tuple[str, ...]  # the data set's columns that a batch needs
    outer: Transform  # makes the task of a batch; before every technique, in training and evaluation
    base: Objective  # measured
    context: Mapping[str, Any]  # for the techniques' positional parameters
    artifacts: Callable[[Resolve], dict[str, Callable[[View, Array], Any]]]
    predict: Callable[[Resolve], Callable[[View, Batch, Array], dict[str, Array]]]
    baselines: Callable[[], dict[str, dict[str, float]]]
    better: str = "loss"


RESERVED = ("train_eval", "validation")


def assemble(config: Mapping[str, Any], problem: Callable[..., Problem]) -> Experiment:
    """The experiment of a config whose problem is `problem(dataset, log, *, settings)`.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    run, common, own = read(config, problem)
    dataset = settings.call(data.load, common.data, "data.")
    durations = Durations.of(run, len(dataset.train))
    log: dict[str, Any] = {}
    p = problem(dataset, log, **own)
    sections = {k: v for k, v in config.items() if isinstance(v, Mapping)}

    def made(names: tuple[str, ...]) -> Objective:
        techniques = transforms.build(names, sections, log=log, base=p.base, **p.context)
        return chain(p.outer, *techniques)(p.base)

    train = made(common.techniques)
    optimizer = settings.call(
        optim.build,
        common.optimizer,
        "optimizer.",
        {"total_steps": durations.total, "to_steps": durations.steps},
        log=log,
    )
    if run.batch_size % common.microbatches:
        raise settings.SettingsError(
            f"config.microbatches: {common.microbatches} slices do not divide a batch of {run.batch_size}"
        )
    gradient = microbatch(common.microbatches)(grad_of(train))
    step = update(gradient, optimizer, wrt=common.trainable)
    if common.ema:
        step = then(step, ema(common.ema))
    step = guard(step, "skip" if common.on_nonfinite == "skip" else "halt")

    return Experiment(
        run=run,
        durations=durations,
        dataset=dataset,
        train_data=train_data(dataset, p.columns, run),
        init=train.init,
        step=step,
        frozen={},
        evals=evaluations(dataset, p.columns, run, {n: made(t) for n, t in common.evals.items()}, made(())),
        artifacts=p.artifacts(train.resolve),
        predict=p.predict(train.resolve),
        baselines=p.baselines,
        better=p.better,
        rolls_back=common.on_nonfinite == "rollback",
        objective=train,
        settings={
            **dataclasses.asdict(run),
            **dataclasses.asdict(common),
            **own,
            **{k: v for k, v in sections.items() if k not in log and k not in own},
            "data": settings.check(data.load, common.data, "data."),
            **log,
        },
    )


def read(config: Mapping[str, Any], problem: Callable[..., Problem]) -> tuple[RunSettings, Common, dict[str, Any]]:
    """Every key of a config, checked: the run's, the common ones, the problem's own; the rest are sections."""
    tables = [settings.accepts(f) for f in (RunSettings, Common, problem)]
    parts = [{k: v for k, v in config.items() if k in t} for t in tables]
    known = tuple(k for t in tables for k in t)
    transforms.check_sections({k: v for k, v in config.items() if k not in known}, known)
    run = RunSettings(**settings.check(RunSettings, parts[0]))
    common = Common(**settings.check(Common, parts[1]))
    own = settings.check(problem, parts[2])
    for name in RESERVED:
        if name in common.evals:
            raise settings.SettingsError(f"config.evals.{name}: this name is taken; call the evaluation something else")
    for name in (*common.techniques, *(t for ts in common.evals.values() for t in ts)):
        if name not in transforms.TABLE and name not in config:
            raise settings.SettingsError(f"config: no technique {name!r}{settings.near(name, transforms.TABLE)}")
    return run, common, own


def train_data(dataset: data.Dataset, columns: tuple[str, ...], run: RunSettings) -> data.Data:
    """In memory where the set is, streamed otherwise."""
    if isinstance(dataset.train, data.Arrays):
        return data.in_memory(select(dataset.train, columns), run.batch_size)
    return data.streaming(select(dataset.train, columns), run.batch_size, workers=run.workers)


def evaluations(
    dataset: data.Dataset,
    columns: tuple[str, ...],
    run: RunSettings,
    on_test: Mapping[str, Objective],
    plain: Objective,
) -> dict[str, Evaluation]:
    """The plain objective on validation and on as many training examples, and every named evaluation on test."""
    size = parallel.rounded(run.eval_batch_size or run.batch_size)  # batches are padded anyway
    out = {}
    if n := len(dataset.validation):
        part = data.Rows(dataset.train, np.arange(min(n, len(dataset.train))))
        out["train_eval"] = Evaluation(plain, data.batches(select(part, columns), size))
        out["validation"] = Evaluation(plain, data.batches(select(dataset.validation, columns), size))
    for name, objective in on_test.items():
        out[name] = Evaluation(objective, data.batches(select(dataset.test, columns), size))
    return out


class Columns:
    """Some columns of a source, as a source."""

    def __init__(self, source: Any, names: tuple[str, ...]):
        self._source, self._names = source, names

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = self._source.__getitems__(indices)
        return {k: rows[k] for k in self._names}

    def column(self, name: str) -> np.ndarray:
        return self._source.column(name)


def select(source: Any, names: tuple[str, ...]) -> Any:
    """The source with these columns only; in memory when it was."""
    if isinstance(source, data.Arrays):
        return data.Arrays({k: source.arrays[k] for k in names})
    return Columns(source, names)


def everything(source: Any) -> dict[str, np.ndarray]:
    """All rows of a source."""
    return source.__getitems__(np.arange(len(source)))
