"""Classifiers of texts, classical and neural, in one table.

python launch.py --config=configs/text_classify.py                 sentences of docstrings, which need no download
python launch.py --config=configs/text_classify.py:reviews --config.data.path=FOLDER
python launch.py --config=configs/text_classify.py:sst2            GLUE's, prepared by TensorFlow Datasets
"""

from ml_collections import ConfigDict


def get_config(variant: str = "docstrings") -> ConfigDict:
    if variant not in ("docstrings", "reviews", "sst2"):
        raise ValueError(f"configs/text_classify.py:{variant}: no such variant (one of: docstrings, reviews, sst2)")
    c = ConfigDict()
    c.pipeline = "text"
    c.data = dict(name=variant)
    c.seed = 0
    c.seeds = 1
    c.techniques = ()
    c.evals = dict(test=())
    c.vocabulary, c.least = 20_000, 2  # what is there once is trained as any unknown word
    c.model = dict(name="text_rnn")
    c.optimizer = dict(name="adam", learning_rate=2e-3, schedule="cosine", clip=1.0)
    c.batch_size = 64
    c.train_for = "6 epochs"
    c.ema = 0.0
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "1 epoch", "25%"
    c.eval_batch_size = 256
    if variant == "reviews":
        c.data.path, c.data.encoding = "data/reviews", "windows-1252"
    elif variant == "sst2":
        c.data.name = "glue/sst2"
        c.data.tested_on = "validation"  # the labels of the official test split are withheld
    return c
