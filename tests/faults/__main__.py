"""The long injections, and the table of what came of them: `make faults`, or python -m tests.faults [--write] [NAME...]

Every injection counts what was lost: work that had been promised, a wrong number that was taken for a right one, an
error that nobody can act on. The exit status is 1 when that is not nothing. --write puts the table into
docs/reliability.md; names choose some of the injections.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from tests.conftest import ROOT, tfds_dir  # sets up JAX for two devices of this CPU, so it comes first
from tests.faults import kit
from tests.faults.test_all import LAST, WITHOUT, covered

PAGE = ROOT / "docs" / "reliability.md"
MARKS = ("<!-- faults -->", "<!-- /faults -->")
KILLS = 24
FLIPS = 40
MUTATIONS = 1000


class Row(NamedTuple):
    faults: str
    injected: str
    times: int
    outcome: str
    lost: int
    seconds: float


# ------------------------------------------------------------------------------------------------------------- commands
class Command:
    """`launch.py` on a small classifier, on one device, as a user runs it."""

    def __init__(self, folder: Path, steps: int, save: int):
        self.folder, self.config = folder, folder / "small.py"
        more = dict(optimizer=dict(name="adam", learning_rate=1e-3, schedule="cosine"), ema=0.99)
        more |= dict(train_for=f"{steps} steps", log_every="100 steps", eval_every="5000 steps")
        settings = kit.config(**more, checkpoint_every=f"{save} steps")
        self.config.write_text(f"def get_config():\n    return {settings!r}\n")
        self.env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        args = [sys.executable, "launch.py", f"--config={self.config}", f"--workdir={self.folder / name}"]
        with open(self.folder / f"{name}.out", "wb") as out, open(self.folder / f"{name}.err", "wb") as err:
            return subprocess.Popen(args, cwd=ROOT, env=self.env, stdout=out, stderr=err)

    def finish(self, name: str) -> tuple[int, str, str]:
        status = self.start(name).wait(600)
        return status, *((self.folder / f"{name}.{kind}").read_text() for kind in ("out", "err"))

    def wait_until_it_trains(self, name: str, child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None and "\nstep " not in "\n" + (self.folder / f"{name}.out").read_text():
            time.sleep(0.01)

    def last_logged(self, name: str) -> int:
        rows = [line for line in (self.folder / name / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
        return max((json.loads(line)["step"] for line in rows), default=0)

    def same(self, a: str, b: str) -> bool:
        """Whether two finished runs have equal arrays and equal lines of metrics.jsonl, but for the seconds."""
        from tests.faults.kit import lines

        return final(self.folder / a) == final(self.folder / b) and lines(self.folder / a) == lines(self.folder / b)


def final(workdir: Path) -> dict[str, str]:
    """The digest of every array of the last checkpoint, which is verified by reading it."""
    import jax

    from umbrella import manifest
    from umbrella.checkpoint import Checkpoints, digests

    def empty(leaf: Any) -> Any:
        return jax.random.key(0) if leaf.dtype.startswith("key<") else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    step = manifest.survey(workdir / "checkpoints").steps[-1]
    leaves = manifest.read(workdir / "checkpoints" / str(step)).leaves
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        found = checkpoints.restore({path: empty(leaf) for path, leaf in leaves.items()})
    assert found is not None
    return digests(found[0])


# ----------------------------------------------------------------------------------------------------------- injections
def kills(folder: Path) -> Iterator[Row]:
    """kill -9 of the whole command at random times, with a save in flight nearly always."""
    from umbrella import manifest

    command, rng, began = Command(folder, 120_000, 200), random.Random(0), time.time()
    status, _, err = command.finish("whole")
    assert status == 0, err
    lost = again = count = 0
    while count < KILLS:
        child = command.start("killed")
        command.wait_until_it_trains("killed", child)
        time.sleep(rng.uniform(0.0, 1.0))
        there = folder / "killed" / "checkpoints"
        promised = manifest.survey(there).steps[-1:] if there.is_dir() else []
        child.kill()
        child.wait()
        if child.returncode != -signal.SIGKILL:  # it was faster
            break
        count += 1
        found = manifest.survey(there).steps[-1:]
        for step in found:
            manifest.verify(there / str(step), manifest.read(there / str(step)))
        lost += found < promised
        again = max(again, command.last_logged("killed") - (found[0] if found else 0))
    status, out, err = command.finish("killed")
    lost += status != 0 or "Resuming" not in out
    lost += not command.same("whole", "killed")
    lost += bool(list((folder / "killed" / "checkpoints").glob("*.corrupt*")))
    yield Row(
        "F1",
        "`kill -9` of a run of 120,000 steps that saves every 200, at random times; resumed after each",
        count,
        f"every resume found a verified step; at most {again:,} logged steps were made again; the parameters, the "
        "optimiser, the averages and every line of metrics.jsonl are those of a run that was never stopped",
        lost,
        time.time() - began,
    )


def between(folder: Path) -> Iterator[Row]:
    """Killed after Orbax's commit and before the manifest."""
    from tests.faults.kit import config, python
    from umbrella import manifest

    began, lost, times = time.time(), 0, 5
    for i in range(times):
        at, work = 10 * (i % 4 + 1), folder / str(i)
        code = f"""
import os, signal
import umbrella as um
from umbrella import manifest
before = manifest.write
def write(folder, step, *rest):
    if step == {at} and {i} >= 0:
        os.kill(os.getpid(), signal.SIGKILL)
    before(folder, step, *rest)
manifest.write = write
um.run({config()!r}, workdir={str(work)!r}, quiet=True)
"""
        assert python(code).returncode == -signal.SIGKILL
        lost += at in manifest.survey(work / "checkpoints").steps
        again = python(code.replace(f"step == {at}", "step == -1"))
        lost += again.returncode != 0 or manifest.survey(work / "checkpoints").steps[-1] != 40
        lost += f"{at} has no manifest, so it is no checkpoint" not in again.stderr
    told = "the step was told of, ignored and made again"
    yield Row("F2", "`kill -9` between the commit and the manifest", times, told, lost, time.time() - began)


def signals(folder: Path) -> Iterator[Row]:
    """SIGTERM and SIGINT to the command at random times."""
    from tests.faults.kit import summary

    command, rng, began = Command(folder, 60_000, 500), random.Random(1), time.time()
    status, _, err = command.finish("whole")
    assert status == 0, err
    lost = count = 0
    for i in range(10):
        signum, wanted = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[i % 2]
        child = command.start("stopped")
        command.wait_until_it_trains("stopped", child)
        time.sleep(rng.uniform(0.0, 0.4))
        child.send_signal(signum)
        child.wait(120)
        err = (folder / "stopped.err").read_text()
        if child.returncode == 0:
            break
        count += 1
        told = summary(folder / "stopped")
        lost += child.returncode != wanted or told["status"] != "interrupted" or "Traceback" in err
        lost += not (folder / "stopped" / "checkpoints" / str(told["step"]) / "MANIFEST.json").is_file()
    status, _, _ = command.finish("stopped")
    lost += status != 0 or final(folder / "whole") != final(folder / "stopped")
    told = "each ended with 143 or 130 and a checkpoint of its very step; the end is that of the run never stopped"
    yield Row("F3, F6", "SIGTERM and SIGINT in turn, at random times", count, told, lost, time.time() - began)


def disks(folder: Path) -> Iterator[Row]:
    """Files that cannot grow: a disk that fills up at any point of a save."""
    import jax

    from tests.faults.kit import limited, make, restored, three_steps
    from umbrella.checkpoint import Checkpoints, SaveFailed

    began, lost, sizes = time.time(), 0, [0, 64, 256, 1024, 4096, 16_384, 65_536, 262_144]
    for size in sizes:
        run = three_steps(folder / str(size))
        big = {"w": jax.random.normal(jax.random.key(0), (200_000,))}
        with Checkpoints(run) as checkpoints:
            try:
                with limited(size):
                    checkpoints.save(4, big, {})
                    checkpoints.wait()
                lost += 1
            except SaveFailed as error:
                lost += not ("bytes needed" in str(error) and str(run) in str(error))
            lost += not checkpoints.save(5, make(5), {"position": 5})  # there is space again
        lost += restored(run) != 5
    told = "the save failed with the path and the bytes it needed; the older steps stood; the next save went through"
    yield Row(
        "F7",
        "a full disk, from the first byte to 256 kB into a save of 800 kB",
        len(sizes),
        told,
        lost,
        time.time() - began,
    )


def bits(folder: Path) -> Iterator[Row]:
    """Flipped bits, truncated and deleted files of a checkpoint."""
    from tests.faults.kit import cut, flip, make, struct_of, three_steps
    from umbrella import manifest
    from umbrella.checkpoint import Checkpoints, Corrupt

    good = three_steps(folder / "good")
    files = sorted(p.relative_to(good) for p in (good / "3").rglob("*") if p.is_file())
    rng = random.Random(2)

    def undetected(spoil: Callable[[Path], Any], file: Path) -> int:
        """1 unless the damage is named, the step set aside, and the one before it restored to the bit."""
        run = Path(shutil.copytree(good, folder / "run"))
        spoil(run / file)
        missing = not (run / "3" / manifest.NAME).exists()
        try:
            with Checkpoints(run) as checkpoints:
                try:
                    if not missing:
                        checkpoints.restore(struct_of(make()), step=3)
                        return 1
                except Corrupt as error:
                    if f"corrupt: {run / file}" not in str(error) or not (run / "3.corrupt").is_dir():
                        return 1
                found = checkpoints.restore(struct_of(make()))
            return int(found is None or found[1]["position"] != 2)
        finally:
            shutil.rmtree(run)

    began = time.time()
    lost = sum(undetected(lambda path: flip(path, rng), rng.choice(files)) for _ in range(FLIPS))
    each = f"named with the word `corrupt`, the step set aside, the one before it restored ({len(files)} files)"
    yield Row("F10", "one flipped bit in a random file of a checkpoint", FLIPS, each, lost, time.time() - began)
    began, parts = time.time(), (0.0, 0.5, 0.99)
    lost = sum(undetected(lambda path, part=part: cut(path, part), f) for f in files for part in parts)
    yield Row("F11, F13", "each file cut to 0, 50 and 99 %", 3 * len(files), each, lost, time.time() - began)
    began = time.time()
    lost = sum(undetected(Path.unlink, f) for f in files)
    yield Row("F12", "each file deleted", len(files), each, lost, time.time() - began)


def mutations(folder: Path) -> Iterator[Row]:
    """Every loader on files with bytes changed, removed, doubled, put in, or cut off."""
    from tests.faults.loaders import LOADERS, attack

    for i, (name, loader) in enumerate(LOADERS.items()):
        began, place = time.time(), folder / str(i)
        place.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        told, lost = "", 0
        try:
            refused, read = attack(loader, place, MUTATIONS, seed=1)
            told = f"{refused:,} refused in one line, {read:,} read"
        except Exception as error:  # what no reader may raise
            told, lost = f"{type(error).__name__}: {error}", 1
        yield Row("F60", f"mutations: {name}", MUTATIONS, told, lost, time.time() - began)


def long(folder: Path) -> Iterator[Row]:
    """10,000 steps with evaluations and checkpoints."""
    from tests.faults.test_process import long_run

    for devices in (1, 2):
        began = time.time()
        seen = long_run(folder / str(devices), 10_000, devices)
        late = {step: v for step, v in seen.items() if step >= 2000}
        grown = late[max(late)][0] - late[min(late)][0]
        compiled = late[max(late)][1] - late[min(late)][1]
        on = f"{devices} device{'s' * (devices > 1)}"
        told = f"from step 2,000 to 10,000: {compiled} programs compiled, {grown:+.1f} MB resident"
        yield Row("F64", f"10,000 steps on {on}", 1, told, int(compiled > 0) + int(grown > 40), time.time() - began)


def resumes(folder: Path) -> Iterator[Row]:
    """Every config shipped: trained, killed, resumed, compared."""
    from tests.faults.test_configs import CASES
    from umbrella import cli, verify

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["XLA_FLAGS"] = ""
    data = tfds_dir()
    for case in sorted(CASES):
        name = case.partition(":")[2]
        if name and (data is None or not (data / name).is_dir()):
            continue
        if data is not None:
            os.environ["TFDS_DATA_DIR"] = str(data)
        began = time.time()
        verdict = verify.resume(cli.load_config(f"{ROOT}/configs/{case}"), say=lambda line: None)
        told = (
            f"killed after step {verdict.killed_after}, resumed at {verdict.resumed_at}: {verdict.arrays} arrays and "
            f"{verdict.lines} lines of metrics.jsonl equal to the bit at step {verdict.steps}"
        )
        told = told if verdict.exact else verify.told(verdict)
        yield Row(
            "F1, F26", f"`--verify_resume` of configs/{case}", 1, told, int(not verdict.exact), time.time() - began
        )


INJECTIONS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "kills": kills,
    "between": between,
    "signals": signals,
    "disks": disks,
    "bits": bits,
    "long": long,
    "resumes": resumes,
    "mutations": mutations,
}


# ----------------------------------------------------------------------------------------------------------------- page
def table(rows: list[Row]) -> str:
    lines = ["| fault | injected | times | what came of it | lost |", "|---|---|---:|---|---:|"]
    lines += [f"| {r.faults} | {r.injected} | {r.times:,} | {r.outcome} | {r.lost} |" for r in rows]
    return "\n".join(lines)


def page(rows: list[Row]) -> str:
    from umbrella import environment

    versions = environment.versions()
    on = f"{environment.device()['kind']}; " + ", ".join(
        f"{k} {versions[k]}" for k in ("python", "jax", "orbax-checkpoint", "numpy")
    )
    tests = "\n".join(f"| F{n} | {_tests(n)} |" for n in range(1, LAST + 1))
    minutes = sum(r.seconds for r in rows) / 60
    total = f"{sum(r.times for r in rows):,} injections in {minutes:.0f} minutes, {sum(r.lost for r in rows)} losses"
    return (
        f"{total}. {on}; revision {environment.git_revision()}.\n\n{table(rows)}\n\n"
        f"## Every number\n\n| fault | tests in `tests/faults/` |\n|---|---|\n{tests}"
    )


def _tests(number: int) -> str:
    names = covered()
    return "; ".join(t.partition("::")[2] for t in names[number]) if number in names else f"*{WITHOUT[number]}*"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*INJECTIONS, []], help="some of them only")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    given = parser.parse_args()
    logging.set_verbosity(logging.FATAL)  # a thousand errors are to come, each one wanted
    rows: list[Row] = []
    for name in given.names or INJECTIONS:
        with tempfile.TemporaryDirectory(prefix="umbrella-faults-") as folder:
            for row in INJECTIONS[name](Path(folder)):
                rows.append(row)
                told = f"{row.injected}: {row.outcome}; lost {row.lost} ({row.seconds:.0f} s)"
                print(f"{row.faults:<9} {row.times:>5,} x {told}", flush=True)
    lost = sum(r.lost for r in rows)
    print(f"\n{sum(r.times for r in rows):,} injections, {lost} losses")
    if given.write and not given.names:
        before, rest = PAGE.read_text().split(MARKS[0])
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{page(rows)}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
