"""What would help: more data, a larger model, or something else? Floor 6.

    python launch.py --config=configs/mlp.py --mode=diagnose

Trains the config on growing shares of its training rows, and with models of growing width, every time with several
seeds on bootstrap samples of their own, and looks at training and validation rows only: test is not for choosing.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from umbrella import artifacts, pipelines, report
from umbrella._report.text import direction, num
from umbrella.artifacts import Curves, Table
from umbrella.data import Rows, batches, bootstrap, sample
from umbrella.evaluation import evaluate
from umbrella.experiment import Durations, Experiment
from umbrella.gradients import grad_of
from umbrella.objective import Ctx, View
from umbrella.pipelines._standard import select
from umbrella.runs import EVAL_KEY, Session
from umbrella.scores import interval
from umbrella.settings import SettingsError, duration
from umbrella.workdir import check_no_run, plain, write_json

SHARES = (0.1, 0.2, 0.5, 1.0)
FACTORS = (0.25, 0.5, 1.0, 2.0)  # of the widths of the model
WIDTHS = ("hidden", "widths", "width")  # the settings of a model that say how wide it is
SEEDS = 5
Step = Literal["better", "worse", "same", "unclear"]
UNCLEAR = "may be better or worse, which these seeds cannot tell"
LITTLE, AS_GOOD = "would bring little", "would do as well"
BETTER: dict[Step, str] = {"better": "would help", "unclear": UNCLEAR, "worse": LITTLE, "same": LITTLE}
AS_WELL: dict[Step, str] = {"worse": "would be worse", "unclear": UNCLEAR, "better": AS_GOOD, "same": AS_GOOD}
MOST = 2000  # rows that bias and variance are measured on
BINS = 60
SPARED = {  # what decides nothing here, and takes time; test is not looked at
    "evals": {},
    "baselines": False,
    "keep_best": None,
    "patience": "never",
    "keep_every": "never",
    "resample": True,
}


class Point(NamedTuple):
    """One size of the training set, and of the model."""

    rows: int
    width: float  # of the model, times the config's
    parameters: int  # of one seed
    train: np.ndarray  # f64[K], the metric on the rows that a seed trained on, in evaluation mode
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
    points: list[Point]  # of growing shares of the rows, with the config's own model
    sizes: list[Point]  # of growing models, on all rows; the config's own among them; or empty
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
    factors: Sequence[float] = FACTORS,
    say: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Trains at every share and size in a folder of its own under `workdir` (which resumes) and writes a report there.

    All train for as many steps as the whole set would, so that they differ in data or in width and in nothing else.

    Args:
      shares: of the training rows, in (0, 1]; the whole is always among them.
      factors: of the model's widths; the model itself is always among them. Those that change nothing are left out,
        and all of them where a model has no width to set.

    Raises:
      SettingsError: the config is not as it should be, or has no validation split.
    """
    base = plain(config)
    base |= SPARED
    base["seeds"] = max(SEEDS, int(base.get("seeds", 1)))
    work = Path(workdir)
    check_no_run(work, "diagnose")

    shares = _sound(base, shares)

    def train(
        folder: str, changed: Mapping[str, Any], width: float = 1.0, first: bool = False
    ) -> tuple[Point, Session, list[Layer], list[Layer]]:
        with Session({**base, **changed}, work / folder, name=name, quiet=True) as session:
            ex = session.experiment
            if "validation" not in ex.evals:
                raise SettingsError("--mode=diagnose: there is no validation split; set config.data.validation")
            start = layers(session) if first else []
            rows, seeds = len(ex.dataset.train), len(session.seeds)
            say(f"Training on {rows:,} rows, {seeds} seeds, {ex.durations.total:,} steps: {folder}.")
            result = session.train()
            end = layers(session, View(result.ts.params, result.ts.state)) if first else []
            count = sum(x.size for x in jax.tree.leaves(result.ts.params)) // seeds
            validation = np.asarray(session.results["validation"][ex.better], np.float64)
            seen, parts = on_own_rows(result.ts.eval_view(), session), decomposition(ex, result.ts.eval_view(), session)
        return Point(rows, width, count, seen, validation, *parts), session, start, end

    point, session, start, end = train("rows-1", {}, first=True)  # the whole first: it says how many steps there are
    steps = in_steps(base, session.experiment.durations)
    points, sizes = [point], [point]
    for share in sorted(set(shares) - {1.0}, reverse=True):
        less = {**base["data"], "rows": _rows(share, point.rows)}
        points.insert(0, train(f"rows-{share:g}", {**steps, "data": less})[0])
    model = session.experiment.settings["model"]
    made = [model]
    for factor in sorted(set(factors) - {1.0}):
        other = widened(model, factor)
        if other not in made:
            made.append(other)
            sizes.append(train(f"width-{factor:g}", {**steps, "model": other}, factor)[0])
    sizes = sorted(sizes, key=lambda p: p.width) if len(sizes) > 1 else []
    metric = session.experiment.better
    told = Diagnosis(metric, points, sizes, start, end, in_words(metric, points, sizes, start, end), work)
    write(told, name or str(base["pipeline"]))
    return told


def _rows(share: float, whole: int) -> int:
    return max(1, round(share * whole))


def _sound(config: Mapping[str, Any], shares: Sequence[float]) -> tuple[float, ...]:
    """The shares; without those of a set that has no setting `rows`. Each can be read, so that hours of training do not
    end at one that cannot."""
    ex = pipelines.build(config)
    if "model" not in ex.settings:
        raise SettingsError(f"--mode=diagnose: is of one model; config.pipeline {ex.run.pipeline!r} has several")
    if "rows" not in ex.settings["data"]:
        return (1.0,)
    for share in shares:
        pipelines.build({**config, "data": {**config["data"], "rows": _rows(share, len(ex.dataset.train))}})
    return tuple(shares)


def in_steps(config: Mapping[str, Any], durations: Durations) -> dict[str, Any]:
    """The config with every duration in epochs or examples told in steps of the whole set, in its sections, too."""

    def told(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: told(v) for k, v in value.items()}
        try:
            found = duration(value)
        except SettingsError:
            return value
        return f"{durations.steps(value)} steps" if found.unit in ("epochs", "examples") else value

    return told(config)


def on_own_rows(views: View, session: Session) -> np.ndarray:
    """f64[K]: the metric of every lane on what it trained on, its own sample of the rows; at most MOST of them."""
    ex = session.experiment
    view = jax.device_put(views, jax.local_devices()[0]) if session.place.apart else views
    n, out = len(ex.dataset.train), []
    columns = tuple(c for c in next(iter(ex.evals["train_eval"].batches)) if c != "mask")
    for k, seed in enumerate(session.seeds):
        rows = bootstrap(seed, n)[:MOST] if ex.run.resample else sample(n, MOST)
        of = batches(select(Rows(ex.dataset.train, np.sort(rows)), columns), min(500, len(rows)))
        key = jax.random.key(EVAL_KEY)
        told = evaluate(ex.evals["train_eval"].objective, view.lane(k), of, key, frozen=ex.frozen)
        out.append(told[ex.better])
    return np.asarray(out, np.float64)


def widened(model: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """A model's settings with every width times `factor`, rounded, at least 1; as they are where there is no width.

    >>> widened({"name": "mlp", "hidden": (128, 3), "dropout": 0.5}, 0.5)
    {'name': 'mlp', 'hidden': (64, 2), 'dropout': 0.5}
    """

    def times(width: Any) -> Any:
        return tuple(times(w) for w in width) if isinstance(width, tuple | list) else max(1, round(factor * width))

    return {k: times(v) if k in WIDTHS else v for k, v in model.items()}


def decomposition(ex: Experiment, views: View, session: Session) -> tuple[float, float]:
    """(squared bias with noise, variance) of Brier's score on validation rows, over the lanes.

    With p_k the probabilities of lane k and m their mean, mean_k |p_k - y|^2 = |m - y|^2 + mean_k |p_k - m|^2, exactly:
    the first is what the average model gets wrong (noise in it), the second what the sample and the seed decide
    (Geman et al. 1992, for the square; Krogh and Vedelsby 1995). As estimates of what endless many lanes would give
    the variance is too small by its K-th part and the first too large by as much: it is of these K. NaN for what is
    no classifier.
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
    """Every parameter of the first lane, or of a fresh network when there is no view, in the order of the network, with
    its gradient on one training batch."""
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

    def look(p: Any, s: Any, scale: jax.Array) -> Any:
        slope, _, _ = grad_of(ex.objective)(p, {}, s, batch, ctx.replace(scale=scale))
        try:
            features = ex.objective.apply(p, s, batch, ctx.asking(*asked))[1].features
        except ValueError:  # a submodule that is called twice has no one output
            features = {}
        return slope, features

    # As large as these gradients let it be: of fp16, without one, the small ones would read 0.
    run, scale = jax.jit(look), max(1.0, float(ex.settings["loss_scale"]))
    gradient, features = jax.device_get(run(params, state, np.float32(scale)))
    while scale > 1 and not all(np.isfinite(g).all() for g in jax.tree.leaves(gradient)):
        scale = max(1.0, scale / 2)
        gradient, features = jax.device_get(run(params, state, np.float32(scale)))
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
def in_words(metric: str, points: list[Point], sizes: list[Point], start: list[Layer], end: list[Layer]) -> list[str]:
    """What the numbers say, by these rules and nothing else.

    More data helps when validation was better on all rows than on the share before by more than both 95 % intervals
    together; a larger model likewise, and a smaller one does as well when it is not worse by so much. A difference
    within them that is more than a fifth of what validation leaves to be had (for an accuracy, 1 - it) cannot be told
    from chance by these seeds. The gap between training and validation counts as large above half of what is left so,
    as small below a fifth. A gradient vanishes or explodes when those of the kernels differ by more than a
    thousand times between layers, the signal when the outputs of layers do.
    """
    way, last = direction(metric) or -1, points[-1]
    v, t = _mean(last.validation)[0], _mean(last.train)[0]
    out = []
    if len(points) > 1:
        told, verdict = _step(metric, "rows", points[-2].rows, points[-2], last.rows, last)
        out.append(f"More data of this kind {BETTER[verdict]}: {told}.")
    own = next((i for i, p in enumerate(sizes) if p.width == 1), 0)
    if own + 1 < len(sizes):
        there = sizes[own + 1]
        told, verdict = _step(metric, "parameters", last.parameters, last, there.parameters, there)
        out.append(f"A larger model {BETTER[verdict]}: {told}.")
    if own > 0:
        there = sizes[own - 1]
        told, verdict = _step(metric, "parameters", last.parameters, last, there.parameters, there)
        out.append(f"A smaller one {AS_WELL[verdict]}: {told}.")
    gap = way * (t - v)
    left = _left(metric, v)
    share = gap / left if left > 0 else 0.0
    if share > 0.5:
        out.append(
            f"It overfits: {metric} is {num(t)} on training rows and {num(v)} on validation. Regularisation, "
            "augmentation or more data close such a gap."
        )
    elif share < 0.2:
        out.append(
            f"It underfits, or is as good as the data allow: {metric} is {num(t)} on training rows and {num(v)} on "
            "validation. What to try is longer training" + ("." if sizes else ", or a larger model.")
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
        seen = [layer for layer in kernels if layer.activation > 0]
        if len(seen) > 1 and max(k.activation for k in seen) > 1000 * min(k.activation for k in seen):
            first, final = seen[0], seen[-1]
            kind = "vanishes" if final.activation < first.activation else "explodes"
            out.append(
                f"{when} the signal {kind} on its way up: outputs are {num(first.activation)} at {first.name} and "
                f"{num(final.activation)} at {final.name}, and so are the gradients. A norm, shortcuts or another "
                "initialiser keep it."
            )
    return out


def _step(metric: str, unit: str, a: int, before: Point, b: int, after: Point) -> tuple[str, Step]:
    """(what happened to validation, what that says)."""
    (u, du), (v, dv) = _mean(before.validation), _mean(after.validation)
    gain = (direction(metric) or -1) * (v - u)
    sure = abs(gain) > du + dv
    told = f"from {a:,} to {b:,} {unit} validation {metric} went from {num(u)} to {num(v)}"
    told = f"{told}, {'more than' if sure else 'within'} the spread between seeds"
    if sure:
        return told, "better" if gain > 0 else "worse"
    return told, "unclear" if abs(gain) > 0.2 * _left(metric, u) else "same"


def _left(metric: str, value: float) -> float:
    """What there is to be had beyond it."""
    return 1 - value if (direction(metric) or -1) > 0 and 0 <= value <= 1 else abs(value)


def _mean(values: np.ndarray) -> tuple[float, float]:
    mean, half = interval(values)
    return float(mean), float(half)


def write(made: Diagnosis, name: str) -> Path:
    """The figures under workdir/artifacts, and the report."""
    folder, seeds = made.workdir / "artifacts", len(made.points[0].train)
    rows = np.asarray([p.rows for p in made.points], np.float64)
    widths = np.asarray([p.width for p in made.sizes], np.float64)
    for told, points, at, label in (
        ("learning_curve", made.points, rows, "training rows"),
        ("capacity_curve", made.sizes, widths, "width of the model, times the config's"),
    ):
        if not points:
            continue
        series, bands = {}, {}
        for split in ("train", "validation"):
            mean, half = interval(np.stack([getattr(p, split) for p in points], 1))
            series[split], bands[split] = (at, mean), (mean - half, mean + half)
        caption = (
            f"{made.metric} by {label}, on the rows that a seed trained on and on validation; mean over {seeds} seeds "
            "on bootstrap samples of their own, 95 %."
        )
        artifacts.save(folder, told, Curves(series, label, made.metric, caption, bands))
        if np.isfinite(points[-1].variance):
            parts = {
                "wrong on average (bias, and noise)": (at, np.asarray([p.bias for p in points])),
                "decided by seed and sample (variance)": (at, np.asarray([p.variance for p in points])),
            }
            what = "bias_variance" if told == "learning_curve" else "bias_variance_by_capacity"
            artifacts.save(
                folder, what, Curves(parts, label, "Brier's score", "The two parts of Brier's score on validation.")
            )
    kernels = [(a, b) for a, b in zip(made.start, made.end, strict=True) if a.name.endswith("kernel")]
    depth = np.arange(1.0, len(kernels) + 1)
    for what, of in (("gradient", "the gradient of each layer's kernel"), ("activation", "each layer's output")):
        flows = {
            when: (depth, np.asarray([getattr(pair[i], what) for pair in kernels]))
            for i, when in enumerate(("at the start", "at the end"))
        }
        caption = f"Root mean square of {of} on one training batch, from the input up."
        artifacts.save(folder, f"{what}_by_depth", Curves(flows, "layer", what, caption))
    some = [kernels[i] for i in np.unique(np.linspace(0, len(kernels) - 1, 6).astype(int))] if kernels else []
    for i, when in enumerate(("start", "end")):
        lines = {pair[i].name.removesuffix("/kernel"): pair[i].density for pair in some if len(pair[i].density[0])}
        if lines:
            caption = f"How the outputs of layers are distributed on one training batch, at the {when}."
            artifacts.save(folder, f"activations_at_the_{when}", Curves(lines, "output", "density", caption))
    columns = ("parameter", "weight at the start", "gradient", "weight at the end", "gradient ")
    cells = tuple(
        (a.name, *(f"{v:.3g}" for v in (a.weight, a.gradient, b.weight, b.gradient)))
        for a, b in zip(made.start, made.end, strict=True)
    )
    caption = "Root mean squares, on one training batch: of a fresh network, and of the first seed at the end."
    artifacts.save(folder, "layers", Table(columns, cells, caption))
    artifacts.save(folder, "words", artifacts.Text("\n\n".join(made.words), "What the numbers say."))
    summary = {"status": "finished", "config_name": f"{name}, diagnosed", "metrics": {}, "words": made.words}
    write_json(made.workdir / "summary.json", summary)
    return report.write(made.workdir)
