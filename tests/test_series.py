"""Forecasters and their pipeline: against NumPy and SciPy, fold by fold, and what is said of the result."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import umbrella as um
from tests.conftest import ROOT
from umbrella import cli, data, losses, models, pipelines
from umbrella.evaluation import evaluate
from umbrella.experiment import Experiment
from umbrella.objective import Ctx, View
from umbrella.pipelines import _forecast_figures, _forecasts, _judged, _rivals, _walks
from umbrella.pipelines._rivals import LEVELS, Told
from umbrella.settings import SettingsError

KEY = jax.random.key(0)
SMALL: dict[str, Any] = dict(name="stocks", target="return", window=4, tickers=2, days=200)


def config(target: str = "return", **more: Any) -> dict[str, Any]:
    made = cli.load_config(f"{ROOT}/configs/stock.py:{target}")
    made |= dict(data={**SMALL, "target": target}, model=dict(name="series_linear"), batch_size=16, eval_batch_size=32)
    return {**made, "train_for": "4 steps", "eval_every": "4 steps", "checkpoint_every": "4 steps", **more}


def refused(made: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as error:
        pipelines.build(made)
    assert "\n" not in str(error.value)
    return str(error.value)


def walked(target: str = "return", **more: Any) -> _walks.Walked:
    return _walks.stocks(**{**SMALL, "target": target, **more}).info["walk"]


# --------------------------------------------------------------------------------------------------------------- models
def test_the_loss_is_scipys() -> None:
    rng = np.random.default_rng(0)
    mean, scale, df, y = (
        rng.normal(size=(5, 3)),
        rng.uniform(0.2, 3, (5, 3)),
        rng.uniform(2, 9, (5, 3)),
        rng.normal(size=(5, 3)),
    )
    f32 = {k: jnp.asarray(v, jnp.float32) for k, v in dict(mean=mean, scale=scale, df=df, y=y).items()}
    y32 = f32.pop("y")
    wanted = -stats.t.logpdf(y, df, mean, scale).mean(1)
    np.testing.assert_allclose(losses.forecast(f32, y32), wanted, rtol=2e-5)
    normal = {k: f32[k] for k in ("mean", "scale")}
    np.testing.assert_allclose(losses.forecast(normal, y32), -stats.norm.logpdf(y, mean, scale).mean(1), rtol=2e-5)
    with pytest.raises(ValueError, match="they must be equal"):
        losses.forecast(f32, y32[:, 0])


def test_students_quantiles_are_scipys() -> None:
    df = jnp.asarray([2.1, 3.0, 5.0, 30.0, jnp.inf], jnp.float32)
    for p in (0.05, 0.5, 0.9):
        wanted = stats.t.ppf(p, np.asarray(df, np.float64))
        np.testing.assert_allclose(_forecasts.student_quantile(p, df), wanted, atol=2e-4)


def small(name: str, **more: Any) -> Any:
    return models.build({"name": name, **more}, horizon=3)


@pytest.mark.parametrize("name", ["series_linear", "series_rnn", "series_tcn", "series_transformer"])
def test_a_forecaster_starts_as_the_mean_and_spread_of_training(name: str) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 4)), jnp.float32)
    net = small(name)
    out = net.apply(net.init(KEY, x, train=False), x, train=False)
    assert {k: v.shape for k, v in out.items()} == dict.fromkeys(("mean", "scale", "df"), (5, 3))
    np.testing.assert_allclose(out["mean"], 0, atol=1e-6)
    np.testing.assert_allclose(out["scale"], 1, atol=2e-3)
    assert (np.asarray(out["df"]) > 2).all()
    assert "df" not in small(name, tails="normal").apply(net.init(KEY, x, train=False), x, train=False)


def test_the_tcn_is_numpys_with_the_same_weights() -> None:
    """Every convolution as a sum over what came before it, dilated by 1 and 2; ReLUs and the skip as in figure 1."""
    rng, width = np.random.default_rng(0), 3
    x = rng.normal(size=(2, 9, 4)).astype(np.float32)
    net = small("series_tcn", width=width, blocks=2, kernel=2)
    v = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), net.init(KEY, x, train=False))
    p = jax.tree.map(np.asarray, v["params"])

    def causal(h: np.ndarray, conv: dict[str, np.ndarray], dilation: int) -> np.ndarray:
        out = np.zeros((*h.shape[:2], width)) + conv["bias"]
        for t in range(h.shape[1]):
            for i in range(2):  # the last tap is the present
                if (s := t - dilation * (1 - i)) >= 0:
                    out[:, t] += h[:, s] @ conv["kernel"][i]
        return out

    h = x
    for b in range(2):
        made, block = h, p[f"block_{b}"]
        for i in range(2):
            made = np.maximum(causal(made, block[f"conv_{i}"], 2**b), 0)
        h = h @ block["same"]["kernel"] + block["same"]["bias"] if "same" in block else h
        h = np.maximum(h + made, 0)
    head = p["head"]
    mean = h[:, -1] @ head["mean"]["kernel"] + head["mean"]["bias"] + x[:, -1] @ head["skip"]["kernel"]
    scale = 1e-3 + np.log1p(np.exp(h[:, -1] @ head["scale"]["kernel"] + head["scale"]["bias"]))
    out = net.apply(v, x, train=False)
    np.testing.assert_allclose(out["mean"], mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out["scale"], scale, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ folds are lanes
FOLDS = dict(data={**SMALL, "folds": 2}, seeds=2)


@pytest.fixture(scope="module")
def folded() -> Experiment:
    return pipelines.build(config(**FOLDS))


def views(ex: Experiment) -> View:
    """Random parameters for every lane, which start as the pipeline has them start."""
    each = []
    for lane in range(ex.run.seeds):
        slot = ex.train_data.slot(ex.run.seed + lane, 0)
        batch = jax.tree.map(jnp.asarray, ex.train_data.fetch(ex.train_data.resident, slot))
        params, state = ex.objective.init(batch, Ctx(jax.random.key(lane), jnp.int32(0)))
        rng = np.random.default_rng(lane)
        params = jax.tree.map(lambda p: jnp.asarray(0.1 * rng.normal(size=p.shape), jnp.float32), params)  # noqa: B023
        each.append(View(params, state))
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


def test_a_lane_reads_the_rows_of_its_fold_and_no_others(folded: Experiment) -> None:
    first, last = (folded.dataset.train.column(k) for k in ("from", "to"))
    seen: list[set[int]] = [set(), set()]
    for step in range(40):
        for seed in (0, 1):
            slot = folded.train_data.slot(seed, step)
            assert (slot["fold"] == seed).all()
            assert ((first[slot["idx"]] <= seed) & (seed <= last[slot["idx"]])).all()
            seen[seed] |= set(slot["idx"].tolist())
    assert [len(s) for s in seen] == [int(((first <= k) & (k <= last)).sum()) for k in (0, 1)]
    assert len(seen[0]) < len(seen[1])  # the walk expands
    (both,) = folded.train_data.stream((0, 1), 3, 4)
    np.testing.assert_array_equal(both["idx"][1], folded.train_data.slot(1, 3)["idx"])


def test_the_loss_of_a_lane_is_that_of_its_own_test_rows_in_its_own_scales(folded: Experiment) -> None:
    """By SciPy, from the parameters."""
    ex, told = folded, views(folded)
    test = ex.evals["test"]
    got = evaluate(test.objective, told, test.batches, KEY, lanes=2)["loss"]
    w, rows = ex.dataset.info["walk"], ex.dataset.test.__getitems__(np.arange(len(ex.dataset.test)))
    for k in (0, 1):
        assert int(told.lane(k).state["protocol"]["fold"]) == k
        own = rows["from"] == k
        s, of = w.scales, rows["series"][own]
        x = (rows["x"][own] - s.x_mean[k, of][:, None]) / s.x_sd[k, of][:, None]
        y = (rows["y"][own] - s.y_mean[k, of]) / s.y_sd[k, of]
        p = jax.tree.map(np.asarray, told.lane(k).params["model"]["head"])
        h = x.reshape(len(x), -1)
        mean, raw = (h @ p[n]["kernel"] + p[n]["bias"] for n in ("mean", "scale"))
        df = 2 + np.log1p(np.exp(p["df"]))
        wanted = -stats.t.logpdf(y, df, mean, 1e-3 + np.log1p(np.exp(raw))).mean()
        assert got[k] == pytest.approx(wanted, rel=1e-4)


def test_predictions_have_dates_and_are_those_of_the_review(folded: Experiment) -> None:
    ex, w = folded, folded.dataset.info["walk"]
    rows = ex.dataset.test.__getitems__(np.arange(len(ex.dataset.test)))
    told = views(ex)
    out = jax.device_get(ex.predict(told.lane(0), {k: rows[k] for k in ex.asks}, KEY))
    on = _rivals.tested(w)
    first = on.fold == 0
    assert out["date"].tolist() == [int(str(d)[:10].replace("-", "")) for d in on.day]
    kept = ex.review(told, KEY).rows
    np.testing.assert_allclose(out["forecast"][first], kept["mean"][0][first], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(out["low"][first], kept["quantile_0.05"][0][first], rtol=1e-3, atol=1e-6)
    assert kept["day"][0].decode() == str(on.day[0])[:10]


def test_the_walk_tests_every_row_once_and_says_its_dates(folded: Experiment) -> None:
    w = folded.dataset.info["walk"]
    assert (w.members["test"].sum(0) <= 1).all()
    assert sum("Trained on" in n for n in folded.notes) == 2 and "generated" in folded.notes[0]
    assert data.overlap(folded.dataset) is None  # a later fold trains on what an earlier one tests
    alone = _walks.stocks(**SMALL)
    assert data.overlap(alone) == {"validation": 0, "test": 0}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(data={**SMALL, "folds": 3}, seeds=2), "config.seeds: 2, but data.folds = 3"),
        (dict(data={**SMALL, "folds": 2}, seeds=2, order="shared"), "config.order: with data.folds = 2"),
        (dict(data={**SMALL, "folds": 2}, seeds=2, resample=True), "config.resample: with data.folds = 2"),
        (dict(data={**SMALL, "window": 300}), "GEN0: 200 rows; a window of 300 after the 22"),
        (dict(data={**SMALL, "folds": 90}), "too few for 90 folds"),
        (dict(data={**SMALL, "days": 40, "horizon": 9}), "no train row in fold 1 of 1"),
        (dict(data={**SMALL, "path": "nowhere"}), "nowhere: no such file or folder"),
        (dict(data={**SMALL, "target": "prices"}), "config.data.target: 'prices' is not one of the choices"),
        (dict(data={**SMALL, "test": 1.0}), "config.data.test: 1.0 must be in (0, 1)"),
        (dict(model=dict(name="mlp")), "config.model.name: no model 'mlp'"),
        (dict(model=dict(name="series_rnn", horizon=2)), "config.model.horizon: the data decides this"),
        (dict(techniques=("mixup",)), "config.techniques: 'mixup' is not for this pipeline's inputs"),
        (dict(data=dict(name="series", value="x")), "config.data.value: 'x' names a column, but config.data.path"),
        (dict(data=dict(name="series", path="no.csv")), "no.csv: no such file"),
    ],
)
def test_what_it_refuses(more: dict[str, Any], words: str) -> None:
    assert words in refused(config(**more))


def test_a_file_with_a_date_column(tmp_path: Path) -> None:
    days = [str(np.datetime64("2015-01-01") + i) for i in range(300)]
    lines = [f"{d},{100 + i % 7},{i}\n" for i, d in enumerate(days)]
    (tmp_path / "a.csv").write_text("when,demand,price\n" + "".join(lines))
    path = str(tmp_path / "a.csv")
    made = _walks.dated(name="series", path=path, value="demand", inputs=("price",), period=7, horizon=2, log=True)
    w = made.info["walk"]
    assert made.info["features"][:3] == ("value", "change", "price") and len(made.info["features"]) == 9
    assert {"seasonal naive", "AR(28) and columns"} <= set(_rivals.methods(w))
    on = _rivals.tested(w)
    told = {t.words: t for t in _rivals.rivals(w, on)}
    np.testing.assert_allclose(told["seasonal naive"].mean, on.y, atol=1e-9)  # it repeats every week
    np.testing.assert_allclose(
        w.own(on.y, on.z)[:, 0], [100 + i % 7 for i in range(300)][-len(on.y) - 1 : -1], rtol=1e-9
    )
    zero = lines[:-1] + [lines[-1].replace(f",{100 + 299 % 7},", ",0,")]
    (tmp_path / "a.csv").write_text("when,demand,price\n" + "".join(zero))
    with pytest.raises(SettingsError, match=r"config.data.log: 'demand' is 0 on 2015-10-27"):
        _walks.dated(name="series", path=path, value="demand", log=True)
    with pytest.raises(SettingsError, match=r"which column is forecast\? Name it with config.data.value"):
        _walks.dated(name="series", path=path, inputs=("price",))


def test_the_calendar_is_where_a_day_lies_in_its_week_and_year() -> None:
    days = np.array(["2024-01-01", "2024-01-08", "2024-07-01T12:00", "2025-01-01"], "datetime64[s]")
    got = _walks._calendar(days)
    np.testing.assert_allclose(got[0, :2], got[1, :2], atol=1e-9)  # both a Monday
    np.testing.assert_allclose(got[:, 2:4][[0, 3]], [[0, 1], [0, 1]], atol=1e-9)
    assert got[2, 3] < -0.99 and got[2, 5] == pytest.approx(-1)  # the middle of the year, noon


# ------------------------------------------------------------------------------------------------------- what is said
def forecaster(on: _rivals.Tested, mean: np.ndarray, words: str = "model") -> Told:
    spread = 0.01 * stats.norm.ppf(LEVELS)
    return Told(words, mean, mean[..., None] + spread, np.ones(len(mean)))


def judged(mean: np.ndarray | None = None, target: str = "return") -> _judged.Judged:
    w = walked(target, days=400)
    on = _rivals.tested(w)
    model = forecaster(on, on.y if mean is None else mean * np.ones_like(on.y))
    return _judged.Judged(w, on, [model], _rivals.rivals(w, on), 0.001)


@pytest.mark.parametrize("target", ["return", "level", "volatility"])
def test_a_forecast_that_is_right_and_one_that_is_persistence(target: str) -> None:
    right = judged(target=target)
    n = _judged.numbers(right.models[0], right.walked, right.on, right.cost)
    assert n["mase"] == 0 and n["r2"] == 1 and n["direction"] == 1 and n["coverage_90"] == 1
    text = _forecast_figures.verdict(right).text
    assert text.startswith("Better than persistence: squared error -100.0 %") and "No better" not in text
    if target == "volatility":
        assert n["qlike"] == 0
        return
    same = judged(np.float64(0.0), target)
    text = _forecast_figures.verdict(same).text
    assert text.startswith("No better than persistence: squared error +0.0 %, Diebold-Mariano 0.00, p = 1.")
    naive = next(t for t in same.rivals if t.words == "persistence")
    assert (naive.mean == 0).all()
    wrong = judged(np.float64(0.5), target)
    assert _forecast_figures.verdict(wrong).text.startswith("No better than persistence, but worse")


def test_errors_are_scaled_by_the_training_part_of_each_series() -> None:
    """By hand for a level: |forecast - price| / mean |price_t - price_{t-1}| over the days before validation."""
    j = judged(np.float64(0.01), "level")
    e = _judged.errors(j.models[0], j.walked, j.on)
    for s, table in enumerate(j.walked.tables):
        price = np.exp(table.z)
        train = table.dates < j.walked.folds[0].validation
        scale = np.abs(np.diff(price[train])).mean()
        at = j.walked.rows.at[j.on.row[j.on.series == s]]
        wanted = (price[at] * np.exp(0.01) - price[at + 1]) / scale
        np.testing.assert_allclose(e[j.on.series == s, 0], wanted, rtol=1e-9)


def test_what_a_sign_earns_by_hand() -> None:
    """Long, long, short of returns 10 %, -10 %, -10 % at a cost of 1 %: .1 - .01, -.1, .1 - .02."""
    on = judged().on
    here = np.arange(3)
    days = np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "datetime64[s]")
    y = np.log1p([[0.1], [-0.1], [-0.1]])
    on = on._replace(row=here, series=np.zeros(3, np.int32), day=days, y=y)
    told = forecaster(on, np.array([[1.0], [2.0], [-0.5]]))
    np.testing.assert_allclose(_judged.earned(told, on, 0.01), [0.09, -0.1, 0.08])


def test_rivals_know_their_training_part_alone() -> None:
    """What comes after a fold's validation begins changes nothing of what is fitted: forecasts differ by the new past
    alone, which those of the first test day do not have."""
    w = walked("volatility", days=400)
    on = _rivals.tested(w)
    first = on.day == on.day.min()
    cut = w.folds[0].validation
    last = np.datetime64("NaT")
    tables = []
    for t in w.tables:
        z = t.z.copy()
        last = t.dates[t.dates < on.day.min()].max()
        z[t.dates > last] += 3
        tables.append(t._replace(z=z))
    assert cut < last
    other = w._replace(tables=tables)
    for a, b in zip(_rivals.rivals(w, on), _rivals.rivals(other, on), strict=True):
        np.testing.assert_array_equal(a.mean[first], b.mean[first], err_msg=a.words)
        np.testing.assert_array_equal(a.ratio[first], b.ratio[first], err_msg=a.words)


def test_a_run_of_two_folds_says_all_of_it(tmp_path: Path) -> None:
    r = um.run(config(**FOLDS), workdir=tmp_path, quiet=True)
    told = r.summary["metrics"]["test"]
    assert {"mase", "relative_mae", "direction_low", "dm_p_persistence", "better_than_persistence"} <= set(told)
    assert told["mase"] == pytest.approx(told["relative_mae"] * r.summary["baselines"]["persistence"]["mase"])
    assert set(r.summary["baselines"]) >= {"persistence", "drift", "AR(5) of returns"}
    assert r.summary["data"]["source"].startswith("GENERATED")
    first = (tmp_path / "artifacts" / "verdict.txt").read_text().splitlines()[0]
    assert (
        f"{first[0].lower()}{first[1:].rstrip('.')}" in (tmp_path / "report.html").read_text()
    )  # and not "better than"
    names = [e["name"] for e in json.loads((tmp_path / "artifacts" / "index.json").read_text())]
    assert names[:2] == ["verdict", "forecasters"]
    assert {"forecast_GEN0", "intervals", "series", "folds", "next"} <= set(names)
    table = json.loads((tmp_path / "artifacts" / "folds.json").read_text())
    assert len(table["rows"]) == 2 and "Trained on" not in str(table)
    after = json.loads((tmp_path / "artifacts" / "next.json").read_text())["rows"]
    assert [row[0] for row in after] == ["GEN0", "GEN1"] and after[0][1] == "2010-10-08"  # the 200th weekday


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_nothing_foresees_a_fair_coin(tmp_path: Path, shuffled: bool) -> None:
    """Of generated returns, shuffled or not: 50 % within four standard errors, and a plain word."""
    made = config(data=dict(name="stocks", target="return", tickers=8, days=2000, shuffled=shuffled))
    made |= dict(model=dict(name="series_rnn", width=8), train_for="5 epochs", batch_size=128, eval_batch_size=1000)
    r = um.run({**made, "eval_every": "1 epoch", "checkpoint_every": "1 epoch"}, workdir=tmp_path, quiet=True)
    told, n = r.summary["metrics"]["test"], r.summary["data"]["n_test"]
    assert abs(told["direction"] - 0.5) < 4 * 0.5 / np.sqrt(n)
    assert told["better_than_persistence"] == 0 and told["relative_mae"] == pytest.approx(1, abs=0.02)
    assert (tmp_path / "artifacts" / "verdict.txt").read_text().startswith("No better than persistence")


@pytest.mark.slow
def test_volatility_is_foreseen_and_shuffled_it_is_not(tmp_path: Path) -> None:
    for shuffled in (False, True):
        made = config(data=dict(name="stocks", target="volatility", tickers=8, days=2000, shuffled=shuffled))
        made |= dict(model=dict(name="series_rnn", width=8), train_for="5 epochs", batch_size=128, eval_batch_size=1000)
        made |= {"eval_every": "1 epoch", "checkpoint_every": "1 epoch"}
        r = um.run(made, workdir=tmp_path / str(shuffled), quiet=True)
        told, mean = r.summary["metrics"]["test"], r.summary["baselines"]["mean"]
        assert (told["mase"] < 0.9 * mean["mase"]) != shuffled
