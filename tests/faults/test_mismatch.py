"""F18 to F26: a checkpoint that is sound, and not the one that is wanted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import umbrella as um
from tests.conftest import ROOT
from tests.faults.kit import TrainState, config, lines, make, python, same, struct_of
from tests.helpers import bits
from umbrella import cli, manifest
from umbrella.checkpoint import Checkpoints, Mismatch, NewerFormat, restore_params


def change(template: TrainState, **params: Any) -> TrainState:
    return template.replace(params={"model": {**template.params["model"], **params}})


def refused(saved: Path, template: TrainState, *wanted: str) -> None:
    """Before any array is read, with every path; the checkpoint is not to blame, so it is not set aside."""
    with pytest.raises(Mismatch) as caught, Checkpoints(saved) as checkpoints:
        checkpoints.restore(struct_of(template))
    for line in wanted:
        assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 22
    assert manifest.survey(saved).steps == [1, 2, 3]


def test_F18_a_key_that_is_missing(saved: Path) -> None:
    added = change(make(), Dense_2={"bias": jnp.ones(3)})
    refused(saved, added, "missing in the checkpoint: params/model/Dense_2/bias float32[3]")


def test_F18_a_key_too_many(saved: Path) -> None:
    fewer = make().replace(params={"model": {"Dense_0": make().params["model"]["Dense_0"]}})
    refused(saved, fewer, "not in the template: params/model/Dense_1/bias float32[3]", "params/model/BatchNorm_0/scale")
    refused(saved, make().replace(ema=None), "not in the template: ema/params/model/Dense_0/kernel")


def test_F18_a_key_of_another_name(saved: Path) -> None:
    renamed = change(make(), Dense_1={"weight": jnp.ones((8, 3)), "bias": jnp.ones(3)})
    told = (
        "missing in the checkpoint: params/model/Dense_1/weight",
        "not in the template: params/model/Dense_1/kernel",
    )
    refused(saved, renamed, *told)


def test_F19_another_shape(saved: Path) -> None:
    wider = change(make(), Dense_1={"kernel": jnp.ones((8, 4)), "bias": jnp.ones(3)})
    refused(saved, wider, "shape: params/model/Dense_1/kernel is (8, 3) in the checkpoint, (8, 4) in the template")
    lanes = make().replace(key=jax.random.split(jax.random.key(0), 4))
    refused(saved, lanes, "shape: key is () in", "(4,) in the")


def test_F20_another_dtype(saved: Path) -> None:
    whole = change(make(), Dense_1={"kernel": jnp.ones((8, 3), jnp.int32), "bias": jnp.ones(3)})
    refused(saved, whole, "dtype: params/model/Dense_1/kernel is float32 in the checkpoint, int32 in the template")
    other = make().replace(key=jax.random.key(0, impl="rbg"))
    refused(saved, other, "dtype: key is key<fry> in the checkpoint, key<rbg> in the template")
    refused(saved, make().replace(key=jax.random.PRNGKey(0)), "dtype: key is key<fry> in the checkpoint, uint32")


def test_F21_another_optimiser(saved: Path) -> None:
    refused(saved, make(tx=optax.sgd(0.1)), "not in the template: opt_state/all/1/0/mu/model/Dense_0/kernel")


def test_F22_a_head_of_another_size_is_carried_over_only_where_that_is_said(saved: Path) -> None:
    """`fresh` lists the one path that is made anew; without it the resized head is refused."""
    wider = make(seed=3)
    wider.params["model"]["Dense_1"] = {"kernel": jnp.full((8, 7), 0.5), "bias": jnp.zeros(7)}
    template = {"params": wider.params}
    with pytest.raises(Mismatch, match=r"shape: params/model/Dense_1/kernel is \(8, 3\)"):
        restore_params(saved, template)
    found, _ = restore_params(saved, template, fresh=["params/model/Dense_1"])
    assert same(found["params"]["model"]["Dense_1"], wider.params["model"]["Dense_1"])
    assert same(found["params"]["model"]["Dense_0"], make(3).params["model"]["Dense_0"])
    with pytest.raises(Mismatch, match="fresh names no path of the template: params/model/head"):
        restore_params(saved, template, fresh=["params/model/head"])


def test_F23_another_config_shows_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "w"
    args = ["launch.py", f"--config={ROOT}/configs/mlp.py", f"--workdir={work}", "--config.train_for=2 steps"]
    assert cli.main([*args, "--config.baselines=False"]) == 0
    before = {p: p.read_bytes() for p in work.rglob("*") if p.is_file() and p.name != ".lock"}
    capsys.readouterr()
    assert cli.main([*args, "--config.optimizer.learning_rate=0.1", "--config.model.dropout=0.3"]) == 2
    told = capsys.readouterr().err
    assert "model.dropout was 0.2, is 0.3; optimizer.learning_rate was 0.002, is 0.1" in told and told.count("\n") == 1
    assert {p: p.read_bytes() for p in before} == before


def test_F24_a_newer_format_is_refused_with_both_versions(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(manifest, "FORMAT", manifest.FORMAT + 1)
        with Checkpoints(run) as checkpoints:
            checkpoints.save(4, make(4), {"position": 4})
    with pytest.raises(NewerFormat, match=r"has format 2, .* up to format 1; .*'jax'"), Checkpoints(run) as checkpoints:
        checkpoints.restore(struct_of(make()))
    assert (run / "4").is_dir()  # it is sound, so it stays


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from pathlib import Path
from umbrella import parallel, placement
from umbrella.checkpoint import Checkpoints, digests

def on(n, tree):
    return placement.Placement(parallel.mesh(n), lanes=False).replicated(tree) if n > 1 else tree

assert jax.device_count() == 8
make = lambda: {"w": jax.random.normal(jax.random.key(0), (64, 3)), "n": jnp.int32(7), "key": jax.random.key(3)}
split = NamedSharding(parallel.mesh(8), PartitionSpec("data"))
want = digests(make())
for saved_on in (1, 4, "split"):
    folder = Path(sys.argv[1]) / str(saved_on)
    tree = make() | ({"w": jax.device_put(make()["w"], split)} if saved_on == "split" else {})
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, tree if saved_on == "split" else on(saved_on, tree), {})
    for n in (1, 2, 4, 8):
        template = on(n, make())
        with Checkpoints(folder) as checkpoints:
            tree, _ = checkpoints.restore(template)
        assert digests(tree) == want, (saved_on, n)
        assert len(tree["w"].sharding.device_set) == n
        for shard in tree["w"].addressable_shards:
            assert np.array_equal(shard.data, make()["w"])
    print("saved on", saved_on, "restored on 1, 2, 4, 8", flush=True)
"""


def test_F25_one_two_four_or_eight_devices_restore_the_same(tmp_path: Path) -> None:
    """Whatever the state was on when it was saved: one device, four copies, or one array cut over eight."""
    done = python(SHARDED, str(tmp_path), env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("restored on 1, 2, 4, 8") == 3


LEAVES: dict[str, Callable[[Any], Any]] = {
    "step": lambda ts: ts.step,
    "rng": lambda ts: ts.key,
    "parameters": lambda ts: ts.params,
    "BatchNorm": lambda ts: ts.state["model"]["batch_stats"],
    "average": lambda ts: ts.ema.params,
    "average of BatchNorm": lambda ts: ts.ema.state,
    "moments": lambda ts: ts.opt_state["all"],
    "guard": lambda ts: ts.opt_state["guard"],
}


def test_F26_a_resume_restores_leaf_by_leaf(tmp_path: Path) -> None:
    """What is restored at step 20 is what was there, and what comes of it at 40 is what would have, rates included."""
    rate = dict(name="adam", learning_rate=3e-3, schedule="cosine", warmup="7 steps")
    whole = um.run(config(optimizer=rate), workdir=tmp_path / "whole", quiet=True)
    with um.runs.Session(config(optimizer=rate), tmp_path / "half", quiet=True) as session:
        half = session.train(until=20)
    with um.runs.Session(config(optimizer=rate), tmp_path / "half", quiet=True) as session:
        ts, step = session.start(session.place.replicated(session.experiment.train_data.resident))
    assert step == 20
    for name, leaf in LEAVES.items():
        assert jax.tree.leaves(leaf(ts)), name
        assert bits(leaf(ts), leaf(half.ts)), name
    resumed = um.run(config(optimizer=rate), workdir=tmp_path / "half", quiet=True)
    for name, leaf in LEAVES.items():
        assert bits(leaf(resumed.ts), leaf(whole.ts)), name
    at = {"train": [5 * i for i in range(1, 9)], "validation": [20, 40]}
    for split, steps in at.items():
        ours, theirs = ([r for r in lines(tmp_path / w) if r["split"] == split] for w in ("half", "whole"))
        assert [r["step"] for r in ours] == steps
        assert ours == theirs


def test_F26_the_schedule_goes_on_where_it_was(tmp_path: Path) -> None:
    """SGD with a gradient of one leaf known: the second half of a cosine is smaller than the first, by its own rule."""
    rate = dict(name="sgd", learning_rate=0.5, schedule="cosine")
    um.run(config(optimizer=rate, train_for="40 steps"), workdir=tmp_path / "w", quiet=True)
    meta = json.loads((tmp_path / "w" / "checkpoints" / "40" / manifest.NAME).read_text())
    counts = [path for path in meta["leaves"] if path.endswith("/count")]
    assert counts, "the schedule counts its steps in the optimiser's state"
    with um.runs.Session(config(optimizer=rate), tmp_path / "w", quiet=True) as session:
        ts, _ = session.start(session.place.replicated(session.experiment.train_data.resident))
    assert all(int(np.asarray(x)) == 40 for x in jax.tree.leaves(ts.opt_state["all"]) if x.dtype == jnp.int32)
