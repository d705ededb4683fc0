"""The report's tables as plain values for the template: results against baselines, time, configuration."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from umbrella._report.text import as_float, direction, num, plain

HEADLINE_ORDER = ("test", "validation")


class Rival(NamedTuple):
    """A baseline's value in a row; mark: the run is "better", "worse" or "equal", "" when they cannot be compared."""

    text: str
    mark: str


class Result(NamedTuple):
    """One metric of one evaluation."""

    evaluation: str
    metric: str
    arrow: str
    value: float
    text: str
    interval: str
    rivals: list[Rival]


def results(summary: Mapping[str, Any]) -> tuple[list[str], list[Result]]:
    """(names of the baselines, rows). Baselines belong to the headline evaluation's split, so only that one is judged.

    With K seeds a baseline inside the 95 % interval counts as equal.
    """
    metrics = {k: v for k, v in mapping(summary.get("metrics")).items() if isinstance(v, Mapping)}
    baselines = {k: v for k, v in mapping(summary.get("baselines")).items() if isinstance(v, Mapping)}
    first = [e for e in HEADLINE_ORDER if e in metrics] or list(metrics)[:1]
    order = first + [e for e in metrics if e not in first]
    shown = {m for e in metrics.values() for m in e}
    baselines = {k: v for k, v in baselines.items() if shown & set(v)}
    rows = []
    for evaluation in order:
        for metric, raw in metrics[evaluation].items():
            value, low, high = _unpack(raw)
            way = direction(metric)
            rivals = []
            for rival in baselines.values():
                theirs = as_float(rival.get(metric))
                mark = _mark(value, low, high, theirs, way) if evaluation == order[0] else ""
                rivals.append(Rival(num(theirs) if metric in rival else "–", mark))
            interval = f"{num(low)} – {num(high)}" if math.isfinite(low) and math.isfinite(high) else ""
            arrow = {-1: "↓", 1: "↑"}.get(way, "")
            rows.append(Result(evaluation, metric, arrow, value, num(value), interval, rivals))
    own, seconds = took(summary)
    if rows and seconds:
        beside = [Rival(num(seconds[k]) if k in seconds else "–", "") for k in baselines]
        rows.append(Result("", "seconds", "", own, num(own), "", beside))
    return list(baselines), rows


def took(summary: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
    """(seconds of the run without its baselines, and with those before it was resumed; those of each baseline that says
    how long it took)."""
    told = {k: as_float(mapping(v).get("seconds")) for k, v in mapping(summary.get("baselines")).items()}
    told = {k: v for k, v in told.items() if math.isfinite(v)}
    seconds = mapping(summary.get("seconds"))
    earlier = as_float(seconds.get("earlier"))
    total = as_float(seconds.get("total")) + (earlier if math.isfinite(earlier) else 0.0)
    return max(0.0, total - sum(told.values())), told


def headline(rows: list[Result]) -> Result | None:
    """The row that the first sentence quotes: of the first evaluation, one with rivals, else one with a direction."""
    first = [r for r in rows if r.evaluation == rows[0].evaluation]
    ranked = sorted(first, key=lambda r: (not any(v.mark for v in r.rivals), not r.arrow))
    return ranked[0] if ranked else None


def times(summary: Mapping[str, Any]) -> tuple[float, list[tuple[str, float, float]]]:
    """(total seconds, [(what, seconds, share of the total)]); `other` is what the parts leave of the total."""
    seconds = {k: as_float(v) for k, v in mapping(summary.get("seconds")).items()}
    names = ("compile", "step", "data_wait", "evaluate", "checkpoint")
    parts = [(n, seconds[n]) for n in names if math.isfinite(seconds.get(n, math.nan)) and seconds[n] > 0]
    spent = sum(v for _, v in parts)
    total = seconds.get("total", math.nan)
    total = total if math.isfinite(total) and total >= spent else spent
    if total <= 0:
        return 0.0, []
    if total - spent > 0.005 * total:
        parts.append(("other", total - spent))
    return total, [(n.replace("_", " "), v, v / total) for n, v in parts]


def tree(value: Any, depth: int = 0) -> Iterator[tuple[int, str, str | None]]:
    """(depth, key, value or None for a heading) of a nested mapping; lists of mappings are numbered."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, child in items:
        nested = isinstance(child, Mapping) or (isinstance(child, list) and any(isinstance(c, Mapping) for c in child))
        if nested and child:
            yield depth, str(key), None
            yield from tree(child, depth + 1)
        else:
            yield depth, str(key), plain(child)


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` when it is a mapping, else an empty one: a summary may be cut short or written by another version."""
    return value if isinstance(value, Mapping) else {}


def _unpack(raw: Any) -> tuple[float, float, float]:
    if not isinstance(raw, Mapping):
        return as_float(raw), math.nan, math.nan
    interval = raw.get("ci95")
    low, high = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
    return as_float(raw.get("mean")), as_float(low), as_float(high)


def _mark(value: float, low: float, high: float, theirs: float, way: int) -> str:
    if not way or not math.isfinite(value) or not math.isfinite(theirs):
        return ""
    if theirs == value or (low <= theirs <= high):
        return "equal"
    return "better" if (theirs - value) * way < 0 else "worse"
