"""What a run says of itself in summary.json. Floor 4."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from umbrella import environment
from umbrella.data import overlap
from umbrella.experiment import Experiment
from umbrella.settings import SettingsError
from umbrella.workdir import evaluated_with, summarise

SECONDS = ("total", "compile", "step", "data_wait", "evaluate", "checkpoint", "earlier")


def metrics_of(ex: Experiment, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The results of every split, each a number or what it is over seeds."""
    return {name: summarise({k: _of_trainings(ex, v) for k, v in found.items()}) for name, found in results.items()}


def summary_of(
    ex: Experiment,
    *,
    status: str,
    step: int,
    trained_to: int,
    start: int,
    metrics: Mapping[str, Any],
    baselines: Mapping[str, Any],
    seconds: Mapping[str, float],
    **told: Any,
) -> dict[str, Any]:
    """The summary of a run that has ended.

    Args:
      status: "finished", "interrupted" or "diverged".
      step: of the result.
      trained_to: the last step, later than the result's where patience ended.
      start: the step from which this process went on.
      metrics, baselines: of every split, the run's and its rivals'.
      seconds: by what they were spent on; "earlier" those of the processes that it goes on from.
      told: what else is to stand there.
    """
    made = (trained_to - start) * ex.run.batch_size * ex.run.seeds
    data = ex.dataset
    return {
        "status": status,
        "step": step,
        "trained_to": trained_to,
        "epochs": step * ex.run.batch_size / ex.durations.n_train,
        "seeds": ex.run.seeds,
        "metrics": metrics,
        "evaluated_with": evaluated_with(ex.settings),
        "baselines": baselines,
        "better": ex.better,
        "examples_per_second": made / seconds["step"] if seconds["step"] > 0 else 0.0,
        "seconds": {k: max(0.0, seconds[k]) for k in SECONDS},
        "peak_rss_mb": environment.peak_rss_mb(),
        "device": environment.device(),
        "versions": environment.versions(),
        "git": environment.git_revision(),
        "data": {
            "name": data.name,
            "source": data.source,
            "fingerprint": data.fingerprint,
            "n_train": len(data.train),
            "n_validation": len(data.validation),
            "n_test": len(data.test),
            "overlap": overlap(data) if status == "finished" else None,
        },
        **told,
    }


def read(workdir: Path) -> dict[str, Any]:
    """The summary in a workdir.

    Raises:
      SettingsError: there is none, or it is not JSON.
    """
    try:
        return dict(json.loads((workdir / "summary.json").read_text()))
    except (OSError, json.JSONDecodeError):
        raise SettingsError(f"--workdir={workdir}: no summary.json that can be read; train first") from None


def _of_trainings(ex: Experiment, value: Any) -> Any:
    """Where several lanes are one training, their mean: the spread over its parts is none over seeds."""
    k = ex.lanes_each
    if k == 1 or np.ndim(value) != 1 or len(value) != ex.run.seeds:
        return value
    each = np.asarray(value, np.float64).reshape(-1, k).mean(1)
    return each if len(each) > 1 else float(each[0])
