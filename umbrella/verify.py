"""Is a resumed run the run that was never stopped? Asked of the user's own config, with kill -9. Floor 6.

Three processes, each as a user would start it: one trains from beginning to end; one is killed in the middle, with
whatever it was writing; one goes on in the folder that the second left. Then every array and every line of
metrics.jsonl is compared, to the bit.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from umbrella.settings import SettingsError

STEPS = 51  # of the whole run, or as many as the config has
SPARED = {  # what decides nothing about the state, and takes time
    "evals": {},
    "baselines": False,
    "keep_best": None,
    "patience": "never",
    "keep_every": "never",
    "keep_checkpoints": 3,
}


class Verdict(NamedTuple):
    """What the comparison found."""

    steps: int  # of the whole run
    killed_after: int
    resumed_at: int
    arrays: int
    lines: int  # of metrics.jsonl
    different: list[str]  # what differs; nothing when a resume is exact
    folder: Path | None  # kept when something differs

    @property
    def exact(self) -> bool:
        return not self.different


def resume(
    config: Mapping[str, Any], *, init_from: str | None = None, kill_after: int | None = None, say: Any = print
) -> Verdict:
    """Trains a little, kills a process of it, resumes, and compares.

    The schedule is that of the whole config; only the first steps of it are made. A third of them lies between two
    checkpoints, so the run is killed with one or two written.

    Args:
      config: as for `umbrella.run`.
      init_from: as for `umbrella.run`.
      kill_after: the step after which the second process is killed; two thirds and some when None.
      say: takes a line at a time.

    Raises:
      SettingsError: the config, or what a process said, on one line.
    """
    from umbrella import pipelines
    from umbrella.workdir import plain

    settings = plain(config)
    total = min(STEPS, pipelines.build(settings).durations.total)
    if total < 3:
        raise SettingsError("--verify_resume: a run of less than 3 steps cannot be stopped in the middle")
    third = total // 3
    kill = 2 * third + third // 2 if kill_after is None else kill_after
    settings |= SPARED | {
        "log_every": f"{max(1, third // 4)} steps",
        "eval_every": f"{third + 1} steps",
        "checkpoint_every": f"{third} steps",
    }
    folder = Path(tempfile.mkdtemp(prefix="umbrella-resume-"))
    order = {"config": settings, "until": total, "init_from": init_from and str(Path(init_from).absolute())}
    try:
        whole = _child(folder / "whole", order, say, "whole")
        _child(folder / "resumed", order | {"kill_after": kill}, say, f"killed -9 after step {kill}")
        resumed = _child(folder / "resumed", order, say, "resumed")
        a, b = _lines(folder / "whole"), _lines(folder / "resumed")
        different = [f"array {p}" for p in whole["arrays"] if whole["arrays"][p] != resumed["arrays"].get(p)]
        different += [f"array {p}" for p in resumed["arrays"].keys() - whole["arrays"].keys()]
        different += [f"metrics.jsonl line {i + 1}" for i in range(max(len(a), len(b))) if a[i : i + 1] != b[i : i + 1]]
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if not different:
        shutil.rmtree(folder, ignore_errors=True)
    return Verdict(
        total, kill, resumed["start"], len(whole["arrays"]), len(a), different, folder if different else None
    )


def told(verdict: Verdict) -> str:
    """The verdict in words."""
    if verdict.exact:
        return (
            f"Resume is exact: {verdict.steps} steps at one go, and the same killed after step {verdict.killed_after} "
            f"and resumed at step {verdict.resumed_at}, agree to the bit in {verdict.arrays} arrays and "
            f"{verdict.lines} lines of metrics.jsonl."
        )
    more = f"\n  and {len(verdict.different) - 10} more" if len(verdict.different) > 10 else ""
    return (
        f"Resume is NOT exact: killed after step {verdict.killed_after} and resumed at step {verdict.resumed_at}, "
        f"these differ after {verdict.steps} steps:\n  "
        + "\n  ".join(verdict.different[:10])
        + f"{more}\nBoth runs are in {verdict.folder}."
    )


def _child(workdir: Path, order: Mapping[str, Any], say: Callable[[str], None], name: str) -> dict[str, Any]:
    """Runs `main` in a process of its own; returns what it found, nothing when it was to be killed."""
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "umbrella.verify", str(workdir)],
        input=json.dumps(order),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    wanted = -signal.SIGKILL if "kill_after" in order else 0
    if done.returncode != wanted:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "nothing was said")
        raise SettingsError(f"--verify_resume: the process that was {name!r} ended with {done.returncode}: {last}")
    out = {} if wanted else json.loads(done.stdout.splitlines()[-1])
    at = "" if not out.get("start") else f" at step {out['start']}"
    say(f"  {name}{at}: {time.perf_counter() - began:.1f} s")
    return out


def _lines(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the seconds, which no two runs share."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def main(workdir: str, order: Mapping[str, Any]) -> None:
    """What each process does: trains as ordered, and prints the SHA-256 of every array; or kills itself before."""
    from umbrella import checkpoint, environment
    from umbrella.runs import Session

    kill_after = order.get("kill_after")

    class Killed(Session):
        def on_log(self, step: int, metrics: dict[str, Any]) -> None:
            super().on_log(step, metrics)
            if kill_after is not None and step >= kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

    environment.use_compilation_cache()
    session = Killed(order["config"], workdir, init_from=order["init_from"], quiet=True)
    with session, contextlib.redirect_stdout(sys.stderr):
        result = session.train(until=order["until"])
    print(json.dumps({"start": session.started_at, "arrays": checkpoint.digests(result.ts)}))


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
