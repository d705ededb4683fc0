"""Several processes that train as one, over loopback: they get what one process gets, and none is left waiting."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.conftest import ROOT, needs_mnist, tfds_dir
from umbrella import cli, distributed
from umbrella.checkpoint import read_meta
from umbrella.data import Arrays, Share, batches, streaming
from umbrella.manifest import survey
from umbrella.settings import SettingsError

SHORT = (
    "--config.evals={'test': ()}",
    "--config.baselines=False",
    "--config.log_every=10 steps",
    "--config.eval_every=20 steps",
    "--config.checkpoint_every=20 steps",
    "--config.train_for=40 steps",
)
MLP = ("--config=configs/mlp.py", "--config.model.hidden=(32,)")
QUICK = (*MLP, *SHORT)
CARRY = (
    "--config=configs/char_lm.py:lstm",
    "--config.model.width=16",
    "--config.batch_size=8",
    "--config.eval_batch_size=8",
    "--config.sample.length=5",
)
NOISE = r"^\[Gloo\]|resource_tracker"  # of libraries: of Gloo's, and of Grain's that it leaves for Python to clean up


class Group:
    """So many processes of launch.py, on one device each, that find each other on a free port."""

    def __init__(self, n: int, folder: Path, workdir: Path, *args: str, devices: int = 1, own: Sequence[str] = ()):
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        folder.mkdir(exist_ok=True)
        self.folder, self.all = folder, []
        for i in range(n):
            command = [sys.executable, "launch.py", f"--workdir={workdir}", *args]
            if n > 1:
                command += [f"--coordinator=localhost:{port}", f"--processes={n}", f"--process={i}"]
            command += own if i == n - 1 else ()
            with open(folder / f"{i}.out", "w") as out, open(folder / f"{i}.err", "w") as err:
                self.all.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=err))

    def ends(self, *, within: float = 300.0) -> list[int]:
        """The exit statuses, once all have ended."""
        until = time.monotonic() + within
        return [p.wait(timeout=max(0.1, until - time.monotonic())) for p in self.all]

    def said(self, i: int) -> str:
        return (self.folder / f"{i}.out").read_text() + (self.folder / f"{i}.err").read_text()

    def at(self, step: int, workdir: Path) -> None:
        """Returns once a checkpoint of this step, or a later one, is there."""
        until = time.monotonic() + 200
        while not any(s >= step for s in steps(workdir)):
            assert time.monotonic() < until and self.all[0].poll() is None, self.said(0)
            time.sleep(0.05)


@contextlib.contextmanager
def group(*args: Any, **kw: Any) -> Iterator[Group]:
    made = Group(*args, **kw)
    try:
        yield made
    finally:
        for p in made.all:
            p.kill()
            p.wait()


def steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return survey(folder).steps if folder.is_dir() else []


def lines(workdir: Path, split: str) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in told if line["split"] == split]


def together(n: int, folder: Path, name: str, *args: str, what: Sequence[str] = MLP, **kw: Any) -> Path:
    workdir = folder / name
    with group(n, folder / f"{name}-said", workdir, *what, *SHORT, *args, **kw) as g:
        ended = g.ends()
        assert ended == [0] * n, "\n".join(g.said(i)[-2000:] for i in range(n))
        assert "from scratch" in g.said(0) or "Resuming" in g.said(0)
        for i in range(1, n):  # what is there to say, the first says
            assert [line for line in g.said(i).splitlines() if not re.search(NOISE, line)] == []
    return workdir


def same(a: Path, b: Path, *, within: float = 2e-5) -> None:
    """The same losses, gradients and evaluations, and one copy of each line."""
    for split in ("train", "validation", "test"):
        ours, theirs = (lines(w, split) for w in (a, b))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs], split
        assert ours, split
        for left, right in zip(ours, theirs, strict=True):
            for name in left.keys() - {"seconds"}:
                if isinstance(left[name], str):
                    assert left[name] == right[name]
                else:
                    np.testing.assert_allclose(
                        left[name], right[name], rtol=within, atol=within, err_msg=f"{split} {name}"
                    )
    assert len(list(a.glob("events.out.*"))) == len(list(b.glob("events.out.*"))) == 1


def test_two_processes_are_one_run(tmp_path: Path) -> None:
    alone = together(1, tmp_path, "alone")
    two = together(2, tmp_path, "two")
    same(alone, two)
    assert steps(two) == steps(alone) == [20, 40]
    told = json.loads((two / "summary.json").read_text())
    assert told["device"]["processes"] == 2 and told["status"] == "finished"
    assert (two / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "what", "args"),
    [
        (4, MLP, ("--config.model.norm=batch",)),  # its statistics are of the rows of all
        (2, MLP, ("--config.mesh.fsdp=4", "--config.model.hidden=(256,)", "--config.microbatches=2")),
        (2, MLP, ("--config.mesh.model=4", "--config.model.hidden=(256,)")),  # matrices cut between processes
        (2, MLP, ("--config.seeds=4", "--config.mesh.seed=4", "--config.order=own", "--config.steps_per_call=5")),
        (2, CARRY, ()),  # states of rows that go on from batch to batch
        (2, MLP, ("--config.reduction=fixed", "--config.mesh.data=4", "--config.techniques=('mixup',)")),
    ],
)
def test_any_mesh_over_processes(n: int, what: tuple[str, ...], args: tuple[str, ...], tmp_path: Path) -> None:
    """Four devices each time, in one process and in several."""
    one, several = (together(k, tmp_path, str(k), *args, what=what, devices=4 // k) for k in (1, n))
    same(one, several)


@pytest.mark.slow
@needs_mnist
def test_each_process_reads_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir()))
    lazily = ("--config=configs/mlp.py:mnist", "--config.data.in_memory=False", "--config.eval_every=40 steps")
    same(*(together(k, tmp_path, str(k), *lazily, devices=2 // k) for k in (1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_when_one_is_killed_none_waits_and_all_of_them_go_on(victim: int, tmp_path: Path) -> None:
    """kill -9 of one of three; then as many processes, or as many devices in one, end as if nothing had been."""
    forever = ("--config.train_for=100000 steps", "--config.optimizer.schedule=constant")
    work = tmp_path / "run"
    with group(3, tmp_path / "killed", work, *QUICK, *forever, "--config.batch_size=48") as g:
        g.at(40, work)
        g.all[victim].kill()
        began = time.monotonic()
        ended = g.ends(within=60)
        assert time.monotonic() - began < 60
        assert ended[victim] == -signal.SIGKILL
        others = [i for i in range(3) if i != victim]
        if victim:
            assert [ended[i] for i in others] == [5, 5]
            for i in others:
                assert f"process {i} of 3): another process of this run was lost. Start all of them again" in g.said(i)
        else:  # without the first, JAX mostly ends the others itself, and says that a process died
            assert all(ended[i] in (5, -signal.SIGABRT) for i in others)
    saved = steps(work)[-1]
    more = ("--config.optimizer.schedule=constant", "--config.batch_size=48", f"--config.train_for={saved + 40} steps")
    goes_on = together(1 if victim else 2, tmp_path, "run", *more, devices=3 if victim else 1)
    assert steps(goes_on)[-1] == saved + 40
    never_stopped = together(1, tmp_path, "whole", *more)
    ours, theirs = (lines(w, "train")[-1] for w in (goes_on, never_stopped))
    assert ours["step"] == theirs["step"] == saved + 40
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-3)
    assert lines(goes_on, "test")[-1]["accuracy"] == pytest.approx(
        lines(never_stopped, "test")[-1]["accuracy"], abs=0.01
    )


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path: Path) -> None:
    work = tmp_path / "run"
    how = (*QUICK, "--config.train_for=100000 steps", "--config.checkpoint_every=50 steps")
    with group(2, tmp_path / "said", work, *how) as g:
        g.at(50, work)
        g.all[1].send_signal(signal.SIGTERM)
        assert g.ends(within=60) == [128 + signal.SIGTERM] * 2, g.said(0) + g.said(1)
    told = json.loads((work / "summary.json").read_text())
    assert told["status"] == "interrupted"
    assert steps(work)[-1] == told["step"]
    meta = read_meta(work / "checkpoints")
    assert meta is not None and meta["position"] == told["step"]


@pytest.mark.slow
def test_signals_to_all_and_a_resume_to_the_bit(tmp_path: Path) -> None:
    """As a scheduler sends them, to every process; then the same processes go on as if they had never been stopped."""
    work, how = tmp_path / "run", (*QUICK, "--config.train_for=400 steps", "--config.checkpoint_every=50 steps")
    with group(2, tmp_path / "said", work, *how) as g:
        g.at(50, work)
        for p in g.all:
            p.send_signal(signal.SIGTERM)
        assert g.ends(within=60) == [128 + signal.SIGTERM] * 2, g.said(0) + g.said(1)
    at = json.loads((work / "summary.json").read_text())["step"]
    assert steps(work)[-1] == at < 400
    more = ("--config.train_for=400 steps", "--config.checkpoint_every=50 steps")
    resumed, whole = together(2, tmp_path, "run", *more), together(2, tmp_path, "whole", *more)
    ours, theirs = ([{**x, "seconds": 0} for x in lines(w, "test")] for w in (resumed, whole))
    assert ours == theirs
    ours, theirs = ({x["step"]: x["loss"] for x in lines(w, "validation")} for w in (resumed, whole))
    assert ours == theirs and len(ours) == 20


@pytest.mark.slow
def test_a_signal_while_the_first_one_writes_ends_all(tmp_path: Path) -> None:
    """Outside of the loop there is nothing to agree on: each leaves, and what was saved stands."""
    work = tmp_path / "run"
    own = "--config.baselines=True"  # takes the first one a while, for which the other waits
    with group(2, tmp_path / "said", work, *QUICK, own) as g:
        g.at(40, work)
        for p in g.all:
            p.send_signal(signal.SIGTERM)
        ended = g.ends(within=60)
        assert all(e not in (1, 2) for e in ended) and (ended != [0, 0] or (work / "report.html").is_file())
    assert steps(work)[-1] == 40


@pytest.mark.slow
def test_patience_a_start_from_another_run_and_a_profile(tmp_path: Path) -> None:
    before = together(2, tmp_path, "before")
    work = tmp_path / "after"
    how = ("--config.keep_best=loss", "--config.patience=40 steps", "--config.train_for=80 steps")
    with group(2, tmp_path / "said", work, *QUICK, *how, f"--init_from={before}", "--profile=5:10") as g:
        assert g.ends() == [0, 0], g.said(0) + g.said(1)
    assert "from the parameters of" in g.said(0) and "costliest" in str(list((work / "artifacts").iterdir()))
    assert sorted(p.name for p in (work / "profile").iterdir()) == ["0", "1"]


@pytest.mark.slow
def test_what_is_not_finite_ends_all_with_the_same_word(tmp_path: Path) -> None:
    how = (
        "--config.optimizer.name=sgd",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.weight_decay=0.0",
    )
    with group(2, tmp_path / "said", tmp_path / "run", *QUICK, *how) as g:
        assert g.ends(within=120) == [4, 4]
        for i in range(2):
            assert "diverged: the loss or its gradient was not finite at step" in g.said(i)


@pytest.mark.slow
def test_what_is_wrong_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    work = tmp_path / "run"
    with group(2, tmp_path / "typo", work, *QUICK, "--config.optimizer.learning_rat=1") as g:
        assert g.ends(within=60) == [2, 2]
        assert "did you mean 'learning_rate'" in g.said(0)
    with group(2, tmp_path / "other", work, *QUICK, own=("--config.optimizer.learning_rate=0.5",)) as g:
        assert g.ends(within=60) == [2, 2]
        for i in range(2):
            assert "the config of process 1 is not that of process 0" in g.said(i)
    with group(2, tmp_path / "cadence", work, *QUICK, own=("--config.log_every=7 steps",)) as g:
        assert g.ends(within=60) == [2, 2]  # they would wait for each other after different steps
    with group(2, tmp_path / "mode", work, *QUICK, own=("--init_from=runs/another",)) as g:
        assert g.ends(within=60) == [2, 2]
        assert "one of --mode, --workdir, --init_from and --profile of process 1 is not that of process 0" in g.said(0)
    with group(2, tmp_path / "pmap", work, *QUICK, "--config.compile=pmap") as g:
        assert g.ends(within=60) == [2, 2]
        assert "'pmap' is for the devices of one process" in g.said(0)
    assert not work.exists()


@pytest.mark.slow
def test_a_run_of_two_is_evaluated_by_two_and_by_one(tmp_path: Path) -> None:
    work = together(2, tmp_path, "run")
    before = json.loads((work / "summary.json").read_text())["metrics"]["test"]
    for n in (2, 1):
        with group(n, tmp_path / f"evaluated-{n}", work, *QUICK, "--mode=evaluate") as g:
            assert g.ends() == [0] * n, g.said(0)
        now = json.loads((work / "summary.json").read_text())["metrics"]["test"]
        assert now["loss"] == pytest.approx(before["loss"], rel=1e-5)
        assert now["accuracy"] == before["accuracy"]


# ------------------------------------------------------------------------------------------------------ without others
class Counted(Arrays):
    """A source that knows which of its rows were asked for."""

    def __init__(self, n: int):
        super().__init__({"x": np.arange(n)})
        self.asked: list[int] = []

    def __getitems__(self, rows: Any) -> Any:
        self.asked += np.asarray(rows).tolist()
        return super().__getitems__(rows)


@pytest.mark.parametrize("named", [False, True])
def test_a_share_of_a_stream_is_part_of_the_whole_and_reads_no_more(named: bool) -> None:
    source = Counted(50)
    data = streaming(source, 8, workers=0, named=named)
    assert data.share is not None
    for seeds in ((3,), (3, 4)):
        whole = list(data.stream(seeds, 4, 9))  # across the end of an epoch
        source.asked.clear()
        part = list(data.share(Share(2, 5, 8)).stream(seeds, 4, 9))
        assert len(source.asked) == 5 * 3 * len(seeds)
        for a, b in zip(whole, part, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name][..., 2:5], b[name])


def test_a_share_of_the_batches_of_an_evaluation() -> None:
    source = Counted(11)
    whole = list(batches(source, 4))
    source.asked.clear()
    parts = [list(batches(source, 4).share(Share(lo, hi, 4))) for lo, hi in ((0, 3), (3, 4))]
    assert len(source.asked) == 12
    for i, batch in enumerate(whole):
        for name in ("x", "mask"):
            np.testing.assert_array_equal(batch[name], np.concatenate([p[i][name] for p in parts]))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--coordinator=here",), "write HOST:PORT"),
        (("--coordinator=here:x", "--processes=2", "--process=0"), "write HOST:PORT"),
        (("--coordinator=here:12",), "--processes=N --process="),
        (("--coordinator=here:12", "--processes=2"), "--processes=N --process="),
        (("--coordinator=here:12", "--processes=2", "--process=2"), "it is one of 0 to 1"),
        (("--coordinator=auto", "--processes=2"), "leave --processes and --process out"),
        (("--processes=2", "--process=0"), "Give --coordinator"),
        (("--coordinator=here:12", "--verify_resume"), "--verify_resume is for one process"),
        (("--coordinator=here:12", "--preflight"), "--preflight is for one process"),
        (("--coordinator=here:12", "--mode=diagnose"), "diagnose is for one process"),
    ],
)
def test_flags_that_do_not_fit(args: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["launch.py", "--config=configs/mlp.py", *args]) == 2
    told = capsys.readouterr().err
    assert re.search(re.escape(words), told) and len(told.splitlines()) == 1


@pytest.mark.parametrize("process", [0, 1])
def test_who_is_left_alone_says_so_and_ends(process: int) -> None:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    code = f"from umbrella import distributed; distributed.start('localhost:{port}', 2, {process}, patience=4.0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    waiting, ended = [line for line in done.stderr.splitlines() if line.startswith("launch.py")]
    assert f"(process {process} of 2): --coordinator=localhost:{port}: waiting for the other" in waiting
    assert "not all processes came within 4 seconds" in ended


def test_without_others_all_is_as_ever() -> None:
    assert distributed.told_by_first(lambda: {"a": (1, 2)}) == {"a": (1, 2)}  # not by way of JSON
    with pytest.raises(SettingsError, match="mine"):
        distributed.by_first(lambda: (_ for _ in ()).throw(SettingsError("mine")))
    assert distributed.most(-3) == -3
    distributed.check_same("the config", "x")
    tree = {"x": jax.numpy.arange(3)}
    assert distributed.local(tree) is tree
    assert isinstance(distributed.fetch(tree)["x"], np.ndarray)
    assert distributed.leave(5) == 5


def test_a_poll_asks_now_and_then_and_where_it_is_due() -> None:
    poll = distributed.Poll()
    assert poll(0, None, True) is None  # now it knows of no pace: it asks again after the next step
    assert poll(1, signal.SIGTERM, False) == signal.SIGTERM
    ask = distributed.Poll()
    ask(0, None, True)
    ask(1, None, False)  # one step took next to nothing, so thousands lie between two questions
    assert ask(2, signal.SIGINT, False) is None
    assert ask(2, signal.SIGINT, True) == signal.SIGINT


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), True),
        (RuntimeError("NCCL operation ncclAllReduce failed: remote process exited"), True),
        (distributed.Lost("the first process failed"), True),
        (ValueError("shapes do not fit: (3,) and (4,)"), False),
    ],
)
def test_which_errors_tell_of_a_lost_process(error: Exception, lost: bool) -> None:
    assert distributed.is_loss(error) is lost
