"""The laws of the training stream and of evaluation batches."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from umbrella.data import Arrays, batches, in_memory, load, order, streaming, workers
from umbrella.settings import SettingsError


def source(n: int) -> Arrays:
    """Row i holds i everywhere, so that a batch shows which rows it is made of."""
    i = np.arange(n)
    return Arrays(
        {"x": np.repeat(i[:, None], 3, 1).astype(np.float32), "y": i.astype(np.int32), "name": i.astype("S4")}
    )


def same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert type(a[k]) is np.ndarray and a[k].dtype == b[k].dtype
        np.testing.assert_array_equal(a[k], b[k])


@pytest.mark.parametrize("n", [1, 7, 100])
def test_every_epoch_is_a_permutation(n):
    for epoch in (0, 1, 12345):
        drawn = order(3, n, np.arange(epoch * n, (epoch + 1) * n))
        assert sorted(drawn.tolist()) == list(range(n))


def test_order_is_that_of_a_numpy_generator_seeded_with_seed_and_epoch():
    # The law of the stream written out for one position: q = 25 of n = 10 is rank 5 of epoch 2.
    assert order(4, 10, np.array(25)) == np.random.default_rng([4, 2]).permutation(10)[5]


def test_epochs_and_seeds_differ():
    n = 50
    first = order(0, n, np.arange(n))
    assert (first != order(0, n, np.arange(n, 2 * n))).any()
    assert (first != order(1, n, np.arange(n))).any()


def test_order_keeps_the_shape_of_its_positions():
    grid = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(order(0, 5, grid).ravel(), order(0, 5, grid.ravel()))


@pytest.mark.parametrize(("n", "size"), [(10, 3), (10, 5), (3, 8)])  # straddles epochs; divides; is larger than the set
def test_a_slot_is_made_of_the_positions_of_its_step(n, size):
    data = in_memory(source(n), size)
    replay = np.concatenate([data.slot(1, t)["idx"] for t in range(7)])
    assert replay.dtype == np.int32 and len(replay) == 7 * size
    np.testing.assert_array_equal(replay, order(1, n, np.arange(7 * size)))
    for epoch in range(7 * size // n):  # every example exactly once per epoch, whatever the batch size
        assert sorted(replay[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_seeking_equals_replaying():
    data = in_memory(source(10), 4)
    replayed = list(data.stream((0,), 0, 30))
    for i, slot in enumerate(data.stream((0,), 20, 30)):
        same(slot, replayed[20 + i])
        same(slot, data.slot(0, 20 + i))


def test_several_seeds_are_stacked_and_each_is_its_own_run():
    data = in_memory(source(10), 4)
    (slot,) = data.stream((5, 6, 7), 3, 4)
    assert slot["idx"].shape == (3, 4)
    for lane, seed in enumerate((5, 6, 7)):
        np.testing.assert_array_equal(slot["idx"][lane], data.slot(seed, 3)["idx"])


def test_resident_holds_what_a_device_can_hold():
    data = in_memory(source(10), 4)
    assert sorted(data.resident) == ["x", "y"] and data.size == 10 and data.batch_size == 4


def test_gathering_on_the_device_gives_the_streamed_batch():
    resident, streamed = in_memory(source(10), 4), streaming(source(10), 4, workers=0)
    for step in range(5):
        one = resident.fetch(resident.resident, resident.slot(2, step))
        other = streamed.fetch(streamed.resident, streamed.slot(2, step))
        assert one.keys() == other.keys()
        for k in one:
            np.testing.assert_array_equal(np.asarray(one[k]), other[k])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_number_of_workers_changes_nothing(count):
    data = streaming(source(10), 4, workers=count)
    slots = list(data.stream((0, 1), 3, 10))
    assert len(slots) == 7
    for i, slot in enumerate(slots):
        for lane, seed in enumerate((0, 1)):
            same({k: np.ascontiguousarray(v[lane]) for k, v in slot.items()}, data.slot(seed, 3 + i))
    assert list(data.stream((0,), 5, 5)) == []


def test_what_a_worker_raises_arrives(tmp_path):
    from PIL import Image

    for i in range(30):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / "a" / f"{i:02}.png")
    train = load(name=str(tmp_path), in_memory=False, validation=0).train
    data = streaming(train, 1, workers=1)
    epoch = [int(data.slot(0, t)["y"].size) for t in range(len(train))]
    assert epoch == [1] * len(train)
    stream = data.stream((0,), 0, 10 * len(train))
    next(stream)
    for path in (tmp_path / "a").glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(SettingsError, match="an empty file, no image"):
        list(stream)


def test_too_little_shared_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(workers, "_free", lambda: 0)
    big = Arrays({"x": np.zeros((4, 2**20), np.uint8)})
    with pytest.raises(SettingsError, match="use workers=0"):
        next(streaming(big, 4, workers=1).stream((0,), 0, 2))


def test_workers_keep_ready_what_there_is_room_for():
    """All of 32 small ones; of 1 MB in 12 MB, with 2 workers, 2 (2 b + 1) + 1 of them: b = 2, and in 8 MB 1."""
    assert workers._buffered(1, 1, 1e9) == 16
    assert workers._buffered(1, 4, 1e9) == 4
    assert workers._buffered(2**20, 2, 12 * 2**20) == 2
    assert workers._buffered(2**20, 2, 8 * 2**20) == 1
    with pytest.raises(SettingsError, match="2 data workers need 7 MB of shared memory and /dev/shm has 6 MB"):
        workers._buffered(2**20, 2, 6 * 2**20)


def test_workers_start_from_a_script_without_a_main_guard_and_leave_when_it_ends(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import numpy as np\nprint('start')\n"
        "from umbrella.data import Arrays, streaming\n"
        "stream = streaming(Arrays({'x': np.arange(5)}), 5, workers=1).stream((0,), 0, 1000)\n"
        "print(sorted(next(stream)['x'].tolist()))\n"  # and leaves the stream open
    )
    root = pathlib.Path(__file__).parents[2]
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, cwd=root, env=_env(root))
    assert out.returncode == 0, out.stderr
    assert out.stdout == "start\n[0, 1, 2, 3, 4]\n"
    assert "Traceback" not in out.stderr


def _env(root):
    import os

    return {**os.environ, "PYTHONPATH": str(root)}


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (3, 8), (1, 1)])
def test_evaluation_sees_every_example_once_and_in_order(n, size):
    every = batches(source(n), size)
    for _ in range(2):  # re-iterable
        got = list(every)
        assert len(got) == len(every) == -(-n // size)
        mask = np.concatenate([b["mask"] for b in got])
        assert mask.dtype == np.float32 and mask.sum() == n and set(mask.tolist()) <= {0.0, 1.0}
        y = np.concatenate([b["y"] for b in got])
        assert y[mask == 1].tolist() == list(range(n))
        assert set(y[mask == 0].tolist()) <= {n - 1}  # padding repeats the last row
        assert all(len(v) == size for b in got for v in b.values())
        assert all(set(b) == {"x", "y", "mask"} for b in got)


def test_a_mask_of_the_source_is_kept_but_not_on_padding():
    tokens = Arrays({"x": np.zeros((3, 2), np.int32), "mask": np.array([[1, 1], [1, 0], [1, 1]], np.float32)})
    last = list(batches(tokens, 2))[-1]
    assert last["mask"].tolist() == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: batches(source(0), 4), "no examples"),
        (lambda: in_memory(source(0), 4), "no examples"),
        (lambda: streaming(source(0), 4), "no examples"),
        (lambda: in_memory(source(3), 0), "batch size 0"),
        (lambda: batches(source(3), -1), "batch size -1"),
        (lambda: streaming(source(3), 1, workers=-1), "workers=-1"),
        (lambda: in_memory(source(3), 2).slot(-1, 0), "seed=-1"),
        (lambda: Arrays({}), "at least one column"),
        (lambda: Arrays({"x": np.zeros(2), "y": np.zeros(3)}), "different lengths: x 2, y 3"),
    ],
)
def test_user_errors(call, words):
    with pytest.raises(SettingsError, match=words) as e:
        call()
    assert "\n" not in str(e.value)


def test_the_import_is_cheap():
    code = (
        "import sys, umbrella.data; print([m for m in "
        "('sklearn', 'tensorflow_datasets', 'tensorflow', 'grain', 'PIL', 'jax') if m in sys.modules])"
    )
    root = pathlib.Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def test_an_example_drawn_twice_has_one_name():
    data = in_memory(source(10), 5, resample=True, named=True)
    for step in range(4):
        slot = data.slot(3, step)
        np.testing.assert_array_equal(slot["id"], slot["idx"])
