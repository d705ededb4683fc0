"""Reading what a run left behind. Total: a file that is missing, cut short or broken gives what can still be read."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from umbrella._report.text import as_float

Tracks = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]  # metric -> split -> (step f64[N], value f64[N, K])

_NOT_METRICS = frozenset({"step", "epoch", "split", "seconds"})


def tracks(path: Path) -> Tracks:
    """The curves in metrics.jsonl; of two lines with the same step and split, the later one counts."""
    return _group(_lines(path))


def load(path: Path) -> Any:
    """The JSON in `path`; None when it is missing or broken."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that can be read; of one step and split the last counts."""
    try:
        raw = path.read_bytes()
    except OSError:
        return []
    found: dict[tuple[float, str], dict[str, Any]] = {}
    for text in raw.splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and math.isfinite(as_float(line.get("step"))):
            key = (as_float(line["step"]), str(line.get("split", "train")))
            found[key] = found.get(key, {}) | line
    return [found[key] | {"step": key[0], "split": key[1]} for key in sorted(found)]


def _group(lines: list[dict[str, Any]]) -> Tracks:
    """Each metric of each split as arrays; a metric with K values in one line and one in another is spread over K."""
    rows: dict[str, dict[str, list[tuple[float, list[float]]]]] = {}
    for line in lines:
        for metric, raw in line.items():
            values = raw if isinstance(raw, list) else [raw]
            if metric in _NOT_METRICS or not values or not all(_is_number(v) for v in values):
                continue
            row = (line["step"], [as_float(v) for v in values])
            rows.setdefault(metric, {}).setdefault(line["split"], []).append(row)
    out: Tracks = {}
    for metric, splits in rows.items():
        for split, found in splits.items():
            k = max(len(v) for _, v in found)
            value = np.array([(v * k if len(v) == 1 else v + [math.nan] * k)[:k] for _, v in found])
            out.setdefault(metric, {})[split] = (np.array([s for s, _ in found]), value)
    return out


def _is_number(value: Any) -> bool:
    """Whether a JSON value is what a writer makes of a number; words are no metric, whatever their key says."""
    return (isinstance(value, (int, float)) and not isinstance(value, bool)) or value in (None, "nan", "inf", "-inf")


def over(reduce: Callable[[np.ndarray], Any], value: np.ndarray) -> np.ndarray:
    """`reduce` over the finite seeds of each row of [N, K]; nan where there is none."""
    return np.array([reduce(row[np.isfinite(row)]) if np.isfinite(row).any() else math.nan for row in value])


def mean(value: np.ndarray) -> np.ndarray:
    """The mean over the finite seeds of each row of [N, K]: [N]."""
    return over(np.mean, value)
