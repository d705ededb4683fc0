"""Flags, calibrated probabilities, the words that decided, and new messages by the command line."""

import csv
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

import umbrella as um
from tests.conftest import ROOT
from umbrella import cli, pipelines, scores
from umbrella.pipelines import _texts
from umbrella.pipelines._texts import Decision
from umbrella.settings import SettingsError

WEIGHTS = {"win": 2.0, "prize": 1.0, "hello": -3.0, "you": -0.5}


def ask(texts: Any) -> np.ndarray:
    """Logits (0, sum of the words' weights): without a word the log odds differ by exactly its weight."""
    return np.array([[0.0, sum(WEIGHTS.get(w, 0.0) for w in text.lower().split())] for text in texts])


# --------------------------------------------------------------------------------------------------------- calibration
def test_platt_is_a_logistic_regression_on_weighted_rows() -> None:
    """Every row counts as a share t of a 1 and a share 1 - t of a 0: Platt 1999, section 2.2, by scikit-learn."""
    r = np.random.default_rng(0)
    y = np.arange(60) % 3 == 0
    s = r.normal(size=60) + 1.5 * y
    aim = np.where(y, 21 / 22, 1 / 42)  # 20 rows of class 1 and 40 of class 0
    rows, weights = np.concatenate([s, s])[:, None], np.concatenate([aim, 1 - aim])
    wanted = LogisticRegression(C=1e8, tol=1e-10).fit(rows, np.repeat([1, 0], 60), weights)
    a, b = scores.platt(s, y)
    np.testing.assert_allclose([a, b], [wanted.coef_[0, 0], wanted.intercept_[0]], rtol=1e-4)


def test_platt_is_sure_of_nothing_where_every_row_is_right() -> None:
    """10 of each: the largest probability that is aimed at is 11/12."""
    s = np.repeat([-5.0, 5.0], 10)
    a, b = scores.platt(s, s > 0)
    np.testing.assert_allclose(expit(a * 5 + b), 11 / 12, rtol=1e-5)


def test_a_threshold_flags_no_more_than_is_allowed() -> None:
    """Of 100 others on validation 2 may be: the third highest of them is below, however probable it is."""
    r = np.random.default_rng(1)
    y = np.repeat([0, 1], 100)
    logits = np.stack([np.zeros(200), r.normal(size=200) + 2 * y], 1)
    decision = Decision.of(logits, y, 1, 0.02)
    p = decision.probabilities(logits)
    called = decision.labels(p) == 1
    assert called[:100].sum() <= 2
    least = p[called, 1].min()
    assert decision.threshold == pytest.approx((least + p[p[:, 1] < least, 1].max()) / 2)
    looser = np.sort(p[:100, 1])[-3]  # of the others the third: one too many, were it flagged
    assert looser < decision.threshold
    assert called[100:].sum() == (p[100:, 1] >= decision.threshold).sum() > 0
    other = Decision.of(logits, y, 0, 0.02)  # the other class is flagged: 2 of those with label 1
    assert (other.labels(other.probabilities(logits))[100:] == 0).sum() <= 2


def test_of_one_class_nothing_is_learnt_and_of_three_a_temperature() -> None:
    logits = np.random.default_rng(0).normal(size=(30, 3))
    assert Decision.of(logits[:, :2], np.zeros(30, int), 1, 0.1) == Decision(flag=1)
    y = np.arange(30) % 3
    decision = Decision.of(logits, y, None, 0.1)
    assert decision.slope == pytest.approx(1 / scores.temperature(logits, y))
    np.testing.assert_allclose(decision.probabilities(logits).sum(1), 1)


def test_wilsons_interval_is_scipys() -> None:
    for k, n in ((0, 5), (3, 7), (40, 40)):
        wanted = stats.binomtest(k, n).proportion_ci(method="wilson")
        np.testing.assert_allclose(_texts.wilson(k, n), (wanted.low, wanted.high), atol=1e-12)


# --------------------------------------------------------------------------------------------------------------- words
def test_the_words_that_decided_are_exact_where_the_log_odds_are_a_sum() -> None:
    texts = ["Win a prize", "hello hello you win"]
    found = _texts.influences(ask, texts, np.array([1, 0]), Decision(slope=0.5))
    assert [w for w, _ in found[0]] == ["win", "prize", "a"]
    np.testing.assert_allclose([v for _, v in found[0]], [1.0, 0.5, 0.0], atol=1e-9)
    # The label is 0, so what speaks for 1 counts against it; both places of a word are taken out together.
    np.testing.assert_allclose(dict(found[1])["hello"], 0.5 * 6, atol=1e-9)
    np.testing.assert_allclose(dict(found[1])["win"], -1.0, atol=1e-9)
    assert _texts.in_words(found[0]) == "win +1, prize +0.5"
    many = _texts.influences(ask, texts * 300, np.array([1, 0] * 300), Decision(slope=0.5))
    assert len(many) == 600 and many[-2:] == found


def test_what_is_said_of_new_texts() -> None:
    """p = sigmoid(3) and sigmoid(-3) of the flag; the second is flagged all the same where the threshold is lower."""
    said = _texts.told(ask, ["win prize", "hello"], Decision(flag=1, threshold=0.04), ("ham", "spam"))
    assert said.columns == ("label", "probability of spam", "decided by", "text")
    assert [row[0] for row in said.rows] == ["spam", "spam"]
    np.testing.assert_allclose([row[1] for row in said.rows], expit([3.0, -3.0]))
    plain = _texts.told(ask, ["hello"], Decision(), ("ham", "spam"))
    assert plain.rows[0][0] == "ham" and plain.rows[0][1] == pytest.approx(expit(3.0))


def test_deletions_by_hand() -> None:
    """Tokens 2 and 3 weigh 2 and -1 for class 1, attention is on the 2: without it sigmoid(1) becomes sigmoid(-1);
    without the other one sigmoid(2). A text of one word has no part."""
    weight = np.array([0.0, 0.0, 2.0, -1.0])
    x = np.array([[3, 2, 0], [2, 0, 0]])
    attention = np.array([[0.1, 0.9, 0.0], [1.0, 0.0, 0.0]])

    def run(tokens: np.ndarray) -> np.ndarray:
        return np.stack([np.zeros(len(tokens)), weight[tokens].sum(1)], 1)

    found = _texts.deletions(run, attention, x, np.array([1, 1]))
    assert found.rows.tolist() == [0]
    np.testing.assert_allclose(found.attended, expit(1) - expit(-1))
    np.testing.assert_allclose(found.random, expit(1) - expit(2))
    assert found.right == (1.0, 0.0, 1.0)


# ------------------------------------------------------------------------------------------------- by the command line
def messages(tmp_path: Path) -> dict[str, Any]:
    """The config for a file of messages that one word tells apart."""
    said = {"spam": "win a prize now", "ham": "see you at home"}
    lines = [f"{label}\t{said[label]} {i}\n" for i in range(120) for label in (("ham", "spam")[i % 3 == 0],)]
    (tmp_path / "messages.tsv").write_text("".join(lines), "utf-8")
    config = cli.load_config(f"{ROOT}/configs/spam.py:messages")
    config["data"]["path"] = str(tmp_path / "messages.tsv")
    return config


def asking(tmp_path: Path, *more: str) -> int:
    path = f"--config.data.path={tmp_path}/messages.tsv"
    return cli.main(["launch.py", f"--config={ROOT}/configs/spam.py:messages", path, *more])


def test_new_messages_are_labelled_with_calibrated_probabilities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Probabilities are Platt's of the log odds on validation, computed here from the experiment's own predictions."""
    small = {"train_for": "80 steps", "batch_size": 16, "baselines": False}
    result = um.run({**messages(tmp_path), **small}, workdir=tmp_path / "run", quiet=True)
    found = result.summary["metrics"]["test"]
    assert found["f1"] == 1 and found["false_positive_rate_at_threshold"] == 0
    (tmp_path / "new.txt").write_text("Win a prize, 99\n\n  see you at home\n", "utf-8")
    words = [f"--config.{k}={v}" for k, v in small.items()]
    assert asking(tmp_path, *words, f"--workdir={tmp_path}/run", "--mode=predict", f"--input={tmp_path}/new.txt") == 0
    with open(capsys.readouterr().out.splitlines()[-1], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["Win a prize, 99", "see you at home"]
    assert [row["label"] for row in rows] == ["spam", "ham"]
    assert "prize" in rows[0]["decided by"] or "win" in rows[0]["decided by"]

    ex, view = result.experiment, result.ts.eval_view()
    assert ex.reader is not None
    told = ex.reader(view, ["see you at home"])
    assert told.rows[0][1] == pytest.approx(float(rows[1]["probability of spam"]), rel=1e-5)

    def odds(source: Any) -> np.ndarray:
        p = np.asarray(ex.predict(view, {"x": source.column("x")}, jax.random.key(0))["probabilities"], np.float64)
        return np.log(p[:, 1] / p[:, 0])

    a, b = scores.platt(odds(ex.dataset.validation), ex.dataset.validation.column("y"))
    text = bytes(um.data.load(**messages(tmp_path)["data"]).test.column("x")[0]).decode()
    told = ex.reader(view, [text])
    assert told.rows[0][1] == pytest.approx(float(expit(a * odds(ex.dataset.test)[0] + b)), rel=1e-3)


def test_what_is_wrong_with_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages(tmp_path)
    assert asking(tmp_path, f"--input={tmp_path}/new.txt") == 2
    assert "is what --mode=predict labels" in capsys.readouterr().err
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert asking(tmp_path, f"--workdir={tmp_path}/run", "--mode=predict", f"--input={tmp_path}/none.txt") == 2
    assert "none.txt: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(flag="spm"), r"config.flag: no class 'spm' \(did you mean 'spam'\?\)"),
        (dict(runs=(3, 2)), "config.runs: .* the shortest run is longer"),
        (dict(model=dict(name="text_cnn")), "config.runs: .* has no order, which config.model.name='text_cnn' reads"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        pipelines.build({**messages(tmp_path), **more})
