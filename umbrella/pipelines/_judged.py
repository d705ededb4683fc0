"""What forecasts are worth, in numbers, beside their rivals. Floor 5."""

from typing import NamedTuple

import numpy as np

from umbrella import forecasts
from umbrella.data import Dataset
from umbrella.pipelines._rivals import LEVELS, Tested, Told, rivals, tested
from umbrella.pipelines._walks import Walked

SURE = 0.05  # the p below which a difference is called one


class Judged(NamedTuple):
    """All that the figures are made of."""

    walked: Walked
    on: Tested
    models: list[Told]  # one for each training of all folds
    rivals: list[Told]
    cost: float


def errors(t: Told, walked: Walked, on: Tested) -> np.ndarray:
    """f64[N, H], in units of the naive error of the training part: of levels and returns as they are read, of
    volatility in logs."""
    if walked.target == "volatility":
        return (t.mean - on.y) / on.scale[:, None]
    return (walked.own(t.mean, on.z) - walked.own(on.y, on.z)) / on.scale[:, None]


def numbers(t: Told, walked: Walked, on: Tested, cost: float) -> dict[str, float]:
    """Of all test rows and steps ahead; direction and qlike of the first step."""
    e = errors(t, walked, on)
    moved = (t.mean[:, 0], on.y[:, 0])
    if walked.target == "volatility":
        moved = (t.mean[:, 0] - on.z[:, 0], on.y[:, 0] - on.z[:, 0])
    way = forecasts.direction(*moved)
    gap = (on.y - t.mean) if walked.target == "volatility" else walked.own(on.y, on.z) - walked.own(t.mean, on.z)
    came = on.y if walked.target == "volatility" else walked.own(on.y, on.z)
    out = {
        "mase": float(np.abs(e).mean()),
        "rmse": float(np.sqrt(np.square(gap).mean())),
        "r2": float(
            np.mean([forecasts.r2((came - gap)[on.series == s], came[on.series == s]) for s in np.unique(on.series)])
        ),
        "direction": way.rate,
        "direction_low": way.low,
        "direction_high": way.high,
        "coverage_50": _held(t, on, 0.25),
        "coverage_90": _held(t, on, 0.05),
        "pinball": float((forecasts.pinball(t.quantiles, on.y[..., None], LEVELS) / on.spread[:, None, None]).mean()),
    }
    if walked.target == "volatility":
        out["qlike"] = float(forecasts.qlike(np.exp(t.mean[:, 0]) * t.ratio, np.exp(on.y[:, 0])).mean())
    if walked.target == "return" and walked.prices and walked.horizon == 1:
        out["net_return"] = 252 * float(earned(t, on, cost).mean())
    return out


def _held(t: Told, on: Tested, tail: float) -> float:
    low, high = (t.quantiles[..., np.searchsorted(LEVELS, p)] for p in (tail, 1 - tail))
    return forecasts.coverage(low, high, on.y)


def earned(t: Told, on: Tested, cost: float) -> np.ndarray:
    """What it earns f64[D], a day, to hold each series long or short by the sign of the forecast, in equal parts.

    A simple return, less `cost` for each unit that is bought or sold: a position that is turned round costs twice.
    """
    net = np.empty(len(on.row))
    for s in np.unique(on.series):
        here = np.flatnonzero(on.series == s)
        here = here[np.argsort(on.day[here], kind="stable")]
        position = np.sign(t.mean[here, 0])
        net[here] = position * np.expm1(on.y[here, 0]) - cost * np.abs(np.diff(position, prepend=0.0))
    return forecasts.by_day(net, on.day)


def losses_by_day(t: Told, walked: Walked, on: Tested) -> np.ndarray:
    """The squared error in units of the naive error f64[D], the mean over the series and steps of each day."""
    return forecasts.by_day(np.square(errors(t, walked, on)).mean(1), on.day)


def compared(t: list[Told], rival: Told, walked: Walked, on: Tested) -> forecasts.Compared:
    """The trainings' mean loss against a rival's: what to expect of one more training."""
    own = np.mean([losses_by_day(each, walked, on) for each in t], 0)
    return forecasts.diebold_mariano(own, losses_by_day(rival, walked, on), horizon=walked.horizon)


def baselines(dataset: Dataset, cost: float) -> dict[str, dict[str, float]]:
    walked: Walked = dataset.info["walk"]
    on = tested(walked)
    told = rivals(walked, on)
    out = {t.words: {**numbers(t, walked, on, cost), "seconds": t.seconds} for t in told}
    for t in told:
        out[t.words]["relative_mae"] = out[t.words]["mase"] / out["persistence"]["mase"]
        if t.words == "persistence":  # it says no direction
            for k in ("direction", "direction_low", "direction_high", "net_return"):
                out[t.words].pop(k, None)
    return out
