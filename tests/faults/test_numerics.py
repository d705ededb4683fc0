"""F27 to F32: numbers that are not finite, batches that are not full, classes that are not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import umbrella as um
from tests.faults.kit import config, lines, poison, saved_steps
from tests.faults.kit import summary as summary_of
from tests.helpers import bits
from umbrella import losses, metrics, transforms
from umbrella.loop import Diverged
from umbrella.starting import scratch


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transforms.TABLE, "poison", poison)


def poisoned(policy: str, *at: int, rows: slice = slice(None), where: str = "x", **more: Any) -> dict[str, Any]:
    """A run whose steps `at` are spoiled; every step is saved."""
    base = config(techniques=("poison", "mixup"), poison=dict(at=at, rows=rows, where=where), on_nonfinite=policy)
    base |= dict(checkpoint_every="1 steps", keep_checkpoints=100, eval_every="never", train_for="12 steps")
    return {**base, "log_every": "2 steps", **more}


def restored(workdir: Path, step: int, settings: dict[str, Any]) -> Any:
    with um.runs.Session(settings, workdir, quiet=True) as session:
        resident = session.place.replicated(session.experiment.train_data.resident)
        found = session.checkpoints.restore(jax.eval_shape(lambda: scratch(session.experiment, resident)), step=step)
    assert found is not None
    return found[0]


@pytest.fixture
def run_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """slices are no JSON, so the rows of the technique are set outside of the config."""

    def run(settings: dict[str, Any], workdir: Path) -> um.Result:
        rows = settings["poison"].pop("rows", slice(None))
        monkeypatch.setitem(transforms.TABLE, "poison", lambda *, at, where="x": poison(at=at, rows=rows, where=where))
        return um.run(settings, workdir=workdir, quiet=True)

    return run


# --------------------------------------------------------------------------------------------------------- not a number
def test_F27_raise_names_step_and_leaf_and_keeps_the_last_good_checkpoint(tmp_path: Path, run_of: Any) -> None:
    with pytest.raises(Diverged, match=r"not finite at step 7; first bad leaf: outputs") as error:
        run_of(poisoned("raise", 7), tmp_path / "w")
    assert error.value.step == 7 and int(error.value.ts.step) == 7  # the state before it
    assert summary_of(tmp_path / "w")["status"] == "diverged"
    assert saved_steps(tmp_path / "w")[-1] == 7
    before = restored(tmp_path / "w", 7, poisoned("raise", 7) | {"poison": dict(at=(7,))})
    assert bits(before.params, error.value.ts.params)


def test_F27_skip_leaves_everything_as_it_was_to_the_bit_and_counts(tmp_path: Path, run_of: Any) -> None:
    settings = poisoned("skip", 4, 7)
    result = run_of(settings, tmp_path / "w")
    assert result.summary["status"] == "finished" and result.summary["step"] == 12
    assert result.summary["skipped"] == 2 and result.summary["rollbacks"] == []
    told = {r["step"]: r["skipped"] for r in lines(tmp_path / "w") if r["split"] == "train"}
    assert {step: n for step, n in told.items() if n} == {5: 1.0, 8: 1.0}  # a window ends at every save
    for bad in (4, 7):
        before, after = (restored(tmp_path / "w", step, settings) for step in (bad, bad + 1))
        assert int(after.step) == int(before.step) + 1
        for name in ("params", "state", "ema", "key"):
            assert bits(getattr(before, name), getattr(after, name)), name
        assert bits(before.opt_state["all"], after.opt_state["all"])
        assert int(after.opt_state["guard"]["skipped"]) == int(before.opt_state["guard"]["skipped"]) + 1
    good = [restored(tmp_path / "w", step, settings).params for step in (5, 6)]
    assert not bits(*good)
    assert "2 steps were not finite and left out" in (tmp_path / "w" / "report.html").read_text()


def test_F27_rollback_goes_on_from_the_last_checkpoint_past_the_bad_batch(tmp_path: Path, run_of: Any) -> None:
    settings = poisoned("rollback", 7, checkpoint_every="3 steps")
    result = run_of(settings, tmp_path / "w")
    assert result.summary["status"] == "finished" and result.summary["step"] == 12
    assert result.summary["rollbacks"] == [{"step": 7, "to": 6}]
    assert saved_steps(tmp_path / "w") == [3, 6, 9, 12]
    assert [r["step"] for r in lines(tmp_path / "w") if r["split"] == "train"] == [2, 3, 4, 6, 9, 10, 12]
    assert "went back to a checkpoint 1 time" in (tmp_path / "w" / "report.html").read_text()
    # What it must be equal to: the same program, with the state of step 6 put in as the state after step 7.
    again = run_of(poisoned("rollback", 7, checkpoint_every="3 steps"), tmp_path / "again")
    assert bits(again.ts, result.ts)
    assert np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(result.ts.params)])).all()


@pytest.mark.slow
def test_F27_rollback_gives_up_when_it_gets_nowhere(tmp_path: Path, run_of: Any) -> None:
    with pytest.raises(Diverged, match="at step 13"):  # 3, and ten more in a row
        run_of(poisoned("rollback", *range(3, 40), checkpoint_every="3 steps", train_for="40 steps"), tmp_path / "w")
    told = summary_of(tmp_path / "w")
    assert told["status"] == "diverged" and len(told["rollbacks"]) == 10
    assert saved_steps(tmp_path / "w") == [3]


@pytest.mark.slow
def test_F27_rollback_before_there_is_a_checkpoint_starts_from_the_first_state(tmp_path: Path, run_of: Any) -> None:
    result = run_of(poisoned("rollback", 1, checkpoint_every="never"), tmp_path / "w")
    assert result.summary["rollbacks"] == [{"step": 1, "to": 0}] and result.summary["step"] == 12


@pytest.mark.parametrize("policy", ["raise", pytest.param("skip", marks=pytest.mark.slow)])
def test_F28_an_infinite_gradient_of_a_finite_loss(policy: str, tmp_path: Path, run_of: Any) -> None:
    settings = poisoned(policy, 7, where="gradient")
    if policy == "raise":
        with pytest.raises(Diverged, match="at step 7; first bad leaf: gradient/model/"):
            run_of(settings, tmp_path / "w")
    else:
        assert run_of(settings, tmp_path / "w").summary["skipped"] == 1
        before, after = (restored(tmp_path / "w", step, settings).params for step in (7, 8))
        assert bits(before, after)


@pytest.mark.slow
def test_F29_nan_on_one_device_of_several(tmp_path: Path, run_of: Any) -> None:
    """The last row of the batch lies on the last device; all of them skip, and hold the same parameters after it."""
    assert jax.device_count() > 1
    result = run_of(poisoned("skip", 7, rows=slice(63, 64)), tmp_path / "w")
    assert result.summary["skipped"] == 1
    for leaf in jax.tree.leaves(result.ts.params):
        copies = [np.asarray(s.data) for s in leaf.addressable_shards]
        assert len(copies) == jax.device_count()
        assert all(c.tobytes() == copies[0].tobytes() for c in copies)
    with pytest.raises(Diverged, match="at step 7"):
        run_of(poisoned("raise", 7, rows=slice(63, 64)), tmp_path / "raised")


# --------------------------------------------------------------------------------------------------------- odd batches
def test_F30_no_examples_in_a_batch() -> None:
    with pytest.raises(um.SettingsError, match="config.batch_size: 0 must be >= 1"):
        um.pipelines.build(config(batch_size=0))


def test_F30_a_batch_smaller_than_the_number_of_devices(tmp_path: Path) -> None:
    with pytest.raises(um.SettingsError, match="batch_size: 1 does not divide over 2 devices"):
        um.run(config(batch_size=1), workdir=tmp_path / "w", quiet=True)
    assert not (tmp_path / "w").exists()


def test_F30_a_set_smaller_than_a_batch_is_gone_through_more_than_once(tmp_path: Path) -> None:
    """12 training rows in batches of 32: each batch holds every row twice or three times."""
    x = np.random.default_rng(0).integers(0, 255, (20, 4, 4), np.uint8)
    np.savez(tmp_path / "few.npz", x_train=x[:12], y_train=np.arange(12) % 3, x_test=x[12:], y_test=np.arange(8) % 3)
    few = dict(name=str(tmp_path / "few.npz"), validation=0)
    result = um.run(config(data=few, batch_size=32, train_for="6 steps"), workdir=tmp_path / "w", quiet=True)
    assert result.summary["step"] == 6 and result.summary["epochs"] == pytest.approx(6 * 32 / 12)
    assert np.isfinite(result.summary["metrics"]["test"]["loss"])


def test_F30_a_masked_batch_moves_nothing() -> None:
    """No row counts: the loss is 0, its gradient is 0, and nothing is divided by 0."""
    objective = um.supervised(um.models.MLP(out=3, hidden=(4,)), losses.cross_entropy)
    batch = {"x": jnp.ones((4, 5)), "y": jnp.zeros(4, jnp.int32), "mask": jnp.zeros(4)}
    params, state = objective.init(batch, um.Ctx(jax.random.key(0), jnp.int32(0)))
    ctx = um.Ctx(jax.random.key(1), jnp.int32(0))
    loss, gradient = jax.value_and_grad(lambda p: objective.apply(p, state, batch, ctx)[0])(params)
    assert float(loss) == 0
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradient))


# --------------------------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize("label", [0, 1])
def test_F31_one_class_only_has_no_auc(label: int, tmp_path: Path) -> None:
    """The area under the curve is not defined there, and scikit-learn warns; ours is NaN, and null in the files."""
    told = metrics.auc_exact(lambda out: out)(jnp.asarray([0.2, 0.7]), {"y": jnp.full(2, label, jnp.int32)})
    assert np.isnan(told.compute())
    histogram = metrics.score_histogram(lambda out: out)(jnp.asarray([0.2, 0.7]), {"y": jnp.full(2, label, jnp.int32)})
    assert np.isnan(histogram.compute())
    assert um.workdir.jsonable({"auc": told.compute()}) == {"auc": None}
    both = metrics.auc_exact(lambda out: out)(jnp.asarray([0.2, 0.7, 0.4]), {"y": jnp.asarray([0, 1, 1])})
    assert both.compute() == roc_auc_score([0, 1, 1], [0.2, 0.7, 0.4])


@pytest.mark.slow
def test_F31_a_training_set_of_one_class_trains(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (40, 4, 4), np.uint8)
    np.savez(tmp_path / "one.npz", x=x, y=np.zeros(40, int))
    one = dict(name=str(tmp_path / "one.npz"))
    try:
        result = um.run(config(data=one, batch_size=8, train_for="3 steps"), workdir=tmp_path / "w", quiet=True)
    except um.SettingsError as error:
        assert "one class" in str(error)
    else:
        assert result.summary["metrics"]["test"]["accuracy"] == 1


def f32(values: Any) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


BIG = f32([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
ZERO_ONE = f32([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
EXTREMES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "cross_entropy": lambda x: losses.cross_entropy(x, jnp.asarray([1, 0], jnp.int32)),
    "cross_entropy_soft": lambda x: losses.cross_entropy(x, f32([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])),
    "squared_error": lambda x: losses.squared_error(x, ZERO_ONE),
    "bernoulli": lambda x: losses.bernoulli(x, ZERO_ONE),
    "discretized_logistic": lambda x: losses.discretized_logistic(jax.nn.sigmoid(x), f32([-7.0, -3.0, 2.0]), ZERO_ONE),
    "gaussian": lambda x: losses.gaussian(x, f32([-7.0, -3.0, 2.0]), ZERO_ONE),
    "forecast": lambda x: losses.forecast({"mean": x, "scale": 1e-3 + jax.nn.softplus(x)}, ZERO_ONE),
    "forecast_student": lambda x: losses.forecast(
        {"mean": x, "scale": 1e-3 + jax.nn.softplus(x), "df": 2 + jax.nn.softplus(-x)}, ZERO_ONE
    ),
    "gaussian_kl": lambda x: losses.gaussian_kl(x, jnp.full_like(x, -1e4)),
    "gaussian_kl_of_each": lambda x: losses.gaussian_kl_of_each(x, -x / 1e3, -x, x / 1e3).sum(-1),
    "kl_of_each": lambda x: losses.kl_of_each({"mean": x, "log_var": jnp.full_like(x, -1e4)}).sum(-1),
    "negative_elbo": lambda x: losses.negative_elbo({"logits": x, "mean": x, "log_var": 0 * x}, ZERO_ONE),
    "negative_elbo_grey": lambda x: losses.negative_elbo(
        {"logits": x, "mean": 0 * x, "log_var": 0 * x, "log_scale": f32([-7.0, -3.0, 2.0])}, ZERO_ONE
    ),
    "reconstruction": lambda x: losses.reconstruction({"logits": x}, ZERO_ONE),
    "log_importance_weight": lambda x: losses.log_importance_weight(
        {"logits": x, "noise": 0 * x, "log_var": 0 * x, "z": 0 * x}, ZERO_ONE
    ),
}


@pytest.mark.parametrize("name", sorted(EXTREMES))
def test_F32_logits_of_ten_thousand_are_finite_and_so_are_their_gradients(name: str) -> None:
    fn = EXTREMES[name]
    value, slope = jax.jit(lambda x: (fn(x), jax.grad(lambda v: fn(v).sum())(x)))(BIG)
    assert value.shape == (2,)
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()


def test_F32_no_loss_is_forgotten() -> None:
    own = {n for n, f in vars(losses).items() if getattr(f, "__module__", "") == losses.__name__ and n[0] != "_"}
    assert own - EXTREMES.keys() == {"are_indices"}  # a question about shapes, not a loss
