"""F33 to F41: what a person gets wrong on the command line and in a config: one line that helps, status 2, nothing
written."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.kit import summary
from umbrella import cli

VAE, MLP = f"--config={ROOT}/configs/vae.py", f"--config={ROOT}/configs/mlp.py"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *argv: str, hint: str) -> None:
    before = sorted(Path().iterdir())
    assert cli.main(["launch.py", *argv]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("launch.py: ")
    assert hint in told
    assert "Traceback" not in told
    assert sorted(Path().iterdir()) == before


TYPOS = {
    "no config": ((), "--config: missing"),
    "typo in a flag": ((VAE, "--wrokdir=x"), "did you mean 'workdir'?"),
    "not a flag": ((VAE, "workdir"), "is no flag"),
    "no value": ((VAE, "--config.seed"), "a value is missing"),
    "typo in a key": ((VAE, "--config.batchsize=3"), "did you mean 'batch_size'?"),
    "typo in a section": ((VAE, "--config.optimizer.learning_rat=3"), "did you mean 'learning_rate'?"),
    "typo in the model": ((VAE, "--config.model.name=vea"), "did you mean 'vae'?"),
    "typo in a model's field": ((VAE, "--config.model.latnet=3"), "did you mean 'latent'?"),
    "typo in a technique": ((MLP, "--config.techniques=mixpu"), "did you mean 'mixup'?"),
    "typo in the data": ((VAE, "--config.data.name=digit"), "did you mean 'digits'?"),
    "typo in the pipeline": ((VAE, "--config.pipeline=generativ"), "did you mean 'generative'?"),
    "typo in the mode": ((VAE, "--mode=trian"), "did you mean 'train'?"),
    "a section as a value": ((VAE, "--config.optimizer=adam"), "that is a section"),
    "evaluate nothing": ((VAE, "--mode=evaluate"), "needs --workdir"),
}


@pytest.mark.parametrize("name", sorted(TYPOS))
def test_F33_a_typo_on_the_command_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, hint = TYPOS[name]
    refused(capsys, *argv, hint=hint)


WRONG_SECTIONS = {
    "typo in an unused section": ((MLP, "--config.sam.roh=1"), "did you mean 'rho'?"),
    "technique without its setting": ((MLP, "--config.techniques=l2"), "config.l2.weight: missing"),
    "technique of another problem": ((MLP, "--config.techniques=importance_weighted"), "importance_weighted"),
    "what the data decides": ((MLP, "--config.model.out=3"), "the data decides this"),
}


@pytest.mark.parametrize("name", sorted(WRONG_SECTIONS))
def test_F34_a_section_that_does_not_fit(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, hint = WRONG_SECTIONS[name]
    refused(capsys, *argv, hint=hint)


TYPES = {
    "wrong type": ((VAE, "--config.seed=one"), "config.seed: 'one' is text, wanted int"),
    "text for a number": (
        (MLP, "--config.optimizer.learning_rate=fast"),
        "learning_rate: 'fast' is text",
    ),
    "a fraction for a whole": ((MLP, "--config.batch_size=1.5"), "config.batch_size: 1.5 is float, wanted int"),
    "a number for a yes or no": ((MLP, "--config.baselines=3"), "config.baselines: 3 is int, wanted bool"),
    "a number for a duration": ((MLP, "--config.train_for=3"), "config.train_for"),
}


@pytest.mark.parametrize("name", sorted(TYPES))
def test_F35_a_value_of_the_wrong_type(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, hint = TYPES[name]
    refused(capsys, *argv, hint=hint)


RANGES = {
    "zero batch": ((VAE, "--config.batch_size=0"), "config.batch_size: 0 must be >= 1"),
    "negative rate": ((VAE, "--config.optimizer.learning_rate=-1"), "must be > 0"),
    "negative seed": ((VAE, "--config.seed=-1"), "must be >= 0"),
    "no time": ((VAE, "--config.train_for=0 epochs"), "must be more than zero"),
    "never": ((VAE, "--config.train_for=never"), "never"),
    "longer than a step counts": ((VAE, "--config.train_for=1e300 steps"), "more than 2,147,483,646 steps"),
    "unknown unit": ((VAE, "--config.train_for=3 epocs"), "no unit 'epocs'"),
    "slices": ((MLP, "--config.microbatches=3"), "do not divide"),
    "warm-up": ((MLP, "--config.optimizer.warmup=100 epochs"), "shorten it"),
    "chunk": ((VAE, "--config.importance_weighted.chunk=3"), "does not divide"),
}


@pytest.mark.parametrize("name", sorted(RANGES))
def test_F36_a_number_or_a_duration_out_of_range(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, hint = RANGES[name]
    refused(capsys, *argv, hint=hint)


NO_CONFIG = {
    "no such file": ((f"--config={ROOT}/configs/vea.py",), "did you mean"),
    "no such variant": ((VAE + ":mnits",), "no such variant"),
}


@pytest.mark.parametrize("name", sorted(NO_CONFIG))
def test_F38_no_such_config(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, hint = NO_CONFIG[name]
    refused(capsys, *argv, hint=hint)


DEVICES = {
    "devices": ((MLP, "--config.batch_size=33"), "does not divide over 2 devices"),
}


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_F40_a_batch_that_does_not_divide(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, hint = DEVICES[name]
    refused(capsys, *argv, hint=hint)


IN_A_FILE = {
    "a typo": ("return dict(pipeline='vision', bacth_size=3)", "did you mean 'batch_size'?"),
    "a typo in a section": (
        "return dict(pipeline='vision', data=dict(name='digits'), model=dict(name='mlp', hiden=(3,)), "
        "optimizer=dict(name='adam', learning_rate=1e-3), batch_size=4, train_for='1 steps', evals={})",
        "did you mean 'hidden'?",
    ),
    "a key missing": ("return dict(pipeline='vision', data=dict(name='digits'))", "missing"),
}


@pytest.mark.parametrize("name", sorted(IN_A_FILE))
def test_F34_a_typo_in_a_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where ml_collections would say nothing."""
    body, hint = IN_A_FILE[name]
    Path("mine.py").write_text(f"def get_config():\n    {body}\n")
    refused(capsys, "--config=mine.py", hint=hint)


def test_F37_a_none_can_be_overridden_and_text_is_never_evaluated() -> None:
    config = cli.load_config(
        f"{ROOT}/configs/mlp.py",
        [("optimizer.clip", "1.5"), ("data.path", "a b"), ("model.activation", "__import__('os').getcwd()")],
    )
    assert config["optimizer"]["clip"] == 1.5
    assert config["data"]["path"] == "a b"
    assert config["model"]["activation"] == "__import__('os').getcwd()"


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
def test_F38_a_config_that_does_not_run(text: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text(text)
    refused(capsys, "--config=broken.py", hint=hint)


@pytest.mark.parametrize("workdir", ["a b/c d", "ünïcode/日本", "./here/../there", "with'quote", "--dashes"])
def test_F41_a_workdir_of_any_name(workdir: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Relative to where the command was given; and the command in the report can be pasted back."""
    args = ["launch.py", MLP, f"--workdir={workdir}", "--config.train_for=2 steps", "--config.evals.robust=()"]
    assert cli.main([*args, "--config.baselines=False"]) == 0
    told = summary(Path(workdir))
    assert told["status"] == "finished" and Path(told["workdir"]).samefile(workdir)
    assert (Path(workdir) / "report.html").is_file()
    capsys.readouterr()
    assert cli.main([*args, "--config.baselines=False", "--config.train_for=3 steps"]) == 0
    assert "at step 2" in capsys.readouterr().out
