"""A trace of some steps, and which operations took longest. Floor 4."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from umbrella.artifacts import Table
from umbrella.objective import PyTree
from umbrella.settings import SettingsError

MOST = 10
OUTER = ("while", "call", "conditional", "async", "end:")  # what is in them has events of its own
_NAMED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?metadata=\{[^}]*op_name=\"([^\"]*)\"", re.MULTILINE)


class Span(NamedTuple):
    """The steps from `start` to before `stop`, counted from where this process begins to train."""

    start: int
    stop: int

    @classmethod
    def parse(cls, text: str) -> "Span":
        """ "10:20" -> Span(10, 20).

        Raises:
          SettingsError: anything else.
        """
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise SettingsError(f"--profile={text}: write the first step and the one to stop before, such as 10:20")
        return cls(int(found[1]), int(found[2]))


class Trace:
    """The `watch=` of `umbrella.loop.fit` that starts and ends a trace. Calls of several steps are traced whole.

    Args:
      span: of steps.
      folder: of traces, which TensorBoard and Perfetto show; each is in a folder of its own there.
    """

    def __init__(self, span: Span, folder: Path):
        self.span, self.within = span, folder
        self.steps = 0  # that were traced
        self.calls: set[int] = set()  # of so many steps each
        self.folder = folder
        self._made = 0  # steps so far, made again or not
        self._on = self._over = False

    def __call__(self, step: int, steps: int, last: PyTree) -> None:
        """Before a call of `steps` that begins with `step`, where the calls before it will give `last`."""
        if self._on and self._made >= self.span.stop:
            self.close(last)
        if not self._on and not self._over and self._made + steps > self.span.start:
            jax.block_until_ready(last)
            self.folder = self.within / f"{step}"
            jax.profiler.start_trace(str(self.folder))
            self._on = True
        if self._on:
            self.steps += steps
            self.calls.add(steps)
        self._made += steps

    def close(self, last: PyTree) -> None:
        """Ends a trace that is still on."""
        if self._on:
            jax.block_until_ready(last)
            self._on, self._over = False, True
            jax.profiler.stop_trace()


def costliest(folder: Path, steps: int, programs: Sequence[str], *, devices: int = 1, most: int = MOST) -> Table:
    """The operations of compiled programs that took longest, by the trace in `folder`.

    Args:
      steps: that were traced.
      programs: as text, after optimisation: which operations are told of, and where in the model they come from.
      devices: that ran them; times are of one.
      most: operations.

    Returns:
      share of the time of all operations, milliseconds and times a step, the operation, and its place in the program;
      no place for a name that several programs have.

    Raises:
      ValueError: the trace has nothing of these programs.
    """
    places = [dict(_NAMED.findall(text)) for text in programs]
    modules = {found[1] for text in programs if (found := re.match(r"HloModule ([\w.-]+)", text))}
    spent: defaultdict[str, float] = defaultdict(float)
    times: defaultdict[str, int] = defaultdict(int)
    for name, nanoseconds in _events(folder, modules):
        spent[name] += nanoseconds / devices
        times[name] += 1
    if not spent:
        raise ValueError(f"the trace in {folder} has no operation of {', '.join(sorted(modules))}")
    total = sum(spent.values())
    order = sorted(spent, key=lambda name: -spent[name])[:most]
    rows = []
    for name in order:
        where = {_short(named[name]) for named in places if name in named}
        share, each, often = spent[name] / total, spent[name] / 1e6 / steps, times[name] / steps / devices
        told = where.pop() if len(where) == 1 else ""
        rows.append((f"{100 * share:.1f} %", f"{each:.3g}", f"{often:.3g}", name, told))
    caption = f"The {len(rows)} operations that took longest in {steps} steps, of {len(spent)}"
    caption += f"; on one of {devices} devices, on average." if devices > 1 else "."
    return Table(("share", "ms a step", "times a step", "operation", "where"), tuple(rows), caption)


def _events(folder: Path, modules: set[str]) -> Iterable[tuple[str, float]]:
    for path in sorted(Path(folder).rglob("*.xplane.pb")):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    told = dict(event.stats)
                    name = str(told.get("hlo_op", ""))
                    if name and told.get("hlo_module") in modules and not event.name.startswith(OUTER):
                        yield name, float(event.duration_ns)


def _short(path: str) -> str:
    """
    >>> _short("jit(call)/jvp(GPT)/transformer/block_0/attention/qkv/dot_general")
    'transformer/block_0/attention/qkv/dot_general'
    """
    parts = [p for p in path.split("/") if not re.fullmatch(r"(jit|jvp|vmap)\(.*\)", p)]
    return "/".join("backward" if p.startswith("transpose(") else p for p in parts)
