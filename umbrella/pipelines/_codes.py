"""What pipelines of codes share: the units of their errors, what a model makes of every row, principal components.
Floor 5."""

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from umbrella import baselines, losses, models
from umbrella.data import Arrays, Dataset, Source, batches, sample, scaling
from umbrella.objective import Array, Batch, Objective, Transform, View, chain, supervised
from umbrella.pipelines._standard import Resolve, scale_of, select
from umbrella.settings import SettingsError
from umbrella.transforms import pixels, reconstruct
from umbrella.transforms.standardise import SCOPE, scaled, standardise

ROWS = 1000  # of a pass
ROOM = 2**28  # numbers in x: no more are taken at once, for what is computed from all of them
# Techniques that leave the target what it is: one that moves an image would ask the model to move it back.
FITTING = ("adversarial", "awp", "corruption", "cutout", "fgsm", "l1", "l2", "lora", "noise", "sam", "sparse")


class Units(NamedTuple):
    """The numbers that are coded, and that errors are squared differences of."""

    words: str  # what they are
    image: bool
    outer: Transform  # makes x and the target of a batch
    bounds: tuple[float, float] | None  # of x
    of_stored: Callable[[np.ndarray], np.ndarray]  # x as the data set has it -> f32[N, ...], on the host
    of_batch: Callable[[View, Array], Array]  # the same in a program
    back: Callable[[np.ndarray], np.ndarray]  # from these units to the data set's own; pixels stay in [0, 1]


def units(dataset: Dataset) -> Units:
    """Images in [0, 1]; features of tables and of other arrays with mean 0 and standard deviation 1 in train.

    The target is made before any technique sees the batch: what a technique does to x is for the model to undo.

    Raises:
      SettingsError: texts, or images whose pixels are not bytes.
    """
    kind = dataset.info["kind"]
    if kind == "image":
        unit = np.float32(1 / scale_of(dataset))
        return Units(
            "pixels in [0, 1]",
            True,
            chain(pixels(scale_of(dataset)), reconstruct()),
            (0.0, 1.0),
            lambda x: x.astype(np.float32) * unit,
            lambda view, x: x.astype(jnp.float32) * unit,
            lambda x: x,
        )
    if kind not in ("tabular", "array"):
        raise SettingsError(f"config.data.name: {dataset.name!r} holds neither images nor numbers: {kind}")
    shift, spread = scaling.fit("zscore", dataset.train)
    return Units(
        "standard deviations of the training rows",
        False,
        chain(standardise(shift, spread), reconstruct()),
        None,
        lambda x: ((x - shift) / spread).astype(np.float32),
        lambda view, x: scaled(view.state[SCOPE], x),
        lambda x: x * spread + shift,
    )


def autoencoder(dataset: Dataset, made: Units, model: Mapping[str, Any], log: dict[str, Any]) -> tuple[Any, Objective]:
    """(module, objective) of config.model: the mean squared error of a number of x.

    Raises:
      SettingsError: a setting does not fit, or not these data.
    """
    shape = tuple(dataset.info["shape"])
    if model.get("widths") and not made.image:
        raise SettingsError(f"config.model.widths: convolutions are for images, {dataset.name!r} has none; set ()")
    if model.get("output") == "sigmoid" and not made.image:
        raise SettingsError(
            f"config.model.output: 'sigmoid' stays within (0, 1), and {made.words} do not; set 'linear'"
        )
    net = models.build(model, only=("autoencoder",), log=log, shape=shape)
    each = np.float32(1 / np.prod(shape))
    return net, supervised(net, lambda out, y: losses.squared_error(out["output"], y) * each)


def code_of(outputs: Mapping[str, Array]) -> Array:
    """What `umbrella.transforms.sparse` keeps small."""
    return outputs["code"]


def coder(net: Any, resolve: Resolve, made: Units) -> Callable[[View, Batch, Array], dict[str, Array]]:
    """(view, batch, key) -> "code" f32[B, L], "reconstruction" f32[B, ...], "error" f32[B], the mean squared error of
    each row, and "size" f32[B], its mean square; all but the code in the units of the model."""

    def run(view: View, batch: Batch, key: Array) -> dict[str, Array]:
        x = made.of_batch(view, batch["x"])
        out = net.apply({"params": resolve(view.params, view.state)["model"]}, x, train=False)
        error, size = (losses.squared_error(v, x) / x[0].size for v in (out["output"], 0 * x))
        return {"code": out["code"], "reconstruction": out["output"], "error": error, "size": size}

    return run


class Told(NamedTuple):
    """What one model says of N rows."""

    code: np.ndarray  # f32[N, L]
    error: np.ndarray  # f64[N], the mean squared error of each row
    size: np.ndarray  # f64[N], the mean square of each row; never quite 0


def told(run: Callable[[View, Batch, Array], dict[str, Array]], view: View, split: Source, key: Array) -> Told:
    """What a compiled `coder` says of every row of a split."""
    codes, errors, sizes = [], [], []
    for batch in batches(select(split, ("x",)), min(ROWS, len(split))):
        kept = int(batch["mask"].sum())
        out = run(view, {"x": batch["x"]}, key)
        codes.append(np.asarray(out["code"])[:kept])
        errors.append(np.asarray(out["error"], np.float64)[:kept])
        sizes.append(np.asarray(out["size"], np.float64)[:kept])
    return Told(np.concatenate(codes), np.concatenate(errors), np.maximum(np.concatenate(sizes), 1e-12))


class Components(NamedTuple):
    """Principal components of training rows: the best linear code (Eckart and Young 1936)."""

    mean: np.ndarray  # f64[D]
    axes: np.ndarray  # f64[L, D], orthonormal, the one of most variance first
    seconds: float
    rows: int  # it was fitted on

    def code(self, x: np.ndarray) -> np.ndarray:
        """f[N, ...] -> f64[N, L]."""
        return (_flat(x) - self.mean) @ self.axes.T

    def reconstruction(self, x: np.ndarray, size: int | None = None) -> np.ndarray:
        """f[N, ...] -> f64[N, ...], from the first `size` components; from all when None."""
        axes = self.axes[:size]
        return (((_flat(x) - self.mean) @ axes.T) @ axes + self.mean).reshape(x.shape)

    def error(self, x: np.ndarray, size: int | None = None) -> np.ndarray:
        """f64[N]: the mean squared error of each row."""
        return np.square(_flat(x) - _flat(self.reconstruction(x, size))).mean(1)


def components(x: np.ndarray, size: int) -> Components:
    """The first `size` of the rows f[N, ...], or as many as there are, by scikit-learn."""
    from sklearn.decomposition import PCA

    began, flat = time.perf_counter(), _flat(x)
    fitted = PCA(min(size, *flat.shape), random_state=0).fit(flat)
    return Components(fitted.mean_, fitted.components_, time.perf_counter() - began, len(flat))


def some(source: Source, most: int | None = None) -> np.ndarray:
    """The x of a source: of all rows, or of a random part of at most `most` rows and ROOM numbers; where `most` is not
    given, of what is streamed of at most LARGE rows."""
    most = most or (len(source) if isinstance(source, Arrays) else baselines.LARGE)
    size = source.__getitems__(np.zeros(1, np.int64))["x"].size
    return source.__getitems__(sample(len(source), min(most, max(1, ROOM // size))))["x"]


def explained(error: float, x: np.ndarray) -> float:
    """The share of the variance of x f[N, ...] about its mean that a mean squared error leaves explained; R^2."""
    variance = _flat(x).var(0).mean()
    return float(1 - error / variance) if variance > 0 else float("nan")


def probe(code: np.ndarray, y: np.ndarray, code_test: np.ndarray, y_test: np.ndarray) -> float:
    """Accuracy on test of softmax regression on standardised codes (Alain and Bengio 2017)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(0).permutation(len(code))[: baselines.LARGE]
    mean, spread = code[rows].mean(0), code[rows].std(0)
    spread = np.where(spread > 0, spread, 1)
    z, z_test = ((c - mean) / spread for c in (code, code_test))
    fitted = LogisticRegression(C=100.0, max_iter=300, tol=1e-3)  # hardly regularised: codes are few
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a probe
        fitted.fit(z[rows], y[rows])
    return float(np.mean(fitted.predict(z_test) == y_test))


def _flat(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)
