"""Several models and their rivals in one table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.test_text import config
from umbrella import cli, table
from umbrella.checkpoint import CheckpointError
from umbrella.loop import Diverged
from umbrella.settings import SettingsError


def told(model: str, fold: int) -> dict[str, Any]:
    """A bag is right in .6 and .8, the other model in .9 and .7 of two folds, a rival in .5 and .5."""
    accuracy = {"bag": (0.6, 0.8), "cnn": (0.9, 0.7)}[model][fold]
    rivals = {"majority": {"accuracy": 0.5, "seconds": 2.0}} if model == "bag" else {}
    test = {"accuracy": {"mean": accuracy, "ci95": [0, 1]}, "loss": 1.0}
    about = {"device": {"kind": "a CPU"}, "versions": {}, "git": "abc", "data": {}}
    return {**about, "status": "finished", "metrics": {"test": test}, "baselines": rivals, "seconds": {"total": 5.0}}


def test_rows_are_means_over_folds_the_best_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: .8 and .7, and .5 of the rival; with two folds half an interval is t = 12.706 times |a - b| / 2."""
    asked = []

    def trained(made: dict[str, Any], folder: Path, name: str | None) -> dict[str, Any]:
        asked.append((made["model"]["name"], made["data"]["fold"], made.get("baselines"), folder.name))
        return told({"bag": "bag", "text_cnn": "cnn"}[made["model"]["name"]], made["data"]["fold"])

    monkeypatch.setattr(table, "_trained", trained)
    base = config(tmp_path, compared={"cnn": {"model": {"name": "text_cnn"}}})
    base["data"]["folds"] = 2
    made = table.table(base, tmp_path / "t")
    assert asked == [
        ("bag", 0, None, "bag-0"),
        ("text_cnn", 0, False, "cnn-0"),
        ("bag", 1, None, "bag-1"),
        ("text_cnn", 1, False, "cnn-1"),
    ]
    assert [row.name for row in made.rows] == ["cnn", "bag", "majority"]
    assert [float(np.mean(row.metrics["accuracy"])) for row in made.rows] == pytest.approx([0.8, 0.7, 0.5])
    assert made.rows[1].metrics["seconds"].tolist() == [3.0, 3.0]  # without those of its rivals
    assert "0.8 ± 1.3" in made.words  # 12.706 * .1 = 1.27
    kept = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert kept["git"] == "abc" and kept["folds"] == 2
    assert kept["table"]["cnn"]["accuracy"] == [0.9, 0.7] and (tmp_path / "t" / "report.html").is_file()


def test_a_rival_that_did_not_converge_in_one_fold_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(made: dict[str, Any], folder: Path, name: str | None) -> dict[str, Any]:
        out = told("bag", made["data"]["fold"])
        if made["data"]["fold"]:
            out["baselines"] = {"majority (not converged)": {"accuracy": 0.9, "seconds": 2.0}}
        return out

    monkeypatch.setattr(table, "_trained", trained)
    base = config(tmp_path)
    base["data"]["folds"] = 2
    rows = table.table(base, tmp_path / "t").rows
    assert [(row.name, row.metrics["accuracy"].tolist()) for row in rows if not row.model] == [
        ("majority (not converged)", [0.5, 0.9])
    ]


@pytest.mark.parametrize(
    ("error", "code"), [(Diverged(3), 4), (CheckpointError("no"), 3), (table.Interrupted(15), 143)]
)
def test_what_ends_a_table_ends_it_as_a_run(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*args: Any, **how: Any) -> None:
        raise error

    monkeypatch.setattr(table, "table", end)
    assert cli.main(["launch.py", f"--config={ROOT}/configs/spam.py", "--mode=table"]) == code


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(compared={"bag": {"model": {"name": "text_cnn"}}}), "this is the config's own model"),
        (dict(pipeline="series"), "a walk through time has its folds in one run"),
        (dict(compared={"a": 3}), "config.compared.a: 3 is no section"),
        (dict(compared={"a": {"data": {}}}), "config.compared.a: data and compared are the same for all"),
        (dict(compared={"a": {"model": {"name": "bog"}}}), "no model 'bog'|did you mean 'bag'"),
        (dict(evals={}), "nothing is evaluated on test"),
    ],
)
def test_nothing_is_trained_where_a_config_is_wrong(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        table.table({**config(tmp_path), **more}, tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.slow
def test_a_table_of_two_folds_and_again(tmp_path: Path) -> None:
    """The same rows for model and rivals; again, nothing is trained anew."""
    base = config(tmp_path, baselines=("majority", "naive_bayes"))
    base["data"]["folds"] = 2
    made = table.table(base, tmp_path / "t")
    assert {row.name for row in made.rows} == {"bag", "majority class", "naive Bayes, words and pairs"}
    before = [p.stat().st_mtime_ns for p in sorted((tmp_path / "t").glob("*/summary.json"))]
    again = table.table(base, tmp_path / "t")
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "t").glob("*/summary.json"))] == before
    assert again.words == made.words
