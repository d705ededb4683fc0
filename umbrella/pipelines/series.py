"""Forecasting series: prices of stocks, or any .csv file with a date column, walking forward. Floor 5.

A walk of K folds is K lanes: seed k trains on what was known before block k of the test part, and is tested on that
block. See `_walks` for the data and `_forecasts` for what is said of the result.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from umbrella import losses, models
from umbrella.data import Dataset
from umbrella.experiment import Experiment, Review
from umbrella.metrics import Mean, mask_of
from umbrella.objective import (
    Array,
    Aux,
    Batch,
    Ctx,
    Objective,
    Params,
    State,
    Transform,
    View,
    measure,
    supervised,
)
from umbrella.pipelines import _forecasts, _judged, _walks
from umbrella.pipelines._standard import Problem, Resolve, assemble
from umbrella.settings import NonNegative, SettingsError

FORECASTERS = ("series_linear", "series_rnn", "series_tcn", "series_transformer")
FITTING = ("adversarial", "awp", "l1", "l2", "lora", "noise", "sam")
SCOPE = "protocol"  # of the state: which fold a lane is
INTERVAL = (0.05, 0.95)


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    section = config.get("data")
    stocks = isinstance(section, Mapping) and section.get("name") == "stocks"
    made = assemble(config, problem, _walks.stocks if stocks else _walks.dated)
    walk: _walks.Walked = made.dataset.info["walk"]
    if (count := len(walk.folds)) == 1:
        return made
    run = made.run
    if run.seeds % count:
        raise SettingsError(
            f"config.seeds: {run.seeds}, but data.folds = {count}: a fold is a seed's; set seeds to {count}, or to a "
            f"multiple of it for several trainings of each"
        )
    if run.order != "own" or run.resample:
        raise SettingsError(
            f"config.{'order' if run.order != 'own' else 'resample'}: with data.folds = {count} every seed has rows of "
            "its own already; leave it out"
        )
    return made._replace(train_data=_walks.in_turn(made.train_data, made.dataset, run))


def problem(dataset: Dataset, log: dict[str, Any], *, model: dict, cost: NonNegative = 0.0005) -> Problem:
    """The negative log-likelihood in nats of a step ahead, in standard deviations of the training rows of its series.

    On test, in the target's own units and beside rivals without a network: mase, relative_mae (over persistence's),
    rmse, r2, direction with its interval, coverage_50 and coverage_90 of the model's intervals, pinball over levels of
    .05 to .95, of volatility qlike; dm_p of each rival, the p of Diebold and Mariano's test; and
    better_than_persistence, 1 where that p is below .05 and the model the better one.

    Args:
      cost: of a stock that is bought or sold, as a share of its price, for what following the forecasts would earn.
    """
    walk: _walks.Walked = dataset.info["walk"]
    net = models.build(model, only=FORECASTERS, log=log, horizon=walk.horizon)
    base = measure(absolute_error=_absolute)(supervised(net, losses.forecast))

    def outputs(resolve: Resolve, view: View, batch: Batch) -> dict[str, Array]:
        """Location and scale f32[B, H] of what is forecast, in its own units, not those of the network."""
        fold = view.state[SCOPE]["fold"]
        params = {"params": resolve(view.params, view.state)["model"], **view.state.get("model", {})}
        out = net.apply(params, _scaled(walk, fold, batch)["x"], train=False)
        mean, sd = (jnp.asarray(v)[fold][batch["series"]] for v in (walk.scales.y_mean, walk.scales.y_sd))
        return {**out, "mean": out["mean"] * sd + mean, "scale": out["scale"] * sd}

    def predict(resolve: Resolve) -> Any:
        def run(view: View, batch: Batch, key: Array) -> dict[str, Array]:
            out = outputs(resolve, view, batch)
            df = out.get("df", jnp.full_like(out["mean"], jnp.inf))
            level = {"forecast": 0.5, "low": INTERVAL[0], "high": INTERVAL[1]}
            told = {
                k: walk.own(out["mean"] + out["scale"] * _forecasts.student_quantile(p, df), batch["z"][:, None], jnp)
                for k, p in level.items()
            }
            return {**{k: batch[k] for k in ("date", "time", "series")}, **told}

        return run

    def review(resolve: Resolve) -> Callable[[View, Array], Review]:
        run = jax.jit(lambda view, batch: outputs(resolve, view, batch))
        return lambda views, key: _forecasts.review(run, views, dataset, cost, net)

    return Problem(
        columns=("x", "y", "series", "from", "to"),
        outer=of_fold(walk),
        base=base,
        context={"bounds": None, "on": "x", "where": None},
        review=review,
        predict=predict,
        baselines=lambda: _judged.baselines(dataset, cost),
        notes=walk.notes,
        fitting=FITTING,
        asks=("x", "series", "z", "date", "time"),
    )


def _absolute(outputs: Mapping[str, Array], batch: Batch) -> Mean:
    error = jnp.mean(jnp.abs(outputs["mean"] - batch["y"]), -1)
    return Mean.of(error, mask_of(batch, error))


def of_fold(walk: "_walks.Walked") -> Transform:
    """Scales x and y by the training rows of the lane's fold, and masks the rows of other folds in evaluation.

    Which fold a lane is comes from its first batch's "fold", and is kept in state["protocol"]; fold 0 without.
    """

    def wrap(o: Objective) -> Objective:
        def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
            fold = batch["fold"][0] if "fold" in batch else jnp.int32(0)
            params, state = o.init(_scaled(walk, fold, batch), ctx)
            return params, {**state, SCOPE: {"fold": fold}}

        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            fold = state[SCOPE]["fold"]
            if not ctx.train:
                own = ((batch["from"] <= fold) & (fold <= batch["to"])).astype(jnp.float32)
                batch = {**batch, "mask": own * batch["mask"] if "mask" in batch else own}
            return o.apply(params, state, _scaled(walk, fold, batch), ctx)

        return o._replace(init=init, apply=apply)

    return wrap


def _scaled(walk: "_walks.Walked", fold: Array, batch: Batch) -> Batch:
    """The batch with x, and y where there is one, in standard deviations of the fold's training rows."""
    s = walk.scales
    x_mean, x_sd, y_mean, y_sd = (jnp.asarray(v)[fold][batch["series"]] for v in s)
    told = {"x": (batch["x"] - x_mean[:, None]) / x_sd[:, None]}
    if "y" in batch:
        told["y"] = (batch["y"] - y_mean) / y_sd
    return {**batch, **told}
