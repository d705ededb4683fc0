"""Several seeds as one program: side by side, in turn, dealt out to devices, on samples of their own."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import umbrella as um
from tests.helpers import gap
from tests.test_pipelines import vision
from umbrella import data
from umbrella.loop import Cadence
from umbrella.settings import SettingsError

two_devices = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")


def trained(tmp_path: Path, name: str, **more: Any) -> um.runs.Result:
    config = vision(
        **{"train_for": "6 steps", "batch_size": 32, "optimizer": dict(name="sgd", learning_rate=0.1), **more}
    )
    return um.run(config, workdir=tmp_path / name, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["own", "shared"])
@pytest.mark.parametrize("seeds", [2, 3])  # on two devices: dealt out; cut by rows
def test_in_turn_and_side_by_side_are_the_same_runs(tmp_path: Path, order: str, seeds: int) -> None:
    a, b = (trained(tmp_path, how, lanes=how, order=order, seeds=seeds) for how in ("vmap", "unroll"))
    assert gap(a.ts.params, b.ts.params) < 1e-6
    assert a.history[-1]["accuracy"] == pytest.approx(b.history[-1]["accuracy"])


@pytest.mark.slow
@two_devices
@pytest.mark.parametrize("how", ["vmap", "unroll"])
def test_each_device_has_its_own_seeds_and_none_waits_for_another(tmp_path: Path, how: str) -> None:
    config = vision(seeds=4, lanes=how, train_for="6 steps", batch_size=33)  # two devices could not share 33 rows
    with um.runs.Session(config, tmp_path / "w", quiet=True) as session:
        assert session.place.apart
        resident = session.place.replicated(session.experiment.train_data.resident)
        ts, _ = session.start(resident)
        step, window = session.compile(ts, resident, Cadence(0, 0, 0))
        slot = session.place.slot(next(session._slots(0, 1)))
        lowered = step[1].lower(ts, session.place.sums(window.zeros()), session.frozen, resident, slot)
        text = lowered.compile().as_text()
        for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"):
            assert word not in text
        leaf = jax.tree.leaves(ts.params)[0]
        assert {s.data.shape[0] for s in leaf.addressable_shards} == {2}
        done = session.train()
    assert len(done.summary["metrics"]["test"]["accuracy"]["values"]) == 4
    # A run alone has its rows cut for both devices, so its batches must be even: 34 here, and again for all.
    of = dict(lanes=how, batch_size=34)
    four = trained(tmp_path, "four", seeds=4, **of)
    for k in (0, 3):
        alone = trained(tmp_path, f"alone{k}", seed=k, **of)
        assert gap(jax.tree.map(lambda x, k=k: x[k], four.ts.params), alone.ts.params) < 1e-5


def test_convolutions_run_in_turn_on_a_cpu(tmp_path: Path) -> None:
    for model, expected in (
        (dict(name="mlp", hidden=(8,)), "vmap"),
        (dict(name="cnn", widths=(4,), depth=1), "unroll"),
    ):
        with um.runs.Session(vision(seeds=2, model=model), tmp_path / model["name"], quiet=True) as session:
            resident = session.place.replicated(session.experiment.train_data.resident)
            ts, _ = session.start(resident)
            slot = next(session._slots(0, 1))
            ex = session.experiment
            make = partial(um.step.program, ex.step, fetch=ex.train_data.fetch, lanes="own")
            assert session._side(make, ts, resident, slot) == expected


# -------------------------------------------------------------------------------------------------------------- bagging
def test_every_seed_draws_its_own_sample_with_replacement() -> None:
    a, b = data.bootstrap(0, 1000), data.bootstrap(1, 1000)
    assert (a != b).any() and len(a) == 1000 and set(a) <= set(range(1000))
    # A row is missed by 1000 draws with probability (1 - 1/1000)^1000 = .3677; the sd of the share is about .0098.
    assert abs(len(set(a)) / 1000 - 0.632) < 0.04
    source = data.Arrays({"x": np.arange(1000)})
    for make in (data.in_memory, lambda s, n, resample: data.streaming(s, n, workers=0, resample=resample)):
        loaded = make(source, 100, resample=True)
        seen = np.concatenate([np.asarray(loaded.fetch(loaded.resident, loaded.slot(1, t))["x"]) for t in range(10)])
        np.testing.assert_array_equal(np.sort(seen), np.sort(b))  # an epoch is the sample, each row as often as drawn
        again = np.concatenate(
            [np.asarray(loaded.fetch(loaded.resident, loaded.slot(1, t))["x"]) for t in range(10, 20)]
        )
        assert (again != seen).any() and (np.sort(again) == np.sort(seen)).all()


@pytest.mark.slow
def test_members_of_a_bag_differ_where_runs_on_the_same_data_in_the_same_order_do_not(tmp_path: Path) -> None:
    plain, bag = (trained(tmp_path, str(r), resample=r, seeds=2).ts for r in (False, True))
    assert gap(plain.params, bag.params) > 1e-3
    alone = trained(tmp_path, "alone", resample=True, seed=1).ts
    assert gap(jax.tree.map(lambda x: x[1], bag.params), alone.params) < 1e-5


# ------------------------------------------------------------------------------------------------------------- patience
def test_patience_stops_and_the_best_state_is_the_result(tmp_path: Path) -> None:
    """A learning rate that spoils everything after a while: the best validation comes early."""
    config = dict(
        train_for="40 epochs",
        optimizer=dict(name="sgd", learning_rate=30.0),
        keep_best="loss",
        patience="3 epochs",
        eval_every="1 epoch",
        checkpoint_every="1 epoch",
        batch_size=64,
        on_nonfinite="skip",
    )
    r = trained(tmp_path, "w", **config)
    losses = [(h["loss"], h["step"]) for h in r.history if h["split"] == "validation"]
    losses, final = losses[:-1], losses[-1]  # the last is of the state that was gone back to
    best = min(losses)
    assert r.summary["step"] == best[1] < r.summary["trained_to"] == losses[-1][1]
    epoch = losses[0][1]
    assert r.summary["trained_to"] - best[1] == 3 * epoch < 40 * epoch
    assert final == pytest.approx(best)
    again = trained(tmp_path, "w", **config)  # resumed: it has ended, and nothing is trained
    assert again.summary["trained_to"] == r.summary["trained_to"] and gap(again.ts.params, r.ts.params) == 0


def test_a_stop_in_between_changes_nothing_about_patience(tmp_path: Path) -> None:
    config = vision(
        train_for="12 epochs",
        optimizer=dict(name="sgd", learning_rate=30.0),
        keep_best="loss",
        patience="3 epochs",
        eval_every="1 epoch",
        checkpoint_every="1 epoch",
        on_nonfinite="skip",
    )
    whole = um.run(config, workdir=tmp_path / "whole", quiet=True)
    with um.runs.Session(config, tmp_path / "w", quiet=True) as session:
        epoch = session.experiment.durations.steps("1 epoch")
        session.train(until=2 * epoch)
    rest = um.run(config, workdir=tmp_path / "w", quiet=True)
    for key in ("step", "trained_to"):
        assert rest.summary[key] == whole.summary[key]
    assert gap(rest.ts.params, whole.ts.params) == 0


def test_patience_for_nothing_is_refused() -> None:
    for more, word in (
        (dict(), "for which metric"),
        (dict(keep_best="loss", checkpoint_every="10%"), "must be a checkpoint"),
    ):
        with pytest.raises(SettingsError, match=word):
            um.pipelines.build(vision(patience="3 epochs", **more))


def test_what_is_measured_at_initialisation_is_measured_on_the_lane_s_own_batch(tmp_path: Path) -> None:
    """A whitening that is not trained: from another seed's batch the lane would never be the run alone."""
    more = dict(model=dict(name="cifar_fast", widths=(4,)), train_for="1 steps", evals={}, baselines=False)
    two = trained(tmp_path, "two", seeds=2, **more).ts.state["model"]["whitening"]["whitening"]
    alone = trained(tmp_path, "alone", seed=1, **more).ts.state["model"]["whitening"]["whitening"]
    for name in ("mean", "std"):
        np.testing.assert_allclose(two[name][1], alone[name], rtol=1e-5)
        assert gap(two[name][0], alone[name]) > 1e-4
