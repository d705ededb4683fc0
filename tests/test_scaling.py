"""Inputs on the scale of train: against scikit-learn, and as part of the state that is saved."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import preprocessing

import umbrella as um
from umbrella import data
from umbrella.data import scaling
from umbrella.objective import Ctx, supervised
from umbrella.transforms.standardise import standardise

RIVAL: dict[str, Any] = {
    "minmax": preprocessing.MinMaxScaler,
    "zscore": preprocessing.StandardScaler,
    "robust": preprocessing.RobustScaler,
}


def images(rows: int = 5000) -> np.ndarray:
    """u8[N, 3, 2, 3] whose features differ in place and spread; one of them never varies."""
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(np.linspace(40, 200, 18), np.linspace(3, 50, 18), (rows, 18)), 0, 255).astype(np.uint8)
    x[:, 4] = 7
    return x.reshape(rows, 3, 2, 3)


@pytest.mark.parametrize("kind", RIVAL)
def test_every_feature_is_where_scikit_learn_puts_it(kind: Any) -> None:
    x = images()  # more rows than are read at a time
    shift, spread = scaling.fit(kind, data.Arrays({"x": x}), unit=255)
    assert shift.shape == spread.shape == (3, 2, 3) and shift.dtype == np.float32
    ours = ((x / 255 - shift) / spread).reshape(len(x), -1)
    theirs = RIVAL[kind]().fit_transform(x.reshape(len(x), -1) / 255)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_channels_have_mean_zero_and_deviation_one() -> None:
    x = images()
    shift, spread = scaling.fit("channel", data.Arrays({"x": x}), unit=255)
    assert shift.shape == (3,)
    flat = ((x / 255 - shift) / spread).reshape(-1, 3)
    np.testing.assert_allclose(flat.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(flat.std(0), 1, atol=1e-6)


def test_a_far_mean_costs_no_digits() -> None:
    # Of sums of squares nothing would be left: (1e8)^2 has 16 digits, and the variance is 1.
    x = 1e8 + np.random.default_rng(0).normal(size=(9000, 1, 1, 1))
    spread = scaling.fit("zscore", data.Arrays({"x": x}))[1]
    np.testing.assert_allclose(spread, x.std(), rtol=1e-6)


def test_the_model_sees_scaled_inputs_in_training_and_evaluation_and_the_state_has_the_scale() -> None:
    seen = []

    def model_sees(logits: jax.Array, y: Any) -> jax.Array:
        seen.append(logits)
        return jnp.zeros(logits.shape[0])

    net = um.models.MLP(2, hidden=())
    o = standardise(np.float32([1.0, 2.0]), np.float32([2.0, 4.0]))(supervised(net, model_sees))
    batch = {"x": jnp.float32([[1.0, 2.0], [3.0, 10.0]]), "y": jnp.zeros(2, jnp.int32)}
    ctx = Ctx(jax.random.key(0), jnp.int32(0))
    params, state = o.init(batch, ctx)
    params = jax.tree.map(lambda p: jnp.eye(2) if p.ndim == 2 else 0 * p, params)
    for c in (ctx, ctx.eval()):
        o.apply(params, state, batch, c)
    for logits in seen[-2:]:  # (1 - 1) / 2, (2 - 2) / 4; (3 - 1) / 2, (10 - 2) / 4
        np.testing.assert_array_equal(logits, [[0.0, 0.0], [1.0, 2.0]])
    np.testing.assert_array_equal(state["input"]["spread"], [2.0, 4.0])
    with pytest.raises(ValueError, match="standardise once"):
        standardise(np.float32([0.0]), np.float32([1.0]))(o).init(batch, ctx)


def test_a_run_fits_the_scale_to_train_and_takes_raw_inputs_when_it_predicts(tmp_path: Path) -> None:
    config = dict(
        pipeline="vision",
        data=dict(name="digits"),
        model=dict(name="mlp", hidden=()),
        optimizer=dict(name="adam", learning_rate=1e-2),
        normalise="zscore",
        batch_size=64,
        train_for="30 steps",
        evals=dict(test=()),
        baselines=False,
    )
    with um.runs.Session(config, tmp_path, quiet=True) as session:
        result = session.train()
        path = session.predict(result.ts)
    train, test = (
        np.asarray(s.arrays["x"], np.float64) / 16
        for s in (session.experiment.dataset.train, session.experiment.dataset.test)
    )
    np.testing.assert_allclose(result.ts.state["input"]["shift"], train.mean(0), atol=1e-6)
    kernel, bias = (np.asarray(v, np.float64) for v in jax.tree.leaves(result.ts.params)[::-1])
    spread = np.where(train.std(0) > 0, train.std(0), 1)
    logits = ((test - train.mean(0)) / spread).reshape(len(test), -1) @ kernel + bias
    told = np.load(path)
    assert (told["label"] == logits.argmax(-1)).mean() == 1
    assert result.summary["metrics"]["test"]["accuracy"] == pytest.approx(
        (logits.argmax(-1) == session.experiment.dataset.test.arrays["y"]).mean()
    )
