"""A Transformer that reads an image as patches and classifies it (Dosovitskiy et al. 2021).

    python launch.py --config=configs/vit.py             scikit-learn's digits, which need no download
    python launch.py --config=configs/vit.py:mnist       MNIST
    python launch.py --config=configs/vit.py:cifar10     CIFAR-10: for a GPU

It knows less of images than a convolutional network does, and needs more of them, or a turned, moved and scaled copy of
each in every epoch, as here. Not measured yet.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "digits") -> ConfigDict:
    if variant not in ("digits", "mnist", "cifar10"):
        raise ValueError(f"configs/vit.py:{variant}: no such variant (one of: cifar10, digits, mnist)")
    c = ConfigDict()
    c.pipeline = "vision"
    c.data = dict(name=variant)
    c.seed = 0
    c.seeds = 1
    c.techniques = ("affine", "label_smoothing")
    c.affine = dict(rotate=10.0, translate=0.08, scale=(0.9, 1.1), shear=5.0)
    c.label_smoothing = dict(eps=0.1)
    c.evals = dict(test=())
    c.ema = 0.99
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "10%", "25%"
    c.optimizer = dict(name="adamw", learning_rate=1e-3, schedule="cosine", warmup="10%", weight_decay=0.05, clip=1.0)
    c.batch_size = 128
    c.eval_batch_size = 500

    if variant == "digits":
        c.model = dict(name="vit", patch=2, width=64, layers=3, heads=4)
        c.optimizer.learning_rate = 5e-3
        c.batch_size = 64
        c.train_for = "60 epochs"
    elif variant == "mnist":
        c.model = dict(name="vit", patch=4, width=96, layers=4, heads=4)
        c.train_for = "12 epochs"
    else:
        c.techniques = ("flip", "crop", "label_smoothing")
        c.crop = dict(pad=4, mode="zero")
        c.model = dict(name="vit", patch=4, width=384, layers=12, heads=6, dropout=0.1)
        c.train_for = "100 epochs"
    return c
