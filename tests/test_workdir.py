"""Claiming a workdir, and what is written into it."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from umbrella import workdir
from umbrella.settings import SettingsError
from umbrella.workdir import config_hash, flatten, jsonable, over_seeds, plain, summarise, write_json

SETTINGS = {"seed": 0, "train_for": "2 epochs", "model": {"name": "mlp", "hidden": (8, 4)}, "sam": {}}


def test_plain_shares_nothing_with_the_config() -> None:
    config = ConfigDict({"model": {"hidden": [8, 4]}, "techniques": ("sam",)})
    got = plain(config)
    assert got == {"model": {"hidden": (8, 4)}, "techniques": ("sam",)}
    assert type(got["model"]) is dict
    got["model"]["hidden"] = ()
    assert config.model.hidden == [8, 4]
    assert plain({"a": {"b": [1, {"c": [2]}]}}) == {"a": {"b": (1, {"c": (2,)})}}


def test_flatten() -> None:
    assert flatten(SETTINGS) == {
        "seed": 0,
        "train_for": "2 epochs",
        "model.name": "mlp",
        "model.hidden": (8, 4),
        "sam": {},
    }


# ---- claim
def claim(*args: Any) -> Path:
    made = workdir.claim(*args)
    made.lock.release()
    return made.path


def test_a_claim_makes_the_workdir_and_writes_the_config(tmp_path: Path) -> None:
    path = claim(tmp_path / "a" / "b", "mlp", SETTINGS)
    assert path == tmp_path / "a" / "b"
    wanted = SETTINGS | {"model": {"name": "mlp", "hidden": [8, 4]}}
    assert json.loads((path / "config.json").read_text()) == wanted
    assert sorted(p.name for p in path.iterdir()) == [".lock", "config.json"]


def test_a_claim_of_the_same_config_goes_on(tmp_path: Path) -> None:
    """Durations and what is printed may change; they are written anew."""
    claim(tmp_path, "mlp", SETTINGS)
    longer = SETTINGS | {"train_for": "4 epochs", "evals": {"test": ()}}
    assert claim(tmp_path, "mlp", longer) == tmp_path
    assert json.loads((tmp_path / "config.json").read_text())["train_for"] == "4 epochs"


def test_a_key_that_the_other_run_did_not_know_of_is_no_other_config(tmp_path: Path) -> None:
    """A later version has more settings; their defaults are what the earlier one did."""
    claim(tmp_path, "mlp", SETTINGS)
    assert claim(tmp_path, "mlp", SETTINGS | {"newer": 2}) == tmp_path


def test_what_is_evaluated_with_alone_may_change_and_what_is_trained_with_may_not(tmp_path: Path) -> None:
    first = SETTINGS | {"techniques": ("sam",), "evals": {"test": ("pgd40",)}, "pgd40": {"steps": 40}}
    claim(tmp_path, "mlp", first)
    other = {k: v for k, v in first.items() if k != "pgd40"}
    claim(tmp_path, "mlp", other | {"evals": {"test": ("pgd20", "sam")}, "pgd20": {"steps": 20}})
    claim(tmp_path, "mlp", first | {"pgd40": {"steps": 10}})
    with pytest.raises(SettingsError, match="sam was"):
        workdir.check_same(tmp_path, first | {"sam": {"rho": 0.1}, "evals": {"test": ("sam",)}})


def test_who_only_asks_leaves_the_config_of_the_training(tmp_path: Path) -> None:
    claim(tmp_path, "mlp", SETTINGS)
    workdir.claim(tmp_path, "mlp", SETTINGS | {"train_for": "4 epochs"}, trains=False).lock.release()
    assert json.loads((tmp_path / "config.json").read_text())["train_for"] == "2 epochs"


def test_what_differs_most_is_told_first(tmp_path: Path) -> None:
    claim(tmp_path, "mlp", {"ema": 0.0, "pipeline": "vision", "model": {"name": "mlp"}})
    with pytest.raises(SettingsError, match=r"\(model.name was 'mlp', is 'vae'; pipeline was .*; ema was 0.0"):
        claim(tmp_path, "vae", {"ema": 0.9, "pipeline": "generative", "model": {"name": "vae"}})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "(seed was 0, is 1)"),
        ({"model": {"name": "mlp", "hidden": (8,)}}, "(model.hidden was [8, 4], is [8])"),
        ({"sam": {"rho": 0.1}}, "(sam was {}, is 'absent')"),
        ({k: 1 for k in "abcdefg"}, "and 2 more"),
    ],
)
def test_a_claim_of_another_config_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    first = SETTINGS | {k: 0 for k in "abcdefg"}
    claim(tmp_path, "mlp", first)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(SettingsError) as error:
        claim(tmp_path, "mlp", first | change)
    assert str(error.value).startswith(f"--workdir={tmp_path}: holds a run of another config")
    assert says in str(error.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_claims_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below"):
        with pytest.raises(SettingsError, match=f"--workdir={place}: cannot be written: "):
            claim(place, "mlp", SETTINGS)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SettingsError, match="its config.json is damaged; give another workdir"):
        claim(tmp_path, "mlp", SETTINGS)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_claim_of_a_read_only_place(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SettingsError, match="cannot be written: Permission denied"):
        claim(tmp_path / "run", "mlp", SETTINGS)


def test_a_claim_without_a_name_finds_a_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [claim(None, "mlp", SETTINGS | {"seed": i}) for i in range(3)]
    assert len(set(paths)) == 3
    assert all(p.parent == tmp_path / "runs" and p.name.startswith("mlp-") for p in paths)


def test_the_hash_is_of_what_is_computed() -> None:
    plain_hash = config_hash(SETTINGS)
    assert plain_hash == config_hash(dict(reversed(SETTINGS.items())))
    assert plain_hash == config_hash(SETTINGS | {"train_for": "9 epochs", "log_every": "1 step"})
    assert plain_hash != config_hash(SETTINGS | {"seed": 1})
    assert plain_hash != config_hash(SETTINGS | {"model": {"name": "mlp", "hidden": (8, 5)}})


# ---- numbers
@pytest.mark.parametrize("n", [2, 5, 30])
def test_over_seeds_is_scipys_interval(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    got = over_seeds(values)
    wanted = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert got["ci95"] == pytest.approx(list(wanted), rel=1e-12)
    assert got["mean"] == pytest.approx(values.mean())
    assert (got["n"], got["values"]) == (n, values.tolist())


def test_one_seed_has_no_interval() -> None:
    got = over_seeds([2.0])
    assert (got["mean"], got["n"]) == (2.0, 1)
    assert all(math.isnan(v) for v in got["ci95"])


def test_summarise() -> None:
    got = summarise({"loss": np.float32(0.5), "acc": np.array([0.25, 0.75]), "confusion": np.eye(2)})
    assert got == {"loss": 0.5, "acc": over_seeds([0.25, 0.75])}
    assert type(got["loss"]) is float


def test_jsonable() -> None:
    value = {
        1: (np.float32(0.5), np.int64(3), np.bool_(True), None, True, "a"),
        "bad": [math.nan, math.inf, np.float64(-math.inf), np.float32("nan")],
        "array": np.array([[1.0, math.nan]]),
        "path": Path("a/b"),
    }
    got = jsonable(value)
    assert got == {
        "1": [0.5, 3, True, None, True, "a"],
        "bad": [None] * 4,
        "array": [[1.0, None]],
        "path": "a/b",
    }
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError

    path = tmp_path / "a.json"
    write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": None}
    with pytest.raises(RuntimeError):
        write_json(path, {"a": 1, "b": Unprintable()})
    assert json.loads(path.read_text()) == {"a": None}
    assert list(tmp_path.iterdir()) == [path]
