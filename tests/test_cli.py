"""The command line as a person meets it: every mistake is one line that helps, with status 2 and nothing written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from umbrella import cli

VAE, MLP = f"--config={ROOT}/configs/vae.py", f"--config={ROOT}/configs/mlp.py"

MISTAKES = {
    "no config": ((), "--config: missing"),
    "no such file": ((f"--config={ROOT}/configs/vea.py",), "did you mean"),
    "no such variant": ((VAE + ":mnits",), "no such variant"),
    "typo in a flag": ((VAE, "--wrokdir=x"), "did you mean 'workdir'?"),
    "not a flag": ((VAE, "workdir"), "is no flag"),
    "no value": ((VAE, "--config.seed"), "a value is missing"),
    "typo in a key": ((VAE, "--config.batchsize=3"), "did you mean 'batch_size'?"),
    "typo in a section": ((VAE, "--config.optimizer.learning_rat=3"), "did you mean 'learning_rate'?"),
    "typo in the model": ((VAE, "--config.model.name=vea"), "did you mean 'vae'?"),
    "typo in a model's field": ((VAE, "--config.model.latnet=3"), "did you mean 'latent'?"),
    "typo in a technique": ((MLP, "--config.techniques=mixpu"), "did you mean 'mixup'?"),
    "typo in an unused section": ((MLP, "--config.sam.roh=1"), "did you mean 'rho'?"),
    "typo in the data": ((VAE, "--config.data.name=digit"), "did you mean 'digits'?"),
    "typo in the pipeline": ((VAE, "--config.pipeline=generativ"), "did you mean 'generative'?"),
    "typo in the mode": ((VAE, "--mode=trian"), "did you mean 'train'?"),
    "wrong type": ((VAE, "--config.seed=one"), "config.seed: 'one' is text, wanted int"),
    "zero batch": ((VAE, "--config.batch_size=0"), "config.batch_size: 0 must be >= 1"),
    "negative rate": ((VAE, "--config.optimizer.learning_rate=-1"), "must be > 0"),
    "negative seed": ((VAE, "--config.seed=-1"), "must be >= 0"),
    "no time": ((VAE, "--config.train_for=0 epochs"), "must be more than zero"),
    "never": ((VAE, "--config.train_for=never"), "never"),
    "longer than a step counts": ((VAE, "--config.train_for=1e300 steps"), "more than 2,147,483,646 steps"),
    "unknown unit": ((VAE, "--config.train_for=3 epocs"), "no unit 'epocs'"),
    "a section as a value": ((VAE, "--config.optimizer=adam"), "that is a section"),
    "technique without its setting": ((MLP, "--config.techniques=l2"), "config.l2.weight: missing"),
    "technique of another problem": ((MLP, "--config.techniques=importance_weighted"), "importance_weighted"),
    "what the data decides": ((MLP, "--config.model.out=3"), "the data decides this"),
    "slices": ((MLP, "--config.microbatches=3"), "do not divide"),
    "warm-up": ((MLP, "--config.optimizer.warmup=100 epochs"), "shorten it"),
    "chunk": ((VAE, "--config.importance_weighted.chunk=3"), "does not divide"),
    "devices": ((MLP, "--config.batch_size=33"), "does not divide over 2 devices"),
    "evaluate nothing": ((VAE, "--mode=evaluate"), "needs --workdir"),
}


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_a_mistake_is_one_line_and_status_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, hint = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["launch.py", *argv]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("launch.py: ")
    assert hint in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("def get_config(:\n", "line 1"),
        ("import nothing_of_this_name\n", "nothing_of_this_name"),
        ("x = 1\n", "has no function get_config"),
        ("def get_config():\n    return dict(pipeline='vision', bacth_size=3)\n", "batch_size"),
        ("def get_config():\n    return dict(a=1 / 0)\n", "line 2: ZeroDivisionError"),
    ],
)
def test_a_broken_config_file(text: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert cli.main(["launch.py", f"--config={path}"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert hint in told


def test_a_none_can_be_overridden_and_text_is_never_evaluated() -> None:
    config = cli.load_config(
        f"{ROOT}/configs/mlp.py",
        [("optimizer.clip", "1.5"), ("data.path", "a b"), ("model.activation", "__import__('os').getcwd()")],
    )
    assert config["optimizer"]["clip"] == 1.5
    assert config["data"]["path"] == "a b"
    assert config["model"]["activation"] == "__import__('os').getcwd()"


def run(*argv: str, **kw: object) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "launch.py", *argv], cwd=ROOT, env=env, capture_output=True, text=True, check=False, **kw
    )  # type: ignore[call-overload,no-any-return]


def test_help_is_quick_and_starts_no_device() -> None:
    began = time.perf_counter()
    told = run("--help")
    assert told.returncode == 0
    assert "--config.KEY=VALUE" in told.stdout
    assert time.perf_counter() - began < 2
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, umbrella, umbrella.cli; print('jax' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "False"


def test_training_imports_no_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys; from umbrella import cli; "
        f"status = cli.main(['launch.py', {VAE!r}, '--workdir={tmp_path}/w', '--config.train_for=2 steps', "
        "'--config.importance_weighted.samples=2', '--config.baselines=False']); "
        "print(status, 'tensorflow' in sys.modules, 'torch' in sys.modules)"
    )
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert told.stdout.strip().endswith("0 False False"), told.stderr


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_can_be_resumed(signum: int, status: int, tmp_path: Path) -> None:
    work = tmp_path / "w"
    args = [sys.executable, "launch.py", VAE, f"--workdir={work}", "--config.train_for=1000000 steps"]
    args += ["--config.log_every=50 steps", "--config.eval_every=never", "--config.checkpoint_every=never"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    child = subprocess.Popen(args, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = work / "metrics.jsonl"
    for _ in range(600):
        if lines.exists() and lines.read_text().count("\n") > 2:
            break
        time.sleep(0.1)
    child.send_signal(signum)
    out, err = child.communicate(timeout=60)
    assert child.returncode == status, err
    summary = json.loads((work / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert (work / "checkpoints" / str(summary["step"])).is_dir()
    assert (work / "report.html").is_file()
    assert "Traceback" not in err
    goal = summary["step"] + 10
    again = run(*args[2:-4], f"--config.train_for={goal} steps", "--config.importance_weighted.samples=2")
    assert again.returncode == 2  # the number of samples decides what is computed
    assert "importance_weighted.samples" in again.stderr
    again = run(*args[2:-4], f"--config.train_for={goal} steps", "--config.baselines=False")
    assert again.returncode == 0, again.stderr
    assert f"at step {summary['step']}" in again.stdout
