"""What is said of forecasts: numbers, a verdict in words, tables and figures. Floor 5."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import forecasts
from umbrella.artifacts import Curves, Table, Text
from umbrella.data import Dataset, sample
from umbrella.data.dates import written
from umbrella.experiment import Review
from umbrella.objective import Array, View
from umbrella.pipelines._rivals import LEVELS, Tested, Told, actual, rivals, tested
from umbrella.pipelines._walks import Walked

Run = Callable[[View, dict[str, np.ndarray]], dict[str, Array]]
SIZE = 1024  # rows of a batch
MOST = 4000  # training rows by which a variance forecast is scaled
SHOWN_SERIES, SHOWN_DAYS = 3, 120
SURE = 0.05  # the p below which a difference is called one


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
    """"mean", "scale" and perhaps "df" f64[N, H] of rows."""
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


# --------------------------------------------------------------------------------------------------------- the numbers
def errors(t: Told, walked: Walked, on: Tested) -> np.ndarray:
    """f64[N, H], in units of the naive error of the training part: of levels and returns as they are read, of
    volatility in logs."""
    if walked.target == "volatility":
        return (t.mean - on.y) / on.scale[:, None]
    return (walked.own(t.mean, on.z) - walked.own(on.y, on.z)) / on.scale[:, None]


def numbers(t: Told, walked: Walked, on: Tested, cost: float) -> dict[str, float]:
    """Of all test rows and steps ahead; direction and qlike of the first step."""
    e = errors(t, walked, on)
    moved = (t.mean[:, 0], on.y[:, 0])
    if walked.target == "volatility":
        moved = (t.mean[:, 0] - on.z[:, 0], on.y[:, 0] - on.z[:, 0])
    way = forecasts.direction(*moved)
    gap = (on.y - t.mean) if walked.target == "volatility" else walked.own(on.y, on.z) - walked.own(t.mean, on.z)
    came = on.y if walked.target == "volatility" else walked.own(on.y, on.z)
    out = {
        "mase": float(np.abs(e).mean()),
        "rmse": float(np.sqrt(np.square(gap).mean())),
        "r2": float(
            np.mean([forecasts.r2((came - gap)[on.series == s], came[on.series == s]) for s in np.unique(on.series)])
        ),
        "direction": way.rate,
        "direction_low": way.low,
        "direction_high": way.high,
        "coverage_50": forecasts.coverage(*(t.quantiles[..., np.searchsorted(LEVELS, p)] for p in (0.25, 0.75)), on.y),
        "coverage_90": forecasts.coverage(*(t.quantiles[..., np.searchsorted(LEVELS, p)] for p in (0.05, 0.95)), on.y),
        "pinball": float((forecasts.pinball(t.quantiles, on.y[..., None], LEVELS) / on.spread[:, None, None]).mean()),
    }
    if walked.target == "volatility":
        out["qlike"] = float(forecasts.qlike(np.exp(t.mean[:, 0]) * t.ratio, np.exp(on.y[:, 0])).mean())
    if walked.target == "return" and walked.prices and walked.horizon == 1:
        out["net_return"] = 252 * float(earned(t, on, cost).mean())
    return out


def earned(t: Told, on: Tested, cost: float) -> np.ndarray:
    """What it earns f64[D], a day, to hold each series long or short by the sign of the forecast, in equal parts.

    A simple return, less `cost` for each unit that is bought or sold: a position that is turned round costs twice.
    """
    net = np.empty(len(on.row))
    for s in np.unique(on.series):
        here = np.flatnonzero(on.series == s)
        here = here[np.argsort(on.day[here], kind="stable")]
        position = np.sign(t.mean[here, 0])
        net[here] = position * np.expm1(on.y[here, 0]) - cost * np.abs(np.diff(position, prepend=0.0))
    return forecasts.by_day(net, on.day)


def losses_by_day(t: Told, walked: Walked, on: Tested) -> np.ndarray:
    """The squared error in units of the naive error f64[D], the mean over the series and steps of each day."""
    return forecasts.by_day(np.square(errors(t, walked, on)).mean(1), on.day)


def compared(t: list[Told], rival: Told, walked: Walked, on: Tested) -> forecasts.Compared:
    """The trainings' mean loss against a rival's: what to expect of one more training."""
    own = np.mean([losses_by_day(each, walked, on) for each in t], 0)
    return forecasts.diebold_mariano(own, losses_by_day(rival, walked, on), horizon=walked.horizon)


def baselines(dataset: Dataset, cost: float) -> dict[str, dict[str, float]]:
    walked: Walked = dataset.info["walk"]
    on = tested(walked)
    told = rivals(walked, on)
    out = {t.words: {**numbers(t, walked, on, cost), "seconds": t.seconds} for t in told}
    for t in told:
        out[t.words]["relative_mae"] = out[t.words]["mase"] / out["persistence"]["mase"]
        if t.words == "persistence" and walked.target != "volatility":  # it says no direction
            for k in ("direction", "direction_low", "direction_high", "net_return"):
                out[t.words].pop(k, None)
    return out


# ---------------------------------------------------------------------------------------------------------- the review
class Judged(NamedTuple):
    """All that the figures are made of."""

    walked: Walked
    on: Tested
    models: list[Told]  # one for each training of all folds
    rivals: list[Told]
    cost: float


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
    return Review({"test": metrics}, _figures(j, run, views), kept)


def _stacked(made: list[Told]) -> np.ndarray:
    return np.stack([t.quantiles for t in made]).astype(np.float32)


def _key(words: str) -> str:
    """ "EWMA .94" -> "ewma_94" """
    return "_".join("".join(c if c.isalnum() else " " for c in words.lower()).split())


def _figures(j: Judged, run: Run, views: View) -> Iterator[tuple[str, Any]]:
    yield "verdict", verdict(j)
    yield "forecasters", _table(j)
    yield from _drawn(j)
    yield "intervals", _calibration(j)
    if len(j.walked.tables) > 1:
        yield "series", _by_series(j)
    if len(j.walked.folds) > 1:
        yield "folds", _by_fold(j)
    yield "next", _next(j, run, views)


# ----------------------------------------------------------------------------------------------------------- the words
def verdict(j: Judged) -> Text:
    """What came out, in plain sentences; the first says whether it is better than persistence."""
    w, on, name = j.walked, j.on, j.models[0].words
    days = written(np.array([on.day.min(), on.day.max()]))
    lines = [_against(name, rival, compared(j.models, rival, w, on), j) for rival in j.rivals]
    n = [numbers(t, w, on, j.cost) for t in j.models]
    rivals_by = {t.words: numbers(t, w, on, j.cost) for t in j.rivals}
    mean = {k: float(np.mean([m[k] for m in n])) for k in n[0]}
    naive = rivals_by["persistence"]
    if w.target != "volatility":
        up = float((on.y[:, 0] > 0).mean() / max(1e-12, (on.y[:, 0] != 0).mean()))
        way = forecasts.direction(j.models[0].mean[:, 0], on.y[:, 0])
        hits = np.sign(j.models[0].mean[:, 0]) == np.sign(on.y[:, 0])
        daily = forecasts.mean_interval(forecasts.by_day(hits, on.day))
        sure = "which a fair coin is not in" if way.low > 0.5 or way.high < 0.5 else "which a fair coin is in"
        lines.append(
            f"Direction: right on {100 * way.rate:.1f} % of {way.n:,} (binomial 95 % interval {100 * way.low:.1f} to "
            f"{100 * way.high:.1f} %, {sure}; taking a day's series for one observation {100 * daily[1]:.1f} to "
            f"{100 * daily[2]:.1f} %). It went up in {100 * up:.1f} %, so who always says up is right as often."
        )
    if w.target == "level":
        lines.append(
            f"The R2 of the level is {mean['r2']:.4f}, and that of persistence {naive['r2']:.4f}: a high R2 of a level "
            "says that it wanders, not that it is foreseen."
        )
    if "net_return" in mean:
        hold = 252 * float(forecasts.by_day(np.expm1(on.y[:, 0]), on.day).mean())
        lines.append(
            f"Following its sign would have earned {100 * mean['net_return']:.1f} % a year after costs of "
            f"{100 * j.cost:g} % a trade; holding all series {100 * hold:.1f} %."
        )
    lines.append(
        f"MASE {mean['mase']:.3f}, that of persistence {naive['mase']:.3f}, a ratio of {mean['mase'] / naive['mase']:.3f}. "
        f"Intervals of 90 % held {100 * mean['coverage_90']:.1f} %, of 50 % {100 * mean['coverage_50']:.1f} %."
    )
    head = f"{len(on.row):,} test rows of {len(w.tables)} series, {days[0]} to {days[-1]}."
    of = "" if len(j.models) == 1 else f" Losses are means over {len(j.models)} trainings; direction is the first one's."
    return Text("\n".join([*lines, head + of]), "Whether the forecasts are better than simple ones.")


def _against(name: str, rival: Told, found: forecasts.Compared, j: Judged) -> str:
    ours = np.mean([losses_by_day(t, j.walked, j.on).mean() for t in j.models])
    change = 100 * (ours / losses_by_day(rival, j.walked, j.on).mean() - 1)
    how = f"squared error {change:+.1f} %, Diebold-Mariano {found.statistic:.2f}, p = {found.p:.2g}"
    if not found.p < SURE:
        return f"No better than {rival.words}: {how}."
    return f"{'Better' if found.difference < 0 else 'WORSE'} than {rival.words}: {how}."


# ---------------------------------------------------------------------------------------------------------- the figures
def _table(j: Judged) -> Table:
    vol = j.walked.target == "volatility"
    columns = ["forecaster", "MASE", "over persistence", "RMSE", "R2", "direction", "95 % interval"]
    columns += ["QLIKE"] * vol + ["pinball", "90 % interval holds", "Diebold-Mariano", "p"]
    rows = []
    own = [numbers(t, j.walked, j.on, j.cost) for t in j.models]
    naive = numbers(j.rivals[0], j.walked, j.on, j.cost)["mase"]
    every: list[tuple[Told | None, dict[str, float]]] = [(None, {k: float(np.mean([o[k] for o in own])) for k in own[0]})]
    every += [(t, numbers(t, j.walked, j.on, j.cost)) for t in j.rivals]
    for rival, n in every:
        says = np.isfinite(n["direction"])
        row = [
            j.models[0].words if rival is None else rival.words,
            f"{n['mase']:.4f}",
            f"{n['mase'] / naive:.4f}",
            f"{n['rmse']:.4g}",
            f"{n['r2']:.4f}",
            f"{100 * n['direction']:.1f} %" if says else "says none",
            f"{100 * n['direction_low']:.1f} to {100 * n['direction_high']:.1f} %" if says else "",
        ]
        found = None if rival is None else compared(j.models, rival, j.walked, j.on)
        row += [f"{n['qlike']:.4f}"] * vol
        row += [f"{n['pinball']:.4f}", f"{100 * n['coverage_90']:.1f} %"]
        row += ["", ""] if found is None else [f"{found.statistic:.2f}", f"{found.p:.2g}"]
        rows.append(tuple(row))
    of = f" The model: mean over {len(j.models)} trainings." if len(j.models) > 1 else ""
    caption = (
        "The model and what needs no network, on the same test rows. MASE: the mean absolute error over that of the naive "
        "forecast in the training part (Hyndman and Koehler 2006). Diebold-Mariano: of the squared errors of a day, the "
        f"model's less the rival's, so negative is for the model; p two-sided.{of}"
    )
    if vol:
        caption += " Errors are of the log variance, which is also what R2 is of; the direction is of its change."
    return Table(tuple(columns), tuple(rows), caption)


def _drawn(j: Judged) -> Iterator[tuple[str, Any]]:
    w, on, t = j.walked, j.on, j.models[0]
    low, high = (np.searchsorted(LEVELS, p) for p in (0.05, 0.95))
    for s in np.unique(on.series)[:SHOWN_SERIES]:
        here = np.flatnonzero(on.series == s)
        here = here[np.argsort(on.day[here])][-SHOWN_DAYS:]
        z, year = on.z[here], _year(on.day[here])
        own = [w.own(v[here, :1], z)[:, 0] for v in (t.mean, on.y, j.rivals[0].mean)]
        band = tuple(w.own(t.quantiles[here, :1, q], z)[:, 0] for q in (low, high))
        name = w.tables[s].name
        caption = (
            f"{name}: the last {len(here)} test rows, forecast one step ahead, with the model's interval of 90 %. "
            "Each forecast is made from what was known the step before."
        )
        series = {t.words: (year, own[0]), "what came": (year, own[1]), "persistence": (year, own[2])}
        yield f"forecast_{name}", Curves(series, "year", w.unit, caption, {t.words: band}, ("persistence",))


def _year(days: np.ndarray) -> np.ndarray:
    start = days.astype("datetime64[Y]")
    length = (start + 1).astype("datetime64[s]") - start.astype("datetime64[s]")
    return start.astype(int) + 1970 + (days - start.astype("datetime64[s]")) / length


def _calibration(j: Judged) -> Curves:
    series = {}
    for t in (j.models[0], *j.rivals):
        below = [(j.on.y <= t.quantiles[..., q]).mean() for q in range(len(LEVELS))]
        series[t.words] = (LEVELS, np.array(below))
    series["as said"] = (np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    caption = (
        "How often what came was below a quantile, by the quantile's level: on the diagonal when the intervals are as "
        "wide as they should be. The rivals' are of their residuals in training."
    )
    dashed = (*(t.words for t in j.rivals), "as said")
    return Curves(series, "level of the quantile", "share below it", caption, {}, dashed)


def _by_series(j: Judged) -> Table:
    best = min(j.rivals, key=lambda t: losses_by_day(t, j.walked, j.on).mean())
    rows = []
    for s in np.unique(j.on.series):
        here = j.on.series == s
        e = {t.words: errors(t, j.walked, j.on)[here] for t in (*j.models[:1], *j.rivals)}
        ours, naive, rival = (np.abs(e[n]).mean() for n in (j.models[0].words, "persistence", best.words))
        found = forecasts.diebold_mariano(
            *(np.square(e[n]).mean(1) for n in (j.models[0].words, best.words)), horizon=j.walked.horizon
        )
        rows.append((j.walked.tables[s].name, *(f"{v:.4f}" for v in (ours, ours / naive, rival / naive)), f"{found.p:.2g}"))
    columns = ("series", "MASE", "over persistence", f"{best.words} over persistence", f"p against {best.words}")
    return Table(columns, tuple(rows), f"By series; {best.words} has the least squared error of the rivals on test.")


def _by_fold(j: Judged) -> Table:
    rows = []
    for k, f in enumerate(j.walked.folds):
        here = j.on.fold == k
        e = [np.abs(errors(t, j.walked, j.on)[here]).mean() for t in (*j.models[:1], *j.rivals)]
        cuts = written(np.array([f.train, f.validation, f.test, f.end]).astype("datetime64[D]"))
        rows.append((*cuts, int(here.sum()), *(f"{v:.4f}" for v in e)))
    columns = ("train from", "validation from", "test from", "before", "rows", *(t.words for t in (*j.models[:1], *j.rivals)))
    return Table(columns, tuple(rows), "The walk forward, and the MASE of each fold: every fold has a training of its own.")


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
