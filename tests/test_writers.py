"""Writers: every line survives, resuming keeps bytes, and a log that dies takes nobody with it."""

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from umbrella.writers import JsonlWriter, TensorBoardWriter, Terminal, Writers


class Fake:
    def __init__(self, fail_at=None):
        self.lines, self.closed, self.fail_at = [], 0, fail_at

    def write(self, step, epoch, split, metrics):
        if step == self.fail_at:
            raise OSError("No space left on device")
        self.lines.append((step, split))

    def close(self):
        self.closed += 1
        if self.fail_at == "close":
            raise RuntimeError("boom")


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_closing_survives_too_and_an_interrupt_passes(caplog):
    bad, good = Fake(fail_at="close"), Fake()
    writers = Writers(bad, good)
    writers.close()
    writers.close()
    assert (bad.closed, good.closed) == (1, 1)

    class Interrupted(Fake):
        def write(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Writers(Interrupted()).write(1, 0.0, "train", {})


def test_values_become_numbers_lists_and_strings(tmp_path):
    ticks = iter([10.0, 12.5])
    writer = JsonlWriter(tmp_path, clock=lambda: next(ticks))
    values = {"a": np.float32(0.1), "b": np.array([1.0, np.nan]), "c": float("-inf"), "d": np.int64(3), "e": 2}
    writer.write(np.int32(5), 0.25, "train", values)
    writer.close()
    assert lines(tmp_path) == [
        {"step": 5, "epoch": 0.25, "split": "train", "seconds": 2.5}
        | {"a": 0.1, "b": [1.0, "nan"], "c": "-inf", "d": 3, "e": 2}
    ]


def test_a_value_that_is_no_number_is_refused(tmp_path):
    writer = JsonlWriter(tmp_path)
    with pytest.raises(TypeError, match="A metric is a number"):
        writer.write(1, 0.0, "train", {"x": object()})
    writer.close()
    assert lines(tmp_path) == []


def test_without_a_clock_two_runs_write_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        writer = JsonlWriter(tmp_path / name, clock=None)
        writer.write(1, 0.5, "train", {"loss": np.float32(1 / 3)})
        writer.close()
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_resuming_drops_later_lines_and_a_torn_one_and_keeps_the_rest_byte_for_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = b'{"step":1,  "split":"train", "seconds": 3.5, "loss": 1.50}\n{"step": 2, "split": "train", "loss": "nan"}\n'
    path.write_bytes(kept + b'{"step": 3, "loss": 1}\n{"step": 2, "split": "validation", "lo')
    writer = JsonlWriter(tmp_path, resume_step=2, clock=iter([100.0, 101.0]).__next__)
    assert path.read_bytes() == kept
    writer.write(3, 1.0, "train", {"loss": 1.0})
    writer.close()
    assert path.read_bytes().startswith(kept)
    assert lines(tmp_path)[-1]["seconds"] == 4.5  # 3.5 from before, and one since
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_last_line_that_only_lacks_its_newline_is_torn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    JsonlWriter(tmp_path, resume_step=5).close()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_new_run_moves_an_old_file_aside(tmp_path):
    for _ in range(2):
        writer = JsonlWriter(tmp_path)
        writer.write(1, 0.0, "train", {})
        writer.close()
    assert len(lines(tmp_path)) == 1
    assert (tmp_path / "metrics.previous.jsonl").exists()


def test_a_killed_process_loses_no_line(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from umbrella.writers import JsonlWriter\n"
        "w = JsonlWriter(Path(sys.argv[1]))\n"
        "for s in range(50): w.write(s, 0.0, 'train', {'loss': s})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [line["step"] for line in lines(tmp_path)] == list(range(50))


def _events(path):
    """(step, {tag: value}, session start) of each event: TFRecord framing is length u64, crc u32, data, crc u32."""
    from tensorboardX.proto.event_pb2 import Event

    raw, out = path.read_bytes(), []
    while raw:
        size = int.from_bytes(raw[:8], "little")
        event = Event.FromString(raw[12 : 12 + size])
        out.append((event.step, {v.tag: v.simple_value for v in event.summary.value}, event.session_log.status == 1))
        raw = raw[16 + size :]
    return out


def test_tensorboard_events_stand_in_the_workdir(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.write(7, 0.5, "train", {"loss": 2.0, "many": np.array([1.0, 3.0])})
    writer.close()
    again = TensorBoardWriter(tmp_path, resume_step=7)
    again.close()
    files = sorted(tmp_path.glob("events.out.*"), key=lambda p: p.name.rsplit(".", 1)[1])
    assert len(files) == 2
    values = {tag: value for _, tags, _ in _events(files[0]) for tag, value in tags.items()}
    assert values == {"train/loss": 2.0, "train/many": 2.0, "train/many/seed_0": 1.0, "train/many/seed_1": 3.0}
    assert {step for step, tags, _ in _events(files[0]) if tags} == {7}
    assert [step for step, _, start in _events(files[1]) if start] == [8]  # hides what the first file says from 8 on


def test_tensorboard_starts_no_thread(tmp_path):
    import threading

    before = threading.active_count()
    writer = TensorBoardWriter(tmp_path)
    writer.write(1, 0.0, "train", {"loss": 1.0})
    assert threading.active_count() == before
    writer.close()


def test_without_a_terminal_each_log_is_one_plain_line():
    out = io.StringIO()
    clock = iter([5.0, 7.0]).__next__
    terminal = Terminal(200, batch_size=32, file=out, clock=clock)
    terminal.write(10, 0.5, "train", {"loss": np.float32(2.5)})
    terminal.write(110, 1.0, "train", {"loss": np.array([1.0, 3.0])})
    terminal.write(110, 1.0, "validation", {"loss": 1.25})
    terminal.close()
    # 100 steps in 2 seconds: 50 a second, times 32; 90 steps are left, 1.8 seconds.
    assert out.getvalue().splitlines() == [
        "step  10/200  epoch   0.50  train       loss 2.5",
        "step 110/200  epoch   1.00  train       loss 2 ± 1.4  1,600 examples/s  0:00:02 left",
        "step 110/200  epoch   1.00  validation  loss 1.25  1,600 examples/s  0:00:02 left",
    ]
    assert "\x1b" not in out.getvalue()


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_the_speed_is_that_of_the_last_five_stretches():
    """10 steps a second but in the first of the six, and an evaluation of 5 seconds in one: 50 steps in 10 seconds, so
    the 10 that are left take 2."""
    out = io.StringIO()
    terminal = Terminal(80, file=out, clock=iter([100.0, 190.0, 191.0, 192.0, 198.0, 199.0, 200.0]).__next__)
    for step in range(10, 80, 10):
        terminal.write(step, 1.0, "train", {"loss": 1.0})
    assert out.getvalue().splitlines()[-1].endswith("5.0 steps/s  0:00:02 left")


@pytest.mark.parametrize("no_color", [True, False])
def test_on_a_terminal_a_bar_and_the_evaluations(monkeypatch, no_color):
    import re

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    out = Tty()
    terminal = Terminal(100, batch_size=10, file=out, clock=iter([1.0, 2.0]).__next__, hide=("[red]kl",))
    terminal.write(10, 0.1, "train", {"loss": 2.0, "[red]kl": 1.0})
    terminal.write(20, 0.2, "train", {"loss": 1.5})
    terminal.write(20, 0.2, "validation", {"loss": 1.75})
    terminal.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "100 examples/s" in text and "0:00:08 left" in text and "loss 1.5" in text
    assert re.search(r"step  20/100 .*validation +loss 1.75", text)
    assert "kl" not in text
    colours = re.findall(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7])[0-9;]*m", out.getvalue())
    assert bool(colours) != no_color


def test_a_closed_pipe_does_not_reach_the_training(caplog):
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "w")
    writers = Writers(Terminal(10, file=pipe), good := Fake())
    writers.write(1, 0.0, "train", {"loss": 1.0})
    writers.write(2, 0.0, "train", {"loss": 1.0})
    writers.close()
    assert good.lines == [(1, "train"), (2, "train")]
    assert len(caplog.records) == 1
    with pytest.raises(BrokenPipeError):
        pipe.close()
