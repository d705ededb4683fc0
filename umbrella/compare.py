"""Two runs side by side: is one better than the other, or were its seeds luckier? Floor 4.

python launch.py --mode=compare runs/a runs/b
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from umbrella import scores
from umbrella._report.text import direction, num
from umbrella.settings import SettingsError

SURE = 0.05  # a p below it is called a difference


class Line(NamedTuple):
    """One metric of one evaluation; NaN where there is no such number."""

    evaluation: str
    metric: str
    a: float
    b: float
    low: float  # of the 95 % confidence interval of a - b
    high: float
    p: float
    test: str  # what gave p: "paired t", "Welch", "McNemar" or ""
    why: str = ""  # there is no test

    @property
    def verdict(self) -> str:
        """Which is better, as far as this can be said."""
        way = direction(self.metric)
        if not self.test:
            return f"{self.why}: nothing can be said"
        if not np.isfinite(self.p):
            return "no spread between seeds: nothing can be said"
        if not self.p < SURE:
            return "no difference shown"
        if not way:
            return "they differ"
        return "A is better" if (self.a - self.b) * way > 0 else "B is better"


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> list[Line]:
    """Every metric that both runs have, from their summary.json.

    Runs of the same seeds are paired seed by seed (Student's paired t); of other seeds, Welch's t. With one seed each
    accuracy is compared row by row (McNemar's exact test) when both runs kept their rows. What is not the same
    evaluation in both, such as of other held-out rows or under another attack, is shown and not tested.

    Raises:
      SettingsError: a folder is no finished run, or the two did not see the same data.
    """
    one, two = (_summary(Path(p)) for p in (a, b))
    if one["data"]["fingerprint"] != two["data"]["fingerprint"] or one["data"]["n_test"] != two["data"]["n_test"]:
        raise SettingsError(
            f"{a} and {b}: are of different data ({_data(one)}; {_data(two)}), so nothing compares them"
        )
    configs = [_config(Path(p)) for p in (a, b)]
    first, second = (tuple(c["seed"] + k for k in range(c["seeds"])) for c in configs)
    out = []
    for evaluation, metrics in one["metrics"].items():
        for metric, value in metrics.items():
            other = two["metrics"].get(evaluation, {}).get(metric)
            if other is None or value is None:
                continue
            x, y = _values(value), _values(other)
            if _defined(evaluation, configs[0]) != _defined(evaluation, configs[1]):
                line = _untested(evaluation, metric, x, y, "not the same evaluation")
            else:
                line = _line(evaluation, metric, x, y, first == second)
            if len(x) == len(y) == len(first) == len(second) == 1 and (evaluation, metric) == ("test", "accuracy"):
                line = _by_rows(line, Path(a), Path(b))
            out.append(line)
    return out


def told(lines: list[Line], a: str, b: str) -> str:
    """The comparison as text, a line for each metric."""
    rows = [("", "", "A", "B", "A - B", "95 % interval", "p", "")]
    for line in lines:
        interval = f"[{num(line.low)}, {num(line.high)}]" if np.isfinite(line.low) else ""
        p = f"{line.p:.2g} ({line.test})" if line.test else ""
        rows.append(
            (line.evaluation, line.metric, num(line.a), num(line.b), num(line.a - line.b), interval, p, line.verdict)
        )
    width = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    body = ["  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip() for row in rows]
    tested = sum(bool(line.test) for line in lines)
    note = f"A difference is called one when p < {SURE:g}; of {tested} tests, chance alone makes that of "
    return "\n".join([f"A  {a}", f"B  {b}", "", *body, "", f"{note}{SURE * tested:.2g}."])


def _defined(evaluation: str, config: Mapping[str, Any]) -> Any:
    """What an evaluation of a run is of: rows, and what is done to them."""
    if evaluation in ("train_eval", "validation"):
        return config.get("data")
    names = (config.get("evals") or {}).get(evaluation) or ()
    return [(name, config.get(name)) for name in names]


def _line(evaluation: str, metric: str, x: np.ndarray, y: np.ndarray, paired: bool) -> Line:
    if len(x) > 1 and len(x) == len(y) and paired:
        t = scores.paired(x, y)
        return Line(evaluation, metric, x.mean(), y.mean(), t["low"], t["high"], t["p"], "paired t")
    finite = [v[np.isfinite(v)] for v in (x, y)]
    if min(map(len, finite)) > 1 and max(v.std() for v in finite) > 0:
        from scipy import stats

        x, y = finite
        found = stats.ttest_ind(x, y, equal_var=False)
        interval = found.confidence_interval()
        return Line(evaluation, metric, x.mean(), y.mean(), interval.low, interval.high, float(found.pvalue), "Welch")
    why = "one seed each" if len(x) == len(y) == 1 else "too few seeds, or no spread between them"
    return _untested(evaluation, metric, x, y, why)


def _untested(evaluation: str, metric: str, x: np.ndarray, y: np.ndarray, why: str) -> Line:
    return Line(evaluation, metric, x.mean(), y.mean(), np.nan, np.nan, np.nan, "", why)


def _by_rows(line: Line, a: Path, b: Path) -> Line:
    hits = []
    for path in (a, b):
        try:
            with np.load(path / "artifacts" / "rows.npz", allow_pickle=False) as rows:
                hits.append(rows["label"][0] == rows["y"])
        except (OSError, ValueError, KeyError, IndexError):
            return line
    if hits[0].shape != hits[1].shape:
        return line
    return line._replace(p=scores.mcnemar(*hits)["p"], test="McNemar")


def _values(value: Any) -> np.ndarray:
    if isinstance(value, Mapping):
        value = value["values"]
    return np.asarray([np.nan if v is None else v for v in (value if isinstance(value, list) else [value])], np.float64)


def _summary(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / "summary.json").read_text())
        found["metrics"], found["data"]["fingerprint"], found["data"]["n_test"], found["status"]
    except OSError:
        raise SettingsError(f"{path}: no summary.json there; give the workdir of a finished run") from None
    except (ValueError, KeyError, TypeError):
        raise SettingsError(f"{path}: its summary.json is damaged; --mode=evaluate writes it anew") from None
    if found["status"] != "finished":
        raise SettingsError(f"{path}: the run was {found['status']}; resume it to its end first")
    return found


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        config["seed"] + config["seeds"]
        return config
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingsError(f"{path}: its config.json is missing or damaged") from None


def _data(summary: Mapping[str, Any]) -> str:
    return f"{summary['data'].get('name')} with {summary['data']['n_test']:,} test rows"
