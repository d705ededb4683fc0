"""The workdir of a run and the JSON files in it. Floor 4."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from umbrella.lock import Busy, Lock
from umbrella.settings import SettingsError

EXTENSIBLE = (  # what may change when a run is continued: how long, how often, what is printed; not what is computed
    "train_for",
    "mesh",
    "shard",
    "offload",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "keep_best",
    "workers",
    "baselines",
    "evals",
    "clean",
    "sample",
)


FIRST = ("pipeline", "data", "model")  # what is told first of two configs that differ


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A dict of dicts, tuples and scalars from a ConfigDict or a dict; shares nothing with it."""
    config = config.to_dict() if hasattr(config, "to_dict") else config

    def copy(v: Any) -> Any:
        if isinstance(v, Mapping):
            return {str(k): copy(x) for k, x in v.items()}
        return tuple(copy(x) for x in v) if isinstance(v, tuple | list) else v

    return copy(config)


def config_hash(settings: Mapping[str, Any]) -> str:
    """Of everything that decides what is computed."""
    kept = {k: v for k, v in settings.items() if k not in EXTENSIBLE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


class Claim(NamedTuple):
    path: Path
    lock: Lock  # held until it is released
    is_new: bool  # whether the folder was made for it


def claim(
    workdir: str | os.PathLike[str] | None,
    name: str,
    settings: Mapping[str, Any],
    *,
    trains: bool = True,
    patience: float = 0.0,
    say: Callable[[str], None] = print,
) -> Claim:
    """The workdir, made and writable, locked, with the resolved config in it. Before anything compiles.

    Args:
      trains: else the config in it, if there is one, stays as it is: that of the training.
      patience: seconds for which to try again while another process holds it: one on a host that was lost does for two
        minutes more.
      say: takes the line that says so.

    Raises:
      SettingsError: it cannot be written, another process writes there, or it holds a run of another config.
    """
    given = f"--workdir={workdir}"
    if workdir is None:
        stem = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        tries = (Path(stem if not i else f"{stem}-{i}") for i in range(1000))
        workdir = next(p for p in tries if not p.exists())
    path = Path(workdir).expanduser().absolute()
    before = path / "config.json"
    settings = jsonable(settings)
    lock, is_new = None, not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        until, told = time.monotonic() + patience, False
        while lock is None:
            try:
                lock = Lock(path)
            except Busy as busy:
                if time.monotonic() > until:
                    raise
                if not told:
                    say(f"{given}: {busy}; waiting for its end, for at most {patience:.0f} seconds")
                told = True
                time.sleep(1)
        if before.exists():
            _same(json.loads(before.read_text()), settings, given)
        if trains or not before.exists():
            write_json(before, settings)
    except BaseException as error:
        if lock is not None:
            lock.release()
        if isinstance(error, Busy):
            raise SettingsError(f"{given}: {error}; one at a time") from None
        if isinstance(error, OSError):
            raise SettingsError(f"{given}: cannot be written: {error.strerror or error}") from None
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise SettingsError(f"{given}: its config.json is damaged; give another workdir") from None
        raise
    return Claim(path, lock, is_new)


def check_no_run(workdir: Path, mode: str) -> None:
    """Raises SettingsError where the folder is that of a run: what `mode` has to say would replace its report."""
    if (workdir / "checkpoints").is_dir():
        raise SettingsError(
            f"--workdir={workdir}: holds a run, and --mode={mode} needs a folder of its own; give another, or leave "
            "--workdir out"
        )


def check_same(workdir: Path, settings: Mapping[str, Any]) -> None:
    """Raises SettingsError where the folder holds a run of another config; nothing is written."""
    before = workdir / "config.json"
    if before.exists():
        try:
            _same(json.loads(before.read_text()), jsonable(settings), f"--workdir={workdir}")
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise SettingsError(f"--workdir={workdir}: its config.json is damaged; give another workdir") from None


def _same(before: Mapping[str, Any], now: Mapping[str, Any], given: str) -> None:
    old, new = flatten(before), flatten(now)
    may = {*EXTENSIBLE, *_evaluated(before), *_evaluated(now)}
    # A key that the other run did not know of came with a later version, whose default is what that run did.
    changed = [k for k in old if k.split(".")[0] not in may and old[k] != new.get(k)]
    changed.sort(key=lambda k: (k.split(".")[0] not in FIRST, k))
    if changed:
        told = "; ".join(f"{k} was {old[k]!r}, is {new.get(k, 'absent')!r}" for k in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise SettingsError(f"{given}: holds a run of another config ({told}{more}); give another workdir")


def evaluated_with(config: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluations of a config and the sections that are about them alone."""
    return jsonable({k: config[k] for k in ("evals", *sorted(_evaluated(config))) if k in config})


def _evaluated(config: Mapping[str, Any]) -> set[str]:
    """The sections of techniques that are evaluated with and not trained with."""
    evals = config.get("evals")
    named = {name for names in evals.values() for name in names} if isinstance(evals, Mapping) else set()
    return named - {*(config.get("techniques") or ())}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    out: dict[str, Any] = {}
    for k, v in tree.items():
        out |= flatten(v, f"{prefix}{k}.") if isinstance(v, Mapping) and v else {f"{prefix}{k}": v}
    return out


def summarise(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A float per metric, or mean, 95 % confidence interval (Student's t) and values over seeds."""
    return {name: over_seeds(v) if np.ndim(v) == 1 else float(v) for name, v in metrics.items() if np.ndim(v) <= 1}


def over_seeds(values: Any) -> dict[str, Any]:
    """{"mean", "ci95": [lo, hi], "n", "values"} of K values.

    >>> over_seeds([1.0, 2.0, 3.0])["ci95"]  # 2 +- t(.975, 2) * 1 / sqrt(3) = 2 +- 4.3027 * .57735
    [-0.484..., 4.484...]
    """
    from scipy import stats

    v = np.asarray(values, np.float64)
    half = float(stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / math.sqrt(len(v))) if len(v) > 1 else math.nan
    mean = float(v.mean())
    return {"mean": mean, "ci95": [mean - half, mean + half], "n": len(v), "values": v.tolist()}


def jsonable(value: Any) -> Any:
    """JSON's types; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def write_json(path: Path, value: Any) -> None:
    """Writes the whole file or leaves it as it was."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")
    temporary.replace(path)
