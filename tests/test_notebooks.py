"""The notebooks: the pairs are in sync, the committed ones have pictures and no errors, and each runs, small."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

NAMES = ("01_algebra", "02_vae", "03_memory")
every_notebook = pytest.mark.parametrize("name", NAMES)


def code_of(notebook: Any) -> list[str]:
    return [cell.source.strip() for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook: Any) -> list[Any]:
    return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def check_outputs(notebook: Any) -> None:
    """Every code cell ran, in order, without an error; there is text and there are pictures."""
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = outputs_of(notebook)
    assert not [out for out in outputs if out.output_type == "error"]
    assert not [out.text for out in outputs if out.output_type == "stream" and out.name == "stderr"]
    assert [out for out in outputs if "image/png" in out.get("data", {})]
    assert [out for out in outputs if out.output_type == "stream"]


def test_every_notebook_is_a_pair() -> None:
    folder = ROOT / "notebooks"
    assert sorted(p.stem for p in folder.glob("*.ipynb")) == sorted(NAMES)
    assert sorted(p.stem for p in folder.glob("[0-9]*.py")) == sorted(NAMES)


@every_notebook
def test_the_committed_notebook_is_its_script_with_outputs(name: str) -> None:
    script = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert notebook.metadata["jupytext"]["formats"] == script.metadata["jupytext"]["formats"] == "ipynb,py:percent"
    assert [(c.cell_type, c.source.strip()) for c in notebook.cells] == [
        (c.cell_type, c.source.strip()) for c in script.cells
    ], f"run python notebooks/execute.py {name}"
    check_outputs(notebook)
    private = [str(Path.home()) + "/", str(ROOT)]  # of the machine that made it
    assert not [out for out in outputs_of(notebook) for text in private if text in str(out.get("text", ""))]


@every_notebook
def test_it_runs_small(name: str, tmp_path: Path) -> None:
    """In a kernel of its own, as a reader would run it: one device, JAX's default promotion rules."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "MPLBACKEND")}
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # what it prints does not matter here; it compiles in half the time
    script = [sys.executable, str(ROOT / "notebooks" / "execute.py"), name, "--steps=20", f"--out={tmp_path}"]
    done = subprocess.run(script, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    made = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    assert code_of(made) == code_of(jupytext.read(ROOT / "notebooks" / f"{name}.py"))
    check_outputs(made)
