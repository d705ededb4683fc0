"""python -m benchmarks.input [--only NAME ...] [--write]: does a training wait for its data? Three trainings, in turn.

Each as its config has it, the set on the device and indices alone on their way to it; those of images also with the set
on disk, read by workers while it is trained. The sets are prepared ones of TensorFlow Datasets (TFDS_DATA_DIR).

    ms a step       of the loop as a run has it, after the compiler and the start of the workers
    data wait       the share of that time in which the loop waits for a slot. Calls run ahead of the device, so part of
                    it costs nothing: "idle" is the share in which the device, too, had nothing to do when it ended
    input alone     examples a second when nothing is trained
    first batch     seconds until the workers have made one, which is before the first step
"""

import argparse
import contextlib
import functools
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.__main__ import PAGE, ROOT, child
from umbrella import environment
from umbrella.data.workers import AHEAD
from umbrella.settings import SettingsError

MARKS = ("<!-- input -->", "<!-- /input -->")
WARM = 5  # steps before those that are measured
TRAININGS: dict[str, tuple[str, str, dict[str, Any], int]] = {  # title, config, its data, steps
    "mnist": ("MNIST, CNN", "cnn.py:mnist", {"name": "mnist"}, 150),
    "mnist-lazy": ("MNIST, CNN", "cnn.py:mnist", {"name": "mnist", "in_memory": False}, 150),
    "cifar10": ("CIFAR-10, ResNet-20", "resnet.py:cifar10", {"name": "cifar10"}, 60),
    "cifar10-lazy": ("CIFAR-10, ResNet-20", "resnet.py:cifar10", {"name": "cifar10", "in_memory": False}, 60),
    "text": ("tiny shakespeare, GPT", "char_lm.py:gpt", {"name": "tiny_shakespeare"}, 40),
}
HEAD = "| training | data | ms a step | data wait | idle | examples/s | input alone | first batch | what limits it |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=sorted(TRAININGS), default=list(TRAININGS))
    parser.add_argument("--workers", type=int, default=2, help="processes that read, as config.workers")
    parser.add_argument("--beside", action="store_true", help="the page is to say that other work went on")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    rows = [HEAD, "|" + "---|" * HEAD.count(" |")]
    for name in args.only:
        rows.append(row(name, child(f"from benchmarks.input import _told; _told({name!r}, {args.workers})")))
        print(rows[-1] if len(rows) > 3 else "\n".join(rows), flush=True)
    if args.write:
        write(rows, args.beside)
    return 0


def row(name: str, told: dict[str, Any]) -> str:
    """A line of the table."""
    title, _, data, _ = TRAININGS[name]
    place = "on disk" if data.get("in_memory") is False else "on the device"
    if "error" in told:
        return f"| {title} | {place} | {told['error']} |" + " |" * 6
    cells = (
        title,
        place,
        f"{1e3 * told['step']:.1f}",
        f"{told['wait']:.2%}",
        f"{told['idle']:.2%}",
        f"{told['batch'] / told['step']:,.0f}",
        f"{told['alone']:,.0f}",
        f"{told['first']:.1f} s",
        limit(told),
    )
    return f"| {' | '.join(cells)} |"


def limit(told: dict[str, Any]) -> str:
    """The slower of the two: the input when nothing is trained, and the steps without what they wait.

    >>> limit({"batch": 100, "step": 0.1, "wait": 0.01, "alone": 5000.0})
    'the step'
    >>> limit({"batch": 100, "step": 0.1, "wait": 0.9, "alone": 1010.0})
    'the input'
    """
    steps = told["batch"] / (told["step"] * (1 - told["wait"]))
    return "the step" if told["alone"] > steps else "the input"


def _told(name: str, workers: int) -> None:
    """Prints what `row` says, of a process that keeps freed memory, as launch.py does."""
    environment.keep_freed_memory()
    try:
        with contextlib.ExitStack() as stack:
            print(json.dumps(measured(name, workers, stack)))
    except SettingsError as error:
        print(json.dumps({"error": str(error)}))


def measured(name: str, workers: int, stack: contextlib.ExitStack, steps: int = 0) -> dict[str, Any]:
    """{"batch": examples of a step, "step", "first": seconds, "wait", "idle": shares of a step, "alone": examples/s}.

    Args:
      steps: that are measured; as many as `TRAININGS` has when 0.

    Raises:
      SettingsError: the set is not here.
    """
    from benchmarks.loops import trained
    from umbrella import cli

    _, spec, data, usual = TRAININGS[name]
    steps = steps or usual
    config = cli.load_config(str(ROOT / "configs" / spec))
    config["data"] = {**config["data"], **data}
    config |= {"workers": workers, "train_for": "1000000 steps", "eval_every": "never", "baselines": False}
    more, session = trained(config, stack)
    source = session.experiment.train_data
    made = functools.partial(source.stream, session.seeds)

    began = time.perf_counter()
    with contextlib.closing(made(0, 1 + AHEAD + 10 * steps)) as slots:
        next(slots)
        first = time.perf_counter() - began
        for _ in range(AHEAD):  # what the workers had made before they were asked
            next(slots)
        began, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < 5.0 and count < 10 * steps:
            next(slots)
            count += 1
        alone = count * source.batch_size / spent

    with contextlib.closing(made(0, WARM + steps)) as slots:
        watched = Watched(slots)
        more(watched, WARM)
        watched.idle = 0.0
        seconds = more(watched, steps, watched.look).seconds
    whole = seconds["step"] + seconds["data_wait"]
    return {
        "batch": source.batch_size,
        "step": whole / steps,
        "wait": seconds["data_wait"] / whole,
        "idle": watched.idle / whole,
        "alone": alone,
        "first": first,
    }


class Watched:
    """The slots; and for how many seconds they were waited for when the device had nothing to do in the end."""

    def __init__(self, slots: Iterator[Any]):
        self.slots, self.idle = slots, 0.0
        self._made: Any = None  # of the calls so far

    def look(self, step: int, steps: int, made: Any) -> None:
        self._made = made

    def __iter__(self) -> "Watched":
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        slot = next(self.slots)
        if self._made is not None and self._made.is_ready():
            self.idle += time.perf_counter() - began
        return slot


def write(lines: list[str], beside: bool) -> None:
    """Replaces what stands between the marks in docs/benchmarks.md."""
    device, versions = environment.device(), environment.versions()
    note = f"{device['kind']}; " + ", ".join(f"{k} {versions[k]}" for k in ("python", "jax", "grain"))
    note += "; beside other work" if beside else ""
    before, rest = PAGE.read_text().split(MARKS[0])
    table = "\n".join(lines)
    PAGE.write_text(f"{before}{MARKS[0]}\n\nMeasured on: {note}.\n\n{table}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


if __name__ == "__main__":
    sys.exit(main())
