"""Writes the tables of docs/scale.md: python docs/generate_scale.py

The plan is made by the formulas of benchmarks/scaling_plan.py. What compiled programs say is in
docs/scale_compiled.json, which `--compile` makes anew by benchmarks/scaling_compiled.py, in some minutes on two cores.
--check writes nothing and fails when the page is not what both say.
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import scaling_compiled, scaling_plan  # noqa: E402
from benchmarks.scaling_plan import BATCHES, COUNTS, SIZES, How, Machine, Mesh, Shape  # noqa: E402

PAGE = HERE / "scale.md"
KEPT = HERE / "scale_compiled.json"
FILES = 10e9  # bytes a second that a file system takes, of all hosts
HASHED = 1e9  # bytes a second of SHA-256 and fsync, in one thread
MEMORIES = {"H100": 80e9, "H200": 141e9}
SMALL = Shape("compiled", *(scaling_compiled.SHAPE[k] for k in ("layers", "width", "heads", "length", "words")))


def main(argv: list[str]) -> int:
    if "--compile" in argv:
        found = {name: scaling_compiled.of(name) for name in scaling_compiled.CASES}
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    text = page(PAGE.read_text(), json.loads(KEPT.read_text()))
    if "--check" in argv:
        if text == PAGE.read_text():
            return 0
        print(f"{PAGE.relative_to(HERE.parent)} is out of date: run python docs/generate_scale.py")
        return 1
    PAGE.write_text(text)
    return 0


def page(text: str, compiled: dict[str, Any]) -> str:
    """The page with everything between the marks made anew."""
    parts = {
        "memory": memories(),
        "sent": sent(compiled),
        "kept": kept(compiled),
        "plan": plan(),
        "assumptions": assumptions(),
        "hosts": hosts(),
    }
    for name, lines in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(start)
        text = before + start + "\n\n" + "\n".join(lines) + "\n\n" + end + rest.split(end)[1]
    return text


def table(head: str, rows: list[list[str]]) -> list[str]:
    names = head.split(" | ")
    return [f"| {head} |", "|" + "---|" * len(names), *(f"| {' | '.join(r)} |" for r in rows)]


def num(value: float) -> str:
    """
    >>> num(0.0), num(0.5623), num(13.2), num(8751.7)
    ('0', '0.56', '13', '8,752')
    """
    return "0" if value == 0 else f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def named(mesh: Mesh) -> str:
    return " x ".join(f"{n} {axis}" for axis, n in zip(mesh._fields, mesh, strict=True) if n > 1) or "one device"


def assumptions() -> list[str]:
    m = Machine()
    return table(
        "assumed | number | where from",
        [
            ["peak, dense bf16", f"{m.peak / 1e12:.0f} TFLOPs a second", "data sheets of H100 SXM and H200"],
            ["peak of f32 products (TF32), which the output layer has", "half of that", "the same"],
            ["memory", "80 GB (H100), 141 GB (H200)", "the same"],
            ["devices of a host", str(m.host), "HGX and DGX H100 and H200"],
            [
                "NVLink, one device, one direction",
                f"{m.within / 1e9:.0f} GB/s",
                "half of the 900 GB/s of the data sheets",
            ],
            [
                "InfiniBand, one device, one direction",
                f"{m.between / 1e9:.0f} GB/s",
                "one 400 Gb/s port each, DGX H100",
            ],
            ["share of a link that a collective reaches", f"{m.links:.0%}", "a guess"],
            ["share of the peak that a step reaches where nothing is sent", f"{m.kernels:.0%}", "a guess"],
            [
                "overlap: share of gradients and parameters whose sending is hidden behind computing",
                f"{m.overlap:.0%}",
                "a guess",
            ],
            ["share of the memory that can be used", f"{m.usable:.0%}", "a guess"],
            ["training text", f"{scaling_plan.MOST_TOKENS:,} tokens", "the most that umbrella can count"],
            ["latency of a collective", "0", "too kind to small models on many devices"],
        ],
    )


def memories() -> list[str]:
    rows = []
    for s in SIZES:
        half = [scaling_plan.kept(s, r, "bf16") * s.layers for r in (False, "dots_no_batch", True)]
        low = scaling_plan.least(s, "bf16") * s.layers
        sizes = [scaling_plan.state(s, Mesh(1, 1, 1)), *(low, *half)]
        shape = f"{s.layers} x {s.width}, {s.heads} heads, T {s.length:,}"
        rows.append(
            [s.name, shape, f"{s.params:,}", num(sizes[0] / 1e9)]
            + [num(v / 1e6) for v in sizes[1:]]
            + [num(12 * s.words / 1e6)]
        )
    return table(
        "GPT | blocks x width | parameters | state, GB | MB a token: 16 W | no remat | dots_no_batch | True | output",
        rows,
    )


# -------------------------------------------------------------------------------------------------- what was compiled
def of_case(case: dict[str, Any], cutting: scaling_plan.Cutting) -> float:
    mesh = Mesh(case["data"], case["fsdp"], case["model"])
    how = How(case["rows"], case["microbatches"], case["remat"], "f32", cutting)
    return sum(scaling_plan.sent(SMALL, mesh, how).values())


def sent(compiled: dict[str, Any]) -> list[str]:
    """Formulas beside the bytes of the compiled collectives."""
    rows = []
    for name, case in compiled.items():
        if "remat" in name and case["fsdp"] == case["model"] == 1:
            continue
        mesh = Mesh(case["data"], case["fsdp"], case["model"])
        found = sum(c["sent"] for c in case["collectives"].values())
        kinds = ", ".join(f"{c['times']:g} {kind}" for kind, c in case["collectives"].items())
        zero = of_case(case, "zero")
        right = of_case(case, "left" if mesh.fsdp > 1 and not case["pinned"] else "sums")
        more = [f"{case['rows']} rows"]
        more += [f"remat {case['remat']}"] if case["remat"] else []
        more += [f"{case['microbatches']} microbatches"] if case["microbatches"] > 1 else []
        rows.append(
            [
                named(mesh),
                ", ".join(more),
                "left to XLA" if mesh.fsdp > 1 and not case["pinned"] else "umbrella",
                *(f"{v / 1e6:,.1f}" for v in (zero, right, found)),
                f"{found / right - 1:+.1%}".replace("-0.0%", "0%").replace("+0.0%", "0%"),
                kinds,
            ]
        )
    head = "mesh | step | program | as in the papers, MB | as below, MB | compiled, MB | off by | collectives"
    return table(head, rows)


def kept(compiled: dict[str, Any]) -> list[str]:
    """Formulas beside XLA's memory analysis."""
    rows = []
    for name, case in compiled.items():
        if case["microbatches"] > 1:
            continue
        mesh = Mesh(case["data"], case["fsdp"], case["model"])
        cutting: Any = "left" if mesh.fsdp > 1 and not case["pinned"] else "sums"
        how = How(case["rows"], 1, case["remat"], "f32", cutting)
        needs = scaling_plan.memory(SMALL, mesh, how, tokens=0)
        tokens = case["rows"] * SMALL.length / mesh.rows
        # Every block keeps what remat leaves, and one of them all while it is computed again.
        again = (scaling_plan.least(SMALL, "f32", True), scaling_plan.kept(SMALL, False, "f32", True))
        left = scaling_plan.kept(SMALL, case["remat"], "f32", True)
        blocks = [left * SMALL.layers + v if case["remat"] else v * SMALL.layers for v in again]
        cut = (1 + 1 / mesh.model) / 2 if mesh.model > 1 and case["remat"] is not True else 1
        beside = needs["gradients"] + needs["gathered"] + tokens * 12 * SMALL.words / mesh.model
        rows.append(
            [
                name + f": {named(mesh)}",
                num(scaling_plan.state(SMALL, mesh) / 1e6),
                num(case["state"] / 1e6),
                *(num((tokens * v * cut + beside) / 1e6) for v in blocks),
                num(case["temporary"] / 1e6),
            ]
        )
    head = "program | state, MB | compiled | a step: 16 W | a step: what differentiation asks for | compiled"
    return table(head, rows)


# ------------------------------------------------------------------------------------------------------------ the plan
def plan() -> list[str]:
    lines: list[str] = []
    for device, memory in MEMORIES.items():
        machine = Machine(memory=memory)
        rows = []
        for shape in SIZES:
            for count in COUNTS:
                rows.append(row(shape, count, machine))
        head = (
            "GPT | devices | mesh | microbatches, remat | memory, GB (state) | sent, GB: rows | model | compute, ms | "
            "sending, ms | step, ms | MFU | MFU without overlap | mesh and MFU if left to XLA"
        )
        lines += [f"### {device}, {memory / 1e9:.0f} GB", "", *table(head, rows), ""]
    return lines[:-1]


def row(shape: Shape, count: int, machine: Machine) -> list[str]:
    batch = BATCHES[shape.name]
    found, other = (scaling_plan.best(shape, count, batch, machine, c) for c in ("zero", "left"))  # type: ignore[arg-type]
    begin = [shape.name, f"{count:,}"]
    if found is None:
        need = scaling_plan.state(shape, Mesh(1, 1, 1)) / count
        return [*begin, f"none fits: the state alone is {num(need / 1e9)} GB of each", *["-"] * 10]
    mesh, how = found
    took, bytes_of = scaling_plan.step(shape, mesh, how, machine), scaling_plan.sent(shape, mesh, how)
    needs = scaling_plan.memory(shape, mesh, how)
    bare = scaling_plan.step(shape, mesh, how, machine._replace(overlap=0.0))
    left = "none fits"
    if other is not None:
        mfu = scaling_plan.step(shape, *other, machine).mfu
        left = f"{named(other[0])}, {other[1].microbatches}, {other[1].remat}: {mfu:.0%}"
    return [
        *begin,
        named(mesh),
        f"{how.microbatches}, {how.remat}",
        f"{num(sum(needs.values()) / 1e9)} ({num(needs['state'] / 1e9)})",
        num((bytes_of["data"] + bytes_of["fsdp"]) / 1e9),
        num(bytes_of["model"] / 1e9),
        num(1e3 * took.compute),
        num(1e3 * (took.other + took.waited)),
        num(1e3 * took.total),
        f"{took.mfu:.0%}",
        f"{bare.mfu:.0%}",
        left,
    ]


def hosts() -> list[str]:
    """What a run of 512 devices needs beside its steps."""
    machine, rows = Machine(), []
    for s in SIZES:
        size = scaling_plan.state(s, Mesh(1, 1, 1))
        found = scaling_plan.best(s, 512, BATCHES[s.name], machine, "zero")
        assert found is not None
        seconds = scaling_plan.step(s, *found, machine).total
        rows.append(
            [
                s.name,
                num(size / 1e9),
                num(size / FILES),
                num(size / HASHED),
                num(size / HASHED / seconds),
                num(size / (512 / machine.host) / 1e9),
                num(4 * s.params / 1e9),
                num(4 * BATCHES[s.name] / seconds / 1e3),
            ]
        )
    head = (
        "GPT | checkpoint, GB | written in, s | hashed in, s | in steps | host memory of a save, GB | "
        "review, GB on one device | slots, kB/s a host"
    )
    return table(head, rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
