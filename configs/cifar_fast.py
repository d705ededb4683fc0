"""A network that is quick to train on small images (Jordan 2024).

python launch.py --config=configs/cifar_fast.py             CIFAR-10, half as wide: for a few cores
python launch.py --config=configs/cifar_fast.py:airbench94  CIFAR-10, as wide and as long as airbench94: for a GPU
python launch.py --config=configs/cifar_fast.py:mnist       MNIST
python launch.py --config=configs/cifar_fast.py:digits      scikit-learn's digits, which need no download

Measured on two cores of an AMD EPYC, in f32, on a copy of CIFAR-10 whose images had been through JPEG: accuracy on test
with the last parameters, of an image and its mirror image together. docs/results.md has commands and versions.

    cifar10     1 seed, 12.5 minutes      0.856

Other augmentation: --config.techniques="('flip', 'crop', 'cutout', 'label_smoothing')"
"""

from ml_collections import ConfigDict


def get_config(variant: str = "cifar10") -> ConfigDict:
    if variant not in ("digits", "mnist", "cifar10", "airbench94"):
        raise ValueError(
            f"configs/cifar_fast.py:{variant}: no such variant (one of: airbench94, cifar10, digits, mnist)"
        )
    c = ConfigDict()
    c.pipeline = "vision"
    c.data = dict(name="cifar10" if variant == "airbench94" else variant)
    c.model = dict(name="cifar_fast", widths=(64, 256, 256), mirror=c.data.name == "cifar10")
    # airbench's rate of 11.5 / (1 + 1 / (1 - .85)) is 1.5; its decay of .0153 / (1 + 1 / (1 - .85)) goes through the
    # momentum, which makes it 1 / (1 - .85) times as much: .0133 a step. The norms' biases: 64 times the rate, the same
    # decay.
    c.optimizer = dict(name="sgd", learning_rate=1.5, momentum=0.85, nesterov=True, schedule="linear", final=0.07)
    c.optimizer.warmup, c.optimizer.weight_decay = "23%", 8.9e-3
    c.optimizer.rules = (("model/norm_.*/bias", dict(lr=64.0, decay=1 / 64)), (".*", dict()))
    c.batch_size = 1024
    c.seed = 0
    c.seeds = 1
    c.techniques = ("alternating_flip", "crop", "label_smoothing")
    c.crop = dict(pad=2)
    c.cutout = dict(size=8)
    c.label_smoothing = dict(eps=0.2)
    c.evals = dict(test=())
    c.ema = 0.0
    c.train_for = "10 epochs"
    c.eval_batch_size = 1000
    c.log_every, c.eval_every, c.checkpoint_every = "10 steps", "1 epoch", "25%"
    if variant == "cifar10":  # the rate is that of an example
        c.model.widths = (32, 128, 128)
        c.batch_size = 512
        c.optimizer.learning_rate = 0.75
        c.train_for = "6 epochs"
    if c.data.name != "cifar10":  # a mirrored digit is no digit
        c.techniques = ("crop", "label_smoothing")
        c.crop = dict(pad=2 if variant == "mnist" else 1, mode="zero")
        c.cutout = dict(size=8 if variant == "mnist" else 2)
    if variant == "mnist":
        c.train_for = "3 epochs"
    if variant == "digits":
        c.model.widths = (32, 64, 64)
        c.batch_size = 128
        c.optimizer.learning_rate = 0.3
        c.train_for = "20 epochs"
    return c
