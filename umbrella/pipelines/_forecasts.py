"""What is said of forecasts: numbers, a verdict in words, tables and figures. Floor 5."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umbrella.artifacts import Table
from umbrella.data import Dataset, sample
from umbrella.data.dates import written
from umbrella.experiment import Review
from umbrella.objective import Array, View
from umbrella.pipelines._forecast_figures import figures
from umbrella.pipelines._judged import SURE, Judged, compared, numbers
from umbrella.pipelines._rivals import LEVELS, Tested, Told, actual, rivals, tested
from umbrella.pipelines._walks import Walked

Run = Callable[[View, dict[str, np.ndarray]], dict[str, Array]]
SIZE = 1024  # rows of a batch
MOST = 4000  # training rows by which a variance forecast is scaled


def student_quantile(p: float, df: Array) -> Array:
    """The quantile of Student's t f32[...] with df degrees of freedom, infinite ones being the normal's; by bisection
    of its distribution function, so that a program can compute it."""
    if p == 0.5:
        return jnp.zeros_like(df)
    finite = jnp.where(jnp.isinf(df), 1e6, df)

    def below(x: Array) -> Array:
        tail = 0.5 * jax.scipy.special.betainc(0.5 * finite, jnp.full_like(x, 0.5), finite / (finite + jnp.square(x)))
        return jnp.where(x < 0, tail, 1 - tail)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        left = below(middle) < p
        return jnp.where(left, middle, low), jnp.where(left, high, middle)

    low, high = jax.lax.fori_loop(0, 40, halve, (jnp.full_like(finite, -100.0), jnp.full_like(finite, 100.0)))
    exact = jnp.full_like(finite, jax.scipy.special.ndtri(p))
    return jnp.where(jnp.isinf(df), exact, 0.5 * (low + high))


# ---------------------------------------------------------------------------------------------------------- the model
def said(run: Run, view: View, walked: Walked, row: np.ndarray) -> dict[str, np.ndarray]:
    """ "mean", "scale" and perhaps "df" f64[N, H] of rows."""
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(row), SIZE):
        here = row[np.arange(start, start + SIZE).clip(max=len(row) - 1)]
        out = jax.device_get(run(view, {"x": walked.rows.x[here], "series": walked.rows.series[here]}))
        parts.append({k: np.asarray(v, np.float64) for k, v in out.items()})
    return {k: np.concatenate([p[k] for p in parts])[: len(row)] for k in parts[0]}


def of_model(run: Run, views: View, first: int, walked: Walked, on: Tested, words: str) -> Told:
    """What the lanes first, first + 1, ... say, each of the test rows of its fold."""
    from scipy import stats

    N, H = len(on.row), walked.horizon
    told = Told(words, np.empty((N, H)), np.empty((N, H, len(LEVELS))), np.ones(N))
    began = time.perf_counter()
    for k in range(len(walked.folds)):
        here, view = np.flatnonzero(on.fold == k), views.lane(first + k)
        out = said(run, view, walked, on.row[here])
        told.mean[here] = out["mean"]
        standard = stats.t.ppf(LEVELS, out["df"][..., None]) if "df" in out else stats.norm.ppf(LEVELS)[None, None]
        told.quantiles[here] = out["mean"][..., None] + out["scale"][..., None] * standard
        if walked.target == "volatility":
            train = np.flatnonzero(walked.members["train"][k])
            train = train[sample(len(train), MOST)]
            left = np.exp(actual(walked, train)[0][:, 0] - said(run, view, walked, train)["mean"][:, 0])
            for s in np.unique(on.series[here]):
                of = walked.rows.series[train] == s
                told.ratio[here[on.series[here] == s]] = left[of].mean() if of.any() else left.mean()
    return told._replace(seconds=time.perf_counter() - began)


# ---------------------------------------------------------------------------------------------------------- the review
def review(run: Run, views: View, dataset: Dataset, cost: float, net: Any) -> Review:
    walked: Walked = dataset.info["walk"]
    on, folds = tested(walked), len(walked.folds)
    lanes = len(jax.tree.leaves(views)[0])
    words = type(net).__name__ + (f" ({net.cell})" if hasattr(net, "cell") else "")
    made = [of_model(run, views, first, walked, on, words) for first in range(0, lanes, folds)]
    j = Judged(walked, on, made, rivals(walked, on), cost)
    each = []
    naive = numbers(j.rivals[0], walked, on, cost)["mase"]
    for t in made:
        own = numbers(t, walked, on, cost)
        own["relative_mae"] = own["mase"] / naive
        for rival in j.rivals:
            found = compared([t], rival, walked, on)
            own[f"dm_p_{_key(rival.words)}"] = found.p
            if rival.words == "persistence":
                own["better_than_persistence"] = float(found.p < SURE and found.difference < 0)
        each.append(own)
    metrics = {k: [e[k] for e in each] if len(each) > 1 else each[0][k] for k in each[0]}
    kept = {
        "day": np.array(written(on.day), "S19"),
        "series": on.series,
        "fold": on.fold.astype(np.int32),
        "y": on.y.astype(np.float32),
        "mean": np.stack([t.mean for t in made]).astype(np.float32),
        **{f"quantile_{p:g}": t for p, t in zip(LEVELS, np.moveaxis(_stacked(made), -1, 0), strict=True)},
    }
    return Review({"test": metrics}, _shown(j, run, views), kept)


def _stacked(made: list[Told]) -> np.ndarray:
    return np.stack([t.quantiles for t in made]).astype(np.float32)


def _key(words: str) -> str:
    """ "EWMA .94" -> "ewma_94" """
    return "_".join("".join(c if c.isalnum() else " " for c in words.lower()).split())


def _shown(j: Judged, run: Run, views: View) -> Iterator[tuple[str, Any]]:
    yield from figures(j)
    yield "next", _next(j, run, views)


def _next(j: Judged, run: Run, views: View) -> Table:
    """What the last fold's model says of the steps after the end of each series."""
    from scipy import stats

    w = j.walked
    last = np.array([np.flatnonzero(w.rows.series == s)[-1] for s in range(len(w.tables))])
    out = said(run, views.lane(len(w.folds) - 1), w, last)
    z = np.array([[t.z[-1]] for t in w.tables])
    wide = stats.t.ppf(0.95, out["df"]) if "df" in out else stats.norm.ppf(0.95)
    told = [w.own(out["mean"] + sign * wide * out["scale"], z) for sign in (0, -1, 1)]
    rows = [
        (t.name, written(t.dates[-1:])[0], h + 1, *(f"{v[s, h]:.5g}" for v in told))
        for s, t in enumerate(w.tables)
        for h in range(w.horizon)
    ]
    columns = ("series", "last day known", "steps ahead", "forecast", "5 %", "95 %")
    return Table(columns, tuple(rows), f"What comes after the end of the data, by the first training: {w.unit}.")
