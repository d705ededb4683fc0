"""What would help: parts that add up, words by their rules, a command that looks at no test row."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_pipelines import vision
from umbrella import cli, data, diagnose
from umbrella.diagnose import Layer, Point, in_words
from umbrella.experiment import Durations
from umbrella.runs import Session
from umbrella.settings import SettingsError

NONE = (np.zeros(0), np.zeros(0))


def point(rows: int, train: float, validation: float, spread: float = 0.001, width: float = 1.0) -> Point:
    noise = spread * np.asarray([-1.0, 0.0, 1.0])
    return Point(rows, width, int(100 * width), train + noise, validation + noise, 0.03, 0.01)


def kernels(*gradients: float) -> list[Layer]:
    return [Layer(f"model/hidden_{i}/kernel", 1.0, g, 1.0, NONE) for i, g in enumerate(gradients)]


@pytest.mark.parametrize(
    ("points", "start", "words"),
    [
        ([point(100, 1.0, 0.90), point(200, 1.0, 0.93)], (), ("More data of this kind would help", "It overfits")),
        ([point(100, 0.8, 0.80), point(200, 0.8, 0.80)], (), ("would bring little", "It underfits")),
        ([point(100, 0.93, 0.90), point(200, 0.93, 0.90)], (), ("would bring little", "gap is moderate")),
        ([point(100, 0.9, 0.80), point(200, 0.9, 0.85, 0.05)], (), ("may be better or worse", "within the spread")),
        ([point(200, 0.93, 0.90)], (), ("0.04, 0.03 is what", "0.01 (25%)")),  # .03 + .01, a quarter
        ([point(200, 0.93, 0.90)], (1e-6, 1e-4, 1e-1), ("At the start the gradient vanishes",)),
        ([point(200, 0.93, 0.90)], (1e2, 1.0, 1e-3), ("At the start the gradient explodes",)),
    ],
)
def test_words_follow_from_numbers(points: list[Point], start: tuple[float, ...], words: tuple[str, ...]) -> None:
    told = " ".join(in_words("accuracy", points, [], kernels(*start), []))
    for word in words:
        assert word in told
    assert ("the gradient" in told) == bool(start)


@pytest.mark.parametrize(
    ("validation", "words"),
    [  # at half, one and two times the width
        ((0.90, 0.93, 0.96), ("A larger model would help: from 100 to 200 parameters", "A smaller one would be worse")),
        ((0.93, 0.93, 0.93), ("A larger model would bring little", "A smaller one would do as well: from 100 to 50")),
        ((0.96, 0.93, 0.90), ("A larger model would bring little", "A smaller one would do as well")),
        ((0.93, 0.93), ("A smaller one would do as well",)),  # no larger one
        ((), ()),
    ],
)
def test_what_is_said_of_the_size(validation: tuple[float, ...], words: tuple[str, ...]) -> None:
    sizes = [point(200, 1.0, v, width=w) for v, w in zip(validation, (0.5, 1.0, 2.0), strict=False)]
    told = " ".join(in_words("accuracy", [point(200, 1.0, 0.93)], sizes, [], []))
    for word in words:
        assert word in told
    assert ("larger model would" in told) == (len(sizes) > 2) and ("smaller one" in told) == bool(sizes)


def test_a_spread_as_large_as_the_gain_is_no_gain() -> None:
    told = in_words("accuracy", [point(100, 1.0, 0.90, 0.02), point(200, 1.0, 0.93, 0.02)], [], [], [])
    assert "which these seeds cannot tell" in told[0]


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
    wide = json.loads((work / "artifacts" / "capacity_curve.json").read_text())["series"]["train"]
    assert wide[0] == [0.25, 0.5, 1.0, 2.0] and wide[1][0] < wide[1][-1]  # two units or thirty-two
    for factor, hidden in (("0.25", (4, 2)), ("2", (32, 16))):
        told = json.loads((work / f"width-{factor}" / "summary.json").read_text())
        h, g = hidden
        assert told["params"] == 64 * h + h + h * g + g + g * 10 + 10
    flow = json.loads((work / "artifacts" / "gradient_by_depth.json").read_text())["series"]["at the start"]
    assert len(flow[1]) == 3 and min(flow[1]) > 0
    rows = json.loads((work / "artifacts" / "layers.json").read_text())["rows"]
    assert [r[0] for r in rows if r[0].endswith("kernel")] == [
        f"model/{n}/kernel" for n in ("hidden_0", "hidden_1", "head")
    ]
    page = (work / "report.html").read_text()
    for word in ("learning_curve", "capacity_curve", "activations_at_the_end", "What the numbers say"):
        assert word in page


@pytest.mark.parametrize("scale", [2.0**15, 2.0**60])
def test_gradients_of_16_bits_are_read_by_their_loss_scale(scale: float) -> None:
    """Gradients of about 1e-9 pass through fp16, whose numbers end at 6e-8: without a scale they would be 0. The one
    that is too large, so that they are infinite, halves until they are not."""
    told = {}
    for kind, first in (("f32", 0.0), ("fp16", scale)):
        with Session(vision(train_for="1 steps", loss_scale=first), None, quiet=True) as session:
            base = session.experiment.objective

            def apply(params: Any, *rest: Any, base: Any = base, half: bool = kind == "fp16") -> Any:
                seen = jax.tree.map(lambda v: v.astype(jnp.float16).astype(v.dtype), params) if half else params
                loss, aux = base.apply(seen, *rest)
                return 1e-7 * loss, aux

            session.experiment = session.experiment._replace(objective=base._replace(apply=apply))
            told[kind] = [layer.gradient for layer in diagnose.layers(session)]
    np.testing.assert_allclose(told["fp16"], told["f32"], rtol=0.02)
    assert max(told["f32"]) < 2e-8


def test_bias_and_variance_add_up(tmp_path: Path) -> None:
    """mean_k |p_k - y|^2 = |m - y|^2 + mean_k |p_k - m|^2, with both sides from the run's own predictions."""
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
    whole, part = data.load(name="digits"), data.load(name="digits", rows=200)
    assert len(part.train) == 200 and len(data.load(name="digits", rows=10**6).train) == len(whole.train)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(getattr(part, split).arrays["x"], getattr(whole, split).arrays["x"])
    count = np.bincount(part.train.arrays["y"], minlength=10)
    exact = 200 * np.bincount(whole.train.arrays["y"], minlength=10) / len(whole.train)
    assert np.abs(count - exact).max() < 1


@pytest.mark.slow
def test_gradients_of_a_deep_network_with_and_without_shortcuts() -> None:
    """Of 55 convolutions. Plain, with batch normalisation, gradients grow by about sqrt(pi / (pi - 1)) = 1.21 for each
    ReLU on their way down (Yang et al. 2019): 1.21^54 = 3e4. Plain, without a norm, the signal vanishes on its way up
    (He's initialiser by fan-out has too little variance where zeros pad a side of eight pixels), and all gradients
    with it. With shortcuts, neither."""
    gradient, signal, words = {}, {}, {}
    for norm, residual in (("batch", True), ("batch", False), ("none", True), ("none", False)):
        at, model = (norm, residual), dict(name="resnet", depth=56, norm=norm, residual=residual)
        with Session(vision(model=model, train_for="1 steps"), None, quiet=True) as session:
            found = [x for x in diagnose.layers(session) if x.name.endswith("kernel")]
        kernels = [x for x in found if "stem" in x.name or "conv" in x.name]
        assert len(kernels) == 55 and all(np.isfinite(k.activation) for k in kernels)
        gradient[at] = kernels[0].gradient / kernels[-1].gradient
        signal[at] = kernels[-1].activation / kernels[0].activation
        words[at] = " ".join(in_words("accuracy", [point(9, 1.0, 0.9)], [], found, []))
    assert 1e4 < gradient["batch", False] < 1e5 and 0.1 < signal["batch", False] < 10
    assert signal["none", False] < 1e-5 and 1e-3 < gradient["none", False] < 1e3
    assert "the gradient explodes" in words["batch", False] and "the signal vanishes" in words["none", False]
    for norm in ("batch", "none"):
        at = (norm, True)
        assert 1e-3 < gradient[at] < 1e3 and 1e-3 < signal[at] < 1e3
        assert "explodes" not in words[at] and "vanishes" not in words[at]


def test_the_gap_is_to_the_rows_that_a_seed_trained_on(tmp_path: Path) -> None:
    """Few rows and long training: the own ones are nearly all right; of all rows 37 % are new to a seed."""
    config = vision(
        data=dict(name="digits", rows=200), seeds=2, resample=True, train_for="600 steps", evals={}, baselines=False
    )
    with Session(config, tmp_path / "w", quiet=True) as session:
        ts = session.train().ts
        own = diagnose.on_own_rows(ts.eval_view(), session)
        (k, seed), ex = (1, session.seeds[1]), session.experiment
        rows = ex.dataset.train.__getitems__(data.bootstrap(seed, 200))
        told = ex.predict(ts.eval_view().lane(k), {"x": rows["x"]}, None)["probabilities"]
        every = np.asarray(session.results["train_eval"]["accuracy"])
    assert own[k] == pytest.approx(np.mean(np.argmax(told, -1) == rows["y"]))
    assert (own > every).all() and own.min() > 0.9


def test_every_duration_is_that_of_the_whole_set() -> None:
    """Of 1,000 rows in batches of 10: an epoch of fewer rows would be shorter."""
    config = {"train_for": "3 epochs", "eval_every": "10%", "name": "epochs", "optimizer": {"warmup": "500 examples"}}
    made = diagnose.in_steps(config, Durations(10, 1000, 300))
    assert made == {**config, "train_for": "300 steps", "optimizer": {"warmup": "50 steps"}}


def test_a_set_that_cannot_be_cut_is_diagnosed_by_width_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from configs import edges

    assert diagnose._sound(edges.get_config("sobel").to_dict(), (0.1, 1.0)) == (1.0,)
    trained: list[str] = []
    monkeypatch.setattr(Session, "train", lambda self: trained.append("one"))
    rare = np.r_[np.zeros(300, int), np.ones(300, int), np.full(2, 2)]
    np.savez(tmp_path / "rare.npz", x=np.random.default_rng(0).integers(0, 256, (602, 4, 4, 1), np.uint8), y=rare)
    section = dict(name="rare", path=str(tmp_path / "rare.npz"), validation=0.5)
    with pytest.raises(SettingsError, match="class"):
        diagnose.diagnose(vision(data=section), tmp_path / "w", shares=(0.002, 1.0))
    assert not trained  # told before anything is trained
