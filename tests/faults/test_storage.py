"""F1 to F17: crashes, signals, full and failing disks, and who may write."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import umbrella as um
from tests.conftest import ROOT
from tests.faults.kit import config, cut, during, flip, limited, lines, make, python, restored, saved_steps, struct_of
from tests.faults.kit import summary as summary_of
from tests.helpers import bits
from umbrella import cli, lock, manifest, verify
from umbrella.checkpoint import Checkpoints, Corrupt, NothingVerified, SaveFailed
from umbrella.lock import Busy, Lock


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> um.Result:
    """The run that nothing happens to."""
    return um.run(config(), workdir=tmp_path_factory.mktemp("whole") / "w", quiet=True)


def equal_after_resume(workdir: Path, whole: um.Result) -> None:
    again = um.run(config(), workdir=workdir, quiet=True)
    assert bits(again.ts, whole.ts)
    assert again.summary["metrics"] == whole.summary["metrics"]


# ----------------------------------------------------------------------------------------------------------- the state
FILES = 12  # at least so many files in a step of this size


def each_file(run: Path) -> list[Path]:
    files = sorted(p for p in (run / "3").rglob("*") if p.is_file())
    assert len(files) >= FILES
    return files


def broken(run: Path, tmp_path: Path, file: Path, spoil: Any, *, falls_to: int = 2) -> None:
    """Spoil one file of step 3; restore must name it, set the step aside and give step 2."""
    copy = Path(shutil.copytree(run, tmp_path / "broken"))
    spoil(copy / file.relative_to(run))
    with pytest.raises(Corrupt, match=f"corrupt: .*{file.name}"), Checkpoints(copy) as checkpoints:
        checkpoints.restore(struct_of(make()), step=3)
    assert (copy / "3.corrupt").is_dir() and not (copy / "3").exists()
    assert manifest.survey(copy).steps[-1] == falls_to
    shutil.rmtree(copy)


def test_F10_one_flipped_bit_in_each_file_is_detected(run, tmp_path):
    rng = random.Random(0)
    for file in each_file(run):
        for _ in range(2):
            broken(run, tmp_path, file, lambda path: flip(path, rng))


def test_F11_each_file_truncated_is_detected(run, tmp_path):
    for file in each_file(run):
        for part in (0.0, 0.5, 0.99):
            broken(run, tmp_path, file, lambda path, part=part: cut(path, part))


def test_F12_each_file_deleted_is_detected(run, tmp_path):
    for file in each_file(run):
        if file.name != manifest.NAME:  # without it there is no step: next test
            broken(run, tmp_path, file, Path.unlink)


def test_F12_with_two_steps_broken_the_third_comes_back_to_the_bit(run):
    flip(max((run / "3").rglob("*"), key=lambda p: p.stat().st_size * p.is_file()), random.Random(1))
    (run / "2" / "stranger").write_text("not in the manifest")
    assert restored(run) == 1
    assert sorted(p.name for p in run.iterdir()) == ["1", "2.corrupt", "3.corrupt", "UNFINISHED"]


def test_F02_a_step_without_its_manifest_is_ignored_and_then_replaced(run):
    (run / "3" / manifest.NAME).unlink()
    assert restored(run) == 2
    with Checkpoints(run) as checkpoints:
        checkpoints.restore(struct_of(make()))
        assert checkpoints.save(3, make(3), {"position": 3})
    assert restored(run) == 3


def test_F13_empty_metadata_everywhere_never_starts_over(run):
    for step in ("1", "2", "3"):
        (run / step / "default" / "_METADATA").write_bytes(b"")
    for _ in range(2):  # nor when started again
        with pytest.raises(NothingVerified, match="3.corrupt"), Checkpoints(run) as checkpoints:
            checkpoints.restore(struct_of(make()))


def test_F16_F17_the_latest_goes_by_step_and_the_folder_may_move(run, tmp_path):
    moved = run.rename(tmp_path / "elsewhere")
    for age, step in enumerate(("3", "2", "1")):  # the newest step has the oldest time stamps
        for path in (moved / step, *(moved / step).rglob("*")):
            os.utime(path, (age * 1000, age * 1000))
    assert restored(moved) == 3


def test_F14_leftovers_are_removed_only_if_ours(run):
    tmp = run / "9.orbax-checkpoint-tmp-1"
    (tmp / "default").mkdir(parents=True)
    (run / "8").mkdir()  # killed between commit and manifest, or while it was being retired
    (tmp / "default" / "half").write_text("a")
    manifest.write_journal(run, {8, 9, 12})
    theirs = [run / "10", run / "11.orbax-checkpoint-tmp-1", run / "4.corrupt", run / "2024"]
    for path in theirs:
        path.mkdir()
        (path / "holiday.jpg").write_text("precious")
    os.symlink(run / "2024", run / "12")
    assert restored(run) == 3 and tmp.exists()  # reading removes nothing
    with Checkpoints(run) as checkpoints:
        assert checkpoints.save(5, make(5), {"position": 5})
    assert not tmp.exists() and not (run / "8").exists()
    assert all((path / "holiday.jpg").exists() for path in theirs) and (run / "12").is_symlink()
    with Checkpoints(run) as checkpoints:  # what is in the way is moved, not removed
        assert all(checkpoints.save(step, make(step), {"position": step}) for step in (10, 11, 12))
    assert (run / "10.corrupt" / "holiday.jpg").exists() and (run / "12.corrupt").is_symlink()
    assert (run / "11.orbax-checkpoint-tmp-1.corrupt" / "holiday.jpg").exists()
    assert (run / "2024" / "holiday.jpg").exists()
    assert restored(run) == 12


def test_F09_a_directory_deleted_between_saves_is_made_again(run):
    with Checkpoints(run) as checkpoints:
        checkpoints.save(4, make(4), {"position": 4})
        checkpoints.wait()
        shutil.rmtree(run)
        checkpoints.save(5, make(5), {"position": 5})
    assert restored(run) == 5


def test_F07_a_full_disk_is_loud_and_older_steps_stay(run):
    big = {"w": jax.random.normal(jax.random.key(0), (1_000_000,))}
    with Checkpoints(run) as checkpoints:
        said = r"step 4 was not saved in .*run \(4,000,000 bytes needed"
        with limited(100_000), pytest.raises(SaveFailed, match=said):
            checkpoints.save(4, big, {})
            checkpoints.wait()
        assert sorted(p.name for p in run.iterdir()) == ["1", "2", "3", "UNFINISHED"]
        assert checkpoints.restore(struct_of(make())) is not None
        assert checkpoints.save(4, make(4), {"position": 4})  # there is space again
    assert restored(run) == 4


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import jax, jax.numpy as jnp
from umbrella.checkpoint import Checkpoints

def train(directory, ready):
    make = jax.jit(lambda n: {"w": jnp.full(300_000, n, jnp.float32), "n": n})
    with Checkpoints(directory, keep=2) as checkpoints:
        found = checkpoints.restore(make(0))
        step = -1
        if found is not None:
            tree, meta = found
            step = meta["step"]
            if not (int(tree["n"]) == step and bool((tree["w"] == step).all())):
                os._exit(3)
        if step < int((directory / "promised").read_text()):
            os._exit(4)
        os.write(ready, b"x")
        while True:
            step += 1
            checkpoints.save(step, make(step), {"step": step})
            if step % 3 == 0:
                checkpoints.wait()
                (directory / "promised.tmp").write_text(str(step))
                os.replace(directory / "promised.tmp", directory / "promised")

directory, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
(directory / "promised").write_text("-1")
for _ in range(int(sys.argv[3])):  # forked before JAX has a backend: the imports are paid once
    read, ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train(directory, ready)
        finally:
            os._exit(5)
    os.close(ready)
    if os.read(read, 1) == b"x":
        time.sleep(rng.uniform(0.0, 0.6))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), f"a child found a bad checkpoint: {os.waitstatus_to_exitcode(status)}"
"""


def test_F01_kill_9_in_the_middle_of_saves(tmp_path):
    """Each killed process is resumed by the next: a verified step, never older than one that `wait` had promised."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "0", "6"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    promised = int((tmp_path / "promised").read_text())
    left = sorted(p.name for p in tmp_path.iterdir())
    template = {"w": jax.ShapeDtypeStruct((300_000,), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}
    with Checkpoints(tmp_path) as checkpoints:
        tree, meta = checkpoints.restore(template)
    assert meta["step"] >= promised >= 0
    assert int(tree["n"]) == meta["step"] and bool((tree["w"] == meta["step"]).all())
    assert not list(tmp_path.glob("*.corrupt*"))
    print(f"\nkilled 6 times in {time.perf_counter() - start:.1f} s; left {left}, promised {promised}, found {meta}")


# ------------------------------------------------------------------------------------------------------------- the run
@pytest.mark.parametrize("name", ["mlp.py", pytest.param("vae.py", marks=pytest.mark.slow)])
def test_F01_a_run_killed_and_resumed_is_the_run_that_was_never_stopped(name: str) -> None:
    """In three processes, with whatever the config has: dropout, averages, binarisation. See umbrella/verify.py."""
    told = []
    verdict = verify.resume(cli.load_config(f"{ROOT}/configs/{name}"), say=told.append)
    assert verdict.exact, verify.told(verdict)
    assert verdict.resumed_at in (17, 34)
    assert verdict.arrays > 10 and verdict.lines > 10
    assert len(told) == 3


def test_F01_a_resume_that_is_not_exact_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One array and one line differ: the verdict names both, and the folder stays for a look."""
    asked = []

    def child(workdir: Path, order: Any, say: Any, name: str) -> dict[str, Any]:
        asked.append(name)
        workdir.mkdir(exist_ok=True)
        loss = 2.0 if name == "resumed" else 1.0
        (workdir / "metrics.jsonl").write_text(json.dumps({"step": 5, "loss": 1.0, "seconds": len(asked)}) + "\n")
        with open(workdir / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 10, "loss": loss}) + "\n")
        return {"start": 17, "arrays": {"params/a": "1", "params/b": "3" if name == "resumed" else "2"}}

    monkeypatch.setattr(verify, "_child", child)
    verdict = verify.resume(config(train_for="60 steps"), say=lambda line: None)
    assert verdict.different == ["array params/b", "metrics.jsonl line 2"]
    assert "NOT exact" in verify.told(verdict) and "params/b" in verify.told(verdict)
    assert verdict.folder is not None and verdict.folder.is_dir()
    shutil.rmtree(verdict.folder)


@pytest.mark.slow
def test_F02_killed_between_the_commit_and_the_manifest(tmp_path: Path, whole: um.Result) -> None:
    """Orbax has committed step 20, and there it ends: the step is none, is told of, and is made again."""
    code = f"""
import os, signal
import umbrella as um
from umbrella import manifest
before = manifest.write
def write(folder, step, *rest):
    if step == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    before(folder, step, *rest)
manifest.write = write
um.run({config()!r}, workdir={str(tmp_path / "w")!r}, quiet=True)
"""
    killed = python(code)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    there = tmp_path / "w" / "checkpoints"
    assert (there / "20").is_dir() and manifest.survey(there).steps == [10]
    again = python(code.replace("== 20", "== -1"))
    assert again.returncode == 0, again.stderr[-2000:]
    assert "checkpoints/20 has no manifest, so it is no checkpoint: ignored" in again.stderr
    assert lines(tmp_path / "w")[-1]["step"] == 40
    assert manifest.survey(there).steps[-1] == 40 and not (there / "20.corrupt").exists()


@pytest.mark.parametrize(
    ("signum", "status"), [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGINT, 130)]
)
def test_F03_a_signal_saves_and_says_so_and_the_run_can_be_resumed(signum: int, status: int, tmp_path: Path) -> None:
    work = tmp_path / "w"
    args = [sys.executable, "launch.py", f"--config={ROOT}/configs/vae.py", f"--workdir={work}"]
    args += ["--config.log_every=50 steps", "--config.eval_every=never", "--config.checkpoint_every=never"]
    args += ["--config.baselines=False"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    child = subprocess.Popen(
        [*args, "--config.train_for=1000000 steps"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    written = work / "metrics.jsonl"
    for _ in range(600):
        if written.exists() and written.read_text().count("\n") > 2:
            break
        time.sleep(0.1)
    child.send_signal(signum)
    out, err = child.communicate(timeout=60)
    assert child.returncode == status, err
    told = summary_of(work)
    assert told["status"] == "interrupted"
    assert (work / "checkpoints" / str(told["step"])).is_dir()
    assert (work / "report.html").is_file()
    assert "Traceback" not in err
    goal = f"--config.train_for={told['step'] + 10} steps"
    other = subprocess.run([*args, goal, "--config.ema=0.5"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert other.returncode == 2  # that decides what is computed
    assert "ema was " in other.stderr and "is 0.5" in other.stderr
    again = subprocess.run([*args, goal], cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"at step {told['step']}" in again.stdout


@pytest.mark.parametrize("hook", ["on_log", "on_evaluate", "on_save"])
def test_F03_F06_a_signal_at_any_time_saves_and_the_resumed_run_is_equal_to_the_bit(
    hook: str, tmp_path: Path, whole: um.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        during(patched, hook, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 20 else None)
        result = um.run(config(), workdir=tmp_path / "w", quiet=True)
    assert result.summary["status"] == "interrupted" and result.summary["signal"] == signal.SIGTERM
    assert 20 <= result.summary["step"] < 40
    assert saved_steps(tmp_path / "w")[-1] == result.summary["step"]
    equal_after_resume(tmp_path / "w", whole)


def test_F04_a_second_signal_ends_it_at_once_and_what_was_saved_stands(tmp_path: Path, whole: um.Result) -> None:
    code = f"""
import os, signal
import umbrella as um
before = um.runs.Session.on_log
def on_log(self, step, metrics):
    before(self, step, metrics)
    if step == 25:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
um.runs.Session.on_log = on_log
um.run({config()!r}, workdir={str(tmp_path / "w")!r}, quiet=True)
"""
    done = python(code)
    assert done.returncode == -signal.SIGTERM, done.stderr[-2000:]
    assert not (tmp_path / "w" / "summary.json").exists()
    assert manifest.survey(tmp_path / "w" / "checkpoints").steps in ([10], [10, 20])
    equal_after_resume(tmp_path / "w", whole)


def test_F04_a_second_interrupt_of_the_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    during(monkeypatch, "on_evaluate", twice)
    path = tmp_path / "small.py"
    path.write_text(f"def get_config():\n    return {config()!r}\n")
    assert cli.main(["launch.py", f"--config={path}", f"--workdir={tmp_path / 'w'}"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("launch.py: interrupted at once")


def test_F04_a_signal_before_the_loop_lets_a_save_finish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After the last step, during the evaluation on test: the last save becomes a checkpoint, and the status is 143."""
    path = tmp_path / "small.py"
    path.write_text(f"def get_config():\n    return {config()!r}\n")

    def stopped(self: Any, ts: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(um.runs.Session, "evaluate_all", stopped)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        cli.main(["launch.py", f"--config={path}", f"--workdir={tmp_path / 'w'}"])
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert manifest.survey(tmp_path / "w" / "checkpoints").steps[-1] == 40


def test_F05_an_interrupted_notebook_gets_its_state_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: um.Result
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patched:
        during(patched, "on_log", lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 15 else None)
        result = um.run(config(), workdir=tmp_path / "w", quiet=True)
    assert result.summary["status"] == "interrupted" and result.summary["signal"] == signal.SIGINT
    assert int(result.ts.step) == result.summary["step"] and result.history[-1]["step"] == result.summary["step"]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    equal_after_resume(tmp_path / "w", whole)


def test_F07_a_full_disk_ends_the_command_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whole: um.Result
) -> None:
    """From step 11 on no file may grow over 9 kB: the next save fails, the run ends there, step 10 stays."""
    path, work = tmp_path / "small.py", tmp_path / "w"
    path.write_text(f"def get_config():\n    return {config()!r}\n")
    full = limited(9_000)

    def fill() -> None:
        end = time.monotonic() + 60  # the save of step 10 goes on in the background
        while saved_steps(work) != [10] and time.monotonic() < end:
            time.sleep(0.01)
        full.__enter__()

    with monkeypatch.context() as patched:
        during(patched, "on_log", lambda step: fill() if step == 15 else None)
        try:
            status = cli.main(["launch.py", f"--config={path}", f"--workdir={work}"])
        finally:
            full.__exit__()
    told = capsys.readouterr().err.splitlines()[-1]
    assert status == 3
    assert told.startswith(f"launch.py: step 20 was not saved in {work / 'checkpoints'} (") and "bytes needed" in told
    assert saved_steps(work) == [10]
    equal_after_resume(work, whole)


def test_F08_an_unwritable_workdir_fails_before_anything_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(um.runs, "compile_step", lambda *a, **k: pytest.fail("compiled"))
    assert cli.main(["launch.py", f"--config={ROOT}/configs/mlp.py", f"--workdir={tmp_path / 'file' / 'w'}"]) == 2
    told = capsys.readouterr().err
    assert "cannot be written" in told and told.count("\n") == 1


def test_F09_checkpoints_deleted_during_a_run_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: um.Result
) -> None:
    """Between two saves. In the middle of one, that save fails, which ends the run: F7."""
    work, before = tmp_path / "w", um.runs.Session.on_log

    def on_log(self: Any, step: int, metrics: Any) -> None:
        if step == 25:
            self.checkpoints.wait()
            shutil.rmtree(work / "checkpoints")
        before(self, step, metrics)

    with monkeypatch.context() as patched:
        patched.setattr(um.runs.Session, "on_log", on_log)
        result = um.run(config(), workdir=work, quiet=True)
    assert bits(result.ts, whole.ts)
    assert saved_steps(work) == [30, 40]
    equal_after_resume(work, whole)


# ----------------------------------------------------------------------------------------------------------- the writer
HOLD = """
import sys, time
from pathlib import Path
from umbrella.lock import Lock
Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_F15_two_processes_on_one_workdir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused in one line with pid and host; when the first is killed, the folder is free at once."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        argv = ["launch.py", f"--config={ROOT}/configs/mlp.py", f"--workdir={tmp_path}", "--config.train_for=2 steps"]
        assert cli.main(argv) == 2
        told = capsys.readouterr().err
        assert f"process {holder.pid} on {socket.gethostname()} writes there" in told and told.count("\n") == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock"]
    finally:
        holder.kill()
        holder.communicate()
    Lock(tmp_path).release()


def test_F15_this_process_itself_is_refused(tmp_path: Path) -> None:
    held = Lock(tmp_path)
    with pytest.raises(Busy, match=str(os.getpid())):
        Lock(tmp_path)
    held.release()
    held.release()
    Lock(tmp_path).release()
    assert (tmp_path / ".lock").read_bytes() == b""


def test_F15_a_session_that_fails_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: int) -> None:
        raise RuntimeError("no more data")

    with monkeypatch.context() as patched:
        during(patched, "on_log", fail)
        with pytest.raises(RuntimeError):
            um.run(config(), workdir=tmp_path, quiet=True)
    Lock(tmp_path).release()


@pytest.mark.parametrize(
    ("holder", "age", "free"),
    [
        ({"pid": 2**22 + 7, "host": socket.gethostname()}, 0, True),  # no such process: above the largest pid
        ({"pid": os.getppid(), "host": socket.gethostname()}, 1000, False),  # it lives, whatever the clock says
        ({"pid": 1, "host": "elsewhere"}, 30, False),  # a sign of life half a minute ago
        ({"pid": 1, "host": "elsewhere"}, 1000, True),
        ({"pid": "x"}, 0, True),
        ([], 0, True),
    ],
    ids=["gone", "alive", "elsewhere", "elsewhere, stale", "damaged", "of another kind"],
)
@pytest.mark.parametrize("locks", [True, False])
def test_F15_a_stale_lock_is_recognised(
    holder: Any, age: float, free: bool, locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a file system without locks. Where the kernel has them, they decide about processes of this host."""
    if not locks:
        monkeypatch.setattr(lock, "fcntl", None)
    elif holder and holder["pid"] == os.getppid():
        free = True  # the kernel says that it holds nothing: the number was given to another process since
    path = tmp_path / ".lock"
    path.write_text(json.dumps(holder))
    os.utime(path, (time.time() - age,) * 2)
    if free:
        Lock(tmp_path).release()
    else:
        with pytest.raises(Busy, match=f"process {holder['pid']} on {holder['host']}"):
            Lock(tmp_path)
        assert json.loads(path.read_text()) == holder
        assert time.time() - path.stat().st_mtime > age - 10  # asking is no sign of life of the holder


def test_F15_the_holder_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    held = Lock(tmp_path)
    try:
        os.utime(tmp_path / ".lock", (0, 0))
        for _ in range(100):
            time.sleep(0.05)
            if (tmp_path / ".lock").stat().st_mtime > 1000:
                break
        assert time.time() - (tmp_path / ".lock").stat().st_mtime < 60
    finally:
        held.release()
