"""A convolution learns the filter that made edges of images, from pairs of the two.

    python launch.py --config=configs/edges.py             one image of 6 x 8, and [1, -1] (d2l.ai, section 7.2)
    python launch.py --config=configs/edges.py:sobel       scikit-learn's digits and Sobel's kernel, noise on the edges

Measured on two cores of an AMD EPYC: the largest error of the kernel's entries with the last parameters.

    step     seed 0, 400 steps, 3 s     0            least squares 4e-16
    sobel    seed 0, 500 steps, 4 s     0.02476      least squares 0.02476

The report shows the kernels, the edges, and the receptive fields of stacked convolutions.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "step") -> ConfigDict:
    if variant not in ("step", "sobel"):
        raise ValueError(f"configs/edges.py:{variant}: no such variant (one of: sobel, step)")
    c = ConfigDict()
    c.pipeline = "edges"
    c.seed = 0
    c.seeds = 1
    c.techniques = ()
    c.evals = dict(test=())
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "100 steps", "50%"

    if variant == "step":
        c.data = dict(name="step", kernel="difference", noise=0.0)
        c.model = dict(name="filter", size=(1, 2))
        c.optimizer = dict(name="sgd", learning_rate=0.5, momentum=0.9)
        c.batch_size = 1
        c.train_for = "400 steps"
    else:
        c.data = dict(name="digits", kernel="sobel", noise=0.5)
        c.model = dict(name="filter", size=(3, 3))
        c.optimizer = dict(name="sgd", learning_rate=0.5, momentum=0.9)
        c.batch_size = 1294  # the whole of train: what is left is the noise of the pairs, not that of the batches
        c.train_for = "500 steps"
    return c
