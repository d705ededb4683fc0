"""The evaluation pass against NumPy and scikit-learn, whatever the size of a batch."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.metrics import roc_auc_score

from tests.helpers import context, tmap
from tests.test_objective import Recall, filled
from umbrella import losses, metrics
from umbrella.environment import CompileMeter
from umbrella.evaluation import evaluate
from umbrella.metrics import Confusion, Mean
from umbrella.models import MLP
from umbrella.objective import Aux, Batch, Ctx, Objective, Params, State, View, chain, map_batch, measure, supervised

Array = jax.Array
N = 37
KEY = jax.random.key(3)


def data() -> dict[str, np.ndarray]:
    r = np.random.default_rng(0)
    x = r.normal(size=(N, 4)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] + r.normal(size=N) > 0).astype(np.int32)}


def batches(size: int) -> Iterator[dict[str, np.ndarray]]:
    """All rows once; the last batch padded with nan under mask 0."""
    d = data()
    for at in range(0, N, size):
        x, y = d["x"][at : at + size], d["y"][at : at + size]
        missing = size - len(x)
        yield {
            "x": np.concatenate([x, np.full((missing, 4), np.nan, np.float32)]),
            "y": np.concatenate([y, np.zeros(missing, np.int32)]),
            "mask": (np.arange(size) < len(x)).astype(np.float32),
        }


def score(logits: Array) -> Array:
    return jnp.round(8 * jax.nn.softmax(logits)[:, 1]) / 8  # few levels: ties


BASE = supervised(MLP(out=2, hidden=()), losses.cross_entropy)
FULL = measure(accuracy=metrics.accuracy, auc=metrics.auc_exact(score), confusion=metrics.confusion)(BASE)
PARAMS = filled(BASE, next(batches(8)))[0]
VIEW = View(PARAMS, {})


def by_numpy(params: Params) -> dict[str, Any]:
    d, p = data(), {k: np.asarray(v, np.float64) for k, v in params["model"]["head"].items()}
    logits = d["x"] @ p["kernel"] + p["bias"]
    ell = -special.log_softmax(logits, 1)[np.arange(N), d["y"]]
    level = np.round(8 * special.softmax(logits, 1)[:, 1]) / 8
    hit = logits.argmax(1) == d["y"]
    return {"loss": ell.mean(), "accuracy": hit.mean(), "auc": roc_auc_score(d["y"], level)}


@pytest.mark.parametrize("size", [8, 16, 37])
def test_metrics_do_not_depend_on_the_size_of_a_batch(size: int) -> None:
    """Means are the plain means of 37 rows, the AUC scikit-learn's; nan in the padding changes nothing."""
    told, wanted = evaluate(FULL, VIEW, batches(size), KEY), by_numpy(PARAMS)
    assert told.keys() == {"loss", "accuracy", "auc", "confusion"}
    assert told["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
    assert told["accuracy"] == pytest.approx(wanted["accuracy"], rel=1e-12)
    assert told["auc"] == pytest.approx(wanted["auc"], abs=1e-12)
    assert told["confusion"].sum() == N


def test_one_compilation_for_all_batches_and_all_calls() -> None:
    other, key = View(tmap(lambda v: 2 * v, PARAMS), {}), jax.random.key(9)
    evaluate(FULL, VIEW, list(batches(8))[:1], KEY)
    meter = CompileMeter()
    try:
        for _ in range(2):
            evaluate(FULL, other, batches(8), key)
        assert meter.count == 0
        evaluate(FULL, VIEW, batches(9), KEY)
        assert meter.count > 0  # so the meter does hear: another shape is another program
    finally:
        meter.close()


def test_lanes_are_what_they_are_alone() -> None:
    several = tmap(lambda v: jnp.stack([v, -v, 3 * v]), PARAMS)
    told = evaluate(FULL, View(several, {}), batches(16), KEY, lanes=3)
    for k, factor in enumerate((1, -1, 3)):
        wanted = by_numpy(tmap(lambda v, f=factor: f * v, PARAMS))
        assert told["loss"][k] == pytest.approx(wanted["loss"], rel=1e-5)
        assert told["accuracy"][k] == pytest.approx(wanted["accuracy"], rel=1e-12)
        assert told["auc"][k] == pytest.approx(wanted["auc"], abs=1e-12)
        assert told["confusion"][k].sum() == N


def telling(fn: Any) -> Objective:
    """An objective whose metrics are fn(params, state, batch, ctx), and that has no loss to speak of."""
    one = jnp.ones
    aux = lambda *a: Aux({}, None, one(1), one(()), fn(*a))  # noqa: E731
    return Objective(lambda b, c: ({}, {}), lambda *a: (jnp.zeros(()), aux(*a)))


def test_counts_are_exact_beyond_what_float32_can_count() -> None:
    """130 batches of 2^18 - 1: 34,078,590 > 2^24, where f32 would stop counting ones. Lanes keep their own."""
    o = telling(lambda p, s, b, c: {"n": Confusion(b["x"]), "m": Mean(2 * b["x"][0], b["x"][0])})
    batch = {"x": jnp.asarray([2.0**18 - 1, 1.0])}
    told = evaluate(o, View({}, {}), [batch] * 130, KEY)
    assert told["n"].dtype == np.float64
    np.testing.assert_array_equal(told["n"], [34_078_590, 130])
    assert told["m"] == 2.0


def test_a_batch_draws_from_its_own_key_in_evaluation_mode() -> None:
    """fold_in(key, i): the mean of the draws of three batches, by hand; ctx.train is off and the frozen are there."""

    def fn(params: Params, state: State, batch: Batch, ctx: Ctx) -> dict[str, Any]:
        assert not ctx.train
        return {"draw": Mean.of(jax.random.uniform(ctx.key)), "frozen": Mean.of(ctx.frozen["teacher"] * batch["x"])}

    xs = [{"x": jnp.float32(i)} for i in (1, 2, 6)]
    told = evaluate(telling(fn), View({}, {}), xs, KEY, frozen={"teacher": jnp.float32(5.0)})
    wanted = np.mean([float(jax.random.uniform(jax.random.fold_in(KEY, i))) for i in range(3)])
    assert told["draw"] == pytest.approx(wanted, rel=1e-6)
    assert told["frozen"] == 15.0


def test_train_only_transforms_are_off_and_the_others_on() -> None:
    """Doubling x changes the loss where it is told to act in evaluation; the other leaves it as it was."""
    double = lambda always: map_batch(lambda b, k: {**b, "x": 2 * b["x"]}, name="double", eval=always)  # noqa: E731
    plain = evaluate(BASE, VIEW, batches(8), KEY)
    assert evaluate(chain(double(False))(BASE), VIEW, batches(8), KEY) == plain
    head = {"kernel": 2 * PARAMS["model"]["head"]["kernel"], "bias": PARAMS["model"]["head"]["bias"]}
    wanted = by_numpy({"model": {"head": head}})["loss"]
    assert evaluate(chain(double(True))(BASE), VIEW, batches(8), KEY)["loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("lanes", [None, 2])
def test_carry_starts_at_zero_and_goes_from_batch_to_batch(lanes: int | None) -> None:
    """Three windows of two steps by NumPy, though the training state holds a past, and of another number of rows."""
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    o = measure(out=lambda outputs, b: Mean.of(outputs))(supervised(Recall(), lambda out, y: out))
    windows = [{"x": jnp.asarray(x[:, i : i + 2])} for i in (0, 2, 4)]
    params, _ = filled(o, windows[0])
    u, v = (float(params["model"][k]) for k in "uv")
    h, outputs = np.zeros(3), []
    for t in range(6):
        z = special.expit(v * x[:, t])
        h = z * h + (1 - z) * np.tanh(u * x[:, t])
        outputs.append(h)
    view = View(params, {"carry": {"model": {"h": jnp.full(5, 9.0)}}})
    if lanes:
        view = tmap(lambda a: jnp.stack([a] * lanes), view)
    for _ in range(2):
        told = evaluate(o, view, windows, KEY, lanes=lanes)["out"]
        np.testing.assert_allclose(told, np.mean(outputs), rtol=1e-5)


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to evaluate: there is no batch"):
        evaluate(BASE, VIEW, [], context().key)
