"""Learning a filter from pairs of images: before and after. Floor 5."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from umbrella import data, losses, models
from umbrella.artifacts import Images, Table
from umbrella.data import Arrays, Dataset
from umbrella.data.sources import info
from umbrella.experiment import Experiment, Review
from umbrella.metrics import Mean
from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, View, chain, supervised
from umbrella.pipelines._standard import Problem, Resolve, assemble, of_first_seed
from umbrella.settings import Natural, NonNegative, SettingsError

KERNELS = {
    "difference": np.array([[1, -1]], np.float32),  # Zhang et al. (Dive into Deep Learning), section 7.2.3
    "sobel": np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32),
}
DEPTHS = (1, 2, 3, 4)
SPLITS = ("train", "validation", "test")


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment."""
    return assemble(config, problem, pairs)


def pairs(
    *,
    name: Literal["step", "digits"],
    kernel: Literal["difference", "sobel"],
    noise: NonNegative = 0.0,
    seed: Natural = 0,
) -> Dataset:
    """Images and their edges under a known kernel, plus noise on the edges.

    Args:
      name: "step", the book's single image, 6 x 8, white with four black columns, held to 100 images of noise for
        validation and 100 for test; "digits", scikit-learn's, 8 x 8, with values in [0, 1].
      kernel: of KERNELS.
      noise: standard deviation of what is added to every pixel of the edges of train. The others have none: there the
        loss is the error of the kernel alone.
      seed: draws the noise.
    """
    rng = np.random.default_rng([seed, 4])
    k = KERNELS[kernel]
    if name == "step":
        image = np.ones((1, 6, 8), np.float32)
        image[:, :, 2:6] = 0
        images = {"train": image, **{s: rng.random((100, 6, 8), np.float32) for s in SPLITS[1:]}}
    else:
        digits = data.load(name="digits")
        images = {s: getattr(digits, s).column("x")[..., 0].astype(np.float32) / 16 for s in SPLITS}
    splits, digest = {}, hashlib.blake2b(digest_size=16)
    for split in SPLITS:
        x, y = images[split], correlate(images[split], k)
        if split == "train":
            y = y + np.float32(noise) * rng.standard_normal(y.shape, np.float32)
        splits[split] = Arrays({"x": x[..., None], "y": y[..., None]})
        digest.update(x.tobytes() + y.tobytes())
    about = {**info("image", (*images["train"].shape[1:], 1)), "kernel": k}
    return Dataset(name, f"{name} under the kernel {kernel}", digest.hexdigest(), **splits, info=about)


def problem(dataset: Dataset, log: dict[str, Any], *, model: dict) -> Problem:
    """The mean squared error of a pixel under one convolution; measures the largest error of the kernel's entries."""
    truth = dataset.info["kernel"]
    net = models.build(model, only=("filter",), log=log, out=1)
    if net.size != truth.shape:
        raise SettingsError(f"config.model.size: {net.size}, but the kernel to be learnt has {truth.shape}")
    per_pixel = np.float32(1 / dataset.train.column("y")[0].size)
    base = supervised(net, lambda out, y: losses.squared_error(out, y) * per_pixel)

    def predict(resolve: Resolve) -> Any:
        def run(view: View, batch: Batch, key: Array) -> dict[str, Array]:
            params = resolve(view.params, view.state)["model"]
            return {"edges": net.apply({"params": params}, batch["x"], train=False)}

        return run

    def review(resolve: Resolve) -> Callable[[View, Array], Review]:
        def learnt(view: View) -> np.ndarray:
            return np.asarray(kernel_of(resolve(view.params, view.state)))

        def kernel(view: View, key: Array) -> Table:
            found = least_squares(dataset.train.column("x"), dataset.train.column("y"), truth.shape)
            rows = [
                (i, j, *(f"{k[i, j]:.5f}" for k in (truth, learnt(view), found))) for i, j in np.ndindex(truth.shape)
            ]
            columns = ("row", "column", "true", "learnt", "least squares")
            return Table(columns, tuple(rows), "The kernel that made the edges, and what was found from the pairs.")

        def edges(view: View, key: Array) -> Images:
            rows = dataset.test.__getitems__(np.arange(min(8, len(dataset.test))))
            found = correlate(rows["x"][..., 0], learnt(view))
            grey = [_grey(a) for a in (rows["y"][..., 0], found)]
            padded = [_as_large(a, rows["x"].shape[1:3]) for a in grey]
            images = np.concatenate([rows["x"][..., 0], *padded])[..., None]
            caption = "Test images, their edges under the true kernel and under the learnt one; grey is none."
            return Images(images, len(rows["x"]), caption, ("image", "true", "learnt"))

        return of_first_seed({"kernel": kernel, "edges": edges, "receptive_fields": lambda view, key: fields(key)})

    def baselines() -> dict[str, dict[str, float]]:
        x, y = dataset.train.column("x"), dataset.train.column("y")
        test = dataset.test.column("x"), dataset.test.column("y")
        rivals = {"least squares": least_squares(x, y, truth.shape), "no edges": np.zeros_like(truth)}
        return {
            name: {
                "loss": float(np.mean((correlate(test[0][..., 0], k) - test[1][..., 0]) ** 2)),
                "kernel_error": float(np.abs(k - truth).max()),
            }
            for name, k in rivals.items()
        }

    return Problem(
        columns=("x", "y"),
        outer=chain(),
        base=kernel_error(truth)(base),
        context={},
        review=review,
        predict=predict,
        baselines=baselines,
    )


def kernel_of(params: Params) -> Array:
    """f32[h, w] of the parameters of a `models.Filter` with one channel."""
    return params["model"]["kernel"]["kernel"][:, :, 0, 0]


def kernel_error(truth: np.ndarray) -> Transform:
    """Measures max |K - truth| as "kernel_error"."""

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            loss, aux = o.apply(params, state, batch, ctx)
            error = jnp.max(jnp.abs(jax.lax.stop_gradient(kernel_of(params)) - truth))
            return loss, aux.replace(metrics={**aux.metrics, "kernel_error": Mean(error * aux.count, aux.count)})

        return o._replace(apply=apply)

    return wrap


def correlate(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """f32[N, H, W], f32[h, w] -> f32[N, H - h + 1, W - w + 1]: sum_ab x[i + a, j + b] k[a, b]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape, axis=(1, 2))
    return np.einsum("nijab,ab->nij", windows, kernel).astype(np.float32)


def least_squares(x: np.ndarray, y: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The kernel f64[h, w] that minimises the squared error on all pixels of x, y f32[N, H, W, 1], in closed form."""
    windows = np.lib.stride_tricks.sliding_window_view(x[..., 0].astype(np.float64), shape, axis=(1, 2))
    return np.linalg.lstsq(windows.reshape(-1, shape[0] * shape[1]), y.astype(np.float64).ravel())[0].reshape(shape)


# ----------------------------------------------------------------------------------------------------- receptive fields
def receptive_field(apply: Callable[[Array], Array], size: int) -> Array:
    """The gradient f32[size, size] of the centre of apply(x) in x f32[size, size], at a random x.

    Source: Luo et al. 2016, section 2: the effective receptive field.
    """
    x = jax.random.normal(jax.random.key(0), (size, size))

    def centre(x: Array) -> Array:
        out = apply(x)
        return out[out.shape[0] // 2, out.shape[1] // 2]

    return jax.grad(centre)(x)


class Stack(nn.Module):
    """Convolutions of 3 x 3 that keep the size, one after the other: f32[B, H, W, 1] -> f32[B, H, W, 1]."""

    depth: int
    width: int = 1
    uniform: bool = False  # every weight is 1, and nothing between the layers; else random weights and ReLUs

    @nn.compact
    def __call__(self, x: Array) -> Array:
        start = nn.initializers.ones if self.uniform else nn.initializers.he_normal()
        for i in range(self.depth):
            last = i == self.depth - 1
            x = nn.Conv(1 if last else self.width, (3, 3), use_bias=False, kernel_init=start)(x)
            x = x if last or self.uniform else nn.relu(x)
        return x


def stacked_field(stack: Stack, size: int, key: Array) -> Array:
    """The receptive field f32[size, size] of one draw of a stack's weights."""
    variables = stack.init(key, jnp.zeros((1, size, size, 1)))

    def apply(x: Array) -> Array:
        out: Any = stack.apply(variables, x[None, :, :, None])
        return out[0, :, :, 0]

    return receptive_field(apply, size)


def fields(key: Array) -> Images:
    """Receptive fields of 3 x 3 convolutions, 1 to 4 deep: uniform weights, and random ones with ReLUs."""
    size, pictures, told = 2 * DEPTHS[-1] + 3, [], []
    for uniform in (True, False):
        for depth in DEPTHS:
            stack = Stack(depth, 1 if uniform else 16, uniform)
            keys = jax.random.split(key, 1 if uniform else 100)
            draws = jax.vmap(lambda k, stack=stack: stacked_field(stack, size, k))(keys)
            field = np.sqrt(np.mean(np.square(np.asarray(draws)), 0))
            pictures.append(field / field.max())
            if uniform:
                share = field / field.sum()
                at = np.arange(size) - size // 2
                told.append(f"{2 * depth + 1} pixels wide, sd {np.sqrt((share.sum(0) * at**2).sum()):.2f}")
    caption = (
        "The gradient of one output pixel in the input, through 1, 2, 3, 4 convolutions of 3 x 3 (Luo et al. 2016). "
        f"Above: uniform weights ({'; '.join(told)}): the width grows with the depth, the spread with its root. "
        "Below: random weights and ReLUs, 16 channels, the root mean square of 100 draws."
    )
    return Images(np.stack(pictures)[..., None], len(DEPTHS), caption, ("uniform", "random"))


def _grey(edges: np.ndarray) -> np.ndarray:
    """Edges of either sign as grey values around a half."""
    return 0.5 + 0.5 * edges / max(1e-6, float(np.abs(edges).max()))


def _as_large(images: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """With a border of no edge, so that they stand in one grid with what they were made from."""
    h, w = shape[0] - images.shape[1], shape[1] - images.shape[2]
    return np.pad(images, ((0, 0), (h // 2, h - h // 2), (w // 2, w - w // 2)), constant_values=0.5)
