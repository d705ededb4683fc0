"""F61 to F65: what a process does beside its work."""

import json
from pathlib import Path
from typing import Any

import pytest

import umbrella as um
from tests.conftest import ROOT
from tests.faults.kit import config, lines, python
from tests.helpers import bits, gap
from umbrella.writers import JsonlWriter, TensorBoardWriter, Writers

MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for p in (ROOT / "umbrella").rglob("*.py")
    if p.name != "__main__.py"
)

IMPORT = """
import importlib, socket, sys, threading

def no_network(*args, **kw):
    raise AssertionError("a connection was made")

socket.socket.connect = no_network
for name in sys.argv[1:]:
    importlib.import_module(name)
from jax._src import xla_bridge
assert not xla_bridge._backends, "a backend was started"
assert threading.active_count() == 1, threading.enumerate()
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
print(len(sys.argv) - 1)
"""


def test_F61_importing_every_module_starts_no_device_no_thread_and_no_network() -> None:
    done = python(IMPORT, *MODULES)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == len(MODULES) > 50


def test_F63_the_same_seed_twice_gives_the_same_files(tmp_path: Path) -> None:
    """Every byte of metrics.jsonl but the seconds, every bit of the state; and another seed gives others."""
    first, again, other = (
        um.run(config(seed=seed), workdir=tmp_path / name, quiet=True) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert bits(first.ts, again.ts)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert gap(first.ts.params, other.ts.params) > 1e-3
    assert lines(tmp_path / "a") != lines(tmp_path / "c")


LONG = """
import json, resource, sys
import jax
import umbrella as um
from umbrella.environment import CompileMeter

seen = {}

class Watched(um.runs.Session):
    def on_log(self, step, metrics):
        super().on_log(step, metrics)
        with open("/proc/self/statm") as file:
            seen[step] = (int(file.read().split()[1]) * resource.getpagesize() / 1e6, self.meter.count)

config, workdir, steps = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
config |= {"train_for": f"{steps} steps", "log_every": "500 steps", "eval_every": "1000 steps"}
config |= {"checkpoint_every": "1000 steps"}
with Watched(config, workdir, quiet=True) as session:
    session.train()
print(json.dumps(seen))
"""


def long_run(workdir: Path, steps: int, devices: int = 1) -> dict[int, tuple[float, int]]:
    """step -> (resident MB, programs compiled so far) of a tiny run with evaluations and checkpoints on."""
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = python(LONG, json.dumps(config()), str(workdir), str(steps), env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return {int(step): tuple(v) for step, v in json.loads(done.stdout).items()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_F64_ten_thousand_steps_compile_nothing_and_take_no_memory(tmp_path: Path) -> None:
    """From step 2,000 on, when everything has happened once: an evaluation, saves, a save that retires an older one."""
    seen = long_run(tmp_path / "w", 10_000)
    late = {step: v for step, v in seen.items() if step >= 2000}
    assert len(late) > 10
    assert len({count for _, count in late.values()}) == 1
    first, last = (late[step][0] for step in (min(late), max(late)))
    assert last - first < 40, f"{first:.0f} MB at first, {last:.0f} MB at last"


class Broken:
    """Works twice and then raises."""

    def __init__(self) -> None:
        self.calls = 0

    def write(self, *args: Any) -> None:
        self.calls += 1
        if self.calls > 2:
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise RuntimeError("closed twice")


def test_F65_a_writer_that_dies_is_dropped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, good = Broken(), JsonlWriter(tmp_path)
    writers = Writers(broken, good)
    for step in range(5):
        writers.write(step, 0.0, "train", {"loss": 1.0})
    writers.close()
    assert broken.calls == 3
    assert len(caplog.records) == 1 and "No space left on device" in caplog.text and "training goes on" in caplog.text
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [*range(5)]


@pytest.mark.parametrize("writer", [JsonlWriter, pytest.param(TensorBoardWriter, marks=pytest.mark.slow)])
def test_F65_a_run_outlives_its_log(
    writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = um.run(config(), workdir=tmp_path / "whole", quiet=True)

    def fail(self: Any, *args: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write", fail)
        result = um.run(config(), workdir=tmp_path / "w", quiet=True)
    assert bits(result.ts, whole.ts)
    assert result.summary["status"] == "finished" and result.summary["metrics"] == whole.summary["metrics"]
    assert result.history == whole.history
    assert f"{writer.__name__} failed" in caplog.text
    assert (tmp_path / "w" / "report.html").is_file()
