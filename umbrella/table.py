"""One table of several models and their classical rivals, on the same rows. Floor 6.

    python launch.py --config=configs/text_classify.py --mode=table

Trains the config, and again with each of the changes that `config.compared` names; where `config.data.folds` says so,
on every fold, so that every row of the set is tested once. All see the same training, validation and test rows.
"""

import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from umbrella import artifacts, baselines, pipelines, report
from umbrella._report.tables import took
from umbrella._report.text import direction, num
from umbrella.artifacts import Table
from umbrella.experiment import Experiment
from umbrella.runs import Session
from umbrella.scores import interval
from umbrella.settings import SettingsError
from umbrella.workdir import check_no_run, evaluated_with, plain, write_json

HIDDEN = ("seconds",)  # shown last


class Row(NamedTuple):
    """A model or a rival, over K folds: metric -> f64[K], means over the seeds of a fold; NaN where it has none."""

    name: str
    model: bool
    metrics: dict[str, np.ndarray]


class Made(NamedTuple):
    rows: list[Row]  # the best first
    better: str  # the metric that they are sorted by
    folds: int
    workdir: Path
    words: str  # the table as text


class Interrupted(Exception):
    """A signal ended a training: what was saved stands, and the same table goes on from there."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum


def table(
    config: Mapping[str, Any],
    workdir: str | os.PathLike[str],
    *,
    name: str | None = None,
    command: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Made:
    """Trains every model on every fold in a folder of its own under `workdir`, which resumes; writes a report there.

    Raises:
      SettingsError: a config is not as it should be; nothing was trained then. Or nothing is looked at on test.
      Interrupted: by a signal.
      Diverged, CheckpointError: as a run does.
    """
    base, work = plain(config), Path(workdir)
    check_no_run(work, "table")
    changes = _changes(base)
    folds = _folds(base)
    better = _check(base, changes)
    found: dict[tuple[str, bool], list[Mapping[str, float]]] = {}
    notes: dict[tuple[str, bool], dict[str, None]] = {}
    summary: dict[str, Any] = {}
    for k in range(folds):
        for model, changed in changes.items():
            # The rivals are fitted once a fold, beside the first model.
            spared = {} if model == next(iter(changes)) else {"baselines": False}
            made = {**base, **changed, **spared, "data": {**base["data"], **({"fold": k} if folds > 1 else {})}}
            folder = work / (f"{model}-{k}" if folds > 1 else model)
            say(f"Training {model}" + f", fold {k + 1} of {folds}" * (folds > 1) + f": {folder}.")
            summary = _trained(made, folder, name)
            for (row, own), metrics in _told(model, summary).items():
                # What a rival's name says of this fold, such as "(not converged)", does not make another of it.
                plain_name, said = (row, []) if own else baselines.notes_of(row)
                key = (plain_name, own)
                notes.setdefault(key, {}).update(dict.fromkeys(said))
                found.setdefault(key, []).append(metrics)
    rows = [Row(baselines.noted(k[0], list(notes[k])), k[1], _columns(each)) for k, each in found.items()]
    sign = direction(better) or 1
    rows.sort(key=lambda row: -sign * float(np.mean(row.metrics.get(better, np.array(-sign * np.inf)))))
    about = {k: summary.get(k) for k in ("device", "versions", "git", "data")} | {"command": command}
    return _write(rows, better, folds, work, name or str(base["pipeline"]), about)


def _told(model: str, summary: Mapping[str, Any]) -> dict[tuple[str, bool], dict[str, float]]:
    """(name, whether it is a model) -> metrics on test, of a run and of its rivals; seconds are each one's own."""
    rivals = summary["baselines"]
    own = {metric: _mean(v) for metric, v in summary["metrics"]["test"].items()}
    own["seconds"] = took(summary)[0]
    return {(model, True): own} | {(rival, False): dict(metrics) for rival, metrics in rivals.items()}


def _changes(base: dict[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name -> the keys that differ from the config: the config's own model first, by its name. Takes `compared` out."""
    compared = base.pop("compared", None) or {}
    for model, changed in compared.items():
        if not isinstance(changed, Mapping):
            raise SettingsError(f"config.compared.{model}: {changed!r} is no section of keys that differ")
        if "data" in changed or "compared" in changed:
            raise SettingsError(f"config.compared.{model}: data and compared are the same for all; leave them out")
    own = str(base.get("model", {}).get("name", "model"))
    if compared.get(own):
        raise SettingsError(f"config.compared.{own}: this is the config's own model; call the other something else")
    return {own: {}} | {k: v for k, v in compared.items() if k != own or v}


def _folds(base: Mapping[str, Any]) -> int:
    data = base.get("data") or {}
    if base.get("pipeline") == "series":
        raise SettingsError("--mode=table: a walk through time has its folds in one run; train, and see its report")
    if data.get("fold"):
        raise SettingsError(f"config.data.fold: {data['fold']}: --mode=table goes through all of them; leave it out")
    return int(data.get("folds") or 1)


def _check(base: dict[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> str:
    """Builds every experiment once, so that hours of training do not end at one that cannot be.

    Returns:
      the metric that the table is sorted by.
    """
    made: list[Experiment] = [pipelines.build({**base, **changed}) for changed in changes.values()]
    if "test" not in made[0].evals:
        raise SettingsError("--mode=table: nothing is evaluated on test; say evals = {'test': ()}")
    return made[0].better


def _trained(config: dict[str, Any], folder: Path, name: str | None) -> dict[str, Any]:
    """The summary of a run that is finished, there or now."""
    with Session(config, folder, name=name, quiet=True) as session:
        try:
            found = json.loads((folder / "summary.json").read_text())
        except (OSError, json.JSONDecodeError):
            found = {}
        ex = session.experiment
        whole = found.get("status") == "finished" and found.get("step") == ex.durations.total
        if whole and found.get("evaluated_with") == evaluated_with(ex.settings):
            return dict(found)
        result = session.train()
    if result.summary["status"] != "finished":
        raise Interrupted(int(result.summary.get("signal", signal.SIGINT)))
    return result.summary


def _mean(value: Any) -> float:
    value = value["mean"] if isinstance(value, Mapping) else value
    return float("nan") if value is None else float(value)


def _columns(each: list[Mapping[str, float]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(metric for fold in each for metric in fold)
    return {m: np.asarray([_mean(fold.get(m)) for fold in each], np.float64) for m in names}


def _write(rows: list[Row], better: str, folds: int, work: Path, name: str, about: dict[str, Any]) -> Made:
    rivals = {m for row in rows if not row.model for m in row.metrics}
    shown = [better, *sorted(m for m in rivals - {better, *HIDDEN}), *(m for m in HIDDEN if m in rivals)]
    cells = tuple((row.name, "model" if row.model else "rival", *(_cell(row, m) for m in shown)) for row in rows)
    over = f" Mean over {folds} folds, with a 95 % interval." if folds > 1 else ""
    caption = f"Every model on the same rows, sorted by {better} on test.{over}"
    columns = ("", "", *shown)
    artifacts.save(work / "artifacts", "table", Table(columns, cells, caption))
    words = _aligned((columns, *cells))
    summary = {
        "status": "finished",
        "config_name": f"{name}, in one table",
        **about,
        "workdir": str(work),
        "metrics": {},
        "folds": folds,
        "better": better,
        "table": {row.name: {m: [float(x) for x in v] for m, v in row.metrics.items()} for row in rows},
        "words": [caption],
    }
    write_json(work / "summary.json", summary)
    report.write(work)
    return Made(rows, better, folds, work, f"{words}\n{caption}")


def _cell(row: Row, metric: str) -> str:
    values = row.metrics.get(metric)
    if values is None or not np.isfinite(values).any():
        return "–"
    mean, half = interval(values)
    return num(float(mean)) + (f" ± {num(float(half), 2)}" if math.isfinite(half) and metric not in HIDDEN else "")


def _aligned(lines: tuple[tuple[str, ...], ...]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
