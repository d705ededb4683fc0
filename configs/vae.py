"""A variational autoencoder of handwritten digits (Kingma and Welling 2014).

python launch.py --config=configs/vae.py             scikit-learn's digits, which need no download
python launch.py --config=configs/vae.py:mnist       dynamically binarised MNIST, 200-200-50 as in Burda et al. 2016
python launch.py --config=configs/vae.py:cifar10     CIFAR-10 under a discretised logistic

Other objectives: --config.techniques='("iwae",)' (five importance weights, Burda et al. 2016), '("dreg",)' (the same
bound with less noise in its gradient, Tucker et al. 2019), '("kl",)' (a weight of the KL term that grows, free bits).
Other models: --config.model.widths='(32, 64)' (convolutions), --config.model.above=10 (a second layer of latent
variables), --config.conditional=True (told the label).

What it is for, each on a trained run: --mode=sample draws anew; --mode=predict writes the codes of the test rows, and
the report compares them with PCA's of the same size; --mode=clean writes which rows of the set to keep and which are
strange, by a threshold of a stated false-positive rate. Of a table of your own without labels:

    python launch.py --config=configs/vae.py --config.data.path=FILE.csv --config.data.labelled=False \
        --config.likelihood=gaussian --config.model.latent=2 --workdir=runs/mine
    (the same line again with --mode=clean)

Measured on two cores of an AMD EPYC, on test with the averaged parameters of the last step, mean +- sd over seeds; NLL
by importance sampling. docs/results.md has the commands, versions and revisions.

    digits     5 seeds, 16 s in all        -ELBO 23.21 +- 0.12    NLL 22.87 +- 0.01 (1,000 samples)
    mnist      3 seeds, 12.3 minutes each  -ELBO 91.74 +- 0.18    NLL 88.04 +- 0.19 (5,000 samples)
      seed 0, nothing beside it, 7.6 min   -ELBO 91.56            NLL 87.81
    mnist, 60 epochs, 1 seed               -ELBO 95.52            NLL 91.32
      the same with ("iwae",)              -ELBO 96.46            NLL 89.67
    cifar10    1 seed, 4.6 minutes         -ELBO 14109            6.626 bits per dimension: a dense net with a short
                                           training. Pixels alone cost 7.876, each given the one to its left 6.174.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "digits") -> ConfigDict:
    c = ConfigDict()
    c.pipeline = "generative"
    c.data = dict(name=variant, validation=0.1)
    c.seed = 0
    c.seeds = 1
    c.techniques = ()
    c.evals = dict(test=("importance_weighted",))
    c.iwae = dict(technique="importance_weighted", samples=5)
    c.dreg = dict(technique="importance_weighted", samples=5, gradient="dreg")
    c.kl = dict(beta=1.0, ramp="10%", free_bits=0.0)
    c.likelihood = "bernoulli"
    c.conditional = False
    c.clean = dict(score="nll", samples=50, rate=0.01)

    if variant == "digits":
        c.model = dict(name="vae", latent=8, hidden=(128, 128), activation="tanh")
        c.optimizer = dict(name="adam", learning_rate=3e-3, schedule="cosine")
        c.batch_size = 64
        c.train_for = "150 epochs"
        c.ema = 0.99
        c.log_every, c.eval_every, c.checkpoint_every = "100 steps", "5 epochs", "25%"
        c.importance_weighted = dict(samples=1000)
    elif variant == "mnist":
        c.model = dict(name="vae", latent=50, hidden=(200, 200), activation="tanh")
        c.optimizer = dict(name="adam", learning_rate=2e-3, schedule="cosine")
        c.batch_size = 128
        c.data.validation = 0.02
        c.train_for = "400 epochs"
        c.ema = 0.999
        c.log_every, c.eval_every, c.checkpoint_every = "500 steps", "10 epochs", "5%"
        c.eval_batch_size = 100
        c.importance_weighted = dict(samples=5000)
    elif variant == "cifar10":
        c.model = dict(name="vae", latent=128, hidden=(1024, 512), activation="silu")
        c.likelihood = "logistic"
        c.optimizer = dict(name="adam", learning_rate=1e-3, schedule="cosine", clip=200.0)
        c.batch_size = 128
        c.train_for = "20 epochs"
        c.ema = 0.999
        c.log_every, c.eval_every, c.checkpoint_every = "100 steps", "2 epochs", "10%"
        c.eval_batch_size = 250
        c.importance_weighted = dict(samples=50)
    else:
        raise ValueError(f"configs/vae.py:{variant}: no such variant (one of: cifar10, digits, mnist)")
    return c
