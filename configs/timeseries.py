"""Any series in a .csv file with a column of dates: forecasts with intervals, beside simple ones.

    python launch.py --config=configs/timeseries.py            a GENERATED series: a trend, a year, a week, noise
    python launch.py --config=configs/timeseries.py --config.data.path=FILE.csv --config.data.value=COLUMN

    other columns as inputs      --config.data.inputs='("price", "weather")'
    no season, or another        --config.data.period=1, or 12 for months
    values that are not positive --config.data.log=False
    further or nearer            --config.data.horizon=14, from the last --config.data.window=56 rows
    walking forward in 4 folds   --config.data.folds=4 --config.seeds=4
    another forecaster           --config.model='{"name": "series_rnn", "cell": "gru"}', series_transformer, ...
    what it forecast, with dates --mode=predict, and the table "next" of the report for what comes after the file's end

The column of dates is found, or named with --config.data.date; dates are read strictly, and 01/02/2006 asks for
--config.data.dates="day first" or "month first". Empty fields are refused, unless --config.data.missing is "previous"
or "drop".

Measured on two busy cores of an AMD EPYC, on the generated series: 494 test rows from June 2017 on, each forecast for 7
days, mean +- sd of 3 trainings as one program, 2.1 minutes. MASE by the seasonal naive error of the training part.

    TCN, the last parameters         1.013 +- 0.004    intervals of 90 % hold 92.9 %
    regression on what it sees       1.186             Diebold-Mariano against it, by days: p = 7e-7
    AR(28)                           1.210
    seasonal naive                   1.402
    persistence                      4.135
"""

from ml_collections import ConfigDict


def get_config(variant: str = "seasons") -> ConfigDict:
    if variant != "seasons":
        raise ValueError(f"configs/timeseries.py:{variant}: no such variant (one of: seasons)")
    c = ConfigDict()
    c.pipeline = "series"
    c.data = dict(name="series", target="level", log=True, period=7, window=28, horizon=7)
    c.seed = 0
    c.seeds = 1
    c.techniques = ()
    c.evals = dict(test=())
    c.model = dict(name="series_tcn", width=32, dropout=0.1)
    c.optimizer = dict(name="adam", learning_rate=3e-3, schedule="cosine")
    c.batch_size = 64
    c.train_for = "40 epochs"
    c.eval_batch_size = 500
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "2 epochs", "50%"
    return c
