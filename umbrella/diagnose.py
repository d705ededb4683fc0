"""What would help: more data, a larger model, or something else? Floor 6.

    python launch.py --config=configs/mlp.py --mode=diagnose

Trains the config on growing shares of its training rows, every time with several seeds on bootstrap samples of their
own, and looks at training and validation rows only: test is not for choosing.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from umbrella import artifacts, report
from umbrella._report.text import direction, num
from umbrella.artifacts import Curves, Table
from umbrella.data import Rows, batches, sample
from umbrella.experiment import Experiment
from umbrella.gradients import grad_of
from umbrella.objective import Ctx, View
from umbrella.pipelines._standard import select
from umbrella.runs import EVAL_KEY, Session
from umbrella.scores import interval
from umbrella.settings import SettingsError
from umbrella.workdir import plain, write_json

SHARES = (0.1, 0.2, 0.5, 1.0)
SEEDS = 5
BINS = 60
MOST = 2000  # rows that bias and variance are measured on
SPARED = {  # what decides nothing here, and takes time; test is not looked at
    "evals": {},
    "baselines": False,
    "keep_best": None,
    "patience": "never",
    "keep_every": "never",
    "resample": True,
}


class Point(NamedTuple):
    """One size of the training set."""

    rows: int
    train: np.ndarray  # f64[K], the metric on training rows, in evaluation mode
    validation: np.ndarray  # f64[K]
    bias: float  # of Brier's score; NaN for what is no classifier
    variance: float


class Layer(NamedTuple):
    """What one batch does to a parameter, and what comes out of the layer whose kernel it is. Root mean squares."""

    name: str
    weight: float
    gradient: float
    activation: float  # of the layer's output; NaN for what is no kernel
    density: tuple[np.ndarray, np.ndarray]  # f64[BINS] each: values and how dense they are, by histogram; or empty


class Diagnosis(NamedTuple):
    metric: str
    points: list[Point]
    start: list[Layer]
    end: list[Layer]
    words: list[str]
    workdir: Path


def diagnose(
    config: Mapping[str, Any],
    workdir: str | os.PathLike[str],
    *,
    name: str | None = None,
    shares: Sequence[float] = SHARES,
    say: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Trains at every share in a folder of its own under `workdir` (which resumes) and writes a report there.

    All sizes train for as many steps as the whole set would, so that they differ in data and in nothing else.

    Raises:
      SettingsError: the config is not as it should be, or has no validation split.
    """
    base = plain(config)
    base |= SPARED
    base["seeds"] = max(SEEDS, int(base.get("seeds", 1)))
    work, points = Path(workdir), []
    whole, steps = None, 0
    start: list[Layer] = []
    end: list[Layer] = []
    for share in sorted(set(shares), reverse=True):  # the whole first: it says how many steps there are
        rows: int | None = None if whole is None else max(1, round(share * whole))
        own = {**base, "data": {**base["data"], **({} if rows is None else {"rows": rows})}}
        if steps:
            own["train_for"] = f"{steps} steps"
        with Session(own, work / f"rows-{share:g}", name=name, quiet=True) as session:
            ex = session.experiment
            if "validation" not in ex.evals:
                raise SettingsError("--mode=diagnose: there is no validation split; set config.data.validation")
            if whole is None:
                whole, steps = len(ex.dataset.train), ex.durations.total
                start = layers(session)
            say(f"Training on {len(ex.dataset.train):,} rows, {len(session.seeds)} seeds, {steps:,} steps.")
            result = session.train()
            if not end:
                end = layers(session, View(result.ts.params, result.ts.state))
            metric = ex.better
            told = session.results
            bias, variance = decomposition(ex, result.ts.eval_view(), session)
            points.append(
                Point(
                    len(ex.dataset.train),
                    np.asarray(told["train_eval"][metric], np.float64),
                    np.asarray(told["validation"][metric], np.float64),
                    bias,
                    variance,
                )
            )
    points.reverse()
    made = Diagnosis(metric, points, start, end, in_words(metric, points, start, end), work)
    write(made, name or str(base["pipeline"]))
    return made


def decomposition(ex: Experiment, views: View, session: Session) -> tuple[float, float]:
    """(squared bias with noise, variance) of Brier's score on validation rows, over the lanes.

    With p_k the probabilities of lane k and m their mean, mean_k |p_k - y|^2 = |m - y|^2 + mean_k |p_k - m|^2, exactly:
    the first is what the average model gets wrong (noise in it), the second what the sample and the seed decide
    (Geman et al. 1992, for the square; Krogh and Vedelsby 1995). NaN for what is no classifier.
    """
    held = Rows(ex.dataset.validation, sample(len(ex.dataset.validation), MOST))
    columns = held.__getitems__(np.arange(len(held)))
    if "y" not in columns or not ex.dataset.info["classes"]:
        return float("nan"), float("nan")
    view = jax.device_put(views, jax.local_devices()[0]) if session.place.apart else views
    run, p = jax.jit(lambda v, x: ex.predict(v, {"x": x}, jax.random.key(EVAL_KEY))), []
    for k in range(len(session.seeds)):
        parts = []
        for batch in batches(select(held, ("x", "y")), min(500, len(held))):
            told = run(view.lane(k), batch["x"])
            if "probabilities" not in told:
                return float("nan"), float("nan")
            parts.append(np.asarray(told["probabilities"], np.float64)[: int(batch["mask"].sum())])
        p.append(np.concatenate(parts))
    y = np.eye(p[0].shape[1])[columns["y"]]
    mean = np.mean(p, 0)
    return float(np.mean(np.sum((mean - y) ** 2, -1))), float(np.mean(np.sum((np.stack(p) - mean) ** 2, -1)))


def layers(session: Session, view: View | None = None) -> list[Layer]:
    """Every parameter of the first lane, in the order of the network, with its gradient on one training batch."""
    ex = session.experiment
    resident = session.experiment.train_data.resident
    batch = ex.train_data.fetch(resident, ex.train_data.slot(session.seeds[0], 0))
    ctx = Ctx(jax.random.key(EVAL_KEY), jax.numpy.int32(0), ex.frozen)
    order: list[str] = []
    params, state = ex.init(batch, ctx)  # not compiled: so the scopes are in the order in which they were made
    for path, _ in _named(params):
        order.append(path)
    if view is not None:
        params, state = jax.device_get(view.lane(0))
    asked = tuple(name.removesuffix("/kernel") for name in order if name.endswith("/kernel"))

    def look(p: Any, s: Any) -> Any:
        slope, _, _ = grad_of(ex.objective)(p, {}, s, batch, ctx)
        try:
            features = ex.objective.apply(p, s, batch, ctx.asking(*asked))[1].features
        except ValueError:  # a submodule that is called twice has no one output
            features = {}
        return slope, features

    gradient, features = jax.device_get(jax.jit(look)(params, state))
    values, slopes = dict(_named(params)), dict(_named(gradient))
    out = []
    for name in order:
        seen = features.get(name.removesuffix("/kernel")) if name.endswith("/kernel") else None
        density = (np.zeros(0), np.zeros(0)) if seen is None else _density(seen)
        activation = float("nan") if seen is None else _rms(seen)
        out.append(Layer(name, _rms(values[name]), _rms(slopes[name]), activation, density))
    return out


def _density(x: Any) -> tuple[np.ndarray, np.ndarray]:
    height, edge = np.histogram(np.asarray(x, np.float64), bins=BINS, density=True)
    return (edge[1:] + edge[:-1]) / 2, height


def _named(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        return [(prefix, tree)]
    return [found for k, v in tree.items() for found in _named(v, f"{prefix}/{k}" if prefix else str(k))]


def _rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


# ---------------------------------------------------------------------------------------------------------------- words
def in_words(metric: str, points: list[Point], start: list[Layer], end: list[Layer]) -> list[str]:
    """What the numbers say, by these rules and nothing else.

    More data helps when validation was better on all rows than on the share before by more than both 95 % intervals
    together. The gap between training and validation counts as large above half of what validation itself leaves to be
    had (for an accuracy, 1 - it), as small below a fifth. A gradient vanishes or explodes when those of the kernels
    differ by more than a thousand times between layers.
    """
    way, last = direction(metric) or -1, points[-1]
    (v, dv), (t, _) = _mean(last.validation), _mean(last.train)
    out = []
    if len(points) > 1:
        u, du = _mean(points[-2].validation)
        gain = way * (v - u)
        told = f"from {points[-2].rows:,} to {last.rows:,} rows validation {metric} went from {num(u)} to {num(v)}"
        if gain > dv + du:
            out.append(f"More data of this kind would help: {told}, more than the spread between seeds.")
        else:
            out.append(f"More data of this kind would bring little: {told}, within the spread between seeds.")
    gap = way * (t - v)
    left = 1 - v if way > 0 and 0 <= v <= 1 else abs(v)
    share = gap / left if left > 0 else 0.0
    if share > 0.5:
        out.append(
            f"It overfits: {metric} is {num(t)} on training rows and {num(v)} on validation. Regularisation, "
            "augmentation or more data close such a gap; a larger model does not."
        )
    elif share < 0.2:
        out.append(
            f"It underfits, or is as good as the data allow: {metric} is {num(t)} on training rows and {num(v)} on "
            "validation. A larger model or longer training is what to try."
        )
    else:
        out.append(f"The gap is moderate: {metric} is {num(t)} on training rows and {num(v)} on validation.")
    if np.isfinite(last.variance):
        whole = last.bias + last.variance
        part = last.variance / whole if whole > 0 else 0.0
        out.append(
            f"Of Brier's score on validation, {num(whole)}, {num(last.bias)} is what the average of the seeds gets "
            f"wrong and {num(last.variance)} ({part:.0%}) what seed and sample decide: an ensemble takes away "
            "the second."
        )
    for when, found in (("At the start", start), ("At the end", end)):
        kernels = [layer for layer in found if layer.name.endswith("kernel") and layer.gradient > 0]
        if len(kernels) > 1:
            first, final = kernels[0], kernels[-1]
            ratio = max(k.gradient for k in kernels) / min(k.gradient for k in kernels)
            if ratio > 1000:
                kind = "vanishes" if first.gradient < final.gradient else "explodes"
                out.append(
                    f"{when} the gradient {kind} on its way down: {num(final.gradient)} at {final.name}, "
                    f"{num(first.gradient)} at {first.name}. Shortcuts, norms or another initialiser keep it."
                )
    return out


def _mean(values: np.ndarray) -> tuple[float, float]:
    mean, half = interval(values)
    return float(mean), float(half)


def write(made: Diagnosis, name: str) -> Path:
    """The figures under workdir/artifacts, and the report."""
    folder, rows = made.workdir / "artifacts", np.asarray([p.rows for p in made.points], np.float64)
    series, bands = {}, {}
    for split in ("train", "validation"):
        mean, half = interval(np.stack([getattr(p, split) for p in made.points], 1))
        series[split], bands[split] = (rows, mean), (mean - half, mean + half)
    seeds = len(made.points[0].train)
    caption = f"{made.metric} by the number of training rows; mean over {seeds} seeds on samples of their own, 95 %."
    artifacts.save(folder, "learning_curve", Curves(series, "training rows", made.metric, caption, bands))
    if np.isfinite(made.points[-1].variance):
        parts = {
            "wrong on average (bias, and noise)": (rows, np.asarray([p.bias for p in made.points])),
            "decided by seed and sample (variance)": (rows, np.asarray([p.variance for p in made.points])),
        }
        caption = "The two parts of Brier's score on validation."
        artifacts.save(folder, "bias_variance", Curves(parts, "training rows", "Brier's score", caption))
    kernels = [(a, b) for a, b in zip(made.start, made.end, strict=True) if a.name.endswith("kernel")]
    depth = np.arange(1.0, len(kernels) + 1)
    for what, told in (("gradient", "the gradient of each layer's kernel"), ("activation", "each layer's output")):
        flows = {
            when: (depth, np.asarray([getattr(pair[at], what) for pair in kernels]))
            for at, when in enumerate(("at the start", "at the end"))
        }
        caption = f"Root mean square of {told} on one training batch, from the input up."
        artifacts.save(folder, f"{what}_by_depth", Curves(flows, "layer", what, caption))
    some = [kernels[i] for i in np.unique(np.linspace(0, len(kernels) - 1, 6).astype(int))] if kernels else []
    for at, when in enumerate(("start", "end")):
        lines = {pair[at].name.removesuffix("/kernel"): pair[at].density for pair in some if len(pair[at].density[0])}
        if lines:
            caption = f"How the outputs of layers are distributed on one training batch, at the {when}."
            artifacts.save(folder, f"activations_at_the_{when}", Curves(lines, "output", "density", caption))
    columns = ("parameter", "weight at the start", "gradient", "weight at the end", "gradient ")
    cells = tuple(
        (a.name, *(f"{v:.3g}" for v in (a.weight, a.gradient, b.weight, b.gradient)))
        for a, b in zip(made.start, made.end, strict=True)
    )
    caption = "Root mean squares, of one training batch and the first seed."
    artifacts.save(folder, "layers", Table(columns, cells, caption))
    artifacts.save(folder, "words", artifacts.Text("\n\n".join(made.words), "What the numbers say."))
    summary = {"status": "finished", "config_name": f"{name}, diagnosed", "metrics": {}, "words": made.words}
    write_json(made.workdir / "summary.json", summary)
    return report.write(made.workdir)
