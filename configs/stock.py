"""Daily prices: what can be foreseen of them, and what cannot."""

from ml_collections import ConfigDict


def get_config(variant: str = "volatility") -> ConfigDict:
    if variant not in ("volatility", "return", "level"):
        raise ValueError(f"configs/stock.py:{variant}: no such variant (one of: level, return, volatility)")
    c = ConfigDict()
    c.pipeline = "series"
    c.data = dict(name="stocks", target=variant, window=22, horizon=1, folds=4)
    c.seed = 0
    c.seeds = 4  # one for each fold; 8 for two trainings of each
    c.techniques = ()
    c.evals = dict(test=())
    c.model = dict(name="series_rnn", cell="lstm", width=32)
    c.optimizer = dict(name="adam", learning_rate=2e-3, schedule="cosine")
    c.batch_size = 256
    c.train_for = "4 epochs"
    c.eval_batch_size = 1000
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "1 epoch", "50%"
    return c
