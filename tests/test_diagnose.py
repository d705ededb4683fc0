"""What would help: parts that add up, words by their rules, a command that looks at no test row."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.test_pipelines import vision
from umbrella import cli, diagnose
from umbrella.diagnose import Layer, Point, in_words
from umbrella.settings import SettingsError

NONE = (np.zeros(0), np.zeros(0))


def point(rows: int, train: float, validation: float, spread: float = 0.001) -> Point:
    noise = spread * np.asarray([-1.0, 0.0, 1.0])
    return Point(rows, train + noise, validation + noise, 0.03, 0.01)


def kernels(*gradients: float) -> list[Layer]:
    return [Layer(f"model/hidden_{i}/kernel", 1.0, g, 1.0, NONE) for i, g in enumerate(gradients)]


@pytest.mark.parametrize(
    ("points", "start", "words"),
    [
        ([point(100, 1.0, 0.90), point(200, 1.0, 0.93)], (), ("More data of this kind would help", "It overfits")),
        ([point(100, 0.8, 0.80), point(200, 0.8, 0.80)], (), ("would bring little", "It underfits")),
        ([point(100, 0.93, 0.90), point(200, 0.93, 0.90)], (), ("would bring little", "gap is moderate")),
        ([point(200, 0.93, 0.90)], (), ("0.04, 0.03 is what", "0.01 (25%)")),  # .03 + .01, a quarter
        ([point(200, 0.93, 0.90)], (1e-6, 1e-4, 1e-1), ("At the start the gradient vanishes",)),
        ([point(200, 0.93, 0.90)], (1e2, 1.0, 1e-3), ("At the start the gradient explodes",)),
    ],
)
def test_words_follow_from_numbers(points: list[Point], start: tuple[float, ...], words: tuple[str, ...]) -> None:
    told = " ".join(in_words("accuracy", points, kernels(*start), []))
    for word in words:
        assert word in told
    assert ("the gradient" in told) == bool(start)


def test_a_spread_as_large_as_the_gain_is_no_gain() -> None:
    told = in_words("accuracy", [point(100, 1.0, 0.90, 0.02), point(200, 1.0, 0.93, 0.02)], [], [])
    assert "would bring little" in told[0]


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "small.py"
    base = vision(train_for="3 epochs", model=dict(name="mlp", hidden=(16, 8)))
    config.write_text(f"def get_config():\n    return {base!r}\n")
    args = ["launch.py", f"--config={config}", "--mode=diagnose", f"--workdir={tmp_path}/w"]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert "Brier's score" in out and "report: " in out
    work = tmp_path / "w"
    sizes = []
    for share in ("0.1", "0.2", "0.5", "1"):
        told = json.loads((work / f"rows-{share}" / "summary.json").read_text())
        assert told["seeds"] == 5 and told["metrics"].keys() == {"train_eval", "validation"}
        assert told["step"] == json.loads((work / "rows-1" / "summary.json").read_text())["step"]
        sizes.append(told["data"]["n_train"])
    np.testing.assert_allclose(np.divide(sizes, sizes[-1]), (0.1, 0.2, 0.5, 1.0), atol=0.01)
    parts = json.loads((work / "artifacts" / "bias_variance.json").read_text())["series"]
    variance = next(y for name, (_, y) in parts.items() if "variance" in name)
    assert variance[0] > variance[-1] > 0  # fewer rows, more of what the sample decides
    flow = json.loads((work / "artifacts" / "gradient_by_depth.json").read_text())["series"]["at the start"]
    assert len(flow[1]) == 3 and min(flow[1]) > 0
    rows = json.loads((work / "artifacts" / "layers.json").read_text())["rows"]
    assert [r[0] for r in rows if r[0].endswith("kernel")] == [
        f"model/{n}/kernel" for n in ("hidden_0", "hidden_1", "head")
    ]
    page = (work / "report.html").read_text()
    for word in ("learning_curve", "activations_at_the_end", "What the numbers say"):
        assert word in page


def test_bias_and_variance_add_up(tmp_path: Path) -> None:
    """mean_k |p_k - y|^2 = |m - y|^2 + mean_k |p_k - m|^2, with both sides from the run's own predictions."""
    from umbrella.runs import Session

    config = vision(seeds=3, resample=True, train_for="20 steps", evals={})
    with Session(config, tmp_path / "w", quiet=True) as session:
        ts = session.train().ts
        ex = session.experiment
        bias, variance = diagnose.decomposition(ex, ts.eval_view(), session)
        held = ex.dataset.validation.arrays
        p = np.stack(
            [np.asarray(ex.predict(ts.eval_view().lane(k), {"x": held["x"]}, None)["probabilities"]) for k in range(3)]
        )
    y = np.eye(10)[held["y"]]
    assert bias + variance == pytest.approx(np.mean(np.sum((p - y) ** 2, -1)), rel=1e-5)
    assert variance > 0


def test_without_validation_there_is_nothing_to_diagnose_by(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no validation split"):
        diagnose.diagnose(vision(data=dict(name="digits", validation=0.0)), tmp_path / "w")


def test_a_share_of_the_rows_keeps_the_shares_of_the_classes_and_leaves_the_rest_alone() -> None:
    from umbrella import data

    whole, part = data.load(name="digits"), data.load(name="digits", rows=200)
    assert len(part.train) == 200 and len(data.load(name="digits", rows=10**6).train) == len(whole.train)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(getattr(part, split).arrays["x"], getattr(whole, split).arrays["x"])
    count = np.bincount(part.train.arrays["y"], minlength=10)
    exact = 200 * np.bincount(whole.train.arrays["y"], minlength=10) / len(whole.train)
    assert np.abs(count - exact).max() < 1
