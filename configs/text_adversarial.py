"""A classifier of texts that is trained against perturbations of its word vectors (Miyato et al. 2017).

    python launch.py --config=configs/text_adversarial.py             sentences of docstrings, which need no download
    python launch.py --config=configs/text_adversarial.py:reviews --config.data.path=FOLDER
    python launch.py --config=configs/text_adversarial.py:sms --config.data.path=FILE.tsv

The folder has a file for each class, a text a line, such as rt-polarity.pos and rt-polarity.neg; the file has lines
label<TAB>text. The classifier is a bag of normalised word vectors; Kim's network of convolutions is
--config.model='{"name": "text_cnn"}'. What it is compared with: --config.techniques='()', and noise of the same length,
--config.techniques='("noise",)'. Virtual adversarial training: --config.techniques='("vat",)'.

Measured on two cores of an AMD EPYC, on the sentences of Pang and Lee (2005) and the messages of Almeida et al. (2011):
accuracy on test with the last parameters, mean +- sd over 5 seeds. docs/results.md has commands and versions.

    reviews                            2.5 minutes    0.7709 +- 0.0039    under one step of length 5: 0.542
    reviews, techniques=()             51 seconds     0.7541 +- 0.0036                                0.318
    reviews, techniques=("noise",)     2.7 minutes    0.7539 +- 0.0027                                0.319
    sms                                2.5 minutes    0.9775 +- 0.0023                                0.948
    sms, techniques=()                 56 seconds     0.9758 +- 0.0030                                0.812
    sms, techniques=("noise",)         5.2 minutes    0.9756 +- 0.0029                                0.813
"""

from ml_collections import ConfigDict


def get_config(variant: str = "docstrings") -> ConfigDict:
    if variant not in ("docstrings", "reviews", "sms"):
        raise ValueError(f"configs/text_adversarial.py:{variant}: no such variant (one of: docstrings, reviews, sms)")
    c = ConfigDict()
    c.pipeline = "text"
    c.data = dict(name=variant)
    c.seed = 0
    c.seeds = 1
    eps = 5.0
    c.techniques = ("adversarial",)
    # One step of length eps along the gradient; half of the loss is that of the text as it is.
    c.adversarial = dict(eps=eps, norm="l2", steps=1, step_size=eps, random_start=False, clean=0.5)
    c.noise = dict(eps=eps, norm="l2", clean=0.5)
    c.vat = dict(eps=eps, weight=1.0)
    c.fgm = dict(technique="adversarial", eps=eps, norm="l2", steps=1, step_size=eps, random_start=False)
    c.random = dict(technique="noise", eps=eps, norm="l2")
    c.evals = dict(test=(), attacked=("fgm",), noisy=("random",))
    c.vocabulary, c.least = 20_000, 2  # what is there once is trained as any unknown word
    c.model = dict(name="bag", width=128, dropout=0.3)
    c.optimizer = dict(name="adam", learning_rate=3e-3, schedule="cosine")
    c.batch_size = 64
    c.train_for = "8 epochs"
    c.ema = 0.0
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "1 epoch", "25%"
    c.eval_batch_size = 256
    if variant == "reviews":
        c.data.path, c.data.encoding = "data/reviews", "windows-1252"
    elif variant == "sms":
        c.data.path = "data/sms.tsv"
        c.train_for = "30 epochs"
    return c
