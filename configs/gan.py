"""A generative adversarial network of images (Goodfellow et al. 2014; Radford et al. 2016).

python launch.py --config=configs/gan.py             scikit-learn's digits, which need no download
"""

from ml_collections import ConfigDict


def get_config(variant: str = "digits") -> ConfigDict:
    if variant not in ("digits", "mnist", "cifar10"):
        raise ValueError(f"configs/gan.py:{variant}: no such variant (one of: cifar10, digits, mnist)")
    c = ConfigDict()
    c.pipeline = "gan"
    c.data = dict(name=variant)
    c.seed = 0
    c.seeds = 1
    c.evals = dict(test=())
    c.techniques = ("diffaugment",)
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "10%", "25%"

    if variant == "digits":
        c.generator = dict(latent=32, widths=(32, 64))
        c.discriminator = dict(widths=(32, 64), norm="none")
        c.r1 = 0.1
        c.diffaugment = dict(translation=0.125, cutout=0.25, fill=0.0)
        c.optimizer = dict(name="adam", b1=0.5, learning_rate=2e-3, schedule="linear", final=0.1)
        c.batch_size = 64
        c.train_for = "120 epochs"
        c.ema = 0.995
        c.judge = dict(widths=(16, 32), features=32, train_for="30 epochs", batch_size=64)
        c.rival = dict(train_for="100 epochs", batch_size=64)
    elif variant == "mnist":
        c.data.validation = 0.1
        c.generator = dict(latent=64, widths=(32, 64))
        c.discriminator = dict(widths=(32, 64), norm="none")
        c.r1 = 0.1
        c.techniques = ()
        c.optimizer = dict(name="adam", b1=0.5, learning_rate=1e-3, schedule="linear", final=0.1)
        c.batch_size = 64
        c.train_for = "10 epochs"
        c.ema = 0.999
        c.eval_batch_size = 500
    else:
        c.generator = dict(latent=128, widths=(128, 256, 512))
        c.discriminator = dict(widths=(128, 256, 512), norm="spectral")
        c.loss = "hinge"
        c.optimizer = dict(name="adam", b1=0.5, learning_rate=2e-4)
        c.batch_size = 128
        c.train_for = "200 epochs"
        c.ema = 0.9995
        c.eval_batch_size = 500
        c.judge = dict(widths=(64, 128, 256), features=128, train_for="20 epochs")
        c.rival = dict(train_for="50 epochs")
    return c
