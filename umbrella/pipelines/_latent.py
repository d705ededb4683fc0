"""What is told of a VAE beside its bound: what it draws, what its code is worth, what it finds strange. Floor 5."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import losses, scores
from umbrella.artifacts import Curves, Images, Scatter, Table
from umbrella.data import Dataset, sample
from umbrella.experiment import Review
from umbrella.objective import (
    Array,
    Aux,
    Batch,
    Ctx,
    Objective,
    Params,
    State,
    Transform,
    View,
    chain,
    map_params,
)
from umbrella.pipelines._codes import Components, components
from umbrella.pipelines._detectors import gaussian
from umbrella.pipelines._standard import Resolve
from umbrella.settings import Count, Fraction
from umbrella.transforms import importance_weighted

IN_USE = 0.01  # variance of a latent's posterior mean over the data, above which it counts (Burda et al. 2016, eq. 10)
ROWS = 2000  # of test at most, where a figure asks the model again and again
FIT = 20_000  # rows of train at most that a rival's components and a covariance are fitted to
Score = Literal["elbo", "nll", "mahalanobis"]
SCORES: dict[Score, str] = {
    "elbo": "negative ELBO, one draw",
    "nll": "negative log p by importance weights",
    "mahalanobis": "Mahalanobis distance of the code",
}


class Model(NamedTuple):
    """A VAE and how its rows are read."""

    net: Any
    resolve: Resolve
    outer: Transform  # makes the task of rows as they are in the set
    base: Objective  # the negative ELBO
    read: Callable[[Any], Array]  # x as in the set -> as the model sees it, without noise
    shown: Callable[[Array], Array]  # decoded -> on the scale of `read`: probabilities of ink, means
    labelled: bool  # whether rows have a label, too, that the model is told

    def encode(self, view: View, batch: Batch) -> tuple[Array, Array]:
        """(mean, log_var) f32[B, L] of rows x and, where labelled, y."""
        return self.run(view, self.read(batch["x"]), self.label(batch), method="encode")

    def task(self, batch: Batch) -> Batch:
        """What the loss is of: x and y of rows as they are in the set, drawn where the task draws them."""

        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            nothing = jnp.zeros(())
            return nothing, Aux({}, {k: batch[k] for k in ("x", "y")}, nothing, nothing, {})

        seen = self.outer(self.base._replace(apply=apply))
        made: Batch = seen.apply({}, {}, batch, Ctx(jax.random.key(0), jnp.int32(0), train=False))[1].outputs
        return made

    def decode(self, view: View, z: Array, label: Array | None = None) -> Array:
        """f32[B, L] -> what the model means, f32[B, ...]."""
        return self.shown(self.outputs(view, z, label))

    def outputs(self, view: View, z: Array, label: Array | None = None) -> Array:
        return self.run(view, z, label, method="decode")

    def draw(self, view: View, noise: Array) -> Array:
        """Of the prior."""
        params = self.resolve(view.params, view.state)["model"]
        return self.net.apply({"params": params}, noise, method="draw")

    def run(self, view: View, x: Array, label: Array | None, method: str) -> Any:
        params = self.resolve(view.params, view.state)["model"]
        return self.net.apply({"params": params}, x, *(() if label is None else (label,)), method=method)

    def label(self, batch: Batch) -> Array | None:
        return batch["y"] if self.labelled else None

    @property
    def columns(self) -> tuple[str, ...]:
        return ("x", "y") if self.labelled else ("x",)

    @property
    def size(self) -> int:
        return int(self.net.latent + self.net.above)


Coded = tuple[
    np.ndarray, np.ndarray, np.ndarray
]  # of rows: mean, log_var f64[N, L], what the mean decodes to f64[N, D]


class Strange(NamedTuple):
    """How strange rows are told: see `plan`."""

    score: Score
    samples: int
    rate: float


def plan(*, score: Score = "nll", samples: Count = 50, rate: Fraction = 0.01) -> Strange:
    """A section of a config: clean = dict(score="elbo").

    Args:
      score: "elbo", the negative bound by one draw; "nll", -log p(x) by importance weights; "mahalanobis", the distance
        of the code (posterior means) from those of train by their covariance.
      samples: importance weights of a row.
      rate: the share of validation rows above the threshold of --mode=clean.
    """
    return Strange(score, samples, rate)


def scorer(model: Model, train: Any, asked: Strange) -> Callable[[View], Callable[[Mapping[str, Any]], np.ndarray]]:
    """view -> (rows -> f64[N]): the higher, the stranger."""
    of_row = _of_rows(model, asked.samples)
    kind = asked.score

    def ready(view: View) -> Callable[[Mapping[str, Any]], np.ndarray]:
        how = _distance(model, view, train) if kind == "mahalanobis" else None

        def score(rows: Mapping[str, Any]) -> np.ndarray:
            given = {k: rows[k] for k in model.columns}
            told = how(given) if how else of_row(view, given, kind)
            return np.asarray(told, np.float64)

        return score

    return ready


def _of_rows(model: Model, samples: int) -> Callable[[View, Batch, Score], Array]:
    """(view, rows, "elbo" or "nll") -> f32[B]. The noise is the same every time: that of a row's place in its batch."""
    seen = map_params(model.resolve, name="resolve")
    tight = importance_weighted(losses.log_importance_weight, samples=samples)
    asked = {"elbo": chain(seen, model.outer)(model.base), "nll": chain(seen, model.outer, tight)(model.base)}

    def of(o: Objective) -> Callable[[View, Batch], Array]:
        ctx = Ctx(jax.random.key(0), jnp.int32(0), train=False)
        return jax.jit(lambda view, batch: o.apply(view.params, view.state, batch, ctx)[1].per_example)

    compiled = {k: of(o) for k, o in asked.items()}  # apart: one draw must not wait for all the others
    return lambda view, batch, kind: compiled[kind](view, batch)


def _distance(model: Model, view: View, train: Any) -> Callable[[Mapping[str, Any]], np.ndarray]:
    """rows -> f64[B], the Mahalanobis distance of their codes from those of train."""
    encode = jax.jit(model.encode)
    part = train.__getitems__(sample(len(train), FIT))
    codes = _by_parts(lambda rows: encode(view, rows)[0], {k: part[k] for k in model.columns})
    fitted = gaussian(codes)
    return lambda rows: fitted.distance(np.asarray(encode(view, rows)[0]))


def _by_parts(fn: Callable[[Mapping[str, Any]], Any], rows: Mapping[str, np.ndarray], size: int = 500) -> np.ndarray:
    """fn over slices of equal size, put together: f64[N, ...]."""
    n = len(rows["x"])
    out = []
    for start in range(0, n, size):
        index = np.arange(start, start + size).clip(max=n - 1)
        out.append(np.asarray(fn({k: v[index] for k, v in rows.items()}), np.float64)[: n - start])
    return np.concatenate(out)


def review(model: Model, dataset: Dataset, names: tuple[str, ...], asked: Strange) -> Callable[[View, Array], Review]:
    """Numbers of every seed and figures of the first."""
    encode = jax.jit(model.encode)
    decode = jax.jit(model.decode)
    of_task = jax.jit(lambda view, part: model.run(view, part["x"], model.label(part), method="encode"))
    nats = jax.jit(lambda view, part: _nats(model, view, part))
    draw = jax.jit(lambda view, noise, label: model.decode(view, model.draw(view, noise), label))
    of_row = _of_rows(model, asked.samples)
    pictures = dataset.info["kind"] == "image"

    def label_of(rows: Mapping[str, Any]) -> Any:
        return rows["y"] if model.labelled else None

    def made(view: View, rows: Mapping[str, np.ndarray]) -> Coded:

        def both(part: Mapping[str, Any]) -> np.ndarray:
            mean, log_var = encode(view, part)
            back = decode(view, mean, label_of(part))
            return np.concatenate([mean, log_var, np.asarray(back).reshape(len(mean), -1)], -1)

        out = _by_parts(both, {k: rows[k] for k in model.columns})
        return out[:, : model.size], out[:, model.size : 2 * model.size], out[:, 2 * model.size :]

    def numbers(rows: Mapping[str, np.ndarray], told: Coded) -> dict[str, float]:
        mean, _, back = told
        flat = _seen(model, rows["x"])
        return {"mse": float(np.mean((back - flat) ** 2)), "active_units": float((mean.var(0) > IN_USE).sum())}

    def reconstructions(view: View, key: Array) -> Images:
        n = min(10, len(dataset.test) // 2) or 1
        rows = some(dataset.test, 2 * n)
        x = np.asarray(model.read(rows["x"]))
        out = made(view, rows)[2].reshape(x.shape)
        both = np.concatenate([x[:n], out[:n], x[n:], out[n:]])
        return Images(both, n, "Test images (odd rows) and what the model makes of them (even rows).")

    def samples(view: View, key: Array) -> Images:
        noise = jax.random.normal(key, (100, model.size))
        label = np.arange(100, dtype=np.int32) // 10 % len(names) if model.labelled else None
        what = "the probability of ink" if model.net.likelihood == "bernoulli" else "the mean"
        caption = f"Images drawn from the prior; shown is {what} of each pixel."
        if label is None:
            return Images(np.asarray(draw(view, noise, label)), 10, caption)
        which = tuple(names[i] for i in label[::10])
        return Images(np.asarray(draw(view, noise, label)), 10, caption + " A label each row.", which)

    def traversal(view: View, key: Array) -> Images:
        rows = some(dataset.test, 500)
        mean, log_var, _ = made(view, rows)
        kl, worth = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).mean(0), "largest KL, in nats"
        if model.net.above:  # whose prior is not N(0, 1)
            kl, worth = mean.var(0), "largest variance of the posterior mean"
        kl = kl[: model.net.latent]
        used = np.argsort(-kl)[: min(8, len(kl))]
        z = np.repeat(mean[:1], len(used) * 11, 0).reshape(len(used), 11, -1).astype(np.float32)
        for row, i in enumerate(used):
            z[row, :, i] = np.linspace(-2.5, 2.5, 11)
        caption = (
            "One test image, one latent variable at a time moved from -2.5 to 2.5; "
            f"the variables that say most ({worth}) from the top: " + ", ".join(f"z{i} {kl[i]:.2f}" for i in used) + "."
        )
        label = np.repeat(rows["y"][:1], len(used) * 11) if model.labelled else None
        images = np.asarray(decode(view, z.reshape(len(used) * 11, -1), label))
        return Images(images, 11, caption, tuple(f"z{i}" for i in used))

    def latent_map(rows: Mapping[str, np.ndarray], mean: np.ndarray) -> Scatter:
        flat, how = mean, "The two latent variables"
        if mean.shape[1] == 1:
            flat, how = np.concatenate([mean, np.zeros_like(mean)], 1), "The latent variable"
        elif mean.shape[1] > 2:
            centred = mean - mean.mean(0)
            flat = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
            how = "The first two principal components of the latent means"
        told = bool(names) and "y" in rows and "test" not in dataset.info["hidden"]
        labels = rows["y"] if told else np.zeros(len(flat), np.int32)
        learnt = "the model was told it" if model.labelled else "no label was trained on"
        coloured = f", coloured by class; {learnt}" if told else ""
        what = "images" if pictures else "rows"
        return Scatter(flat, labels, f"{how} of {len(flat)} test {what}{coloured}.", names if told else ())

    def compression(rows: Mapping[str, np.ndarray], back: np.ndarray) -> Table:
        x = _seen(model, rows["x"])
        per = x.shape[1]
        unit = "pixel" if pictures else "feature"
        size = int(model.net.latent)  # what is above them is not decoded
        told = [("this model's means", size, float(np.mean((back - x) ** 2)))]
        told += of_components(model, dataset, rows["x"], size)
        table = tuple(
            (name, size, f"{per / size:.1f}", f"{error:.5f}", f"{1 - error / x.var(0).mean():.4f}")
            for name, size, error in told
        )
        caption = (
            f"Rows of {per} numbers as a code, and back: squared error of a {unit} on {len(x)} test rows, on the scale "
            "of the model's input. --mode=predict writes the codes of all test rows."
        )
        columns = ("code", "numbers", "times smaller", f"error per {unit}", "variance explained")
        return Table(columns, table, caption)

    def rate_distortion(view: View, key: Array) -> Curves:
        rows = {k: v for k, v in some(dataset.test, ROWS).items() if k in model.columns}
        task = jax.device_get(model.task(rows))
        x = {"x": task["x"]["image"] if model.labelled else task["x"], **({"y": rows["y"]} if model.labelled else {})}
        told = _by_parts(lambda part: jnp.concatenate(of_task(view, part), -1), x)
        mean, log_var = told[:, : model.size], told[:, model.size :]
        kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).mean(0)
        order = np.argsort(-kl)
        kept = sorted({*np.unique(np.geomspace(1, len(kl), 12).astype(int)), 0, len(kl)})
        noise = np.asarray(jax.random.normal(key, mean.shape))
        z = mean + np.exp(0.5 * log_var) * noise
        rate, distortion = [], []
        for n in kept:
            some_z = np.zeros_like(z)
            some_z[:, order[:n]] = z[:, order[:n]]
            parts = {**x, "target": task["y"], "z": some_z.astype(np.float32)}
            distortion.append(_by_parts(lambda p: nats(view, p), parts).mean())
            rate.append(float(kl[order[:n]].sum()))
        series = {"the largest n latent variables": (np.asarray(rate), np.asarray(distortion))}
        total = rate[-1] + distortion[-1]
        line = np.linspace(0, rate[-1], 2)
        series[f"rate + distortion = {total:.4g}, the bound"] = (line, total - line)
        caption = (
            f"Rate (KL) against distortion (-log p(x|z)), in nats a row, of {len(mean)} test rows, when the n latent "
            f"variables of the largest KL are told and the others are 0: n = {', '.join(map(str, kept))}. Below the "
            "dashed line a shorter code would be a better bound."
        )
        return Curves(series, "rate", "distortion", caption, dashed=(tuple(series)[1],))

    def scored(view: View, rows: Mapping[str, np.ndarray], kind: Score) -> np.ndarray:
        given = {k: rows[k] for k in model.columns}
        return _by_parts(lambda part: of_row(view, part, kind), given, min(500, len(rows["x"])))

    def strange(view: View, rows: Mapping[str, np.ndarray], nll: np.ndarray) -> Table:
        rows = {k: rows[k] for k in model.columns}
        other = {**rows, "x": chimeras(rows["x"])}
        away = _distance(model, view, dataset.train)
        found = {
            SCORES["elbo"]: (scored(view, rows, "elbo"), scored(view, other, "elbo")),
            SCORES["nll"]: (nll, scored(view, other, "nll")),
        }
        found[SCORES["mahalanobis"]] = _by_parts(away, rows), _by_parts(away, other)
        found |= of_components_scores(model, dataset, rows["x"], other["x"])
        y = np.repeat([0, 1], len(rows["x"]))
        table = []
        for name, (own, planted) in found.items():
            curve = scores.roc(np.concatenate([own, planted]), y)
            at = np.asarray(curve.y)[np.searchsorted(np.asarray(curve.x), 0.05, side="right") - 1]
            table.append((name, f"{scores.auc(curve):.4f}", f"{at:.4f}"))
        half = "the lower half of the pixels" if pictures else "every other feature"
        label = "the model was told the label of the other half" if model.labelled else "no label was used"
        caption = (
            f"Anomalies that were planted: {len(rows['x'])} test rows beside as many of which {half} is another "
            f"row's. How well a score tells them apart; no score was fitted to them, and {label}."
        )
        return Table(("score", "area under ROC", "found at 5 % false alarms"), tuple(table), caption)

    def strangest(rows: Mapping[str, np.ndarray], nll: np.ndarray) -> Images:
        worst = np.argsort(-nll)[:20]
        caption = f"The 20 of {len(nll)} test images that the model finds least probable, the strangest first."
        return Images(np.asarray(model.read(rows["x"][worst])), 10, caption)

    def run(views: View, key: Array) -> Review:
        lanes = len(jax.tree.leaves(views.params)[0])
        rows = some(dataset.test, ROWS)
        coded = [made(views.lane(k), rows) for k in range(lanes)]
        each = [numbers(rows, c) for c in coded]
        told = {name: np.asarray([e[name] for e in each]) for name in each[0]}
        metrics = {"test": told if lanes > 1 else {k: float(v[0]) for k, v in told.items()}}
        return Review(metrics, figures(views.lane(0), key, rows, coded[0]))

    def figures(view: View, key: Array, rows: Mapping[str, np.ndarray], told: Coded) -> Iterator[tuple[str, Any]]:
        mean, _, back = told
        if pictures:
            yield "samples", samples(view, key)
            yield "reconstructions", reconstructions(view, key)
            yield "traversal", traversal(view, key)
        yield "latent_map", latent_map(rows, mean)
        yield "compression", compression(rows, back)
        if not model.net.above:
            yield "rate_distortion", rate_distortion(view, key)
        nll = scored(view, rows, "nll")
        yield "anomalies", strange(view, rows, nll)
        if pictures:
            yield "strangest", strangest(rows, nll)

    return run


def some(source: Any, n: int) -> dict[str, np.ndarray]:
    """At most n rows, the same every time."""
    rows: dict[str, np.ndarray] = source.__getitems__(sample(len(source), n))
    return rows


def chimeras(x: np.ndarray) -> np.ndarray:
    """[N, ...] -> the same rows, half of each the one's before (of the first the last one's): of images the lower half,
    else every other feature."""
    out, other = x.copy(), np.roll(x, 1, axis=0)
    if x.ndim > 2:
        out[:, x.shape[1] // 2 :] = other[:, x.shape[1] // 2 :]
    else:
        out[:, 1::2] = other[:, 1::2]
    return out


def of_components(model: Model, dataset: Dataset, x: np.ndarray, size: int) -> list[tuple[str, int, float]]:
    """(name, numbers, mean squared error) of PCA with as many components, fitted to train."""
    fitted = _fitted(model, dataset, size)
    return [("PCA", len(fitted.axes), float(fitted.error(_seen(model, x)).mean()))]


def of_components_scores(
    model: Model, dataset: Dataset, own: np.ndarray, other: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The rival of the scores: the squared error of PCA with 32 components, or half as many as there are features."""
    fitted = _fitted(model, dataset, min(32, max(1, int(np.prod(own.shape[1:])) // 2)))
    errors = fitted.error(_seen(model, own)), fitted.error(_seen(model, other))
    return {f"error of PCA, {len(fitted.axes)} components": errors}


def _fitted(model: Model, dataset: Dataset, size: int) -> Components:
    return components(_seen(model, some(dataset.train, FIT)["x"]), size)


def _seen(model: Model, x: np.ndarray) -> np.ndarray:
    """f64[N, D]: rows as the model sees them."""
    return np.asarray(model.read(x), np.float64).reshape(len(x), -1)


def _nats(model: Model, view: View, part: Mapping[str, Any]) -> Array:
    """-log p(target|z)."""
    out = {"logits": model.outputs(view, part["z"], part.get("y") if model.labelled else None)}
    params = model.resolve(view.params, view.state)["model"]
    out |= {k: params[k] for k in ("log_scale", "log_sd") if k in params}
    return losses.reconstruction(out, part["target"])
