"""What a step of a small GPT sends between devices and keeps on each, read from the compiled program. Nothing is run.

python -m benchmarks.scaling_compiled NAME ...          cases of `CASES`, a process each, as one line of JSON each
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {"layers": 4, "width": 256, "heads": 8, "length": 128, "words": 512}
SPECIAL = 5  # tokens of every vocabulary that are no characters


class Case(NamedTuple):
    """One program: `pinned` has the rows of every layer's input and output stay where the batch's are."""

    data: int = 1
    fsdp: int = 1
    model: int = 1
    rows: int = 32
    pinned: bool = False
    remat: bool | str = False
    microbatches: int = 1

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.model


CASES = {
    "data": Case(data=8),
    "data, twice the rows": Case(data=8, rows=64),
    "data, remat": Case(data=8, remat=True),
    "data, twice the rows, remat": Case(data=8, rows=64, remat=True),
    "data, remat dots_no_batch": Case(data=8, remat="dots_no_batch"),
    "data, twice the rows, remat dots_no_batch": Case(data=8, rows=64, remat="dots_no_batch"),
    "data, 4 microbatches": Case(data=8, microbatches=4),
    "data, 32 microbatches": Case(data=8, rows=256, microbatches=32),
    "fsdp": Case(fsdp=8),
    "fsdp, twice the rows": Case(fsdp=8, rows=64),
    "fsdp, remat": Case(fsdp=8, remat=True),
    "fsdp, remat dots_no_batch": Case(fsdp=8, remat="dots_no_batch"),
    "data and fsdp, 4 microbatches": Case(data=2, fsdp=4, microbatches=4),
    "model": Case(model=8),
    "data and model": Case(data=4, model=2),
    "model, remat": Case(model=8, remat=True),
    "all three": Case(2, 2, 2),
    "fsdp, pinned": Case(fsdp=8, pinned=True),
    "fsdp, pinned, twice the rows": Case(fsdp=8, rows=64, pinned=True),
    "fsdp, pinned, remat": Case(fsdp=8, pinned=True, remat=True),
    "fsdp, pinned, 4 microbatches": Case(fsdp=8, pinned=True, microbatches=4),
    "all three, pinned": Case(2, 2, 2, pinned=True),
    "64: data": Case(data=64, rows=256),
    "64: fsdp": Case(fsdp=64, rows=256),
    "64: data and fsdp, pinned": Case(data=8, fsdp=8, rows=256, pinned=True),
    "256: all three, pinned": Case(8, 8, 4, rows=256, pinned=True),
    "1024: all three, pinned": Case(32, 8, 4, rows=1024, pinned=True),
}

# ------------------------------------------------------------------------------------------- what a program's text says
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_SENT = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLS = re.compile(r"(?:calls|to_apply|condition)=%?([\w.\-]+)")


def sent(text: str) -> dict[str, dict[str, float]]:
    """kind of collective -> {"times": in a step, "result": bytes that it makes on a device, "sent": bytes that a device
    sends, by a ring}, with what is in loops counted as often as they go round.

    Raises:
      ValueError: a loop with a collective in it does not say how often it goes round.
    """
    parts = _parts(text)
    found: dict[str, dict[str, float]] = {}
    for name, times in _times(parts).items():
        for line in parts[name]:
            if m := _SENT.search(line):
                if times < 0:
                    raise ValueError(f"{name}: a loop that does not say how often it goes round sends something")
                n, made = group(line), size(m[1]) / (2 if m[3] and m[2] != "all-reduce" else 1)
                count = found.setdefault(m[2], dict.fromkeys(("times", "result", "sent"), 0.0))
                count["times"] += times
                count["result"] += times * made
                count["sent"] += times * ring(m[2], made, n)
    return dict(sorted(found.items()))


def ring(kind: str, made: float, n: int) -> float:
    """Bytes that each of n devices sends for a result of so many bytes on each.

    >>> ring("all-reduce", 800, 8), ring("all-gather", 800, 8), ring("reduce-scatter", 100, 8)
    (1400.0, 700.0, 700.0)
    """
    if kind == "collective-permute":
        return float(made)
    return {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": float(n - 1)}.get(kind, (n - 1) / n) * made


def size(shape: str) -> int:
    """
    >>> size("(f32[4,8]{1,0}, bf16[3])"), size("f32[]")
    (134, 4)
    """
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        count = 1
        for n in filter(None, sizes.split(",")):
            count *= int(n)
        total += count * _BYTES[kind]
    return total


def group(line: str) -> int:
    """How many devices speak with each other.

    >>> group("replica_groups=[4,2]<=[8]"), group("replica_groups={{0,2},{1,3}}")
    (2, 2)
    >>> group("replica_groups=mesh['a'=2,'b'=4], device_ids=([8]) {'a','b'}"), group("replica_groups=mesh['a'=8] {'a'}")
    (8, 8)
    """
    if m := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(m[1])
    if m := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(m[1].split(","))
    if m := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{('[^}]*)\}", line):
        axes = dict(re.findall(r"'([^']+)'=(\d+)", m[1]))
        count = 1
        for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", m[2]):
            count *= int(part or axes[axis])
        return count
    if m := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return m[1].count("{")
    raise ValueError(f"no groups of devices: {line[:300]}")


def _parts(text: str) -> dict[str, list[str]]:
    """Name of a computation -> its lines; the entry's name is ""."""
    parts: dict[str, list[str]] = {}
    now: list[str] = []
    for line in text.splitlines():
        if m := _HEAD.match(line):
            now = parts.setdefault("" if m[1] else m[2], [])
        else:
            now.append(line)
    return parts


def _times(parts: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation is run in one run of the program; below 0 where that is not known."""
    times: Counter[str] = Counter()

    def run(name: str, n: int) -> None:
        times[name] += n
        for line in parts[name]:
            if " while(" in line and (m := re.search(r"body=%?([\w.\-]+)", line)):
                known = re.search(r'known_trip_count":?=?\{"n":"(\d+)"', line)
                run(m[1], n * int(known[1]) if known else -(10**9))
            for called in _CALLS.findall(line):
                if called in parts:
                    run(called, n)
            if m := re.search(r"branch_computations=\{([^}]*)\}", line):
                for called in m[1].replace("%", "").split(", "):
                    run(called, n)

    run("", 1)
    return dict(times)


# --------------------------------------------------------------------------------------------------------- one program
def compiled(case: Case) -> dict[str, Any]:
    """The numbers of a case; for a process that has as many devices."""
    import jax
    import numpy as np

    from umbrella.placement import Placement
    from umbrella.runs import Session

    letters = [chr(0x4E00 + i) for i in range(SHAPE["words"] - SPECIAL)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text("".join(letters) + "".join(np.random.default_rng(0).choice(letters, 60_000)))
        config = {
            "pipeline": "language",
            "data": {"name": "noise", "path": str(path), "validation": 0.1, "test": 0.1},
            "model": {"name": "gpt", **{k: SHAPE[k] for k in ("layers", "width", "heads")}, "remat": case.remat},
            "length": SHAPE["length"],
            "optimizer": {"name": "adamw", "learning_rate": 3e-3, "clip": 1.0},
            "mesh": {"data": case.data, "fsdp": case.fsdp, "model": case.model},
            "microbatches": case.microbatches,
            "batch_size": case.rows,
            "train_for": "6 steps",
            "evals": {"test": ()},
            "baselines": False,
        }
        with Session(config, Path(folder) / "run", quiet=True) as run:
            left = mock.patch.object(Placement, "pinning", False)
            with contextlib.nullcontext() if case.pinned else left:
                ts, lowered = run.lowered()
            began = time.perf_counter()
            program = lowered.compile()
            seconds = time.perf_counter() - began
            memory = program.memory_analysis()
            return {
                **case._asdict(),
                "params": sum(int(x.size) for x in jax.tree.leaves(ts.params)),
                "state": run.place.bytes_of(ts),
                "temporary": int(memory.temp_size_in_bytes),
                "arguments": int(memory.argument_size_in_bytes),
                "flops": float((program.cost_analysis() or {}).get("flops", 0.0)),
                "collectives": sent(program.as_text()),
                "seconds": round(seconds, 1),
                "jax": jax.__version__,
            }


def of(name: str) -> dict[str, Any]:
    """The numbers of a case, from a process of its own with as many CPU devices as it wants."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={CASES[name].devices}",
    }
    env.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)  # the tests set it, and users run another program
    code = (
        f"import json; from benchmarks import scaling_compiled as s; print(json.dumps(s.compiled(s.CASES[{name!r}])))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def main(names: list[str]) -> int:
    for name in names:
        print(json.dumps({name: of(name)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(CASES)))
