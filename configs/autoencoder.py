"""An autoencoder: examples by a few numbers each (Hinton and Salakhutdinov 2006)."""

from ml_collections import ConfigDict


def get_config(variant: str = "digits") -> ConfigDict:
    c = ConfigDict()
    c.pipeline = "autoencoder"
    c.seed = 0
    c.seeds = 1
    c.techniques = ()
    c.evals = dict(test=())

    if variant == "digits":
        c.data = dict(name="digits", validation=0.1)
        c.model = dict(name="autoencoder", code=8, hidden=(256, 128), output="sigmoid")
        c.optimizer = dict(name="adam", learning_rate=3e-3, schedule="cosine")
        c.batch_size = 64
        c.train_for = "150 epochs"
        c.log_every, c.eval_every, c.checkpoint_every = "100 steps", "5 epochs", "25%"
    elif variant == "mnist":
        c.data = dict(name="mnist", validation=0.02)
        c.model = dict(name="autoencoder", code=32, hidden=(500, 250), output="sigmoid")
        c.optimizer = dict(name="adam", learning_rate=2e-3, schedule="cosine")
        c.batch_size = 128
        c.train_for = "10 epochs"
        c.ema = 0.998
        c.eval_batch_size = 500
        c.log_every, c.eval_every, c.checkpoint_every = "200 steps", "2 epochs", "25%"
    elif variant == "table":
        c.data = dict(name="breast_cancer", validation=0.1)
        c.model = dict(name="autoencoder", code=4, hidden=(64,), output="linear")
        c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule="cosine", weight_decay=1e-2)
        c.batch_size = 64
        c.train_for = "200 epochs"
        c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "10 epochs", "25%"
    else:
        raise ValueError(f"configs/autoencoder.py:{variant}: no such variant (one of: digits, mnist, table)")
    return c
