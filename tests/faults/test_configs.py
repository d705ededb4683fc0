"""Every config and variant runs two steps, evaluates, draws, reports and resumes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, tfds_dir
from tests.helpers import slow_but
from umbrella import cli, pipelines
from umbrella.settings import SettingsError

SMALL = (
    "--config.train_for=2 steps",
    "--config.log_every=1 steps",
    "--config.eval_every=2 steps",
    "--config.checkpoint_every=2 steps",
    "--config.baselines=False",
)
ROWS = ("cnn", "permuted", "pixels", "plain", "rows")  # of row_mnist.py
PREPARED = (
    "airbench94",
    "cifar10",
    "mnist",
    "smoothed",
    "sst2",
    *ROWS,
)  # variants whose set TensorFlow Datasets prepares
SHAPES = {"airbench94": (32, 32, 3), "cifar10": (32, 32, 3), "mnist": (28, 28, 1), "smoothed": (28, 28, 1)}
SHAPES |= dict.fromkeys(ROWS, (28, 28, 1))
# A pass of a convolutional network over 10,000 images takes half a minute: these get a few rows of noise of that shape.
STAND_INS = (
    "vae.py",
    "row_mnist.py",
    "adversarial.py",
    "certified.py",
    "cifar_fast.py",
    "cnn.py",
    "ensemble.py",
    "gan.py",
    "resnet.py",
    "vit.py",
)
# Variants whose texts are the user's: line i of a small file.
TEXTS = {
    "reviews": lambda i: f"{('neg', 'pos')[i % 2]}\tit is {('dull', 'fine')[i % 2]} number {i}\n",
    "messages": lambda i: f"{('ham', 'spam')[i % 4 == 0]}\tcall {('me', 'now')[i % 4 == 0]} {i}\n",
    "pairs": lambda i: f"call number {i}\tappelle le numéro {i}\n",
    "multi30k": lambda i: f"call number {i}\tappelle le numéro {i}\n",
    "sms": lambda i: f"{('ham', 'spam')[i % 4 == 0]}\tcall {('me', 'now')[i % 4 == 0]} {i}\n",
}
# A few rows and steps: compiling attacks takes long, and what they find is tested elsewhere.
ATTACKED = (
    "--config.robustness.rows=8",
    "--config.robustness.checked=0",
    "--config.robustness.attacks=pgd",
    "--config.adversarial.steps=1",
    "--config.pgd40.steps=2",
)
# By a tiny classifier: what judges is tested elsewhere.
SMALL_GAN = (
    "--config.generator.widths=(4, 8)",
    "--config.discriminator.widths=(4, 8)",
    "--config.judge.widths=(4,)",
    "--config.judge.train_for=2 steps",
)
RUNNING = ("bert.py", "char_lm.py", "text_gan.py")  # language models: of a small file, and by a small network
SMALL_TEXT = (
    "--config.length=32",
    "--config.batch_size=4",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.layers=1",
)
SMALL_SERIES = ("--config.data.days=300", "--config.model={'name': 'series_linear'}", "--config.data.tickers=2")
SMALL_PAIRS = ("--config.tokens=char", "--config.vocabulary=0", "--config.beam.width=2")
SMALL_TEXT_GAN = (
    "--config.length=8",
    "--config.batch_size=4",
    "--config.generator.width=8",
    "--config.discriminator.width=8",
    "--config.sample.rows=20",
)
CASES = {
    "anomaly.py:digits": (),
    "anomaly.py:mnist": (),
    "anomaly.py:table": (),
    "autoencoder.py:digits": (),
    "autoencoder.py:mnist": (),
    "autoencoder.py:table": (),
    "adversarial.py:digits": ATTACKED,
    "adversarial.py:mnist": ATTACKED,
    "adversarial.py:cifar10": (*ATTACKED, "--config.model={'name': 'mlp'}"),
    "certified.py:digits": ATTACKED[:3],
    "certified.py:mnist": ATTACKED[:3],
    "certified.py:smoothed": (*ATTACKED[:3], "--config.robustness.draws=5"),
    "cifar_fast.py:airbench94": ("--config.model.widths=(8, 16, 16)", "--config.batch_size=64"),
    "cifar_fast.py:cifar10": ("--config.model.widths=(8, 16, 16)", "--config.batch_size=64"),
    "cifar_fast.py:digits": (),
    "cifar_fast.py:mnist": ("--config.model.widths=(8, 16, 16)", "--config.batch_size=64"),
    "bert.py:cloze": SMALL_TEXT,
    "bert.py:docstrings": SMALL_TEXT,
    "bert.py:shakespeare": SMALL_TEXT,
    "char_lm.py:gpt": SMALL_TEXT,
    "char_lm.py:gru": (*SMALL_TEXT[:2], "--config.model.width=16"),
    "char_lm.py:lstm": (*SMALL_TEXT[:2], "--config.model.width=16"),
    "char_lm.py:rnn": (*SMALL_TEXT[:2], "--config.model.width=16"),
    "circles.py:line": (),
    "circles.py:space": (),
    "cnn.py:digits": (),
    "cnn.py:mnist": (),
    "cnn.py:cifar10": (),
    "edges.py:sobel": (),
    "ensemble.py:digits": ("--config.seeds=2",),
    "ensemble.py:mnist": ("--config.seeds=2",),
    "edges.py:step": ("--config.batch_size=2",),  # of the one image: the tests run on two devices
    "gan.py:digits": SMALL_GAN,
    "gan.py:mnist": SMALL_GAN,
    "gan.py:cifar10": SMALL_GAN,
    "mlp.py:digits": (),
    "mlp.py:mnist": ("--config.pgd40.steps=2",),
    "resnet.py:digits": (),
    "resnet.py:mnist": (),
    "resnet.py:cifar10": (),
    "row_mnist.py:cnn": ("--config.model.front=(4,)", "--config.model.width=4"),
    "row_mnist.py:digits": (),
    "row_mnist.py:permuted": ("--config.model.width=4",),
    "row_mnist.py:pixels": ("--config.model.width=4",),
    "row_mnist.py:plain": ("--config.model.width=4",),
    "row_mnist.py:rows": ("--config.model.width=4",),
    "softmax.py:digits": (),
    "softmax.py:mnist": (),
    "softmax.py:cifar10": (),
    "stock.py:level": SMALL_SERIES,
    "stock.py:return": SMALL_SERIES,
    "stock.py:volatility": SMALL_SERIES,
    "timeseries.py:seasons": (*SMALL_SERIES[:2], "--config.data.horizon=2"),
    "spam.py:docstrings": (),
    "spam.py:messages": (),
    "text_classify.py:docstrings": ("--config.model={'name': 'bag', 'width': 8}",),
    "text_classify.py:reviews": ("--config.model={'name': 'bag', 'width': 8}",),
    "text_classify.py:sst2": ("--config.model={'name': 'bag', 'width': 8}",),
    "text_adversarial.py:docstrings": ("--config.model={'name': 'bag', 'width': 8}",),
    "text_adversarial.py:reviews": ("--config.model={'name': 'bag', 'width': 8}",),
    "text_adversarial.py:sms": ("--config.model={'name': 'bag', 'width': 8}",),
    "translate.py:multi30k": (*SMALL_PAIRS, "--config.model.width=16", "--config.model.layers=1"),
    "translate.py:numbers": ("--config.data.rows=200", *SMALL_PAIRS, "--config.model.hidden=8"),
    "translate.py:pairs": ("--config.data.held_out=16", *SMALL_PAIRS, "--config.model.hidden=8"),
    "translate.py:transformer": (
        "--config.data.rows=200",
        *SMALL_PAIRS,
        "--config.model.width=16",
        "--config.model.layers=1",
    ),
    "text_gan.py:docstrings": SMALL_TEXT_GAN,
    "text_gan.py:shakespeare": SMALL_TEXT_GAN,
    "vit.py:digits": ("--config.model.width=8", "--config.model.layers=1"),
    "vit.py:mnist": ("--config.model.width=8", "--config.model.layers=1"),
    "vit.py:cifar10": ("--config.model.width=12", "--config.model.layers=1"),
    "vae.py:digits": ("--config.importance_weighted.samples=2",),
    "vae.py:mnist": ("--config.importance_weighted.samples=2", "--config.eval_batch_size=1000"),
    "vae.py:cifar10": ("--config.importance_weighted.samples=2", "--config.eval_batch_size=1000"),
}


# One variant of a config is tried by `make test`, those that compile for long by `make test-slow`.
LATER = (
    "adversarial.py",
    "anomaly.py",
    "bert.py",
    "certified.py",
    "cifar_fast.py",
    "edges.py:sobel",
    "ensemble.py",
    "gan.py",
    "resnet.py",
    "text_",
    "vae.py",
)
FIRST = tuple(c for c in CASES if c.endswith((":digits", ":step")) and not c.startswith(LATER))


def launch(*argv: str) -> int:
    return cli.main(["launch.py", *argv])


def variants() -> set[str]:
    """What the configs themselves say that there is."""
    found = set()
    for path in (ROOT / "configs").glob("*.py"):
        with pytest.raises(SettingsError) as error:
            cli.load_config(f"{path}:no such variant")
        names = re.search(r"one of: (.*)\)", str(error.value))
        assert names is not None
        found |= {f"{path.name}:{v}" for v in names[1].split(", ")}
    return found


def test_F62_every_config_has_a_case() -> None:
    assert variants() == set(CASES)


@pytest.mark.parametrize("case", slow_but(sorted(CASES), FIRST))
def test_F62_two_steps_and_a_resume(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, (file, name) = tfds_dir(), case.split(":")
    more: tuple[str, ...] = ()
    if name in PREPARED and file in STAND_INS:
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "noise.npz", x=rng.integers(0, 256, (160, *SHAPES[name]), np.uint8), y=np.arange(160) % 10)
        more = (f"--config.data.path={tmp_path}/noise.npz", "--config.batch_size=32", "--config.eval_batch_size=32")
    elif name in TEXTS:
        (tmp_path / "texts.tsv").write_text("".join(TEXTS[name](i) for i in range(80)), "utf-8")
        more = (f"--config.data.path={tmp_path}/texts.tsv",) + ("--config.data.encoding=utf-8",) * (name == "reviews")
    elif file in RUNNING:
        (tmp_path / "text.txt").write_text("".join(f"line {i} of a text that goes on and on\n" for i in range(80)))
        more = (f"--config.data.path={tmp_path}/text.txt",)
    elif name in PREPARED:
        if data is None or not (data / {"sst2": "glue"}.get(name, name)).is_dir():
            pytest.skip(f"{name} is not here: set TFDS_DATA_DIR")
        monkeypatch.setenv("TFDS_DATA_DIR", str(data))
    work = tmp_path / "a run"
    args = (f"--config={ROOT}/configs/{case}", f"--workdir={work}", *SMALL, *CASES[case], *more)
    assert launch(*args) == 0
    summary = json.loads((work / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 2)
    assert {"validation", "test"} <= set(summary["metrics"])
    assert "report: " + str(work / "report.html") in capsys.readouterr().out
    assert launch(*args, "--config.train_for=3 steps") == 0
    assert "at step 2" in capsys.readouterr().out
    assert json.loads((work / "summary.json").read_text())["step"] == 3


@pytest.mark.parametrize(
    "case", [c for c in sorted(CASES) if c.split(":")[1] not in (*PREPARED, *TEXTS, "shakespeare")]
)
def test_F62_the_written_config_builds_the_same_run(case: str, tmp_path: Path) -> None:
    """config.json is the config as resolved: building from it gives the same settings again."""
    config = cli.load_config(f"{ROOT}/configs/{case}")
    first = pipelines.build(config).settings
    again = pipelines.build(first).settings
    assert json.dumps(first, sort_keys=True, default=str) == json.dumps(again, sort_keys=True, default=str)
