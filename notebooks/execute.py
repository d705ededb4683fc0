"""Runs notebooks/*.py in a fresh kernel each and writes the .ipynb beside it, with outputs and pictures.

    python notebooks/execute.py                            all, at full size (about a minute each on one core)
    python notebooks/execute.py 02_vae --steps=20 --out=DIR   one, small, written elsewhere

The .py of a pair is the source (percent format, readable in a diff); the .ipynb is made from it.
"""

import argparse
import os
import tempfile
import zlib
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def execute(path: Path, env: dict[str, str]) -> nbformat.NotebookNode:
    """The notebook of a percent script, run in a temporary folder. Raises CellExecutionError when a cell fails."""
    notebook = jupytext.read(path)
    for cell in notebook.cells:
        cell.id = f"{zlib.crc32(cell.source.encode()):08x}"  # what has not changed keeps its id, so a diff shows what did
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=env)
    notebook.metadata["language_info"] = {"name": "python"}  # the rest is this machine's
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="01_algebra, 02_vae, 03_memory; all when none is given")
    parser.add_argument("--steps", type=int, help="training steps instead of the notebook's own")
    parser.add_argument("--out", type=Path, default=HERE, help="where to write; beside the source when not given")
    args = parser.parse_args()
    env = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "UMBRELLA_NOTEBOOK_STEPS")}
    if args.steps:
        env["UMBRELLA_NOTEBOOK_STEPS"] = str(args.steps)
    found = sorted(p for p in HERE.glob("[0-9]*.py") if not args.names or p.stem in args.names)
    if not found:
        parser.error(f"no such notebook; there are {', '.join(sorted(p.stem for p in HERE.glob('[0-9]*.py')))}")
    for path in found:
        to = args.out / f"{path.stem}.ipynb"
        to.write_text(jupytext.writes(execute(path, env), fmt="ipynb"))
        print(to)


if __name__ == "__main__":
    main()
