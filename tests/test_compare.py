"""Two runs side by side: the tests are scipy's, the refusals are one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from umbrella import cli, compare
from umbrella.settings import SettingsError
from umbrella.workdir import over_seeds


def run(path: Path, values: list[float], *, seed: int = 0, data: str = "f", **more: Any) -> Path:
    path.mkdir()
    told = over_seeds(values) if len(values) > 1 else values[0]
    summary = {
        "status": "finished",
        "metrics": {"test": {"accuracy": told, "temperature": 1.0}, "robust": {"accuracy": told}},
        "data": {"name": "digits", "fingerprint": data, "n_test": 4},
    }
    (path / "summary.json").write_text(json.dumps(summary | more))
    (path / "config.json").write_text(json.dumps({"seed": seed, "seeds": len(values)}))
    return path


A, B = [0.9, 0.92, 0.91, 0.95], [0.88, 0.91, 0.89, 0.92]


def test_runs_of_the_same_seeds_are_paired(tmp_path: Path) -> None:
    line = compare.compare(run(tmp_path / "a", A), run(tmp_path / "b", B))[0]
    found = stats.ttest_rel(A, B)
    low, high = found.confidence_interval()
    assert (line.p, line.low, line.high) == pytest.approx((found.pvalue, low, high))
    assert line.test == "paired t" and line.verdict == "A is better"  # p = 0.013
    back = compare.compare(tmp_path / "b", tmp_path / "a")[0]
    assert back.verdict == "B is better" and back.p == pytest.approx(line.p)


def test_runs_of_other_seeds_are_not(tmp_path: Path) -> None:
    line = compare.compare(run(tmp_path / "a", A), run(tmp_path / "b", B[:3], seed=9))[0]
    found = stats.ttest_ind(A, B[:3], equal_var=False)
    assert line.p == pytest.approx(found.pvalue) and line.test == "Welch"
    assert line.verdict == "no difference shown"


def test_equal_differences_and_damaged_seeds_prove_nothing(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [0.9694, 0.9694]), run(tmp_path / "b", [0.9667, 0.9667])
    line = compare.compare(a, b)[0]
    assert np.isnan(line.p) and line.verdict == "no spread between seeds: nothing can be said"
    c = run(tmp_path / "c", [*A[:3], float("nan")])
    line, found = compare.compare(c, run(tmp_path / "d", B))[0], stats.ttest_rel(A[:3], B[:3])
    assert (line.p, *((line.low, line.high))) == pytest.approx((found.pvalue, *found.confidence_interval()))
    line, found = (
        compare.compare(c, run(tmp_path / "e", B, seed=5))[0],
        stats.ttest_ind(A[:3], B, equal_var=False),
    )
    assert line.p == pytest.approx(found.pvalue) and line.test == "Welch"


def test_one_seed_against_several_is_not_tested_by_rows(tmp_path: Path) -> None:
    """Row by row would compare with one member of them."""
    a, b = run(tmp_path / "a", [0.9]), run(tmp_path / "b", [0.99, 0.8, 0.8])
    for path, n in ((a, 1), (b, 3)):
        (path / "artifacts").mkdir()
        np.savez(path / "artifacts" / "rows.npz", y=np.zeros(9, int), label=np.arange(9 * n).reshape(n, 9) % 2)
    assert compare.compare(a, b)[0].test == ""
    assert compare.compare(a, b)[0].verdict.endswith("nothing can be said")


def test_what_is_not_the_same_evaluation_is_not_tested(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", A), run(tmp_path / "b", B)
    for path, eps in ((a, 0.1), (b, 0.2)):
        config = json.loads((path / "config.json").read_text())
        config |= {"evals": {"test": [], "robust": ["pgd"]}, "pgd": {"technique": "adversarial", "eps": eps}}
        (path / "config.json").write_text(json.dumps(config))
    lines = {(x.evaluation, x.metric): x for x in compare.compare(a, b)}
    assert lines["robust", "accuracy"].verdict == "not the same evaluation: nothing can be said"
    assert lines["test", "accuracy"].verdict == "A is better"
    assert compare._defined("validation", {"data": {"rows": 5}}) != compare._defined(
        "validation", {"data": {"rows": 6}}
    )


def test_of_one_seed_each_only_rows_can_tell(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [0.9]), run(tmp_path / "b", [0.8])
    assert compare.compare(a, b)[0].verdict == "one seed each: nothing can be said"
    y = np.arange(40) % 3
    wrong = {a: np.arange(40) < 2, b: np.arange(40) < 12}
    for path, miss in wrong.items():
        (path / "artifacts").mkdir()
        np.savez(path / "artifacts" / "rows.npz", y=y, label=np.where(miss, 7, y)[None])
    line = compare.compare(a, b)[0]
    # Ten rows that only A has right, none that only B has: 2 * (1/2)^10.
    assert line.p == pytest.approx(2 * 0.5**10) and line.test == "McNemar" and line.verdict == "A is better"


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    a = run(tmp_path / "a", A)
    other, stopped, broken = (
        run(tmp_path / "b", B, data="g"),
        run(tmp_path / "c", B, status="interrupted"),
        tmp_path / "d",
    )
    run(broken, B)
    (broken / "summary.json").write_text('{"metrics"')
    for path, word in (
        (other, "different data"),
        (stopped, "interrupted"),
        (broken, "damaged"),
        (tmp_path / "no", "no summary"),
    ):
        with pytest.raises(SettingsError, match=word) as error:
            compare.compare(a, path)
        assert "\n" not in str(error.value)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path / "a", A), run(tmp_path / "b", B)
    assert cli.main(["launch.py", "--mode=compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "A is better" in out and "paired t" in out and str(b) in out
    # Accuracy on test and on robust; the temperature has one value each.
    assert "of 2 tests, chance alone makes that of 0.1." in out
    for wrong in (["--mode=compare", str(a)], ["--mode=compare", str(a), str(b), "--config=configs/mlp.py"]):
        assert cli.main(["launch.py", *wrong]) == 2
        assert "takes the workdirs of two runs" in capsys.readouterr().err
    assert cli.main(["launch.py", "configs/mlp.py"]) == 2
    assert "is no flag; write --config=configs/mlp.py" in capsys.readouterr().err
