"""Several devices share the work, evaluation and its rounding of batches included, and give what one gives."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import umbrella as um
from tests.helpers import gap
from tests.test_evaluation import FULL, KEY, PARAMS, VIEW, batches
from tests.test_objective import Recall, filled
from tests.test_pipelines import vision
from umbrella import evaluation, losses, metrics, parallel, pipelines, placement
from umbrella.environment import CompileMeter
from umbrella.evaluation import evaluate
from umbrella.metrics import Mean
from umbrella.models import MLP
from umbrella.objective import View, measure, supervised

pytestmark = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
tmap = jax.tree.map


def place(lanes: Any = None) -> placement.Placement:
    return placement.Placement(parallel.mesh(2), lanes=lanes)


# ---------------------------------------------------------------------------------------------------------- evaluation
def test_each_device_evaluates_its_share_of_the_rows() -> None:
    """Two matrices, 64 x 256 and 256 x 10, of 256 rows: 2 * 256 * (64 * 256 + 256 * 10) = 9.7 MFLOP in all, so at least
    half of that on each of two devices, and less than .55 of it with the small change of the softmax."""
    o = measure(accuracy=metrics.accuracy)(supervised(MLP(out=10, hidden=(256,)), losses.cross_entropy))
    batch = {"x": np.zeros((256, 64), np.float32), "y": np.zeros(256, np.int32), "mask": np.ones(256, np.float32)}
    view = View(filled(o, batch)[0], {})
    total = 2 * 256 * (64 * 256 + 256 * 10)

    def flops(view: View, batch: Any) -> float:
        where = evaluation._places(batch, view, None) if isinstance(batch["x"], jax.Array) else None
        start = evaluation._placed(evaluation._zeros(o, batch, view, {}, KEY, None), where)
        compiled = evaluation._pass.lower(o, *start, view, {}, batch, KEY, False, where).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(view, batch) > total
    assert total / 2 < flops(place().replicated(view), place().rows(batch)) < 0.55 * total


@pytest.mark.parametrize("lanes", [None, 3])
def test_shared_rows_give_what_one_device_gives(lanes: int | None) -> None:
    """Loss, accuracy, AUC of collected scores and confusion of 37 rows in batches of 8, the last padded with nan."""
    view = VIEW if lanes is None else View(tmap(lambda v: jnp.stack([v, -v, 3 * v]), PARAMS), {})
    wanted = evaluate(FULL, view, batches(8), KEY, lanes=lanes)
    there = place("own" if lanes else None)
    told = evaluate(FULL, there.replicated(view), batches(8), KEY, lanes=lanes, put=there.rows)
    assert told.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(told[name], wanted[name], rtol=1e-6)


def test_sharing_is_one_compilation_for_all_batches_and_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the first call, too, and where sums move to the host between batches."""
    monkeypatch.setattr(evaluation, "FLUSH", 2)
    view = place().replicated(VIEW)
    evaluate(FULL, view, batches(8), KEY, put=place().rows)
    meter = CompileMeter()
    try:
        for _ in range(2):
            evaluate(FULL, view, batches(8), KEY, put=place().rows)
        assert meter.count == 0
    finally:
        meter.close()


def test_the_first_sharing_call_compiles_its_pass_once() -> None:
    evaluation._pass.clear_cache()
    evaluate(FULL, place().replicated(VIEW), batches(8), KEY, put=place().rows)
    assert evaluation._pass._cache_size() == 1


@pytest.mark.parametrize("lanes", [None, 2])
def test_a_carry_is_shared_by_rows(lanes: int | None) -> None:
    """The recurrent state of four rows over three windows: each device keeps two rows of it."""
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    o = measure(out=lambda outputs, b: Mean.of(outputs))(supervised(Recall(), lambda out, y: out))
    windows = [{"x": x[:, i : i + 2]} for i in (0, 2, 4)]
    params, state = filled(o, windows[0])
    view = View(params, {"carry": state["carry"]})
    if lanes:
        view = tmap(lambda a: jnp.stack([a] * lanes), view)
    wanted = evaluate(o, view, windows, KEY, lanes=lanes)["out"]
    got = evaluate(o, place().replicated(view), windows, KEY, lanes=lanes, put=place().rows)["out"]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_a_run_rounds_its_evaluation_batches_up_and_shares_them(tmp_path: Path) -> None:
    """33 rows on two devices become 34; accuracy is that of predict() on every test row, padding left out."""
    assert parallel.rounded(33, 2) == 34 and parallel.rounded(34, 2) == 34 and parallel.rounded(1, 1) == 1
    config = vision(eval_batch_size=33)
    assert {len(b["x"]) for e in pipelines.build(config).evals.values() for b in e.batches} == {34}
    r = um.run(config, workdir=tmp_path, quiet=True)
    test = r.experiment.dataset.test
    rows = test.__getitems__(np.arange(len(test)))
    label = r.experiment.predict(jax.device_get(r.ts.eval_view()), {"x": rows["x"]}, KEY)["label"]
    assert r.summary["metrics"]["test"]["accuracy"] == pytest.approx(np.mean(np.asarray(label) == rows["y"]), abs=1e-9)


# -------------------------------------------------------------------------------------------------------------- slots
@pytest.mark.parametrize(("lanes", "axis"), [(None, 0), ("own", 1), ("shared", 0)])
def test_a_slot_is_sharded_along_its_rows(lanes: Any, axis: int) -> None:
    """A shared slot has no axis of lanes; the carry has one in both."""
    there = place(lanes)
    slot = there.slot({"idx": np.zeros((6, 8)[1 - axis :], np.int32)})["idx"]
    assert slot.sharding.shard_shape(slot.shape)[axis] == 4
    ts = um.TrainState(jnp.int32(0), jax.random.key(0), {}, {"carry": {"model": jnp.zeros((6, 8))}}, {})
    carry = there.state_shardings(ts).state["carry"]["model"]
    assert carry.shard_shape((6, 8)) == ((3, 8) if lanes is None else (6, 4))


def test_seeds_that_share_their_order_run_on_several_devices(tmp_path: Path) -> None:
    """Both seeds see the batches of the first; and the first is what it is in a run of its own."""
    runs = [
        um.run(vision(**more, train_for="6 steps"), workdir=tmp_path / str(i), quiet=True)
        for i, more in enumerate((dict(seeds=2, order="shared"), dict(seeds=1)))
    ]
    assert gap(tmap(lambda x: x[0], runs[0].ts.params), runs[1].ts.params) < 1e-5
    assert gap(tmap(lambda x: x[1], runs[0].ts.params), runs[1].ts.params) > 1e-2
