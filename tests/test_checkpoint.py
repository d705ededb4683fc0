"""Faults put into checkpoints on purpose: nothing wrong may come back, and nothing right may be lost."""

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from umbrella import manifest
from umbrella.checkpoint import (
    CheckpointError,
    Checkpoints,
    Corrupt,
    Mismatch,
    NonFinite,
    NothingVerified,
    SaveFailed,
    StepExists,
    read_meta,
    restore_params,
)


class View(NamedTuple):
    params: Any
    state: Any


class TrainState(struct.PyTreeNode):
    step: jax.Array
    key: jax.Array
    params: dict
    state: dict
    opt_state: dict
    ema: View | None = None


class Net(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(3)(x)


def make(step: int = 0, *, seed: int = 0, width: int = 8, tx: optax.GradientTransformation | None = None) -> TrainState:
    key = jax.random.key(seed)
    variables = Net(width).init(key, jnp.ones((4, 5)))
    params, state = {"model": variables["params"]}, {"model": {"batch_stats": variables["batch_stats"]}, "none": {}}
    params = jax.tree.map(lambda x: x + step, params)
    opt_state = {"all": (tx or optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))).init(params)}
    ts = TrainState(jnp.int32(step), key, params, state, opt_state, View(params, state))
    return jax.tree.map(jnp.copy, ts)


def bits(tree: Any) -> dict[str, tuple]:
    def one(x):
        data = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return str(x.dtype), x.shape, np.asarray(data).tobytes()

    return {jax.tree_util.keystr(path): one(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def same(a: Any, b: Any) -> bool:
    return (jax.tree.structure(a), bits(a)) == (jax.tree.structure(b), bits(b))


def struct_of(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Steps 1, 2 and 3; read only."""
    directory = tmp_path_factory.mktemp("saved")
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2, 3):
            assert checkpoints.save(step, make(step), {"position": step, "config": {"lr": 0.1, "sizes": (1, 2)}})
    return directory


@pytest.fixture
def run(saved, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def restored(directory: Path, template: Any = None) -> int:
    """The step restored, after checking that every bit of it is right."""
    with Checkpoints(directory) as checkpoints:
        found = checkpoints.restore(struct_of(make()) if template is None else template)
    assert found is not None
    ts, meta = found
    assert same(ts, make(meta["position"]))
    return meta["position"]


# What comes back is what was saved


def test_round_trip_is_equal_to_the_bit_and_owns_its_buffers(saved):
    with Checkpoints(saved) as checkpoints:
        ts, meta = checkpoints.restore(struct_of(make()))
    assert same(ts, make(3))
    assert meta == {"position": 3, "config": {"lr": 0.1, "sizes": [1, 2]}}
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((ts.params, ts.state, ts.opt_state, ts.ema))]
    assert len(set(pointers)) == len(pointers)
    twice = jax.jit(lambda t: jax.tree.map(lambda x: x * 2, t.params), donate_argnums=0)(ts)
    assert same(twice, jax.tree.map(lambda x: x * 2, make(3).params))


def test_keys_lanes_and_odd_leaves(tmp_path):
    tree = {
        "key": jax.random.split(jax.random.key(3), 4),
        "rbg": jax.random.key(3, impl="rbg"),
        "low": jnp.arange(5, dtype=jnp.bfloat16),
        "bool": jnp.array([True, False]),
        "a/b": jnp.ones(()),
        "empty": jnp.zeros((0, 3)),
        "none": None,
        "dict": {},
        "sgd": optax.sgd(0.1).init({"w": jnp.ones(2)}),
        "lanes": jax.vmap(lambda k: jax.random.normal(k, (3,)))(jax.random.split(jax.random.key(0), 4)),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree, {})
        for template in (tree, struct_of(tree)):
            found, _ = checkpoints.restore(template)
            assert same(found, tree)
            assert not any(x.committed for x in jax.tree.leaves(found))


def test_fresh_directory_is_none(tmp_path):
    with Checkpoints(tmp_path / "new" / "run with späce") as checkpoints:
        assert checkpoints.restore(make()) is None
        assert checkpoints.steps() == []
        with pytest.raises(CheckpointError, match="no step 4"):
            checkpoints.restore(make(), step=4)
    assert read_meta(tmp_path) is None
    with pytest.raises(NothingVerified):
        restore_params(tmp_path, {"params": make().params})


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_lands_on_the_shardings_of_the_template(saved, tmp_path):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    everywhere = NamedSharding(mesh, PartitionSpec())
    place = lambda sharding, t: jax.tree.map(  # noqa: E731
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), struct_of(t)
    )
    with Checkpoints(saved) as checkpoints:
        ts, _ = checkpoints.restore(place(everywhere, make()))
    assert same(ts, make(3))
    assert all(x.sharding.is_equivalent_to(everywhere, x.ndim) for x in jax.tree.leaves(ts))
    split = NamedSharding(mesh, PartitionSpec("data"))
    lanes = {"key": jax.random.split(jax.random.key(0), 4), "w": jnp.arange(8.0).reshape(4, 2), "z": jnp.zeros((4, 0))}
    with Checkpoints(tmp_path) as checkpoints:
        on_two = jax.device_put(lanes, split)
        checkpoints.save(1, on_two, {})
        for template, device_count in ((on_two, 2), (place(split, lanes), 2), (struct_of(lanes), 1)):
            found, _ = checkpoints.restore(template)
            assert same(found, lanes)
            assert {len(x.sharding.device_set) for x in jax.tree.leaves(found)} == {device_count}
        assert checkpoints.restore(on_two)[0]["w"].sharding == split


def test_donation_right_after_save_tears_nothing(tmp_path):
    overwrite = jax.jit(lambda t: jax.tree.map(lambda x: x * 0 - 1, t), donate_argnums=0)
    overwrite({"w": jnp.ones(2_000_000), "n": jnp.int32(0)})
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(4):
            tree = {"w": jnp.arange(2_000_000, dtype=jnp.float32) + step, "n": jnp.int32(step)}
            want = bits(tree)
            checkpoints.save(step, tree, {})
            tree = jax.block_until_ready(overwrite(tree))
            assert tree["w"][5] == -1
            assert bits(checkpoints.restore(struct_of(tree))[0]) == want


def test_restore_params_takes_the_named_subtrees_only(saved):
    want = make(3)
    (params, state), meta = restore_params(saved, struct_of(View(want.params, want.state)))
    assert same(View(params, state), View(want.params, want.state)) and meta["position"] == 3
    found, _ = restore_params(saved, struct_of({"ema": want.ema}), step=2)
    assert same(found, {"ema": make(2).ema})
    with pytest.raises(Mismatch, match="not in the template: state/model/batch_stats"):
        restore_params(saved, {"params": want.params, "state": {}})
    with pytest.raises(Mismatch, match="missing in the checkpoint: teacher/w"):
        restore_params(saved, {"teacher": {"w": jnp.ones(1)}})


def test_restore_params_leaves_a_listed_head_alone(saved):
    mine = make(0, seed=1).params
    mine["model"]["Dense_1"] = {"kernel": jnp.full((8, 10), 7.0), "bias": jnp.full(10, 7.0)}
    with pytest.raises(Mismatch, match="Dense_1"):
        restore_params(saved, {"params": mine})
    found, _ = restore_params(saved, {"params": mine}, fresh=["params/model/Dense_1"])
    assert same(found["params"]["model"]["Dense_1"], mine["model"]["Dense_1"])
    assert same(found["params"]["model"]["Dense_0"], make(3).params["model"]["Dense_0"])
    with pytest.raises(Mismatch, match="fresh names no path"):
        restore_params(saved, {"params": mine}, fresh=["params/model/Dense"])


def test_restore_params_passes_over_a_corrupt_step_and_changes_nothing(run):
    (run / "3" / "commit_success.txt").write_text("x")
    before = sorted(p.name for p in run.iterdir())
    _, meta = restore_params(run, struct_of({"params": make().params}))
    assert meta["position"] == 2 and sorted(p.name for p in run.iterdir()) == before


def test_read_meta(run):
    assert read_meta(run)["position"] == 3 and read_meta(run, 1)["position"] == 1
    (run / "3" / manifest.NAME).write_bytes(b"")
    assert read_meta(run)["position"] == 2
    with pytest.raises(Corrupt):
        read_meta(run, 3)


# Storage faults


FILES = 12  # at least so many files in a step of this size


def each_file(run: Path) -> list[Path]:
    files = sorted(p for p in (run / "3").rglob("*") if p.is_file())
    assert len(files) >= FILES
    return files


def broken(run: Path, tmp_path: Path, file: Path, spoil: Any, *, falls_to: int = 2) -> None:
    """Spoil one file of step 3; restore must name it, set the step aside and give step 2."""
    copy = Path(shutil.copytree(run, tmp_path / "broken"))
    spoil(copy / file.relative_to(run))
    with pytest.raises(Corrupt, match=f"corrupt: .*{file.name}"), Checkpoints(copy) as checkpoints:
        checkpoints.restore(struct_of(make()), step=3)
    assert (copy / "3.corrupt").is_dir() and not (copy / "3").exists()
    assert manifest.survey(copy).steps[-1] == falls_to
    shutil.rmtree(copy)


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def test_one_flipped_bit_in_each_file_is_detected(run, tmp_path):
    rng = random.Random(0)
    for file in each_file(run):
        for _ in range(2):
            broken(run, tmp_path, file, lambda path: flip(path, rng))


def test_each_file_truncated_or_emptied_is_detected(run, tmp_path):
    for file in each_file(run):
        for part in (0.0, 0.5, 0.99):
            broken(run, tmp_path, file, lambda path, part=part: os.truncate(path, int(part * path.stat().st_size)))


def test_each_file_deleted_is_detected(run, tmp_path):
    for file in each_file(run):
        if file.name != manifest.NAME:  # without it there is no step: next test
            broken(run, tmp_path, file, Path.unlink)


def test_falls_back_to_an_older_step_with_the_right_bits(run):
    flip(max((run / "3").rglob("*"), key=lambda p: p.stat().st_size * p.is_file()), random.Random(1))
    (run / "2" / "stranger").write_text("not in the manifest")
    assert restored(run) == 1
    assert sorted(p.name for p in run.iterdir()) == ["1", "2.corrupt", "3.corrupt", "UNFINISHED"]


def test_step_without_manifest_is_ignored_then_replaced(run):
    (run / "3" / manifest.NAME).unlink()
    assert restored(run) == 2
    with Checkpoints(run) as checkpoints:
        checkpoints.restore(struct_of(make()))
        assert checkpoints.save(3, make(3), {"position": 3})
    assert restored(run) == 3


def test_all_corrupt_never_starts_over(run):
    for step in ("1", "2", "3"):
        (run / step / "default" / "_METADATA").write_bytes(b"")
    for _ in range(2):  # nor when started again
        with pytest.raises(NothingVerified, match="3.corrupt"), Checkpoints(run) as checkpoints:
            checkpoints.restore(struct_of(make()))


def test_moved_folder_and_scrambled_clock(run, tmp_path):
    moved = run.rename(tmp_path / "elsewhere")
    for age, step in enumerate(("3", "2", "1")):  # the newest step has the oldest time stamps
        for path in (moved / step, *(moved / step).rglob("*")):
            os.utime(path, (age * 1000, age * 1000))
    assert restored(moved) == 3


def test_leftovers_are_removed_only_if_ours(run):
    tmp = run / "9.orbax-checkpoint-tmp-1"
    (tmp / "default").mkdir(parents=True)
    (run / "8").mkdir()  # killed between commit and manifest, or while it was being retired
    (tmp / "default" / "half").write_text("a")
    manifest.write_journal(run, {8, 9, 12})
    theirs = [run / "10", run / "11.orbax-checkpoint-tmp-1", run / "4.corrupt", run / "2024"]
    for path in theirs:
        path.mkdir()
        (path / "holiday.jpg").write_text("precious")
    os.symlink(run / "2024", run / "12")
    assert restored(run) == 3 and tmp.exists()  # reading removes nothing
    with Checkpoints(run) as checkpoints:
        assert checkpoints.save(5, make(5), {"position": 5})
    assert not tmp.exists() and not (run / "8").exists()
    assert all((path / "holiday.jpg").exists() for path in theirs) and (run / "12").is_symlink()
    with Checkpoints(run) as checkpoints:  # what is in the way is moved, not removed
        assert all(checkpoints.save(step, make(step), {"position": step}) for step in (10, 11, 12))
    assert (run / "10.corrupt" / "holiday.jpg").exists() and (run / "12.corrupt").is_symlink()
    assert (run / "11.orbax-checkpoint-tmp-1.corrupt" / "holiday.jpg").exists()
    assert (run / "2024" / "holiday.jpg").exists()
    assert restored(run) == 12


def test_directory_deleted_between_saves_is_made_again(run):
    with Checkpoints(run) as checkpoints:
        checkpoints.save(4, make(4), {"position": 4})
        checkpoints.wait()
        shutil.rmtree(run)
        checkpoints.save(5, make(5), {"position": 5})
    assert restored(run) == 5


def test_full_disk_is_loud_and_older_steps_stay(run):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"w": jax.random.normal(jax.random.key(0), (1_000_000,))}
    with Checkpoints(run) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(SaveFailed, match=r"step 4 was not saved in .*run \(4,000,000 bytes needed"):
                checkpoints.save(4, big, {})
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert sorted(p.name for p in run.iterdir()) == ["1", "2", "3", "UNFINISHED"]
        assert checkpoints.restore(struct_of(make())) is not None
        assert checkpoints.save(4, make(4), {"position": 4})  # there is space again
    assert restored(run) == 4


def test_an_error_in_the_background_surfaces_once(run, monkeypatch):
    def fail(*args):
        raise OSError(5, "Input/output error")

    with Checkpoints(run) as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr(manifest, "write", fail)
            checkpoints.save(4, make(4), {})
            with pytest.raises(SaveFailed, match="step 4 was not saved.*Input/output error"):
                checkpoints.save(5, make(5), {})
        assert checkpoints.steps() == [1, 2, 3]
        checkpoints.save(5, make(5), {"position": 5})
    with pytest.raises(SaveFailed), Checkpoints(run) as checkpoints, monkeypatch.context() as patched:
        patched.setattr(manifest, "write", fail)
        checkpoints.save(6, make(6), {})
        checkpoints._pending.exception()  # while the patch is on
    with pytest.raises(KeyError), Checkpoints(run) as checkpoints, monkeypatch.context() as patched:
        patched.setattr(manifest, "write", fail)
        checkpoints.save(6, make(6), {})
        checkpoints._pending.exception()
        raise KeyError("the first error is the one that counts")
    assert restored(run) == 5


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import jax, jax.numpy as jnp
from umbrella.checkpoint import Checkpoints

def train(directory, ready):
    make = jax.jit(lambda n: {"w": jnp.full(300_000, n, jnp.float32), "n": n})
    with Checkpoints(directory, keep=2) as checkpoints:
        found = checkpoints.restore(make(0))
        step = -1
        if found is not None:
            tree, meta = found
            step = meta["step"]
            if not (int(tree["n"]) == step and bool((tree["w"] == step).all())):
                os._exit(3)
        if step < int((directory / "promised").read_text()):
            os._exit(4)
        os.write(ready, b"x")
        while True:
            step += 1
            checkpoints.save(step, make(step), {"step": step})
            if step % 3 == 0:
                checkpoints.wait()
                (directory / "promised.tmp").write_text(str(step))
                os.replace(directory / "promised.tmp", directory / "promised")

directory, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
(directory / "promised").write_text("-1")
for _ in range(int(sys.argv[3])):  # forked before JAX has a backend: the imports are paid once
    read, ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train(directory, ready)
        finally:
            os._exit(5)
    os.close(ready)
    if os.read(read, 1) == b"x":
        time.sleep(rng.uniform(0.0, 0.6))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), f"a child found a bad checkpoint: {os.waitstatus_to_exitcode(status)}"
"""


def test_kill_9_in_the_middle_of_saves(tmp_path):
    """Each killed process is resumed by the next: a verified step, never older than one that `wait` had promised."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "0", "6"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    promised = int((tmp_path / "promised").read_text())
    left = sorted(p.name for p in tmp_path.iterdir())
    template = {"w": jax.ShapeDtypeStruct((300_000,), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}
    with Checkpoints(tmp_path) as checkpoints:
        tree, meta = checkpoints.restore(template)
    assert meta["step"] >= promised >= 0
    assert int(tree["n"]) == meta["step"] and bool((tree["w"] == meta["step"]).all())
    assert not list(tmp_path.glob("*.corrupt*"))
    print(f"\nkilled 6 times in {time.perf_counter() - start:.1f} s; left {left}, promised {promised}, found {meta}")


# Mismatch


def change(template: TrainState, **params: Any) -> TrainState:
    return template.replace(params={"model": {**template.params["model"], **params}})


@pytest.mark.parametrize(
    ("template", "lines"),
    [
        (
            lambda: change(make(), Dense_2={"bias": jnp.ones(3)}),
            ["missing in the checkpoint: params/model/Dense_2/bias float32[3]"],
        ),
        (
            lambda: make().replace(params={"model": {"Dense_0": make().params["model"]["Dense_0"]}}),
            ["not in the template: params/model/Dense_1/bias float32[3]", "params/model/BatchNorm_0/scale"],
        ),
        (
            lambda: change(make(), Dense_1={"weight": jnp.ones((8, 3)), "bias": jnp.ones(3)}),
            [
                "missing in the checkpoint: params/model/Dense_1/weight float32[8,3]",
                "not in the template: params/model/Dense_1/kernel float32[8,3]",
            ],
        ),
        (
            lambda: change(make(), Dense_1={"kernel": jnp.ones((8, 4)), "bias": jnp.ones(3)}),
            ["shape: params/model/Dense_1/kernel is (8, 3) in the checkpoint, (8, 4) in the template"],
        ),
        (
            lambda: change(make(), Dense_1={"kernel": jnp.ones((8, 3), jnp.int32), "bias": jnp.ones(3)}),
            ["dtype: params/model/Dense_1/kernel is float32 in the checkpoint, int32 in the template"],
        ),
        (lambda: make(tx=optax.sgd(0.1)), ["not in the template: opt_state/all/1/0/mu/model/Dense_0/kernel"]),
        (lambda: make().replace(ema=None), ["not in the template: ema/params/model/Dense_0/kernel"]),
        (
            lambda: make().replace(key=jax.random.key(0, impl="rbg")),
            ["dtype: key is key<fry> in the checkpoint, key<rbg> in the template"],
        ),
        (lambda: make().replace(key=jax.random.PRNGKey(0)), ["dtype: key is key<fry> in the checkpoint, uint32"]),
        (lambda: make().replace(key=jax.random.split(jax.random.key(0), 4)), ["shape: key is () in", "(4,) in the"]),
    ],
    ids=["missing", "extra", "renamed", "shape", "dtype", "optimiser", "no ema", "key impl", "raw key", "lanes"],
)
def test_mismatch_lists_each_path(saved, template, lines):
    with pytest.raises(Mismatch) as caught, Checkpoints(saved) as checkpoints:
        checkpoints.restore(struct_of(template()))
    for line in lines:
        assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 22
    assert manifest.survey(saved).steps == [1, 2, 3]  # the checkpoint is not to blame


def test_a_long_mismatch_is_cut(saved):
    with pytest.raises(Mismatch, match="and 1[0-9] more") as caught, Checkpoints(saved) as checkpoints:
        checkpoints.restore({"step": jnp.int32(0), **{f"x{i}": jnp.ones(1) for i in range(9)}})
    assert len(str(caught.value).splitlines()) == 22


# What save refuses


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_parameters_are_never_saved(run, value):
    ts = make(4)
    ts.params["model"]["Dense_1"]["bias"] = ts.params["model"]["Dense_1"]["bias"].at[1].set(value)
    with Checkpoints(run) as checkpoints:
        with pytest.raises(NonFinite, match="step 4 .*: params/model/Dense_1/bias$"):
            checkpoints.save(4, ts, {})
        assert checkpoints.steps() == [1, 2, 3]


def test_inf_is_a_legitimate_best_loss_but_nan_is_not(run):
    with Checkpoints(run) as checkpoints:
        best = {"all": {"best": jnp.float32(jnp.inf)}}
        assert checkpoints.save(4, make(4).replace(opt_state=best), {})
        with pytest.raises(NonFinite, match="opt_state/all/best"):
            checkpoints.save(5, make(5).replace(opt_state={"all": {"best": jnp.float32(jnp.nan)}}), {})


def test_meta_must_be_json_and_leaves_arrays(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for meta in ({"x": np.float32(1)}, {"x": float("nan")}, {"x": object()}):
            with pytest.raises(CheckpointError, match="meta is not JSON"):
                checkpoints.save(0, {"w": jnp.ones(1)}, meta)
        with pytest.raises(CheckpointError, match="w is no array but float"):
            checkpoints.save(0, {"w": 1.0}, {})
        with pytest.raises(CheckpointError, match="two leaves have the path 'a/b'"):
            checkpoints.save(0, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, {})
        assert checkpoints.steps() == []


def test_the_same_step_again_and_an_older_one(run):
    with Checkpoints(run) as checkpoints:
        with pytest.raises(StepExists, match="holds step 3"):
            checkpoints.save(3, make(3), {})  # not ours yet
        checkpoints.restore(struct_of(make()))
        assert checkpoints.save(3, make(3), {}) is False
        assert checkpoints.save(4, make(4), {})
        assert checkpoints.save(4, make(4), {}) is False
        checkpoints.restore(struct_of(make()), step=2)
        with pytest.raises(StepExists, match="holds step 4"):
            checkpoints.save(3, make(3), {})


# Retention and speed


def test_retention_waits_for_the_manifest(tmp_path, monkeypatch):
    seen, write = [], manifest.write

    def watched(folder, *args):
        seen.append((manifest.survey(folder.parent).steps, int(folder.name)))
        write(folder, *args)

    monkeypatch.setattr(manifest, "write", watched)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (5, 10, 15, 100):
            checkpoints.save(step, make(step), {"position": step})
    assert seen == [([], 5), ([5], 10), ([5, 10], 15), ([10, 15], 100)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["100", "15", "UNFINISHED"]
    with pytest.raises(ValueError):
        Checkpoints(tmp_path, keep=0)


def test_how_long_a_save_holds_up_the_loop(tmp_path):
    mb = 100
    tree = {"params": {"w": jax.random.normal(jax.random.key(0), (mb * 250_000,))}}
    jax.block_until_ready(tree)
    stalls, background = [], []
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in range(3):
            start = time.perf_counter()
            checkpoints.save(step, tree, {})
            stalls.append(time.perf_counter() - start)
            checkpoints.wait()
            background.append(time.perf_counter() - start - stalls[-1])
        start = time.perf_counter()
        manifest.verify(tmp_path / "2", manifest.read(tmp_path / "2"))
        hashed = time.perf_counter() - start
        start = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(struct_of(tree)))
        read = time.perf_counter() - start
    size = sum(p.stat().st_size for p in (tmp_path / "2").rglob("*") if p.is_file()) / 1e6
    print(
        f"\n{mb} MB: save() {[round(1e3 * s) for s in stalls]} ms, until the manifest "
        f"{[round(1e3 * s) for s in background]} ms, SHA-256 {size / hashed:.0f} MB/s, "
        f"verified restore {mb / read:.0f} MB/s"
    )
    assert min(stalls) < 2  # only gross mistakes: the machine may be busy
