"""Where the loop's numbers go while it runs: metrics.jsonl, TensorBoard, the terminal. Floor 4.

A writer is anything with `write` and `close`. `Writers` fans out to several and outlives each of them: a log that
cannot be written is a pity, a training run that dies of it is a loss.
"""

import collections
import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

Metrics = Mapping[str, Any]  # name -> float, numpy or device scalar, or array [K], one value per seed

STRETCHES = 5  # between so many logs the speed is told

_log = logging.getLogger(__name__)


class Writer(Protocol):
    """What the loop writes to."""

    def write(self, step: int, epoch: float, split: str, metrics: Metrics) -> None:
        """Take one line: `step` batches consumed, `epoch` passes over the data, `split` "train", "validation", ..."""

    def close(self) -> None:
        """Flush and release; called once, nothing is written after it."""


class Writers:
    """Several writers as one. A writer that raises is dropped with one warning, and training goes on."""

    def __init__(self, *writers: Writer):
        self._writers: list[Writer] = list(writers)

    def write(self, step: int, epoch: float, split: str, metrics: Metrics) -> None:
        """Write one line to every writer that still works."""
        self._each(lambda w: w.write(step, epoch, split, metrics), close=True)

    def close(self) -> None:
        """Close every writer that still works; a second call does nothing."""
        self._each(lambda w: w.close())
        self._writers = []

    def _each(self, call: Callable[[Writer], None], *, close: bool = False) -> None:
        for writer in tuple(self._writers):
            try:
                call(writer)
            except Exception as error:  # whatever a log does wrong, it must not end the training
                self._writers.remove(writer)
                with contextlib.suppress(Exception):
                    if close:
                        writer.close()
                name = type(writer).__name__
                _log.warning("%s failed (%s: %s) and is dropped; training goes on.", name, type(error).__name__, error)


class JsonlWriter:
    """WORKDIR/metrics.jsonl: one JSON object per line, handed to the operating system before `write` returns.

    Keys: step, epoch, split, seconds (since the run began, earlier stretches of a resumed run included), then the
    metrics: a float, or a list of K. Non-finite numbers are the strings "nan", "inf" and "-inf".

    `resume_step`: the step that was restored. Lines after it are dropped, since they will be written again, and so is a
    torn last line; the others stay byte for byte. None: a new run; a file found there moves to metrics.previous.jsonl.
    `clock`: seconds, monotonic; None leaves `seconds` out.
    """

    def __init__(
        self, workdir: Path, resume_step: int | None = None, *, clock: Callable[[], float] | None = time.monotonic
    ):
        path = Path(workdir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = 0.0
        if resume_step is not None and path.exists():
            before = _keep_until(path, resume_step)
        elif path.exists() and path.stat().st_size:
            os.replace(path, path.with_name("metrics.previous.jsonl"))
        self._file = open(path, "ab")  # noqa: SIM115  closed by close()
        self._clock = clock
        self._zero = clock() - before if clock else 0.0

    def write(self, step: int, epoch: float, split: str, metrics: Metrics) -> None:
        """Append one line. Raises OSError when the disk refuses it, TypeError for a value that is no number."""
        line: dict[str, Any] = {"step": int(step), "epoch": _jsonable(epoch), "split": str(split)}
        if self._clock:
            line["seconds"] = round(self._clock() - self._zero, 3)
        line |= {str(k): _jsonable(v) for k, v in metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False, separators=(", ", ": ")).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """WORKDIR/events.out.*: scalars named split/metric; with K seeds their mean, and split/metric/seed_k.

    Writes in the calling thread. tensorboardX's own SummaryWriter hands events to a thread through a bounded queue, and
    once that thread has died of a full disk, a write waits for ever.
    `resume_step`: TensorBoard hides what an earlier file says of later steps.
    """

    def __init__(self, workdir: Path, resume_step: int | None = None, *, flush_seconds: float = 10.0):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        Path(workdir).mkdir(parents=True, exist_ok=True)
        self._scalar, self._pb = summary.scalar, event_pb2
        # The suffix keeps two files of the same second apart.
        self._file = event_file_writer.EventsWriter(str(Path(workdir) / "events"), f".{time.time_ns()}")
        self._flush_seconds, self._flushed = flush_seconds, 0.0
        if resume_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._file.write_event(event_pb2.Event(wall_time=time.time(), step=resume_step + 1, session_log=start))

    def write(self, step: int, epoch: float, split: str, metrics: Metrics) -> None:
        """Write the scalars. Raises OSError when the disk refuses them."""
        for name, value in metrics.items():
            values = np.atleast_1d(np.asarray(value, np.float64)).ravel()
            tag = f"{split}/{name}"
            self._add(tag, float(np.mean(values)), step)
            if values.size > 1:
                for k, v in enumerate(values):
                    self._add(f"{tag}/seed_{k}", float(v), step)
        if time.monotonic() - self._flushed > self._flush_seconds:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()

    def _add(self, tag: str, value: float, step: int) -> None:
        event = self._pb.Event(wall_time=time.time(), step=int(step), summary=self._scalar(tag, value))
        self._file.write_event(event)


class Terminal:
    """Progress for a person: on a terminal a bar with examples/s, time left and the losses, and evaluations above it.

    Elsewhere (a pipe, a file, a notebook) a plain line per log, without colour or control characters; NO_COLOR is kept.
    `total_steps`: the last step of the run; `batch_size`: examples per step, 0 when unknown; `start_step`: the restored
    step; `hide`: metrics not to print ("skipped" is shown all the same when it is not zero); `file`: standard output
    when None.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        batch_size: int = 0,
        start_step: int = 0,
        hide: Iterable[str] = (),
        file: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._batch, self._hide, self._clock = total_steps, batch_size, frozenset(hide), clock
        self._file = file or sys.stdout
        # The first stretch holds the compilation, so the rate counts from the first log on.
        # By the mean of the last stretches with their evaluations and checkpoints: those to come will take as long, and
        # logs are read late where calls run ahead of the device.
        self._logs: collections.deque[tuple[int, float]] = collections.deque(maxlen=STRETCHES + 1)
        self._bar: Any = None
        if self._file.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = _bar(self._file, total_steps, start_step)

    def write(self, step: int, epoch: float, split: str, metrics: Metrics) -> None:
        """Print one log."""
        if split == "train":
            self._measure(step)
        shown = {k: v for k, v in metrics.items() if k not in self._hide or (k == "skipped" and np.any(v))}
        values = "  ".join(f"{name} {_short(value)}" for name, value in shown.items())
        if self._bar is None or split != "train":
            line = f"step {step:>{len(str(self._total))}}/{self._total}  epoch {epoch:6.2f}  {split:<10}  {values}"
            self._print(line, step)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, speed=self._speed(), left=self._left(step))
            if split == "train":
                self._bar.update(self._bar.task_ids[0], losses=values)
            self._bar.refresh()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
        self._file.flush()

    def _measure(self, step: int) -> None:
        now = self._clock()
        # Two logs that were read together say nothing of the speed.
        if not self._logs or now - self._logs[-1][1] >= 0.2:
            self._logs.append((step, now))

    @property
    def _rate(self) -> float:
        """Steps a second; 0 when it is not known yet."""
        if len(self._logs) < 2:
            return 0.0
        (first, since), (last, until) = self._logs[0], self._logs[-1]
        return max(0.0, (last - first) / (until - since))

    def _print(self, line: str, step: int) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        extra = "  ".join(text for text in (self._speed(), self._left(step)) if text)
        print(f"{line}  {extra}".rstrip(), file=self._file, flush=True)

    def _speed(self) -> str:
        if not self._rate:
            return ""
        return f"{self._rate * self._batch:,.0f} examples/s" if self._batch else f"{self._rate:,.1f} steps/s"

    def _left(self, step: int) -> str:
        if not self._rate:
            return ""
        seconds = round((self._total - step) / self._rate)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _bar(file: IO[str], total: int, start: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    columns = [
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[speed]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn(
            "{task.fields[losses]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
    ]
    # Refreshed by write alone: no thread, nothing in flight when the run is interrupted.
    bar = Progress(*columns, console=Console(file=file, force_jupyter=False), auto_refresh=False, expand=True)
    bar.add_task("train", total=total, completed=start, speed="", left="", losses="")
    bar.start()
    return bar


def _short(value: Any) -> str:
    values = np.atleast_1d(np.asarray(value, np.float64)).ravel()
    if values.size == 1:
        return f"{values[0]:.4g}"
    return f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}"


def _jsonable(value: Any) -> Any:
    """A number, or nested lists of them, as JSON: float32 by its shortest decimal form, non-finite ones as strings."""
    if isinstance(value, (bool, int, float)):
        return value if not isinstance(value, float) or math.isfinite(value) else str(value)
    array = np.asarray(value)
    if array.ndim:
        return [_jsonable(v) for v in array]
    if array.dtype.kind in "biu":
        return array.item()
    if array.dtype == np.float32:
        return _jsonable(float(str(array[()])))
    try:
        return _jsonable(float(array))
    except (TypeError, ValueError) as error:
        raise TypeError(f"A metric is a number or an array of numbers, not {value!r}.") from error


def _keep_until(path: Path, step: int) -> float:
    """Drop from `path` the lines after `step` and those that are no JSON object; returns the `seconds` that stay."""
    seconds = 0.0
    temporary = path.with_name(path.name + ".tmp")
    with open(path, "rb") as old, open(temporary, "wb") as new:
        for line in old:
            record = _parse(line)
            if record is None or record["step"] > step:
                continue
            new.write(line)
            stamp = record.get("seconds", 0.0)
            seconds = max(seconds, float(stamp)) if isinstance(stamp, (int, float)) else seconds
        new.flush()
        os.fsync(new.fileno())
    os.replace(temporary, path)
    return seconds


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), (int, float)) else None
