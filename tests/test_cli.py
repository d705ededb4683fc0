"""The command line as a person meets it: every mistake is one line that helps, with status 2 and nothing written."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

VAE, MLP = f"--config={ROOT}/configs/vae.py", f"--config={ROOT}/configs/mlp.py"


def run(*argv: str, **kw: object) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "launch.py", *argv], cwd=ROOT, env=env, capture_output=True, text=True, check=False, **kw
    )  # type: ignore[call-overload,no-any-return]


def test_help_is_quick_and_starts_no_device() -> None:
    began = time.perf_counter()
    told = run("--help")
    assert told.returncode == 0
    assert "--config.KEY=VALUE" in told.stdout
    assert time.perf_counter() - began < 2
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, umbrella, umbrella.cli; print('jax' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "False"


def test_training_imports_no_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys; from umbrella import cli; "
        f"status = cli.main(['launch.py', {VAE!r}, '--workdir={tmp_path}/w', '--config.train_for=2 steps', "
        "'--config.importance_weighted.samples=2', '--config.baselines=False']); "
        "print(status, 'tensorflow' in sys.modules, 'torch' in sys.modules)"
    )
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert told.stdout.strip().endswith("0 False False"), told.stderr


FAULTS = """
import resource, sys
import numpy as np
from umbrella import environment
print(environment.keep_freed_memory() if sys.argv[1] == "keep" else False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(10_000_000, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own allocator")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """40 MB are 9,766 pages of 4 KiB; 20 times anew are 195,313 faults, and those of one time are left. (Pages of 2 MiB
    are 19 and 381.)"""
    told = {}
    for how in ("keep", "plain"):
        env = {**os.environ, "UMBRELLA_KEEP_MEMORY": "1"}
        out = subprocess.run([sys.executable, "-c", FAULTS, how], env=env, capture_output=True, text=True, check=True)
        done, faults = out.stdout.split()
        assert (done == "True") == (how == "keep")
        told[how] = int(faults)
    assert told["keep"] < told["plain"] / 10
