"""What is shown of forecasts: a verdict in plain words, tables and figures. Floor 5."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from umbrella import forecasts
from umbrella.artifacts import Curves, Table, Text
from umbrella.data.dates import written
from umbrella.pipelines._judged import SURE, Judged, compared, errors, losses_by_day, numbers
from umbrella.pipelines._rivals import LEVELS, Told

SHOWN_SERIES, SHOWN_DAYS = 3, 120


def figures(j: Judged) -> Iterator[tuple[str, Any]]:
    yield "verdict", verdict(j)
    yield "forecasters", _table(j)
    yield from _drawn(j)
    yield "intervals", _calibration(j)
    if len(j.walked.tables) > 1:
        yield "series", _by_series(j)
    if len(j.walked.folds) > 1:
        yield "folds", _by_fold(j)


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
        always = forecasts.diebold_mariano(
            forecasts.by_day(~hits, on.day), forecasts.by_day(on.y[:, 0] <= 0, on.day), horizon=1
        )
        sure = "which a fair coin is not in" if way.low > 0.5 or way.high < 0.5 else "which a fair coin is in"
        lines.append(
            f"Direction: right on {100 * way.rate:.1f} % of {way.n:,} (binomial 95 % interval {100 * way.low:.1f} to "
            f"{100 * way.high:.1f} %, {sure}; taking a day's series for one observation {100 * daily[1]:.1f} to "
            f"{100 * daily[2]:.1f} %). It went up in {100 * up:.1f} %: so often is right who always says up "
            f"(the difference by days: p = {always.p:.2g})."
        )
    if w.target == "level" and naive["r2"] > 0.9:
        lines.append(
            f"The R2 of the level is {mean['r2']:.4f}, and that of persistence {naive['r2']:.4f}: a high R2 of a level "
            "says that it wanders, not that it can be foreseen."
        )
    if "net_return" in mean:
        hold = 252 * float(forecasts.by_day(np.expm1(on.y[:, 0]), on.day).mean())
        lines.append(
            f"Following its sign would have earned {100 * mean['net_return']:.1f} % a year after costs of "
            f"{100 * j.cost:g} % a trade; holding all series {100 * hold:.1f} %."
        )
    lines.append(
        f"MASE {mean['mase']:.3f}, that of persistence {naive['mase']:.3f}, a ratio of "
        f"{mean['mase'] / naive['mase']:.3f}. Intervals of 90 % held {100 * mean['coverage_90']:.1f} %, of 50 % "
        f"{100 * mean['coverage_50']:.1f} %."
    )
    head = f"{len(on.row):,} test rows of {len(w.tables)} series, {days[0]} to {days[-1]}."
    of = (
        "" if len(j.models) == 1 else f" Losses are means over {len(j.models)} trainings; direction is the first one's."
    )
    return Text("\n".join([*lines, head + of]), "Whether the forecasts are better than simple ones.")


def _against(name: str, rival: Told, found: forecasts.Compared, j: Judged) -> str:
    ours = np.mean([losses_by_day(t, j.walked, j.on).mean() for t in j.models])
    change = 100 * (ours / losses_by_day(rival, j.walked, j.on).mean() - 1)
    how = f"squared error {change:+.1f} %, Diebold-Mariano {found.statistic:.2f}, p = {found.p:.2g}"
    if not found.p < SURE:
        return f"No better than {rival.words}: {how}."
    if found.difference > 0:
        return f"No better than {rival.words}, but worse: {how}."
    return f"Better than {rival.words}: {how}."


# ---------------------------------------------------------------------------------------------------------- the figures
def _table(j: Judged) -> Table:
    vol = j.walked.target == "volatility"
    columns = ["forecaster", "MASE", "over persistence", "RMSE", "R2", "direction", "95 % interval"]
    columns += ["QLIKE"] * vol + ["pinball", "90 % interval holds", "Diebold-Mariano", "p"]
    rows = []
    own = [numbers(t, j.walked, j.on, j.cost) for t in j.models]
    naive = numbers(j.rivals[0], j.walked, j.on, j.cost)["mase"]
    every: list[tuple[Told | None, dict[str, float]]] = [
        (None, {k: float(np.mean([o[k] for o in own])) for k in own[0]})
    ]
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
        row += [f"{n['qlike']:.4f}"] if vol else []
        row += [f"{n['pinball']:.4f}", f"{100 * n['coverage_90']:.1f} %"]
        row += ["", ""] if found is None else [f"{found.statistic:.2f}", f"{found.p:.2g}"]
        rows.append(tuple(row))
    of = f" The model: mean over {len(j.models)} trainings." if len(j.models) > 1 else ""
    caption = (
        "The model and what needs no network, on the same test rows. MASE: the mean absolute error over that of the "
        "naive forecast in the training part (Hyndman and Koehler 2006). Diebold-Mariano: of the squared errors of a "
        f"day, the model's less the rival's, so negative is for the model; p two-sided.{of}"
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
        z, end = on.z[here], on.day[here].max()
        ago = (on.day[here] - end) / np.timedelta64(1, "D")
        own = [w.own(v[here, :1], z)[:, 0] for v in (t.mean, on.y, j.rivals[0].mean)]
        band = tuple(w.own(t.quantiles[here, :1, q], z)[:, 0] for q in (low, high))
        name = w.tables[s].name
        caption = (
            f"{name}: the last {len(here)} test rows, forecast one step ahead, with the model's interval of 90 %. "
            "Each forecast is made from what was known the step before."
        )
        series = {t.words: (ago, own[0]), "what came": (ago, own[1]), "persistence": (ago, own[2])}
        yield (
            f"forecast_{name}",
            Curves(series, f"days, 0 is {written(end[None])[0]}", w.unit, caption, {t.words: band}, ("persistence",)),
        )


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
        rows.append(
            (j.walked.tables[s].name, *(f"{v:.4f}" for v in (ours, ours / naive, rival / naive)), f"{found.p:.2g}")
        )
    columns = ("series", "MASE", "over persistence", f"{best.words} over persistence", f"p against {best.words}")
    return Table(columns, tuple(rows), f"By series; {best.words} has the least squared error of the rivals on test.")


def _by_fold(j: Judged) -> Table:
    rows = []
    for k, f in enumerate(j.walked.folds):
        here = j.on.fold == k
        e = [np.abs(errors(t, j.walked, j.on)[here]).mean() for t in (*j.models[:1], *j.rivals)]
        cuts = written(np.array([f.train, f.validation, f.test, f.end]).astype("datetime64[D]"))
        rows.append((*cuts, int(here.sum()), *(f"{v:.4f}" for v in e)))
    columns = (
        "train from",
        "validation from",
        "test from",
        "before",
        "rows",
        *(t.words for t in (*j.models[:1], *j.rivals)),
    )
    return Table(
        columns, tuple(rows), "The walk forward, and the MASE of each fold: every fold has a training of its own."
    )
