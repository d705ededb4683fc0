"""What a pipeline hands to the loop. Floor 4."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from umbrella.artifacts import Table
from umbrella.data import Data, Dataset
from umbrella.objective import Array, Batch, Init, Objective, PyTree, View
from umbrella.settings import Cadence, Count, Length, Natural, SettingsError, duration
from umbrella.step import Step

MOST_STEPS = 2**31 - 2  # `TrainState.step` is i32
SEEDS = 2**32  # a random key is made of 32 bits of its seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The keys that every config has.

    Raises:
      SettingsError: patience without keep_best, or with validations that are no checkpoints; a seed, `seed` to
        `seed + seeds - 1`, is not below 2^32: it would draw what a smaller one draws.
    """

    pipeline: str  # a module of umbrella.pipelines
    batch_size: Count
    train_for: Length
    seed: Natural = 0
    seeds: Count = 1  # K runs, with the seeds seed .. seed + K - 1, as one program
    order: Literal["own", "shared"] = "own"  # of the data, with several seeds: own is what K single runs would see
    lanes: Literal["auto", "vmap", "unroll"] = "auto"  # how several seeds share a device, see `umbrella.step.program`
    resample: bool = False  # every seed trains on a bootstrap sample of its own of the training split (bagging)
    log_every: Cadence = "50 steps"
    eval_every: Cadence = "1 epoch"
    checkpoint_every: Cadence = "10%"
    keep_checkpoints: Count = 3  # the last so many
    keep_every: Cadence = "never"  # and those at this cadence, for good
    keep_best: str | None = None  # and the one that is best by this validation metric
    patience: Cadence = "never"  # stops when its mean over seeds has not improved for so long; the best state stays
    steps_per_call: Count | None = None  # of the compiled program; chosen by the size of a step when None
    eval_batch_size: Count | None = None  # batch_size when None
    # How many devices lie along data, fsdp, model and seed, see `umbrella.parallel.shape_of`.
    mesh: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compile: Literal["jit", "pmap"] = "jit"  # one program over the mesh, or one for each device
    # "fixed": a step gives the same on 1, 2, 4 and 8 devices, to the bit; see `umbrella.gradients.in_order`.
    reduction: Literal["fast", "fixed"] = "fast"
    shard: tuple[tuple[str, tuple[str | None, ...]], ...] = ()  # (regular expression, axes): see `parallel.cut`
    offload: bool = False  # what the optimiser keeps lies in the host's memory between steps
    workers: Natural = 2  # processes that read a set that does not lie in memory
    fresh: tuple[str, ...] = ()  # with --init_from: what is not taken over, such as ("model/head",)
    baselines: bool | tuple[str, ...] = True  # the rivals beside the result: the usual ones, none, or those named

    def __post_init__(self) -> None:
        if self.patience != "never" and self.keep_best is None:
            raise SettingsError('config.patience: for which metric? Set config.keep_best, such as to "loss"')
        if self.patience != "never" and self.eval_every != self.checkpoint_every:
            raise SettingsError(
                f"config.patience: the best state must be a checkpoint, so set config.checkpoint_every to what "
                f"config.eval_every is, {self.eval_every!r} (it is {self.checkpoint_every!r})"
            )
        if self.seed + self.seeds > SEEDS:
            last = f" + {self.seeds - 1}" if self.seeds > 1 else ""
            raise SettingsError(f"config.seed: {self.seed}{last} is too large; seeds are below 2^32 ({SEEDS:,})")


class Durations(NamedTuple):
    """A run's durations in steps."""

    batch_size: int
    n_train: int
    total: int

    @classmethod
    def of(cls, run: RunSettings, n_train: int) -> "Durations":
        total = duration(run.train_for)
        if total.unit == "%":
            raise SettingsError(f"config.train_for: {run.train_for!r}: a percentage of what? Say epochs or steps")
        steps = total.steps(batch_size=run.batch_size, n_train=n_train)
        if steps > MOST_STEPS:
            raise SettingsError(
                f"config.train_for: {run.train_for!r} is more than {MOST_STEPS:,} steps, which is the most"
            )
        return cls(run.batch_size, n_train, steps)

    def steps(self, text: str) -> int:
        """ "1 epoch" -> steps, at least 1; "never" -> 0."""
        return duration(text).steps(batch_size=self.batch_size, n_train=self.n_train, total=self.total)


class Evaluation(NamedTuple):
    objective: Objective
    batches: Iterable[Batch]  # may be gone through again and again


class Review(NamedTuple):
    """What is said of finished runs, side by side: numbers that need all rows or all seeds, and what is drawn."""

    metrics: Mapping[str, Mapping[str, Any]]  # of an evaluation -> metric -> float, or one for each seed
    artifacts: Iterable[tuple[str, Any]]  # (name, a value of umbrella.artifacts), made one by one
    rows: Mapping[str, Any] = {}  # what is kept of every test row, arrays: for comparing runs row by row


Scorer = Callable[[View], Callable[[Mapping[str, Any]], Any]]  # view -> rows of `asks` -> f64[B], higher is stranger


Reader = Callable[[View, Sequence[str]], Table]  # view -> lines of a file of the user's -> what is said of each


class Experiment(NamedTuple):
    """All that a run is made of, as values. See `umbrella.runs` for what is done with it."""

    run: RunSettings
    durations: Durations
    dataset: Dataset
    train_data: Data
    init: Init
    step: Step
    frozen: PyTree  # arrays shared by all lanes, neither trained nor saved
    evals: Mapping[str, Evaluation]  # "train_eval" and "validation" at a cadence, the others once, at the end
    review: Callable[[View, Array], Review]  # of a view whose leaves all have a leading seed axis, also for one seed
    predict: Callable[[View, Batch, Array], Mapping[str, Array]]  # rows in, named rows out; jit-able
    baselines: Callable[[], dict[str, dict[str, float]]]  # name -> metric -> value, on the test split
    better: str  # the validation metric that says which of two runs is better
    rolls_back: bool  # after a loss that is not finite: on from the last checkpoint, past the bad batch
    objective: Objective  # the training objective, for notebooks
    settings: dict[str, Any]  # as resolved, every key
    notes: tuple[str, ...] = ()  # plain lines for whoever starts the run: what was left out, and why
    asks: tuple[str, ...] = ("x",)  # the columns of the rows that predict and scorer are given
    scorer: Scorer | None = None  # how strange rows are, for --mode=clean
    strange: float = 0.0  # the share of validation rows above its threshold
    fold: str | None = None  # the test column that says which lane tells a row, where every lane has rows of its own
    lanes_each: int = 1  # so many lanes in a row are one training, each of a part: folds of a walk
    kept: Mapping[str, Any] = {}  # JSON that checkpoints keep beside the arrays, such as a tokenizer
    reader: Reader | None = None  # of new rows, for --mode=predict --input=FILE
