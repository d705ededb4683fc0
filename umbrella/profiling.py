"""A trace of some steps, and which operations took longest. Floor 4."""

import re
from collections import defaultdict
from collections.abc import Iterable
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
      folder: of the trace, which TensorBoard and Perfetto show.
    """

    def __init__(self, span: Span, folder: Path):
        self.span, self.folder = span, folder
        self.steps = 0  # that were traced
        self._first = self._began = -1
        self._on = False

    def __call__(self, step: int, last: PyTree) -> None:
        """Before a call that begins with `step`, where the calls before it will give `last`."""
        self._first = step if self._first < 0 else self._first
        done = step - self._first
        if self._on and done >= self.span.stop:
            self.close(step, last)
        elif not self._on and not self.steps and done >= self.span.start:
            jax.block_until_ready(last)
            jax.profiler.start_trace(str(self.folder))
            self._on, self._began = True, step

    def close(self, step: int, last: PyTree) -> None:
        """Ends a trace that is still on."""
        if self._on:
            jax.block_until_ready(last)
            jax.profiler.stop_trace()
            self._on, self.steps = False, step - self._began


def costliest(
    folder: Path, steps: int, programs: Iterable[str], *, module: str = "jit_call", most: int = MOST
) -> Table:
    """The operations of a compiled program that took longest, by the trace in `folder`.

    Args:
      steps: that were traced.
      programs: as text, after optimisation; they say where in the model an operation comes from.
      module: name of the program.
      most: operations.

    Returns:
      share of the time of all operations, milliseconds and times a step, the operation, and its place in the program.
    """
    where = {name: _short(path) for text in programs for name, path in _NAMED.findall(text)}
    spent: defaultdict[str, float] = defaultdict(float)
    times: defaultdict[str, int] = defaultdict(int)
    for name, nanoseconds in _events(folder, module):
        spent[name] += nanoseconds
        times[name] += 1
    total = sum(spent.values())
    order = sorted(spent, key=lambda name: -spent[name])[:most]
    rows = tuple(
        (
            f"{100 * spent[name] / total:.1f} %",
            f"{spent[name] / 1e6 / steps:.3g}",
            f"{times[name] / steps:.3g}",
            name,
            where.get(name, ""),
        )
        for name in order
    )
    caption = f"The {len(rows)} operations that took longest in {steps} steps, of {len(spent)} in a step."
    return Table(("share", "ms a step", "times a step", "operation", "where"), rows, caption)


def _events(folder: Path, module: str) -> Iterable[tuple[str, float]]:
    for path in sorted(Path(folder).rglob("*.xplane.pb")):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    told = dict(event.stats)
                    name = str(told.get("hlo_op", ""))
                    if name and told.get("hlo_module") == module and not event.name.startswith(OUTER):
                        yield name, float(event.duration_ns)


def _short(path: str) -> str:
    """
    >>> _short("jit(call)/jvp(GPT)/transformer/block_0/attention/qkv/dot_general")
    'transformer/block_0/attention/qkv/dot_general'
    """
    parts = [p for p in path.split("/") if not re.fullmatch(r"(jit|jvp|vmap)\(.*\)", p)]
    return "/".join("backward" if p.startswith("transpose(") else p for p in parts)
