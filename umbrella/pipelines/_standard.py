"""What pipelines with a single objective share, once. One with several players writes its own. Floor 5."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import data, optim, parallel, settings, transforms
from umbrella.bounds import UnknownOperation
from umbrella.experiment import Durations, Evaluation, Experiment, Reader, Review, RunSettings, Scorer
from umbrella.loss_scale import FIRST, LARGEST, loss_scaled
from umbrella.objective import Array, Batch, Ctx, Objective, Params, State, Transform, View, chain, map_params
from umbrella.pipelines import _scopes
from umbrella.settings import Cadence, Count, Fraction, Range
from umbrella.step import ema, guard, swa, then, update

Resolve = Callable[[Params, State], Params]
Scale = Annotated[float, Range(lambda v: v == 0 or 1 <= v <= LARGEST, "must be 0, for none, or 1 to 2^100")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """The keys of every config whose pipeline has one objective."""

    data: dict
    optimizer: dict
    techniques: tuple[str, ...] = ()  # the leftmost touches the batch first
    evals: dict[str, tuple[str, ...]]  # on test: name -> techniques, such as {"test": (), "robust": ("pgd40",)}
    ema: Fraction = 0.0  # decay; 0 for none
    swa_from: Cadence = "never"  # averages parameters from there on, instead of ema
    swa_every: Cadence = "1 epoch"
    microbatches: Count = 1  # slices of a batch, in turn, to save memory
    loss_scale: Scale = 0.0  # the first one, such as 32768.0 for precision="fp16"; 0 for none
    trainable: tuple[str, ...] = ()  # the scopes that are trained, such as ("lora",); all when empty
    on_nonfinite: Literal["raise", "skip", "rollback"] = "raise"


class Problem(NamedTuple):
    """What a pipeline knows of its problem."""

    columns: tuple[str, ...]  # the data set's columns that a batch needs
    outer: Transform  # makes the task of a batch; before every technique, in training and evaluation
    base: Objective  # measured
    context: Mapping[str, Any]  # for the techniques' positional parameters
    review: Callable[[Resolve], Callable[[View, Array], Review]]
    predict: Callable[[Resolve], Callable[[View, Batch, Array], dict[str, Array]]]
    baselines: Callable[[], dict[str, dict[str, float]]]
    better: str = "loss"
    dataset: data.Dataset | None = None  # as the model sees it, where that is not as it was read
    notes: tuple[str, ...] = ()  # said at the start
    on_test: tuple[str, ...] = ()  # settings, given, that look at the test split
    fitting: tuple[str, ...] = ()  # the techniques that make sense of its inputs; all when empty
    asks: tuple[str, ...] = ("x",)  # the columns that predict and scorer are given
    scorer: Callable[[Resolve], Scorer] | None = None
    strange: float = 0.0  # the share of validation rows that --mode=clean may take for strange
    feed: Callable[[RunSettings], data.Data] | None = None  # what is trained on, where that is not rows in any order
    told: Callable[[str, int], Iterable[Batch]] | None = None  # (evaluation's split, batch size) -> its batches
    fold: str | None = None  # the test column that says which lane tells a row
    lanes_each: int = 1  # lanes that are one training together
    kept: Mapping[str, Any] = {}  # what checkpoints must keep beside arrays, such as a tokenizer; JSON
    reader: Callable[[Resolve], Reader] | None = None


RESERVED = ("train_eval", "validation", "ensemble")


def assemble(
    config: Mapping[str, Any], problem: Callable[..., Problem], load: Callable[..., data.Dataset] | None = None
) -> Experiment:
    """The experiment of a config whose problem is `problem(dataset, log, *, settings)`.

    Args:
      load: makes the data set from the section `data`; umbrella.data.load when None.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    run, common, own = read(config, problem)
    load = load or data.load
    dataset = settings.call(load, common.data, "data.")
    log: dict[str, Any] = {}
    p = problem(dataset, log, **own)
    dataset = p.dataset or dataset
    durations = Durations.of(run, len(dataset.train))
    sections = {k: v for k, v in config.items() if isinstance(v, Mapping)}
    named = not set(transforms.NAMED).isdisjoint(transforms.kinds(common.techniques, sections))
    if p.feed is not None and (named or run.resample):
        raise settings.SettingsError(
            f"config.{'techniques' if named else 'resample'}: needs rows that are drawn one by one, and this pipeline "
            "trains on running text"
        )
    batches = train_data(dataset, p.columns, run, named) if p.feed is None else p.feed(run)

    for name in p.on_test if not common.evals else ():
        raise settings.SettingsError(
            f"config.{name}: looks at the test split, which no evaluation does; say evals = {{'test': ()}}, too"
        )
    refuse_again(common.techniques, sections)
    refuse_unfit(p.fitting, common.techniques, common.evals, sections)

    def made(names: tuple[str, ...]) -> tuple[Transform, ...]:
        given = {**p.context, "base": p.base, "trainable": common.trainable, "to_steps": durations.steps}
        return transforms.build(names, sections, log=log, **given)

    techniques = made(common.techniques)
    train = chain(p.outer, *techniques)(p.base)
    rows = one_row(dataset, p.columns)
    if "certified" in transforms.kinds(common.techniques, sections):
        check_bounded(train, rows)
    scopes = _scopes.check("techniques", common.techniques, techniques, log, p.outer, p.base, rows)
    for scope in common.trainable:
        _scopes.find("trainable", scope, scopes)

    def evaluated(names: tuple[str, ...], at: str) -> Objective:
        """Of what is trained: every technique of an evaluation sees the parameters that training resolves to."""
        own = made(names)
        refuse_inert(at, names, sections)
        refuse_twice(at, names, own, common.techniques, sections, p.base)
        if more := set(_scopes.check(at, names, own, log, p.outer, p.base, rows, scopes)) - set(scopes):
            raise settings.SettingsError(
                f"config.{at}: needs the parameters {', '.join(sorted(more))}, which config.techniques does not make"
            )
        return chain(map_params(train.resolve, name="resolve"), p.outer, *own)(p.base)

    optimizer = optim.build(common.optimizer, total_steps=durations.total, to_steps=durations.steps, log=log)
    if run.batch_size % common.microbatches:
        raise settings.SettingsError(
            f"config.microbatches: {common.microbatches} slices do not divide a batch of {run.batch_size}"
        )
    step = update(parallel.gradient(train, run, common.microbatches), optimizer, wrt=common.trainable)
    if common.ema and common.swa_from != "never":
        raise settings.SettingsError(
            f"config.swa_from: there is an average already, config.ema is {common.ema}; set it to 0"
        )
    if common.ema:
        step = then(step, ema(common.ema))
    if start := durations.steps(common.swa_from):
        if start >= durations.total:
            raise settings.SettingsError(
                f"config.swa_from: {common.swa_from!r} is step {start:,}, and training ends after {durations.total:,}; "
                "it would average nothing"
            )
        step = then(step, swa(start, max(1, durations.steps(common.swa_every))))
    if common.loss_scale:
        step = loss_scaled(step, common.loss_scale)
    step = guard(step, "skip" if common.on_nonfinite == "skip" else "halt")

    # Nothing can be said of a split without labels where the task is to tell them.
    hidden = tuple(dataset.info["hidden"]) if "y" in p.columns else ()
    on_test = {n: evaluated(t, f"evals.{n}") for n, t in common.evals.items()}

    return Experiment(
        run=run,
        durations=durations,
        dataset=dataset,
        train_data=batches,
        init=train.init,
        step=step,
        frozen={},
        evals=evaluations(dataset, p.columns, run, on_test, evaluated((), "techniques"), hidden, p.told),
        review=p.review(train.resolve) if common.evals else lambda views, key: Review({}, ()),  # test stays unseen
        predict=p.predict(train.resolve),
        asks=p.asks,
        scorer=None if p.scorer is None else p.scorer(train.resolve),
        strange=p.strange,
        reader=None if p.reader is None else p.reader(train.resolve),
        baselines=dict if "test" in hidden else p.baselines,
        better=p.better,
        rolls_back=common.on_nonfinite == "rollback",
        objective=train,
        kept=p.kept,
        fold=p.fold,
        lanes_each=p.lanes_each,
        settings={
            **dataclasses.asdict(run),
            **dataclasses.asdict(common),
            **own,
            **{k: v for k, v in sections.items() if k not in log and k not in own},
            "data": settings.check(load, common.data, "data."),
            **log,
        },
        notes=(
            *map(withheld, (s for s in ("validation", "test") if s in hidden)),
            *p.notes,
            *unscaled(log, common.loss_scale),
            *repeated(len(dataset.train), run.batch_size),
        ),
    )


def of_first_seed(drawn: Mapping[str, Callable[[View, Array], Any]]) -> Callable[[View, Array], Review]:
    """A review that is figures of the first seed, name -> (view, key) -> a value of umbrella.artifacts."""

    def review(views: View, key: Array) -> Review:
        return Review({}, ((name, fn(views.lane(0), key)) for name, fn in drawn.items()))

    return review


def read(config: Mapping[str, Any], problem: Callable[..., Problem]) -> tuple[RunSettings, Common, dict[str, Any]]:
    """Every key of a config, checked: the run's, the common ones, the problem's own; the rest are sections."""
    tables = [settings.accepts(f) for f in (RunSettings, Common, problem)]
    parts = [{k: v for k, v in config.items() if k in t} for t in tables]
    known = tuple(k for t in tables for k in t)
    transforms.check_sections({k: v for k, v in config.items() if k not in known}, known)
    run = RunSettings(**settings.check(RunSettings, parts[0]))
    common = Common(**settings.check(Common, parts[1]))
    own = settings.check(problem, parts[2])
    if isinstance(run.baselines, tuple) and "baselines" not in own:  # a pipeline that has a choice takes it as its own
        raise settings.SettingsError("config.baselines: this pipeline has no choice of rivals; say true or false")
    for name in RESERVED:
        if name in common.evals:
            raise settings.SettingsError(f"config.evals.{name}: this name is taken; call the evaluation something else")
    for name in (*common.techniques, *(t for ts in common.evals.values() for t in ts)):
        if name not in transforms.TABLE and name not in config:
            raise settings.SettingsError(f"config: no technique {name!r}{settings.near(name, transforms.TABLE)}")
    return run, common, own


def train_data(dataset: data.Dataset, columns: tuple[str, ...], run: RunSettings, named: bool) -> data.Data:
    """In memory where the set is, streamed otherwise."""
    if isinstance(dataset.train, data.Arrays):
        return data.in_memory(select(dataset.train, columns), run.batch_size, resample=run.resample, named=named)
    how: dict[str, Any] = {"workers": run.workers, "resample": run.resample, "named": named}
    return data.streaming(select(dataset.train, columns), run.batch_size, **how)


def evaluations(
    dataset: data.Dataset,
    columns: tuple[str, ...],
    run: RunSettings,
    on_test: Mapping[str, Objective],
    plain: Objective,
    hidden: tuple[str, ...] = (),
    told: Callable[[str, int], Iterable[Batch]] | None = None,
) -> dict[str, Evaluation]:
    """The plain objective on validation and on as many training examples, and every named evaluation on test.

    Args:
      hidden: the splits that are left out, because their labels are withheld.
      told: makes the batches of a split, "train_eval" among them; rows in order when None.
    """
    size = parallel.rounded(run.eval_batch_size or run.batch_size)  # batches are padded anyway

    def batches(split: str) -> Iterable[Batch]:
        if told is not None:
            return told(split, size)
        if split == "train_eval":  # at random: a folder of images is in the order of its classes
            part = data.Rows(dataset.train, data.sample(len(dataset.train), len(dataset.validation)))
            return data.batches(select(part, columns), size)
        return data.batches(select(getattr(dataset, split), columns), size)

    out = {}
    if len(dataset.validation):
        out["train_eval"] = Evaluation(plain, batches("train_eval"))
        if "validation" not in hidden:
            out["validation"] = Evaluation(plain, batches("validation"))
    for name, objective in on_test.items() if "test" not in hidden else ():
        out[name] = Evaluation(objective, batches("test"))
    return out


def withheld(split: str) -> str:
    """What is said of a split whose labels are withheld."""
    more = " and no baselines" if split == "test" else ""
    return f"The labels of the {split} split are withheld: there are no evaluations on it{more}."


def repeated(n: int, batch_size: int) -> tuple[str, ...]:
    """What is said of a training split that is smaller than a batch, if it is."""
    if n >= batch_size:
        return ()
    return (
        f"A batch of {batch_size:,} is more than the training split has ({n:,}): it holds examples more than once.",
    )


def unscaled(sections: Mapping[str, Any], loss_scale: float) -> tuple[str, ...]:
    """What is said of resolved settings that compute in fp16 without a loss scale, if they do."""
    told = [v["precision"] for v in sections.values() if isinstance(v, Mapping) and "precision" in v]
    if loss_scale or "fp16" not in told:
        return ()
    return (f"fp16 has no numbers below 6e-8, so small gradients are lost: config.loss_scale={FIRST:g} keeps them.",)


def refuse_again(names: tuple[str, ...], sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises SettingsError for a technique that draws for every row and is there twice, under another name, too."""
    first: dict[str, str] = {}
    for name, kind in zip(names, transforms.kinds(names, sections), strict=True):
        if kind in first and kind in transforms.DRAWING:
            raise settings.SettingsError(
                f"config.techniques: {name!r} would draw what {first[kind]!r} draws: both are {kind!r}; leave one out"
            )
        first.setdefault(kind, name)


def check_bounded(train: Objective, rows: Batch) -> None:
    """That there are bounds of what is trained, in training: nothing is computed.

    Raises:
      SettingsError: the network uses what has none, or another technique has made other labels.
    """
    ctx = Ctx(jax.random.key(0), jnp.int32(0))
    try:
        params, state = jax.eval_shape(train.init, rows, ctx)
        jax.eval_shape(train.apply, params, state, rows, ctx)
    except UnknownOperation as error:
        raise settings.SettingsError(
            f"config.techniques: 'certified': {error}; networks of ReLUs without a norm have bounds (config.model.norm)"
        ) from None
    except ValueError as error:
        raise settings.SettingsError(f"config.techniques: {error}") from None


def refuse_unfit(
    fitting: tuple[str, ...],
    names: tuple[str, ...],
    evals: Mapping[str, tuple[str, ...]],
    sections: Mapping[str, Mapping[str, Any]],
) -> None:
    """Raises SettingsError for a technique that is not among `fitting`, unless that is empty."""
    for at, those in (("techniques", names), *((f"evals.{k}", v) for k, v in evals.items())):
        for name, kind in zip(those, transforms.kinds(those, sections), strict=True):
            if fitting and kind not in fitting:
                raise settings.SettingsError(
                    f"config.{at}: {name!r} is not for this pipeline's inputs (those that are: {', '.join(fitting)})"
                )


def refuse_inert(at: str, names: tuple[str, ...], sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises SettingsError for a technique in an evaluation that acts in training only."""
    for name, kind in zip(names, transforms.kinds(names, sections), strict=True):
        if kind == "fgsm" and sections.get(name, {}).get("start") == "beyond":
            raise settings.SettingsError(
                f"config.{at}: {name!r} starts 'beyond' the ball and ends outside of it, which is to be trained on; "
                "evaluate with start='input' or 'ball'"
            )
        if kind in transforms.TRAINING_ONLY:
            raise settings.SettingsError(
                f"config.{at}: {name!r} acts in training only, so this would be the evaluation without it; leave it out"
            )


def refuse_twice(
    at: str,
    names: tuple[str, ...],
    techniques: tuple[Transform, ...],
    trained: tuple[str, ...],
    sections: Mapping[str, Mapping[str, Any]],
    base: Objective,
) -> None:
    """Raises SettingsError for a reparametrisation that is trained with and named again in an evaluation."""

    def kind(name: str) -> str:
        return sections.get(name, {}).get("technique", name)

    for name, technique in zip(names, techniques, strict=True):
        # What resolves parameters is a reparametrisation; any other technique hands its objective's `resolve` on.
        if kind(name) in map(kind, trained) and technique(base).resolve is not base.resolve:
            raise settings.SettingsError(
                f"config.{at}: {name!r} is trained with, so it is part of every evaluation already; leave it out"
            )


def one_row(dataset: data.Dataset, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """A batch of one training example, for shapes."""
    return next(iter(data.batches(select(data.Rows(dataset.train, np.zeros(1)), columns), 1)))


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


def scale_of(dataset: data.Dataset) -> float:
    """What pixels are divided by to be in [0, 1].

    Raises:
      SettingsError: the images are not of bytes.
    """
    if dataset.info["scale"] is None:
        raise settings.SettingsError(
            f"config.data.name: {dataset.name!r} holds images whose pixels are not bytes, which this pipeline needs"
        )
    return float(dataset.info["scale"])
