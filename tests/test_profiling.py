"""A trace of some steps says what took long, and disturbs nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import bits
from tests.mesh_cases import images
from umbrella import cli, profiling, runs
from umbrella.profiling import Span
from umbrella.settings import SettingsError


def test_a_trace_tells_the_costliest_operations_and_where_they_come_from(tmp_path: Path) -> None:
    """The products of the layer of 512 x 512 are a step's largest; each is made once in each traced step."""
    config = images(train_for="12 steps", model={"name": "mlp", "hidden": (512, 512)}, steps_per_call=1)
    plain = runs.run(config, workdir=tmp_path / "plain", quiet=True)
    with runs.Session(config, tmp_path / "traced", quiet=True, profile=Span(3, 8)) as session:
        traced = session.train()
    assert bits(plain.ts.params, traced.ts.params)
    index = json.loads((tmp_path / "traced" / "artifacts" / "index.json").read_text())
    entry = next(e for e in index if e["name"] == "costliest")
    assert "in 5 steps" in entry["caption"]
    made = json.loads((tmp_path / "traced" / "artifacts" / entry["file"]).read_text())
    rows = [dict(zip(made["columns"], row, strict=True)) for row in made["rows"]]
    assert len(rows) == profiling.MOST
    shares = [float(r["share"].rstrip(" %")) for r in rows]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.1
    of_layer = [r for r in rows if "hidden_1" in r["where"] and "dot_general" in r["where"]]
    assert of_layer
    assert all(float(r["times a step"]) == 1 for r in of_layer)
    assert "costliest" in (tmp_path / "traced" / "report.html").read_text()
    assert list((tmp_path / "traced" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["10", "20:10", "0:5", "a:b", "5:5", "-1:4"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(SettingsError, match=f"--profile={text}: write the first step"):
        Span.parse(text)


def test_a_span_beyond_the_run_is_refused_before_it_trains(tmp_path: Path) -> None:
    message = "--profile=3:8: only 6 steps are to be made; end at 6"
    with pytest.raises(SettingsError, match=message), runs.Session(images(), tmp_path, profile=Span(3, 8)) as session:
        session.train()
    assert cli.main(["launch.py", "--config=configs/mlp.py", "--profile=3:8", "--mode=diagnose"]) == 2


def test_calls_of_several_steps_are_traced_whole(tmp_path: Path) -> None:
    trace = profiling.Trace(Span(3, 9), tmp_path)
    for step, steps in ((100, 4), (104, 4), (108, 4), (112, 1)):  # of a run that was resumed at step 100
        trace(step, steps, np.zeros(1))
    assert trace.steps == 12  # 103 to 108 are in the first three calls
    assert trace.calls == {4}
    assert trace.folder.name == "100"


def test_steps_that_are_made_again_count_again(tmp_path: Path) -> None:
    """After a loss that was not finite, training goes on from an earlier step."""
    trace = profiling.Trace(Span(2, 5), tmp_path)
    for step in (0, 1, 2, 3, 1, 2, 3):
        trace(step, 1, np.zeros(1))
    assert trace.steps == 3


def test_a_table_of_nothing_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no operation of jit_call"):
        profiling.costliest(tmp_path, 3, ["HloModule jit_call, is_scheduled=true"])


def test_two_profiles_of_one_run_are_two(tmp_path: Path) -> None:
    config = images(model={"name": "mlp", "hidden": (512,)}, steps_per_call=1, compile="pmap")
    for stop in (4, 8):
        with runs.Session(
            {**config, "train_for": f"{stop} steps"}, tmp_path, quiet=True, profile=Span(1, 3)
        ) as session:
            session.train()
        index = json.loads((tmp_path / "artifacts" / "index.json").read_text())
        entry = next(e for e in index if e["name"] == "costliest")
        assert "in 2 steps" in entry["caption"]
        made = json.loads((tmp_path / "artifacts" / entry["file"]).read_text())
        products = [r for r in made["rows"] if "hidden_0" in r[4] and "dot_general" in r[4]]
        assert products
        assert all(float(r[2]) == 1 for r in products)
    assert len(list((tmp_path / "profile").iterdir())) == 2
