"""A deep ensemble (Lakshminarayanan et al. 2017): several seeds trained as one program, their probabilities averaged.

    python launch.py --config=configs/ensemble.py             scikit-learn's digits, which need no download
    python launch.py --config=configs/ensemble.py:mnist       MNIST, five LeNets

The results tell the mean member ("test") and the ensemble. Bagging (Breiman 1996), every member on a bootstrap sample
of its own: --config.resample=True.

Measured on two cores of an AMD EPYC, on test with the last parameters; docs/results.md has commands and versions.

    mnist      5 seeds, 4.5 minutes in all     mean member 0.9923 +- 0.0006, log loss 0.031; together 0.9941, 0.019
"""

from ml_collections import ConfigDict


def get_config(variant: str = "digits") -> ConfigDict:
    if variant not in ("digits", "mnist"):
        raise ValueError(f"configs/ensemble.py:{variant}: no such variant (one of: digits, mnist)")
    c = ConfigDict()
    c.pipeline = "vision"
    c.data = dict(name=variant)
    c.seed = 0
    c.seeds = 5
    c.resample = False
    c.techniques = ()
    c.evals = dict(test=())
    c.ema = 0.0
    # Of 2e-3 and 4e-3 the one whose ensemble of LeNets has the higher accuracy on validation.
    c.optimizer = dict(name="adamw", learning_rate=4e-3, schedule="cosine", warmup="5%", weight_decay=1e-4)
    c.batch_size = 64
    if variant == "digits":
        c.model = dict(name="cnn", widths=(16, 32), depth=1, head="flat", dropout=0.2)
        c.train_for = "20 epochs"
    else:
        c.model = dict(name="lenet", activation="relu")
        c.train_for = "12 epochs"
        c.eval_batch_size = 500
    c.log_every, c.eval_every, c.checkpoint_every = "100 steps", "1 epoch", "25%"
    return c
