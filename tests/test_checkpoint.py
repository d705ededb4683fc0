"""Checkpoints: what comes back is what was saved, and what is refused. The faults are in tests/faults/."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.faults.kit import View, bits, make, restored, same, struct_of
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
    digests,
    read_meta,
    restore_params,
)

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


def test_digests_are_equal_for_equal_bits_only():
    tree = {"a": jnp.arange(3.0), "k": jax.random.key(0)}
    assert digests(tree) == digests(jax.tree.map(jnp.copy, tree))
    assert digests({"a": -jnp.zeros(1)}) != digests({"a": jnp.zeros(1)})  # equal numbers, other bits
    assert digests({"a": jnp.zeros(2)}) != digests({"a": jnp.zeros((2, 1))})
    assert digests({"a": jnp.zeros(1, jnp.int32)}) != digests({"a": jnp.zeros(1)})


def test_what_retention_keeps(tmp_path):
    """Of the steps 5, 10, ... 40: the last one, the multiples of 20, and the one of the lowest rank, here 15."""
    loss = {5: 3.0, 10: 2.0, 15: 1.0, 20: 5.0, 25: 1.0, 30: float("nan"), 35: None, 40: 2.0}
    with Checkpoints(tmp_path, keep=1, keep_every=20, rank=lambda meta: meta["loss"]) as checkpoints:
        for step, value in loss.items():
            checkpoints.save(step, make(step), {"position": step, "loss": None if value != value else value})
    assert manifest.survey(tmp_path).steps == [15, 20, 40]
    with Checkpoints(tmp_path, keep=1) as checkpoints:  # what was kept goes when nothing asks for it any more
        checkpoints.save(45, make(45), {"position": 45})
    assert manifest.survey(tmp_path).steps == [45]
