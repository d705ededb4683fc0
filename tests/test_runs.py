"""Runs from config to summary: what they leave behind, seeds as one program, exact resume, divergence."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import umbrella as um
from tests.conftest import ROOT
from tests.faults import kit
from tests.faults.kit import lines
from tests.helpers import bits, gap
from umbrella import cli
from umbrella.data import workers
from umbrella.loop import Diverged

SUMMARY = {
    "status", "config_name", "workdir", "step", "epochs", "seeds", "metrics", "baselines", "params", "compile_count",
    "examples_per_second", "seconds", "peak_rss_mb", "device", "versions", "git", "data",
    "skipped", "rollbacks",
}  # fmt: skip


def config(**more: Any) -> dict[str, Any]:
    """A small classifier of digits with dropout, BatchNorm, averages and label smoothing."""
    plain = {k: v for k, v in kit.config().items() if k != "mixup"}
    own = dict(log_every="10 steps", checkpoint_every="20 steps", techniques=("label_smoothing",))
    return {**plain, **own, **more}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> um.Result:
    return um.run(config(baselines=True), workdir=tmp_path_factory.mktemp("run") / "w", quiet=True)


def test_what_a_run_leaves_behind(finished: um.Result) -> None:
    work = finished.workdir
    summary = json.loads((work / "summary.json").read_text())
    assert set(summary) >= SUMMARY
    assert set(summary["seconds"]) == {"total", "compile", "step", "data_wait", "evaluate", "checkpoint", "earlier"}
    assert set(summary["data"]) == {"name", "source", "fingerprint", "n_train", "n_validation", "n_test", "overlap"}
    assert sum(v for k, v in summary["seconds"].items() if k != "total") <= summary["seconds"]["total"]
    # 64 * 32 weights (no bias before the norm), 32 + 32 of the norm, 32 * 10 + 10 of the head
    assert summary["params"] == 64 * 32 + 64 + 330
    assert summary["epochs"] == pytest.approx(40 * 64 / summary["data"]["n_train"])
    assert json.loads((work / "config.json").read_text())["label_smoothing"] == {"eps": 0.1}
    assert {p.name for p in (work / "checkpoints").iterdir() if p.is_dir()} == {"20", "40"}
    assert list(work.glob("events.out.tfevents.*"))
    assert (work / "artifacts" / "mistakes.png").is_file()
    assert "<html" in (work / "report.html").read_text()
    assert {"majority class", "logistic regression"} <= set(summary["baselines"])


def test_the_history_is_what_was_written(finished: um.Result) -> None:
    written = lines(finished.workdir)
    assert [(r["step"], r["split"]) for r in written] == [(h["step"], h["split"]) for h in finished.history]
    assert [r["step"] for r in written if r["split"] == "train"] == [10, 20, 30, 40]
    assert [r["step"] for r in written if r["split"] == "validation"] == [20, 40]


def test_it_learns(finished: um.Result) -> None:
    test = finished.summary["metrics"]["test"]["accuracy"]
    assert test > finished.summary["baselines"]["majority class"]["accuracy"] + 0.5


def test_the_test_split_is_looked_at_once(finished: um.Result) -> None:
    assert [h["step"] for h in finished.history if h["split"] == "test"] == [40]


@pytest.mark.parametrize("stop", [20, 33])
def test_resume_equals_going_on_to_the_bit(stop: int, finished: um.Result, tmp_path: Path) -> None:
    """Also from the middle of an epoch and of a log window; 1294 examples in batches of 64 are 20.2 steps an epoch."""
    um.run(config(train_for=f"{stop} steps"), workdir=tmp_path, quiet=True)
    resumed = um.run(config(), workdir=tmp_path, quiet=True)
    assert bits(resumed.ts, finished.ts)
    assert resumed.summary["metrics"] == finished.summary["metrics"]
    if stop == 20:
        train = [r for r in lines(tmp_path) if r["split"] == "train"]
        assert train == [r for r in lines(finished.workdir) if r["split"] == "train"]


def test_seeds_are_one_program_and_each_equals_its_solo_run(finished: um.Result, tmp_path: Path) -> None:
    both = um.run(config(seeds=2), workdir=tmp_path / "both", quiet=True)
    solo = um.run(config(seed=1), workdir=tmp_path / "solo", quiet=True)
    for k, one in enumerate((finished, solo)):
        assert gap(both.ts.view().lane(k).params, one.ts.params) < 1e-4
    told = both.summary["metrics"]["test"]["accuracy"]
    assert told["n"] == 2
    singles = [r.summary["metrics"]["test"]["accuracy"] for r in (finished, solo)]
    assert told["values"] == pytest.approx(singles, abs=0.006)  # at most two of 359 examples fall otherwise
    # Student's t for two values: half-width t(.975, 1) sd / sqrt(2) = 12.7062 |a - b| / 2
    a, b = told["values"]
    assert told["ci95"][1] - told["mean"] == pytest.approx(12.7062 * abs(a - b) / 2, rel=1e-4)
    resumed = um.run(config(seeds=2, train_for="60 steps"), workdir=tmp_path / "both", quiet=True)
    assert resumed.summary["step"] == 60


def test_init_from_starts_at_the_other_runs_parameters(finished: um.Result, tmp_path: Path) -> None:
    start = um.run(
        config(train_for="1 steps", optimizer=dict(name="sgd", learning_rate=1e-9)),
        workdir=tmp_path / "w",
        init_from=finished.workdir,
        quiet=True,
    )
    assert gap(start.ts.params, finished.ts.params) < 1e-6
    with pytest.raises(um.SettingsError, match="hidden_0"):
        um.run(
            config(model=dict(name="mlp", hidden=(16,), norm="batch")),
            workdir=tmp_path / "x",
            init_from=finished.workdir,
            quiet=True,
        )
    with pytest.raises(um.SettingsError, match="no checkpoints there"):
        um.run(config(), workdir=tmp_path / "y", init_from=tmp_path / "nowhere", quiet=True)
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()  # a mistake leaves nothing behind


def test_a_fresh_head_takes_everything_else_over(finished: um.Result, tmp_path: Path) -> None:
    """Two classes instead of ten: the head cannot be the other run's, and the rest is to the bit."""
    x, y = np.random.default_rng(0).integers(0, 17, (40, 8, 8, 1), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "two.npz", x=x, y=y)
    other = config(
        data=dict(name="two", path=str(tmp_path / "two.npz")),
        train_for="5 steps",
        batch_size=4,
        optimizer=dict(name="sgd", learning_rate=0.1, rules=(("model/head/.*", {}), (".*", dict(freeze=True)))),
    )
    with pytest.raises(um.SettingsError, match="model/head.*--config.fresh=model/head"):
        um.run(other, workdir=tmp_path / "x", init_from=finished.workdir, quiet=True)
    other["fresh"] = ("model/haed",)
    with pytest.raises(um.SettingsError, match=r"config.fresh: there is no 'model/haed' \(did you mean 'model/head'"):
        um.run(other, workdir=tmp_path / "x", init_from=finished.workdir, quiet=True)
    other["fresh"] = ("model/head",)
    with pytest.raises(um.SettingsError, match="config.fresh: is about what is not taken from another run"):
        um.run(other, workdir=tmp_path / "x", quiet=True)
    made = um.run(other, workdir=tmp_path / "w", init_from=finished.workdir, quiet=True).ts.params["model"]
    before = finished.ts.params["model"]
    assert made["head"]["kernel"].shape[-1] == 2 and np.abs(made["head"]["bias"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, *({k: v for k, v in p.items() if k != "head"} for p in (made, before)))


def test_another_config_in_the_same_workdir_is_refused(finished: um.Result) -> None:
    before = (finished.workdir / "config.json").read_bytes()
    with pytest.raises(um.SettingsError, match=r"optimizer.learning_rate was 0.003, is 0.1"):
        um.run(config(optimizer=dict(name="adam", learning_rate=0.1)), workdir=finished.workdir, quiet=True)
    assert (finished.workdir / "config.json").read_bytes() == before


def test_a_non_finite_loss_stops_the_run_and_names_the_step_and_the_leaf(tmp_path: Path) -> None:
    blow_up = config(optimizer=dict(name="sgd", learning_rate=1e38), model=dict(name="mlp", hidden=(8,)), ema=0.0)
    with pytest.raises(Diverged, match=r"not finite at step \d+; first bad leaf: ") as error:
        um.run(blow_up, workdir=tmp_path, quiet=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "diverged"
    assert summary["step"] == error.value.step
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(error.value.ts.params)))
    assert not any(p.is_dir() and p.name.isdigit() for p in (tmp_path / "checkpoints").iterdir())
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_went_wrong_is_found_by_making_the_steps_since_the_checkpoint_again(seeds: int, tmp_path: Path) -> None:
    """A decay of 11 makes every weight -10 times what it was: the square of 1.1e4 w overflows when w is 1e15."""
    grows = config(optimizer=dict(name="sgd", learning_rate=1e-3), techniques=("l2",), l2=dict(weight=1.1e4))
    grows |= dict(seeds=seeds, eval_every="never", checkpoint_every="3 steps", model=dict(name="mlp", hidden=(8,)))
    grows |= dict(log_every="5 steps", train_for="100 steps")
    with pytest.raises(Diverged, match="first bad leaf: norm of the gradient") as error:
        um.run(grows, workdir=tmp_path / "w", quiet=True)
    bad = error.value.step
    assert 10 < bad < 40
    saved = [int(p.name) for p in (tmp_path / "w" / "checkpoints").iterdir() if p.name.isdigit()]
    assert max(saved) == bad // 3 * 3
    before = um.run(grows | dict(train_for=f"{bad} steps"), workdir=tmp_path / "before", quiet=True).ts
    assert bits(error.value.ts.params, before.params)
    assert bits(error.value.ts.opt_state["all"], before.opt_state["all"])


def test_skipping_goes_on(tmp_path: Path) -> None:
    blow_up = config(
        optimizer=dict(name="sgd", learning_rate=1e38),
        model=dict(name="mlp", hidden=(8,)),
        ema=0.0,
        on_nonfinite="skip",
        eval_every="never",
        checkpoint_every="never",
    )
    result = um.run(blow_up, workdir=tmp_path, quiet=True)
    assert result.summary["step"] == 40
    skipped = [h["skipped"] for h in result.history if h["split"] == "train"]
    assert max(skipped) > 0


@pytest.mark.parametrize("mode", ["evaluate", "sample", "predict"])
def test_the_other_modes(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.py"
    path.write_text(f"def get_config():\n    return {config(train_for='5 steps')!r}\n")
    args = ["launch.py", f"--config={path}", f"--workdir={tmp_path / 'w'}"]
    assert cli.main([*args, f"--mode={mode}"]) == 2
    assert "no run there" in capsys.readouterr().err
    assert cli.main(args) == 0
    told = capsys.readouterr().out
    assert cli.main([*args, f"--mode={mode}"]) == 0
    again = capsys.readouterr().out
    if mode == "evaluate":
        line = next(row for row in told.splitlines() if "accuracy" in row and row.strip().startswith("test"))
        assert line in again
    elif mode == "sample":
        assert "mistakes" in again
    else:
        made = np.load(tmp_path / "w" / "artifacts" / "predictions.npz")
        assert made["label"].shape == (359,)
        np.testing.assert_allclose(made["probabilities"].sum(-1), 1, atol=1e-5)


def test_a_trained_run_is_evaluated_in_another_way_and_goes_on_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an attack that it knew nothing of and a default length of training: its config stays, so the first command
    finds its run again, and what it trained for counts into the seconds; and it is no place for a diagnosis."""
    path, work = tmp_path / "small.py", tmp_path / "w"
    path.write_text(f"def get_config():\n    return {config(train_for='9 steps')!r}\n")
    args = ["launch.py", f"--config={path}", f"--workdir={work}"]
    shorter = "--config.train_for=5 steps"
    assert cli.main([*args, shorter]) == 0
    before, spent = (work / "config.json").read_bytes(), json.loads((work / "summary.json").read_text())["seconds"]
    capsys.readouterr()
    attack = '--config.adversarial={"eps": 0.1, "steps": 2}'
    attacked = ('--config.evals={"test": (), "attacked": ("adversarial",)}', attack)
    assert cli.main([*args, "--mode=evaluate", *attacked]) == 0
    said = capsys.readouterr().out
    assert "Read " in said and "at step 5" in said and "learning rate" not in said
    assert (work / "config.json").read_bytes() == before
    told = json.loads((work / "summary.json").read_text())
    assert told["metrics"]["attacked"]["accuracy"] <= told["metrics"]["test"]["accuracy"]
    assert told["step"] == 5 and told["seconds"] == spent
    assert told["evaluated_with"]["adversarial"]["eps"] == 0.1 and "attacked" in (work / "report.html").read_text()
    for mode in ("diagnose", "table"):
        assert cli.main([*args, shorter, f"--mode={mode}"]) == 2
        assert f"holds a run, and --mode={mode} needs a folder of its own" in capsys.readouterr().err
    assert json.loads((work / "summary.json").read_text()) == told
    assert cli.main([*args, shorter]) == 0
    again = json.loads((work / "summary.json").read_text())
    assert again["step"] == 5 and 0 < again["seconds"]["earlier"] <= spent["total"]


def test_an_evaluation_that_a_signal_left_out_is_made_up_at_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while steps 16 to 20 are one call, where an evaluation is due: it saves and ends."""
    how = config(train_for="40 steps", log_every="5 steps", eval_every="20 steps", steps_per_call=5)
    with monkeypatch.context() as patch:
        kit.during(patch, "on_log", lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 10 else None)
        stopped = um.run(how, workdir=tmp_path / "w", quiet=True)
    assert (stopped.summary["status"], stopped.summary["step"]) == ("interrupted", 20)
    assert not [line for line in lines(tmp_path / "w") if line["split"] == "validation"]
    um.run(how, workdir=tmp_path / "w", quiet=True)
    um.run(how, workdir=tmp_path / "whole", quiet=True)
    ours, theirs = (
        [(x["step"], x["loss"]) for x in lines(tmp_path / w) if x["split"] == "validation"] for w in ("w", "whole")
    )
    assert ours == theirs and [step for step, _ in ours] == [20, 40]


def test_a_pipe_that_closes_ends_no_training(tmp_path: Path) -> None:
    """As by `| head -1`: it trains to the end, and ends as what is killed by SIGPIPE, without a traceback."""
    path = tmp_path / "small.py"
    path.write_text(f"def get_config():\n    return {config(train_for='5 steps')!r}\n")
    command = [sys.executable, "launch.py", f"--config={path}", f"--workdir={tmp_path / 'w'}"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=env, **how) as p:
        assert p.stdout is not None and p.stderr is not None
        assert "from scratch" in p.stdout.readline()
        p.stdout.close()
        said = p.stderr.read()
    assert p.returncode == 128 + 13 and "Traceback" not in said and "Exception ignored" not in said
    assert json.loads((tmp_path / "w" / "summary.json").read_text())["status"] == "finished"


def test_a_streamed_set_trains_the_same(finished: um.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of images, in memory and read by worker processes: the same batches, so the same parameters. Workers
    take seconds to start: they do so once, for the training alone."""
    from PIL import Image

    started, in_order = [], workers.in_order

    def watched(make: Any, start: int, stop: int, many: int) -> Any:
        started.append((start, stop))
        return in_order(make, start, stop, many)

    monkeypatch.setattr(workers, "in_order", watched)

    digits = um.data.load(name="digits")
    rows = digits.train.__getitems__(np.arange(200))
    for i, (x, y) in enumerate(zip(rows["x"], rows["y"], strict=True)):
        folder = tmp_path / "images" / f"digit{y}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[..., 0] * 15).save(folder / f"{i}.png")
    short = dict(train_for="6 steps", checkpoint_every="never", eval_every="never", batch_size=32)
    where = dict(name="mine", path=str(tmp_path / "images"))
    ram = um.run(config(**short, data=where), workdir=tmp_path / "a", quiet=True)
    lazy = um.run(config(**short, data=where | dict(in_memory=False)), workdir=tmp_path / "b", quiet=True)
    assert gap(ram.ts.params, lazy.ts.params) < 1e-6
    assert started == [(0, 6)]
