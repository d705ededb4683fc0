"""A generative adversarial network of images (Goodfellow et al. 2014; Radford et al. 2016).

    python launch.py --config=configs/gan.py             scikit-learn's digits, which need no download
    python launch.py --config=configs/gan.py:mnist       MNIST
    python launch.py --config=configs/gan.py:cifar10     CIFAR-10, of a size for a GPU; not measured

Frechet distances are of the features of a classifier that is trained on the side, on the training split, and kept; they
compare within a data set and with that classifier alone. The rivals stand beside each result: training images, which
are told what perfect samples would be; a Gaussian on the components of a PCA; a small dense VAE.

Measured on two cores of an AMD EPYC beside much other work: seed 0, the averaged generator of the last step, on test.

                                                      Frechet  entropy  precision  recall
    digits   1 minute, 359 images                        11.5    2.278       .682    .886
             training images                              4.1    2.290       .919    .889
             PCA and a Gaussian                          45.2    2.288       .655    .691
             VAE                                         24.8    2.254       .696    .841
    mnist    15 minutes, 10,000 images                  125.8    2.278       .512    .813
             training images                              1.3    2.301       .876    .896
             PCA and a Gaussian                        1431.2    1.723       .616    .036
             VAE                                        621.1    2.250       .676    .503

Minutes count the classifier, whose accuracy the report tells, and the VAE.
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
        c.r1 = 1.0
        c.techniques = ()
        c.optimizer = dict(name="adam", b1=0.5, learning_rate=2e-3, schedule="linear", final=0.1)
        c.batch_size = 64
        c.train_for = "4 epochs"
        c.ema = 0.995
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
