"""Any series in a .csv file with a column of dates: forecasts with intervals, beside simple ones."""

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
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "2 epochs", "2 epochs"
    return c
