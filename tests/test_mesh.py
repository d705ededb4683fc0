"""One program on any mesh: eight devices in a process of their own, and what is refused."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.helpers import slow_but
from tests.mesh_cases import CASES, images
from umbrella import cli, preflight, runs
from umbrella.parallel import TENSOR, Shape, cut, rules_of, shape_of
from umbrella.settings import SettingsError

QUICK = ("a_part_of_the_state_on_each_device", "a_checkpoint_of_any_mesh_goes_on_on_any_other")


@pytest.mark.parametrize("case", slow_but(CASES, QUICK))
def test_on_eight_devices(case: str, tmp_path: Path) -> None:
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "tests.mesh_cases", case, str(tmp_path)]
    told = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-4000:]
    assert told.stdout.splitlines()[-1] == "held"


@pytest.mark.parametrize(
    ("devices", "seeds", "given", "wanted"),
    [
        (1, 5, {}, Shape(1, 1, 1, 1)),
        (8, 3, {}, Shape(1, 8, 1, 1)),  # eight devices cannot share three seeds
        (4, 8, {}, Shape(4, 1, 1, 1)),  # two seeds each
        (8, 8, {"seed": 1}, Shape(1, 8, 1, 1)),
        (8, 4, {"model": 2}, Shape(4, 1, 1, 2)),
        (8, 4, {"seed": 2, "fsdp": 2}, Shape(2, 2, 2, 1)),
        (8, 1, {"data": 2, "fsdp": 4}, Shape(1, 2, 4, 1)),
    ],
)
def test_the_shape_of_a_mesh(devices: int, seeds: int, given: dict[str, int], wanted: Shape) -> None:
    assert shape_of(devices, seeds, **given) == wanted


@pytest.mark.parametrize(
    ("devices", "seeds", "given", "words"),
    [
        (8, 1, {"fsdp": 3}, "not the number of devices, 8"),
        (8, 1, {"data": 2}, "2 data is not the number of devices, 8"),
        (2, 1, {"fsdp": 4}, "not the number of devices, 2"),
        (8, 3, {"seed": 2}, "2 devices cannot share 3 seeds"),
    ],
)
def test_a_mesh_that_is_none(devices: int, seeds: int, given: dict[str, int], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        shape_of(devices, seeds, **given)


@pytest.mark.parametrize(
    ("path", "shape", "wanted"),
    [
        ("model/transformer/block_0/attention/query_key_value/kernel", (64, 192), ("fsdp", "model")),
        ("model/transformer/block_0/attention/out/kernel", (64, 64), ("model", "fsdp")),
        ("model/transformer/block_0/in/bias", (256,), ("model",)),
        ("model/other/kernel", (63, 128), (None, "fsdp")),  # no rule; two devices do not divide 63
        ("model/other/kernel", (8, 16), (None, None)),  # too small to be worth gathering
        ("model/head/kernel", (4096, 10), ("fsdp", None)),  # four devices do not divide 10
        ("model/conv_0/kernel", (3, 3, 64, 128), (None, None, "fsdp", "model")),
        ("step", (), ()),
    ],
)
def test_how_an_array_is_cut(path: str, shape: tuple[int, ...], wanted: tuple[Any, ...]) -> None:
    assert cut(path, shape, TENSOR, {"seed": 1, "data": 1, "fsdp": 2, "model": 4}) == wanted


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (("hiden", ("model", None)), "'hiden' is found in no path of a parameter, such as model/head/bias"),
        (("hidden_0/kernel$", ("model",)), "names 1 axes, and model/hidden_0/kernel has 2"),
        (("hidden_0/kernel$", ("tensor", None)), r"no axis 'tensor' \(one of"),
        (("hidden_0/kernel$", ("model", "model")), "names an axis of the mesh twice"),
        (("^params/model", ("model", None)), "is found in no path"),
        (("hidden_0/(kernel$", ("model", None)), "is no regular expression"),
    ],
)
def test_a_rule_that_is_none(rule: Any, words: str) -> None:
    paths = {"model/hidden_0/kernel": (4, 8), "model/head/bias": (3,)}
    with pytest.raises(SettingsError, match=words):
        rules_of((rule,), paths)


def test_a_mesh_and_rules_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for more, words in (
        ({"mesh": {"fdsp": 2}}, r"config.mesh.fdsp: no such setting \(did you mean 'fsdp'"),
        ({"mesh": {"fsdp": 3}}, "config.mesh: 3 fsdp"),
        ({"mesh": {"data": 0}}, "config.mesh.data: 0 must be >= 1"),
        ({"batch_size": 33}, "config.batch_size: 33 does not divide over 2 devices"),
        ({"shard": (("hiden", (None,)),)}, "config.shard: 'hiden'"),
        ({"shard": "hidden"}, "config.shard: "),
        ({"compile": "pmap", "seeds": 2}, "config.compile: 'pmap' trains one seed"),
        ({"compile": "pmap", "mesh": {"fsdp": 2}}, "config.compile: 'pmap' deals out rows and nothing else"),
        (
            {"compile": "pmap", "microbatches": 4, "batch_size": 44},
            "config.microbatches: 4 slices do not divide the 44",
        ),
        ({"reduction": "fixed", "batch_size": 44}, "config.batch_size: 44 does not divide into 8 slices.*try 40 or 48"),
        ({"reduction": "fixed", "seeds": 2}, "config.reduction: 'fixed' trains one seed"),
        ({"reduction": "fixed", "mesh": {"fsdp": 2}}, "config.reduction: 'fixed' adds up 8 slices, dealt out over"),
        ({"reduction": "fixed", "microbatches": 2}, "config.reduction: 'fixed' goes through a batch in 8 slices"),
        ({"reduction": "fixed"}, "config.reduction: 'fixed' has no place for the state model: statistics of BatchNorm"),
        ({"reduction": "fixed", "steps_per_call": 4}, "config.reduction: 'fixed' makes calls of one step"),
        ({"reduction": "fixed", "compile": "pmap"}, "config.reduction: 'fixed' is compiled in a way of its own"),
        (
            {"offload": True, "reduction": "fixed", "model": {"name": "mlp"}},
            "config.offload: is for compile='jit' and reduction='fast'",
        ),
        ({"compile": "pmapp"}, r"config.compile: 'pmapp' is not one of the choices \(did you mean 'pmap'"),
    ):
        with pytest.raises(SettingsError, match=words):
            runs.run(images(**more), workdir=tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


def test_preflight_says_what_a_run_needs(tmp_path: Path) -> None:
    """64 x 128 + 128 (no bias before BatchNorm: scale and shift) and 128 x 10 + 10: 8,192 + 256 + 1,290 numbers."""
    page = preflight.preflight(images(), tmp_path / "run", name="images")
    assert "parameters   9,738" in page
    assert "model/hidden_0/kernel  float32[64, 128]  whole" in page
    assert re.search(r"x: \w+\[8, 8, 1\]", page)
    assert "mesh: 2 data" in page
    assert "all-reduce" in page
    assert "none there; it starts from scratch" in page
    assert not (tmp_path / "run").exists()
    # Four copies of 9,738 numbers, Adam's two moments among them, twice 256 running statistics, and counters.
    told = re.search(r"([\d.]+) kB state", page)
    assert told is not None and 4 * 9_738 * 4 + 2 * 2 * 128 * 4 <= float(told[1]) * 1000 < 4 * 9_738 * 4 + 3_000


def test_preflight_knows_what_is_there(tmp_path: Path) -> None:
    runs.run(images(train_for="2 steps"), workdir=tmp_path / "run", quiet=True)
    page = preflight.preflight(images(), tmp_path / "run", name="images")
    assert "step 2 fits; it goes on from there" in page
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    with pytest.raises(SettingsError, match="holds a run of another config"):
        preflight.preflight(images(batch_size=20), tmp_path / "run", name="images")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_preflight_refuses_what_cannot_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_memory_of", lambda device: 100_000)
    with pytest.raises(SettingsError, match=r"a step needs .* of a device that has 100 kB \(15\d kB of state"):
        preflight.preflight(images(), tmp_path / "run", name="images")
    monkeypatch.undo()
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(SettingsError, match="checkpoints will take .* more, and 1 kB are free there"):
        preflight.preflight(images(), tmp_path / "run", name="images")


def test_preflight_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs" / "mlp.py")
    assert cli.main(["launch.py", f"--config={config}", "--preflight", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "a step" in capsys.readouterr().out
    assert cli.main(["launch.py", f"--config={config}", "--preflight", "--mode=predict"]) == 2
    assert "--preflight: is about a training" in capsys.readouterr().err
