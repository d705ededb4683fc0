"""Anomalies: rows unlike those that an autoencoder was trained on."""

from ml_collections import ConfigDict


def get_config(variant: str = "digits") -> ConfigDict:
    c = ConfigDict()
    c.pipeline = "anomaly"
    c.seed = 0
    c.techniques = ()
    c.score = "error" if variant == "table" else "relative"  # an image with little ink can have no large error
    c.evals = dict(test=())

    if variant == "digits":
        c.data = dict(name="digits", normal="each", validation=0.2)
        c.seeds = 10
        c.model = dict(name="autoencoder", code=8, hidden=(128,), output="sigmoid")
        c.optimizer = dict(name="adam", learning_rate=3e-3, schedule="cosine")
        c.batch_size = 32
        c.train_for = "600 steps"
        c.eval_batch_size = 400
        c.log_every, c.eval_every, c.checkpoint_every = "100 steps", "100 steps", "50%"
    elif variant == "mnist":
        c.data = dict(name="mnist", normal="each", validation=0.1)
        c.seeds = 10
        c.model = dict(name="autoencoder", code=16, hidden=(256,), output="sigmoid")
        c.optimizer = dict(name="adam", learning_rate=1e-3, schedule="cosine")
        c.batch_size = 128
        c.train_for = "2000 steps"
        c.eval_batch_size = 500
        c.log_every, c.eval_every, c.checkpoint_every = "100 steps", "1000 steps", "50%"
    elif variant == "table":
        c.data = dict(name="breast_cancer", normal="benign", validation=0.2)
        c.seeds = 1
        c.model = dict(name="autoencoder", code=8, hidden=(64,), output="linear")
        c.optimizer = dict(name="adam", learning_rate=3e-3, schedule="cosine")
        c.batch_size = 32
        c.train_for = "600 steps"
        c.eval_batch_size = 400
        c.log_every, c.eval_every, c.checkpoint_every = "100 steps", "100 steps", "50%"
    else:
        raise ValueError(f"configs/anomaly.py:{variant}: no such variant (one of: digits, mnist, table)")
    return c
