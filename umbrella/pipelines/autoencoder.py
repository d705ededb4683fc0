"""Examples by a few numbers each, learnt from the examples alone. Floor 5."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np

from umbrella.artifacts import Images, Scatter, Table
from umbrella.baselines import LARGE
from umbrella.data import Arrays, Dataset, Rows, sample
from umbrella.data.sources import info
from umbrella.experiment import Experiment, Review
from umbrella.objective import Array, View
from umbrella.pipelines import _codes
from umbrella.pipelines._standard import Problem, Resolve, assemble
from umbrella.settings import Count, Natural, NonNegative, Positive, SettingsError

SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}  # of the rings
SIZES = (1, 2, 4, 8, 16, 32, 64)  # of codes in the table of principal components
SHOWN = 10  # examples in a row of pictures
MAPPED = 2000  # codes in a map
MOST_FEATURES = 30  # in a table


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    section = config.get("data")
    rings = isinstance(section, Mapping) and section.get("name") == "circles" and section.get("path") is None
    made = assemble(config, problem, circles if rings else None)
    check_sparse(made.settings)
    return made


def check_sparse(settings: Mapping[str, Any]) -> None:
    """Raises SettingsError for a divergence between activities where they are no probabilities."""
    for name in settings["techniques"]:
        kind = settings[name].get("technique", name)
        if kind == "sparse" and settings[name]["penalty"] == "kl" and settings["model"]["code_activation"] != "sigmoid":
            raise SettingsError(
                f"config.{name}.penalty: 'kl' wants codes in (0, 1); set config.model.code_activation to 'sigmoid'"
            )


def circles(
    *,
    name: Literal["circles"],
    rows: Count = 3000,
    inner: Positive = 0.5,
    noise: NonNegative = 0.03,
    seed: Natural = 0,
) -> Dataset:
    """Points of two rings about the origin, f32[N, 2], every other one of each; uniform along them.

    Args:
      rows: of all splits: 70 % train, 10 % validation, 20 % test.
      inner: radius of the inner ring; the outer one's is 1.
      noise: standard deviation of what is added to each coordinate, in all splits.
      seed: draws angles and noise.

    Raises:
      SettingsError: too few rows for a point of each ring in every split, or a radius that is not below 1.
    """
    if inner >= 1:
        raise SettingsError(f"config.data.inner: {inner:g} must be below 1, the radius of the outer ring")
    counts = {split: int(rows * share) for split, share in SPLITS.items()}
    if min(counts.values()) < 2:
        raise SettingsError(f"config.data.rows: {rows} are too few: validation and test want a point of each ring")
    rng, splits, digest = np.random.default_rng([seed, 7]), {}, hashlib.blake2b(digest_size=16)
    for split, n in counts.items():
        y = (np.arange(n) % 2).astype(np.int32)
        radius, angle = np.where(y == 0, 1.0, inner), rng.uniform(0, 2 * np.pi, n)
        x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + noise * rng.normal(size=(n, 2))
        splits[split] = Arrays({"x": x.astype(np.float32), "y": y})
        digest.update(splits[split].arrays["x"].tobytes())
    about = info("tabular", (2,), classes=2, class_names=("outer", "inner"), features=("x", "y"))
    return Dataset(name, f"two rings of radius 1 and {inner:g}", digest.hexdigest(), **splits, info=about)


def problem(dataset: Dataset, log: dict[str, Any], *, model: dict, baselines: bool = True) -> Problem:
    """The mean squared error of a pixel in [0, 1], or of a standardised feature of a table.

    Measures, on test: r2, the share of the variance that the code explains; probe_accuracy, that of softmax regression
    on the codes, where rows have classes; sparsity of the codes (Hoyer 2004), 0 when all are alike and 1 when one is
    active.

    Args:
      baselines: principal components at the same size of code.
    """
    made = _codes.units(dataset)
    net, base = _codes.autoencoder(dataset, made, model, log)
    labelled = bool(dataset.info["classes"]) and not dataset.info["hidden"]

    @functools.cache
    def rival() -> _codes.Components:
        return _codes.components(made.of_stored(_codes.some(dataset.train)), max(net.code, *SIZES))

    def predict(resolve: Resolve) -> Any:
        run = _codes.coder(net, resolve, made)

        def own_units(view: View, batch: Any, key: Array) -> dict[str, Array]:
            out = run(view, batch, key)
            if made.image:
                return out
            own = view.state[_codes.SCOPE]
            return {**out, "reconstruction": out["reconstruction"] * own["spread"][None] + own["shift"][None]}

        return own_units

    def review(resolve: Resolve) -> Callable[[View, Array], Review]:
        run = jax.jit(_codes.coder(net, resolve, made))

        def of(views: View, key: Array) -> Review:
            lanes = len(jax.tree.leaves(views)[0])
            x = made.of_stored(_codes.some(dataset.test))
            each = [_codes.told(run, views.lane(k), dataset.test, key) for k in range(lanes)]
            numbers = [_numbers(t, x) for t in each]
            if labelled:
                few = Rows(dataset.train, sample(len(dataset.train), LARGE))
                y, y_test = few.column("y"), dataset.test.column("y")
                for k, t in enumerate(each):
                    code = _codes.told(run, views.lane(k), few, key).code
                    numbers[k]["probe_accuracy"] = _codes.probe(code, y, t.code, y_test)
            merged = {m: [n[m] for n in numbers] for m in numbers[0]}
            metrics = {"test": merged if lanes > 1 else {m: v[0] for m, v in merged.items()}}
            rows = {"code": each[0].code, "error": each[0].error.astype(np.float32)}
            return Review(metrics, figures(views.lane(0), each[0], x, key), rows)

        def figures(view: View, t: _codes.Told, x: np.ndarray, key: Array) -> Iterator[tuple[str, Any]]:
            pca = rival() if baselines else None
            rows = dataset.test.__getitems__(np.arange(min(MAPPED, len(dataset.test))))
            labels = rows["y"] if labelled else None
            names = tuple(dataset.info["class_names"] or ()) if labelled else ()
            first, shape = made.of_stored(rows["x"]), dataset.info["shape"]
            told = jax.device_get(run(view, {"x": rows["x"]}, key))
            seen, code = told["reconstruction"], told["code"]
            if made.image and len(shape) == 3 and shape[-1] in (1, 3):
                yield "reconstructions", _pictures(first, seen, pca, net.code)
            if shape == (2,):
                yield from _plane(made.back(first), made.back(seen), code)
            elif not made.image and len(shape) == 1:
                yield "features", _by_feature(dataset, first, seen, pca, net.code)
            yield "codes", _map(code, labels, names, told["error"])
            yield "sizes", _sizes(t, x, pca, made, dataset)
            yield "sparsity", _sparsity(t.code, None if pca is None else pca.code(x)[:, : net.code])

        return of

    def beside() -> dict[str, dict[str, float]]:
        pca, x = rival(), made.of_stored(_codes.some(dataset.test))
        size = min(net.code, len(pca.axes))
        error = float(pca.error(x, size).mean())
        line = {"loss": error, "r2": _codes.explained(error, x), "seconds": pca.seconds}
        if labelled:
            few = dataset.train.__getitems__(sample(len(dataset.train), LARGE))
            code, code_test = (pca.code(v)[:, :size] for v in (made.of_stored(few["x"]), x))
            test = dataset.test.column("y")
            if len(test) == len(x):
                line["probe_accuracy"] = _codes.probe(code, few["y"], code_test, test)
        fitted = f" (on {pca.rows:,} rows)" if pca.rows < len(dataset.train) else ""
        blank = float(np.square(x.reshape(len(x), -1) - pca.mean).mean())
        return {
            f"{size} principal component{'s' * (size > 1)}{fitted}": line,
            "the mean of train": {"loss": blank, "r2": _codes.explained(blank, x)},
        }

    return Problem(
        columns=("x",),
        outer=made.outer,
        base=base,
        context={"bounds": made.bounds, "on": "x", "where": None, "code": _codes.code_of},
        review=review,
        predict=predict,
        baselines=beside,
        fitting=_codes.FITTING,
    )


def hoyer(code: np.ndarray) -> np.ndarray:
    """f64[N]: (sqrt(L) - |z|_1 / |z|_2) / (sqrt(L) - 1) of each row of f[N, L]; NaN for a row of zeros and for L = 1.

    Source: Hoyer 2004, section 3.1.

    >>> hoyer(np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 0.0]])).tolist()
    [0.0, 1.0]
    """
    z = np.abs(np.asarray(code, np.float64))
    root, length = np.sqrt(z.shape[1]), np.sqrt(np.square(z).sum(1))
    out = np.full(len(z), np.nan)
    if z.shape[1] > 1:
        np.divide(root - z.sum(1) / np.where(length > 0, length, 1), root - 1, out=out, where=length > 0)
    return out


def _numbers(t: _codes.Told, x: np.ndarray) -> dict[str, float]:
    told = {"r2": _codes.explained(float(t.error.mean()), x)}
    if t.code.shape[1] > 1:
        told["sparsity"] = _mean(hoyer(t.code))
    return told


def _mean(values: np.ndarray) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else float("nan")


# -------------------------------------------------------------------------------------------------------------- figures
def _pictures(x: np.ndarray, seen: np.ndarray, pca: _codes.Components | None, size: int) -> Images:
    n = min(SHOWN, len(x))
    rows, parts = ["original", "autoencoder"], [x[:n], seen[:n]]
    caption = f"Test images, and what is made of a code of {size}"
    if pca is not None:
        size = min(size, len(pca.axes))
        rows.append("components")
        parts.append(pca.reconstruction(x[:n], size))
        caption += f" and of {size} principal components"
    errors = [f"{np.square(p - x[:n]).mean():.4f}" for p in parts[1:]]
    caption += f". Mean squared error of these pixels: {', '.join(errors)}."
    return Images(np.concatenate(parts), n, caption, tuple(rows))


def _plane(x: np.ndarray, seen: np.ndarray, code: np.ndarray) -> Iterator[tuple[str, Scatter]]:
    """Of examples of two numbers: where they lie, and where they are put back, by deciles of the first code."""
    first = code[:, 0]
    edges = np.quantile(first, np.linspace(0, 1, 11))
    place = np.clip(np.searchsorted(edges, first, side="right") - 1, 0, 9).astype(np.int32)
    names = tuple(f"{low:.2g} to {high:.2g}" for low, high in zip(edges[:-1], edges[1:], strict=True))
    of = "the code" if code.shape[1] == 1 else "the first number of the code"
    yield "examples", Scatter(x, place, f"{len(x)} test examples, coloured by {of}.", names)
    yield "reconstructions", Scatter(seen, place, f"What is made of their codes, coloured by {of}.", names)


def _by_feature(dataset: Dataset, x: np.ndarray, seen: np.ndarray, pca: _codes.Components | None, size: int) -> Table:
    own = np.square(seen - x).mean(0)
    theirs = None if pca is None else np.square(pca.reconstruction(x, size) - x).mean(0)
    names = dataset.info["features"] or tuple(str(i) for i in range(len(own)))
    worst = np.argsort(-own)[:MOST_FEATURES]
    rows = [(names[i], f"{own[i]:.4f}", "–" if theirs is None else f"{theirs[i]:.4f}") for i in worst]
    caption = (
        f"Mean squared error of each feature, in variances of train; the {len(worst)} worst first, on {len(x)} rows."
    )
    return Table(("feature", "autoencoder", "principal components"), tuple(rows), caption)


def _map(code: np.ndarray, labels: np.ndarray | None, names: tuple[str, ...], error: np.ndarray) -> Scatter:
    flat, how = np.asarray(code, np.float64), "The two numbers of the code"
    if flat.shape[1] == 1:
        flat = np.concatenate([flat, error[:, None]], 1)
        how = "The code (across) and the mean squared error (up)"
    elif flat.shape[1] > 2:
        centred = flat - flat.mean(0)
        flat = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        how = "The first two principal components of the codes"
    coloured = "" if labels is None else ", coloured by class; no label was trained on"
    shown = np.zeros(len(flat), np.int32) if labels is None else labels
    return Scatter(flat, shown, f"{how} of {len(flat)} test examples{coloured}.", names)


def _sizes(t: _codes.Told, x: np.ndarray, pca: _codes.Components | None, made: _codes.Units, dataset: Dataset) -> Table:
    own, rows = t.code.shape[1], []
    sizes = {own} if pca is None else {own, *(s for s in SIZES if s <= len(pca.axes))}
    error = float(t.error.mean())
    for size in sorted(sizes):
        theirs = None if pca is None or size > len(pca.axes) else float(pca.error(x, size).mean())
        rows.append(
            (
                size,
                4 * size,
                f"{error:.5f}" if size == own else "–",
                "–" if theirs is None else f"{theirs:.5f}",
                f"{_codes.explained(error, x):.4f}" if size == own else "–",
                "–" if theirs is None else f"{_codes.explained(theirs, x):.4f}",
            )
        )
    stored = dataset.test.__getitems__(np.zeros(1, np.int64))["x"].nbytes
    caption = (
        f"Mean squared errors on test, in {made.words}, and the share of the variance explained, beside principal "
        f"components of train. A number of a code is 4 bytes; as it is stored, an example has {stored:,}."
    )
    columns = ("size of code", "bytes", "MSE", "PCA's MSE", "explained", "PCA explains")
    return Table(columns, tuple(rows), caption)


def _sparsity(code: np.ndarray, theirs: np.ndarray | None) -> Table:
    rows = []
    for name, z in (("autoencoder", code), ("principal components", theirs)):
        if z is None:
            continue
        active = np.abs(z) > 0.01 * np.abs(z).max()
        rows.append(
            (
                name,
                "–" if z.shape[1] == 1 else f"{_mean(hoyer(z)):.3f}",
                f"{active.sum(1).mean():.1f} of {z.shape[1]}",
                f"{(z == 0).mean():.3f}",
                f"{int((z.std(0) > 1e-6).sum())} of {z.shape[1]}",
            )
        )
    caption = (
        "How sparse the codes of test are: Hoyer's measure (0: all alike, 1: one alone), numbers of a row above 1 % of "
        "the largest of all, exact zeros, and numbers that vary over the rows."
    )
    return Table(("code", "sparsity", "active in a row", "zeros", "in use"), tuple(rows), caption)
