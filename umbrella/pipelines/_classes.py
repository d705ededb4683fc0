"""What is said of classifiers beside their accuracy, one run or several side by side. Floor 5."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from umbrella import scores
from umbrella.artifacts import Curves, Matrix, Table
from umbrella.data import Dataset, batches
from umbrella.experiment import Review
from umbrella.objective import View
from umbrella.pipelines._standard import select
from umbrella.scores import interval
from umbrella.settings import SettingsError

GRID = np.linspace(0, 1, 201)  # where curves of several seeds are averaged
BINS = 15
MANY = 2**19  # rows
MOST_CURVES = 10  # classes that have a curve of their own; the worst ones when there are more


class Told(NamedTuple):
    """What K runs say of N rows. logits f32[K, N, C]; y i32[N]."""

    logits: np.ndarray
    y: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """f64[K, N, C]; NaN where the logits are not finite."""
        z = np.asarray(self.logits, np.float64)
        finite = np.isfinite(z).all(-1, keepdims=True)
        return np.where(finite, softmax(np.where(finite, z, 0), axis=-1), np.nan)


def predictor(logits_of: Callable[[Any, View, Any], Any]) -> Callable[[Any], Callable[[View, Any, Any], Any]]:
    """Of (resolve, view, x) -> logits f32[B, C] the `predict` of a Problem: labels and probabilities."""

    def predict(resolve: Any) -> Callable[[View, Any, Any], Any]:
        def run(view: View, batch: Any, key: Any) -> dict[str, Any]:
            logits = logits_of(resolve, view, batch["x"])
            return {"label": jnp.argmax(logits, -1), "probabilities": jax.nn.softmax(logits)}

        return run

    return predict


def in_turn(logits_of: Callable[[Any, View, Any], Any], resolve: Any) -> Callable[[View, Any], Any]:
    """(views, x) -> logits f32[K, B, C], seed after seed: side by side the activations of all would be kept at once."""
    out: Callable[[View, Any], Any] = jax.jit(
        lambda views, x: jax.lax.map(lambda view: logits_of(resolve, view, x), views)
    )
    return out


def told(run: Callable[[View, Any], Any], views: View, split: Any) -> Told:
    """What run (views, x) -> logits f32[K, B, C] says of every row of a split with columns x and y."""
    logits, labels = [], []
    for batch in batches(select(split, ("x", "y")), min(1000, len(split))):
        kept = int(batch["mask"].sum())
        logits.append(np.asarray(run(views, batch["x"]))[:, :kept])
        labels.append(batch["y"][:kept])
    return Told(np.concatenate(logits, 1), np.concatenate(labels))


def review(test: Told, validation: Told | None, names: tuple[str, ...]) -> Review:
    """Numbers and figures of the predictions on test; what is to be fitted to rows is fitted to validation.

    A run whose logits are not all finite has NaN for every number, and no part in a figure.
    """
    lanes = len(test.logits)
    kept = np.isfinite(test.logits).all((1, 2))
    kept &= True if validation is None else np.isfinite(validation.logits).all((1, 2))
    rows = {"y": test.y, "label": test.logits.argmax(-1).astype(np.int32)}
    sound = Told(test.logits[kept], test.y)
    held = None if validation is None else Told(validation.logits[kept], validation.y)
    # Fitted to the runs' own validation rows: a temperature chosen on test would flatter itself.
    degrees = None if held is None else [scores.temperature(z, held.y) for z in held.logits]
    found = [_numbers(z, test.y, None if degrees is None else degrees[k]) for k, z in enumerate(sound.logits)]
    names_of = found[0] if found else ()
    told = {name: np.full(lanes, np.nan) for name in names_of}
    for name in names_of:
        told[name][kept] = [numbers[name] for numbers in found]
    metrics: dict[str, dict[str, Any]] = {}
    if told:
        metrics["test"] = told if lanes > 1 else {name: float(v[0]) for name, v in told.items()}
    if lanes > 1 and kept.all():
        metrics["ensemble"] = of_ensemble(sound.probabilities, test.y)
    return Review(metrics, _figures(sound, held, degrees, names) if kept.any() else (), rows)


def _numbers(logits: np.ndarray, y: np.ndarray, temperature: float | None) -> dict[str, float]:
    """Of one run, logits f[N, C]."""
    z = np.asarray(logits, np.float64)
    p = softmax(z, axis=-1)
    told = {
        "brier": scores.brier(p, y),
        "ece": scores.calibration(p, y, bins=BINS).error(),
        "macro_f1": float(scores.averaged(counts(p, y), "macro").f1),
        "auc": _mean_auc(p, y),
    }
    if z.shape[1] > 5:
        told["top5_accuracy"] = scores.top_k(p, y, 5)
    if temperature is not None:
        told |= dict.fromkeys(("temperature", "loss_at_temperature", "ece_at_temperature"), float("nan"))
        if np.isfinite(temperature):
            cooled = softmax(z / temperature, axis=-1)
            told["temperature"] = temperature
            told["loss_at_temperature"] = scores.log_loss(cooled, y)
            told["ece_at_temperature"] = scores.calibration(cooled, y, bins=BINS).error()
    return told


def _figures(
    test: Told, held: Told | None, degrees: list[float] | None, names: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    p = test.probabilities
    yield "confusion", _confusion(p, test.y, names)
    yield "classes", _by_class(p, test.y, names)
    yield "roc", _curves(p, test.y, names, "roc")
    yield "precision_recall", _curves(p, test.y, names, "precision")
    yield "calibration", _calibration(p, test, degrees)
    if p.shape[-1] == 2 and held is not None and len(np.unique(held.y)) == 2:
        yield "thresholds", _thresholds(p[0], test.y, held.probabilities[0], held.y, names)


def of_ensemble(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The average of the members' probabilities f64[K, N, C] as one classifier."""
    mean = p.mean(0)
    return {
        "loss": scores.log_loss(mean, y),
        "accuracy": float((mean.argmax(-1) == y).mean()),
        "brier": scores.brier(mean, y),
        "ece": scores.calibration(mean, y, bins=BINS).error(),
    }


def counts(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """f64[C, C] by (true, predicted) from p f[N, C]."""
    out = np.zeros((p.shape[-1],) * 2)
    np.add.at(out, (y, p.argmax(-1)), 1)
    return out


def _mean_auc(p: np.ndarray, y: np.ndarray) -> float:
    """The area under the ROC curve of each class against the rest, averaged over the classes that occur."""
    if p.shape[1] == 2:
        return scores.auc(scores.roc(p[:, 1], y == 1))
    each = np.asarray([scores.auc(scores.roc(p[:, c], y == c)) for c in range(p.shape[1])])
    return float(each[np.isfinite(each)].mean()) if np.isfinite(each).any() else float("nan")


def _over(lanes: int) -> str:
    return "" if lanes == 1 else f" Mean over {lanes} seeds, with a 95 % interval."


# -------------------------------------------------------------------------------------------------------------- figures
def _confusion(p: np.ndarray, y: np.ndarray, names: tuple[str, ...]) -> Matrix:
    mean = np.mean([counts(q, y) for q in p], 0)
    caption = "Test examples by true class (rows) and predicted class (columns)."
    return Matrix(mean, names, names, caption + (f" Mean over {len(p)} seeds." if len(p) > 1 else ""))


def _by_class(p: np.ndarray, y: np.ndarray, names: tuple[str, ...]) -> Table:
    each = [counts(q, y) for q in p]
    by = [scores.per_class(c) for c in each]
    columns = [interval([getattr(s, what) for s in by]) for what in ("precision", "recall", "f1")]
    rows = [
        (name, *(_with(mean[i], half[i]) for mean, half in columns), int(by[0].support[i]))
        for i, name in enumerate(names)
    ]
    for how in ("macro", "weighted", "micro"):
        averages = [scores.averaged(c, how) for c in each]
        told = (interval([getattr(a, what) for a in averages]) for what in ("precision", "recall", "f1"))
        rows.append((f"{how} average", *(_with(float(m), float(h)) for m, h in told), len(y)))
    caption = "Precision, recall and F1 of every class on test, and how many examples it has." + _over(len(p))
    return Table(("class", "precision", "recall", "F1", "examples"), tuple(rows), caption)


def _with(mean: float, half: float) -> str:
    if not np.isfinite(mean):
        return "–"
    return f"{mean:.4f}" + (f" ± {half:.4f}" if np.isfinite(half) else "")


def _curves(p: np.ndarray, y: np.ndarray, names: tuple[str, ...], kind: str) -> Curves:
    """ROC curves, or precision against recall, of every class against the rest, on a grid."""
    classes = [1] if p.shape[-1] == 2 else [c for c in range(p.shape[-1]) if 0 < (y == c).sum() < len(y)]
    found = []
    for c in classes:
        of = [scores.roc(q[:, c], y == c) if kind == "roc" else scores.precision_recall(q[:, c], y == c) for q in p]
        if kind == "roc":
            area = np.mean([scores.auc(curve) for curve in of])
        else:
            area = np.mean([scores.average_precision(q[:, c], y == c) for q in p])
        found.append((float(area), names[c], *interval([_on_grid(curve, kind) for curve in of])))
    worst = sorted(found, key=lambda f: f[0])[:MOST_CURVES]
    kept = [f for f in found if f in worst] if len(found) > MOST_CURVES else found
    what = "area" if kind == "roc" else "average precision"
    series = {f"{name} ({what} {area:.4f})": (GRID, mean) for area, name, mean, _ in kept}
    bands = {
        k: _band(mean, half) for k, (_, _, mean, half) in zip(series, kept, strict=True) if np.isfinite(half).any()
    }
    some = f"; the {MOST_CURVES} with the least area of {len(found)}" if len(kept) < len(found) else ""
    versus = f"{names[1]} against {names[0]}" if p.shape[-1] == 2 else "each class against the rest"
    if kind == "roc":
        caption = f"ROC curves on test, {versus}{some}." + _over(len(p))
        return Curves(series, "false positive rate", "true positive rate", caption, bands)
    return Curves(
        series, "recall", "precision", f"Precision against recall on test, {versus}{some}." + _over(len(p)), bands
    )


def _band(mean: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval of a rate; Student's t knows of no ends."""
    return np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)


def _on_grid(curve: scores.Curve, kind: str) -> np.ndarray:
    """The curve at GRID. ROC: at each x the highest y, on lines between points, which a random choice between two
    thresholds reaches. Precision: of the highest threshold that reaches the recall, as the average precision counts
    (lines between its points would promise what no threshold gives: Davis and Goadrich 2006)."""
    x, y = np.asarray(curve.x), np.asarray(curve.y)
    if kind == "precision":
        return y[np.minimum(np.searchsorted(x, GRID), len(y) - 1)]
    last = np.append(np.diff(x) > 0, True)
    return np.interp(GRID, x[last], y[last])


def _calibration(p: np.ndarray, test: Told, degrees: list[float] | None) -> Curves:
    def line(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, at = np.full((2, len(probabilities), BINS), np.nan)
        for k, q in enumerate(probabilities):
            c = scores.calibration(q, test.y, bins=BINS)
            place = np.rint(np.asarray(c.low) * BINS).astype(int)
            x[k, place], at[k, place] = c.confidence, c.accuracy
        mean, half = interval(at)
        return interval(x)[0], mean, half

    lines = {"the model": line(p)}
    pairs = [(z, t) for z, t in zip(test.logits, degrees or (), strict=degrees is not None) if np.isfinite(t)]
    if pairs:
        cooled = np.stack([softmax(z.astype(np.float64) / t, axis=-1) for z, t in pairs])
        lines[f"at temperature {np.mean([t for _, t in pairs]):.2f}"] = line(cooled)
    series, bands = {}, {}
    for name, (x, mean, half) in lines.items():
        kept = np.isfinite(mean)
        series[name] = (x[kept], mean[kept])
        if np.isfinite(half).any():
            bands[name] = _band(mean[kept], half[kept])
    series["as sure as right"] = (np.asarray([0.0, 1.0]), np.asarray([0.0, 1.0]))
    how = "" if not pairs else " The temperature was fitted to validation."
    caption = f"How often the predicted class is right, by how probable it was said to be ({BINS} bins).{how}"
    return Curves(series, "confidence", "accuracy", caption + _over(len(p)), bands, ("as sure as right",))


def _thresholds(p: np.ndarray, y: np.ndarray, held: np.ndarray, held_y: np.ndarray, names: tuple[str, ...]) -> Table:
    aims: list[tuple[str, Any]] = [
        ("largest F1", "f1"),
        ("true positive rate ≥ 0.95", {"tpr": 0.95}),
        ("true negative rate ≥ 0.99", {"tnr": 0.99}),
        ("a false positive costs 10", {"false_positive": 10.0, "false_negative": 1.0}),
    ]
    rows = []
    for what, aim in aims:
        cut = scores.threshold(held[:, 1], held_y, aim).threshold
        called, true = p[:, 1] >= cut, y == 1
        tpr, tnr = called[true].mean() if true.any() else np.nan, (~called[~true]).mean() if (~true).any() else np.nan
        precision = true[called].mean() if called.any() else np.nan
        rows.append((what, float(cut), float(tpr), float(tnr), float(precision)))
    columns = ("aim", "threshold", "true positive rate", "true negative rate", "precision")
    caption = f"Thresholds for calling a row {names[1]!r}, chosen on validation, and what they give on test."
    return Table(columns, tuple(rows), caption)


def check_labels(dataset: Dataset) -> None:
    """That every label of train, validation and test is one of the classes, and that train has examples of each.

    Sets of more than MANY rows are not looked through: a streamed one would have to be read from end to end.

    Raises:
      SettingsError: names the split and the row, or the classes.
    """
    classes = dataset.info["classes"]
    names = dataset.info["class_names"] or tuple(map(str, range(classes)))
    seen = np.zeros(classes, bool)
    for split in ("validation", "test", "train"):
        source = getattr(dataset, split)
        if split in dataset.info["hidden"] or not 0 < len(source) <= MANY:
            continue
        y = np.asarray(source.column("y"))
        if (wrong := np.flatnonzero((y < 0) | (y >= classes))).size:
            raise SettingsError(
                f"config.data.name: {dataset.name!r}: row {wrong[0]} of {split} has the label {y[wrong[0]]}; "
                f"the labels of {classes} classes are 0 to {classes - 1}"
            )
        if split == "train":
            seen[y] = True
            if lost := [repr(names[i]) for i in np.flatnonzero(~seen)]:
                more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
                raise SettingsError(
                    f"config.data.name: {dataset.name!r}: no training example of class {', '.join(lost[:5])}{more}; "
                    "give it some, or leave the class out"
                )
