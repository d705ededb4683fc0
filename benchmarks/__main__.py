"""python -m benchmarks [--rounds N] [--write]: every timing, side by side in one run, as one table.

Rivals take turns in one process, A B A B, so a machine that slows down slows both, and a ratio is the median over
several processes. Nothing else may run meanwhile. PyTorch, Lightning, foolbox and ART join when they are installed.
"""

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from umbrella import environment

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
MARKS = ("<!-- benchmarks -->", "<!-- /benchmarks -->")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="processes for each comparison of loops")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--only", nargs="+", choices=sorted(LOOPS), help="these comparisons of loops and nothing else")
    args = parser.parse_args()

    rows = loops(args.rounds, args.only) if args.only else [*starts(), *loops(args.rounds), *flat(), *saves()]
    print("\n".join(as_lines(rows)))
    if args.write:
        write(as_lines(rows), whole=not args.only)
    return 0


def as_lines(rows: list[tuple[str, str, str, str]]) -> list[str]:
    """A table of Markdown."""
    head = ["| what | measured | rival | ratio |", "|---|---|---|---|"]
    return [*head, *(f"| {' | '.join(r)} |" for r in rows)]


def starts() -> list[tuple[str, str, str, str]]:
    """Whole processes: --help, and the first step of the digits VAE, with an empty and a filled compilation cache."""
    rows = []
    seconds = [_timed([sys.executable, "launch.py", "--help"], {}) for _ in range(5)]
    rows.append(("`python launch.py --help`", f"{np.median(seconds):.2f} s", "target 2 s", ""))
    with tempfile.TemporaryDirectory() as folder:
        for name, target in (("cold", "12 s"), ("warm", "6 s")):
            args = [sys.executable, "launch.py", "--config=configs/vae.py", f"--workdir={folder}/{name}"]
            args += ["--config.train_for=1 steps", "--config.log_every=1 steps", "--config.eval_every=never"]
            child = subprocess.Popen(
                args,
                cwd=ROOT,
                env={**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"},
                stdout=subprocess.PIPE,
                text=True,
            )
            began = time.perf_counter()
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("step 1/1"):
                    took = time.perf_counter() - began
                    break
            child.communicate()
            rows.append((f"first step of `configs/vae.py`, {name} cache", f"{took:.1f} s", f"target {target}", ""))
    return rows


def _timed(command: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=True, capture_output=True)
    return time.perf_counter() - began


LOOPS = {  # module.function -> what it is, and steps a turn
    "loops.tiny_mlp": ("MLP 64-128-10, digits, batch 64", 1000),
    "loops.vae": ("VAE 784-400-20, MNIST, batch 128", 1000),
    "images.lenet": ("LeNet-5, 28 x 28, batch 64", 100),
    "images.resnet20": ("ResNet-20, 32 x 32 x 3, batch 128", 10),
    "images.seeds": ("5 seeds of LeNet-5 in one program, batch 64", 50),
    "images.seeds_mlp": ("5 seeds of an MLP 784-128-10 in one program, batch 64", 200),
    "language.gpt": ("GPT, 4 blocks of width 128, 32 x 128 characters", 20),
    "attacks.pgd": ("PGD of 40 steps, LeNet-5, 250 images", 4),
    "attacks.training": ("training against PGD of 7 steps, a CNN of 2 layers, batch 128", 20),
}


def loops(rounds: int, only: Sequence[str] = ()) -> list[tuple[str, str, str, str]]:
    """Microseconds a step, and the ratios; of whole processes, as where buffers happen to lie is worth some percent."""
    rows = []
    for name in only or LOOPS:
        title = LOOPS[name][0]
        code = f"from benchmarks.__main__ import _loop; _loop({name!r})"
        told = [child(code) for _ in range(rounds)]
        ours = np.array([t.pop("umbrella") for t in told])
        for rival in told[0]:
            other = np.array([t[rival] for t in told])
            ratio = ours / other
            rows.append(
                (
                    title,
                    f"{np.median(ours):.0f} us a step",
                    f"{rival}: {np.median(other):.0f} us",
                    f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})",
                )
            )
    return rows


def child(code: str) -> dict[str, Any]:
    """What a Python process prints last, read as JSON."""
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def _loop(name: str, turns: int = 5) -> None:
    """Prints {rival: microseconds a step}, over all turns: a checkpoint of ours after 5,000 steps, where they make as
    many, is in them. All of them in a process that keeps freed memory, as launch.py does."""
    environment.keep_freed_memory()
    module, _, function = name.partition(".")
    make, steps = getattr(importlib.import_module(f"benchmarks.{module}"), function), LOOPS[name][1]
    with contextlib.ExitStack() as stack:
        segments = {k: v for k, v in make(stack).items() if v is not None}
        spent = dict.fromkeys(segments, 0.0)
        for turn in range(turns + 1):
            for rival, segment in segments.items():
                seconds = segment(steps)
                spent[rival] += seconds if turn else 0.0  # the first turn compiles and warms up
    print(json.dumps({k: 1e6 * v / turns for k, v in spent.items()}))


def flat() -> list[tuple[str, str, str, str]]:
    """Compilations and resident memory over 10,000 steps with evaluations and checkpoints, in a process of its own."""
    code = "from benchmarks.__main__ import _flat; _flat()"
    found = child(code)
    return [
        (
            "10,000 steps of `configs/mlp.py` with 10 evaluations and 10 checkpoints, after the first 2,000",
            f"{found['compiled']} compilations, {found['grown_mb']:+.1f} MB resident",
            "target 0, flat",
            "",
        )
    ]


def _flat() -> None:
    from umbrella import cli, runs

    config = cli.load_config(str(ROOT / "configs" / "mlp.py"))
    config |= {
        "train_for": "10000 steps",
        "eval_every": "1000 steps",
        "checkpoint_every": "1000 steps",
        "log_every": "100 steps",
        "baselines": False,
    }
    seen: list[tuple[int, int, float]] = []

    class Watched(runs.Session):
        def on_save(self, step: int, ts: Any) -> None:
            super().on_save(step, ts)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen.append((step, self.meter.count, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))

    with tempfile.TemporaryDirectory() as folder, Watched(config, folder, quiet=True) as session:
        session.train()
    early, late = next(s for s in seen if s[0] >= 2000), seen[-1]
    print(json.dumps({"compiled": late[1] - early[1], "grown_mb": late[2] - early[2]}))


def saves() -> list[tuple[str, str, str, str]]:
    """What a checkpoint costs: the loop that saves it, the thread that hashes it, the run that verifies it."""
    found = child("from benchmarks.__main__ import _saves; _saves()")
    return [
        ("save of 100 MB: the loop waits", f"{found['stall_ms']:.0f} ms", "target 50 ms", ""),
        ("save of 100 MB: until it has its manifest, beside the loop", f"{found['background_ms']:.0f} ms", "", ""),
        ("restore of 100 MB, every byte verified first", f"{found['restore_mb_s']:.0f} MB/s", "target 300 MB/s", ""),
    ]


def _saves(mb: int = 100, times: int = 7) -> None:
    """Medians over saves of a state of random numbers; the first one, which compiles, is left out."""
    import jax

    from umbrella.checkpoint import Checkpoints

    change = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"params": {f"w{i}": jax.random.normal(jax.random.key(i), (mb * 25_000,)) for i in range(10)}}
    stalls, background, restores = [], [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder), keep=1) as checkpoints:
        for step in range(times + 1):
            tree = jax.block_until_ready(change(tree))
            began = time.perf_counter()
            checkpoints.save(step, tree, {})
            saved = time.perf_counter()
            tree = jax.block_until_ready(change(tree))  # donated while it is being written
            checkpoints.wait()
            stalls.append(saved - began)
            background.append(time.perf_counter() - saved)
        template = jax.eval_shape(lambda: tree)
        for _ in range(times + 1):
            began = time.perf_counter()
            jax.block_until_ready(checkpoints.restore(template))
            restores.append(time.perf_counter() - began)
    told = {"stall_ms": 1e3 * np.median(stalls[1:]), "background_ms": 1e3 * np.median(background[1:])}
    print(json.dumps(told | {"restore_mb_s": mb / np.median(restores[1:])}))


def write(lines: list[str], whole: bool) -> None:
    """Replaces what stands between the marks in docs/benchmarks.md; or the rows of the same name alone, new ones after
    the others."""
    from umbrella import environment

    device, versions = environment.device(), environment.versions()
    note = f"{device['kind']}; " + ", ".join(f"{k} {versions[k]}" for k in ("python", "jax", "flax", "optax"))
    text = PAGE.read_text()
    before, rest = text.split(MARKS[0])
    old, after = rest.split(MARKS[1])
    if not whole:
        made = {line.split(" | ")[0] for line in lines[2:]}
        kept = [line for line in old.splitlines() if line.startswith("| ") and line.split(" | ")[0] not in made]
        lines = [*lines[:2], *kept[1:], *lines[2:]]
    table = "\n".join(lines)
    PAGE.write_text(f"{before}{MARKS[0]}\n\nMeasured on: {note}.\n\n{table}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    sys.exit(main())
