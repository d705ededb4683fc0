"""What a run will need, told before it trains: arrays and where they lie, memory, FLOPs, disk. Floor 6."""

import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from umbrella import environment
from umbrella._report.text import num
from umbrella.checkpoint import Mismatch, fits_newest, read_meta
from umbrella.parallel import AXES, paths_of
from umbrella.runs import Session
from umbrella.settings import SettingsError
from umbrella.starting import check_kept
from umbrella.workdir import check_same

MOST_ARRAYS = 30
COLLECTIVES = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
SPARE = 0.95  # of a device's memory: the rest is fragments


class Needs(NamedTuple):
    """Of one device, in bytes, unless it says otherwise."""

    state: int  # parameters, averages, what the optimiser keeps
    data: int  # what lies there for the whole run
    program: int  # what a step needs beside them
    has: int | None  # None when the device does not say
    flops: float  # of a step
    checkpoint: int  # on disk
    disk: int  # that checkpoints will take beside those that are there, with one that is being written
    free: int  # on the disk of the workdir


def preflight(config: Mapping[str, Any], workdir: str | os.PathLike[str] | None, *, name: str) -> str:
    """A page about the run of a config; nothing is trained, and nothing stays in the workdir.

    Args:
      workdir: where the run would live: its disk and the checkpoints that are there are looked at.

    Raises:
      SettingsError: the config or its data are not as they should be, the workdir holds a run of another config or
        checkpoints of another program, memory or disk do not suffice.
    """
    home = Path(workdir or "runs").expanduser().absolute()
    with tempfile.TemporaryDirectory() as folder, Session(config, Path(folder) / "run", name=name, quiet=True) as run:
        check_same(home, run.experiment.settings)
        ts, lowered = run.lowered()
        try:
            found = fits_newest(home / "checkpoints", ts)
        except Mismatch as error:
            told = str(error).splitlines()
            more = f" and {len(told) - 2} more" if len(told) > 2 else ""
            raise SettingsError(
                f"--workdir={workdir}: its checkpoint is of another program: {told[1].strip()}{more}"
            ) from None
        if found is not None:
            check_kept(run.experiment.kept, (read_meta(home / "checkpoints") or {}).get("kept", {}), home)
        compiled = lowered.compile()
        needs = _needs(run, ts, compiled, home)
        page = _page(run, ts, compiled, needs, found)
    if needs.has is not None and needs.state + needs.data + needs.program > SPARE * needs.has:
        raise SettingsError(
            f"config.batch_size: a step needs {_size(needs.state + needs.data + needs.program)} of a device that has "
            f"{_size(needs.has)} ({_size(needs.state)} of state, {_size(needs.data)} of data, {_size(needs.program)} "
            "of a step); say a smaller batch, microbatches, or a mesh with fsdp"
        )
    if needs.disk > needs.free:
        raise SettingsError(
            f"--workdir={workdir or 'runs'}: checkpoints will take {_size(needs.disk)} more, and {_size(needs.free)} "
            "are free there; say another folder, or a smaller config.keep_checkpoints"
        )
    return page


def _needs(run: Session, ts: Any, compiled: Any, home: Path) -> Needs:
    ex = run.experiment
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    data = sum(np.asarray(x).nbytes for x in jax.tree.leaves(ex.train_data.resident))
    data += sum(x.nbytes for x in jax.tree.leaves(ex.frozen))
    d, every = ex.durations, ex.durations.steps(ex.run.checkpoint_every)
    saves = -(-d.total // every) if every else 1
    kept = min(ex.run.keep_checkpoints, saves) + (ex.run.keep_best is not None)
    if for_good := d.steps(ex.run.keep_every):
        kept += d.total // for_good
    there_now = sum(p.stat().st_size for p in (home / "checkpoints").rglob("*") if p.is_file())
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(ts) if not _is_key(x))
    there = next(p for p in (home, *home.parents) if p.exists())
    return Needs(
        state=run.place.bytes_of(ts),
        data=data,
        program=int(memory.temp_size_in_bytes) if memory is not None else 0,
        has=_memory_of(jax.local_devices()[0]),
        flops=float(cost.get("flops", math.nan)),
        checkpoint=whole,
        disk=max(0, whole * (kept + 1) - there_now),
        free=shutil.disk_usage(there).free,
    )


def _memory_of(device: Any) -> int | None:
    """Of a CPU what the system has to give, over the devices that share it."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return 1024 * free // jax.local_device_count()


def _page(run: Session, ts: Any, compiled: Any, needs: Needs, found: int | None) -> str:
    ex, place = run.experiment, run.place
    kind = environment.device()
    shape = " x ".join(f"{place.mesh.shape[a]} {a}" for a in AXES if place.mesh.shape[a] > 1) or "one device"
    text = compiled.as_text()
    loops = ", what is in loops counted once" if " while(" in text else ""
    talk = (
        ", ".join(f"{n} {k}" for k, n in sorted(Counter(COLLECTIVES.findall(text)).items()))
        or "nothing is sent between devices"
    )
    d, data = ex.durations, ex.dataset
    row = data.train.__getitems__(np.zeros(1, np.int64))
    rows = ", ".join(f"{len(getattr(data, s)):,} {s}" for s in ("train", "validation", "test"))
    start = "none there; it starts from scratch" if found is None else f"step {found} fits; it goes on from there"
    total = needs.state + needs.data + needs.program
    lines = [
        f"devices      {kind['count']} x {kind['platform']} ({kind['kind']}), mesh: {shape}, by {ex.run.compile}",
        f"data         {data.name}: {rows}",
        *(f"             {k}: {v.dtype}[{', '.join(map(str, v.shape[1:]))}]" for k, v in sorted(row.items())),
        f"steps        {d.total:,} of {ex.run.batch_size} rows, {d.total * d.batch_size / d.n_train:.3g} epochs",
        f"parameters   {sum(x.size for x in jax.tree.leaves(ts.params)) // len(run.seeds):,}"
        + (f", {len(run.seeds)} seeds" if run.lanes else ""),
        *_arrays(run, ts),
        f"memory       {_size(total)} of each device" + (f", which has {_size(needs.has)}" if needs.has else ""),
        f"             {_size(needs.state)} state, {_size(needs.data)} data, {_size(needs.program)} a step",
        f"a step       {num(needs.flops / 1e9)} GFLOP on each device{loops}; {talk}",
        f"disk         {_size(needs.checkpoint)} a checkpoint; {_size(needs.disk)} more in all, of {_size(needs.free)}",
        f"checkpoint   {start}",
    ]
    return "\n".join(lines)


def _arrays(run: Session, ts: Any) -> list[str]:
    """The parameters, the largest first, and how each is cut."""
    lead = int(run.lanes is not None)
    where = run.place.state_shardings(ts)
    each = zip(paths_of(ts.params).items(), jax.tree.leaves(where.params), strict=True)
    rows = sorted(((path, x, s) for (path, x), s in each), key=lambda r: (-r[1].size, r[0]))
    wide = max((len(path) for path, *_ in rows[:MOST_ARRAYS]), default=0)
    out = []
    for path, x, s in rows[:MOST_ARRAYS]:
        cuts = [a for a in tuple(s.spec)[lead:] if a]
        how = f"cut along {', '.join(cuts)}" if cuts else "whole"
        out.append(f"             {path:<{wide}}  {x.dtype}[{', '.join(map(str, x.shape[lead:]))}]  {how}")
    if more := rows[MOST_ARRAYS:]:
        out.append(f"             and {len(more)} more, {sum(x.size for _, x, _ in more):,} numbers in all")
    return out


def _is_key(x: Any) -> bool:
    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def _size(n: float) -> str:
    """
    >>> _size(999), _size(1_500_000), _size(2e9)
    ('999 B', '1.5 MB', '2 GB')
    """
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= one:
            return f"{n / one:.3g} {unit}"
    return f"{int(n)} B"
