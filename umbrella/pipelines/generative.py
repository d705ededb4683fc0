"""Models of images with latent variables. Floor 5."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import baselines, losses, models
from umbrella.artifacts import Images, Scatter
from umbrella.data import Dataset
from umbrella.experiment import Experiment, Review
from umbrella.metrics import Mean, mask_of
from umbrella.objective import Array, Batch, View, chain, measure, supervised
from umbrella.pipelines._standard import Problem, Resolve, assemble, of_first_seed, scale_of
from umbrella.settings import NonNegative, SettingsError
from umbrella.transforms import binarise, pixels, reconstruct


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    made = assemble(config, problem)
    beta, kinds = made.settings["beta"], {n: made.settings[n].get("technique", n) for n in made.settings["techniques"]}
    if beta != 1 and "importance_weighted" in kinds.values():  # in evals it is a measure, whatever was trained on
        raise SettingsError(
            f"config.beta: importance_weighted has no KL term that {beta:g} could weigh; leave beta at 1"
        )
    return made


def problem(
    dataset: Dataset,
    log: dict[str, Any],
    *,
    model: dict,
    likelihood: Literal["bernoulli", "logistic"] = "bernoulli",
    beta: NonNegative = 1.0,
) -> Problem:
    """The negative ELBO in nats per image.

    bernoulli: pixels are drawn anew from their grey values at every step (dynamic binarisation); logistic: the 256 grey
    values themselves, under a discretised logistic, which also gives bits per dimension.
    """
    if dataset.info["kind"] != "image":
        raise SettingsError(f"config.data.name: {dataset.name!r} holds no images, which this pipeline needs")
    shape, scale = tuple(dataset.info["shape"]), scale_of(dataset)
    binary = likelihood == "bernoulli"
    if not binary and scale != 255:
        raise SettingsError(
            f"config.likelihood: 'logistic' needs images of 256 levels, {dataset.name!r} has {scale + 1:g}"
        )
    net = models.build(model, only=("vae",), log=log, shape=shape, scale=not binary)
    base = supervised(net, lambda out, y: losses.negative_elbo(out, y, beta=beta))
    base = measure(**_measures(int(np.prod(shape)), binary))(base)
    outer = chain(pixels(scale), binarise() if binary else reconstruct())

    return Problem(
        columns=("x",),
        outer=outer,
        base=base,
        context={"log_weight": losses.log_importance_weight, "bounds": (0.0, 1.0), "on": "x", "where": None},
        review=lambda resolve: _review(net, resolve, dataset, scale, binary),
        predict=lambda resolve: _predict(net, resolve, scale),
        baselines=lambda: baselines.on_parts(
            lambda train, test: (
                baselines.binary_images(train["x"] / scale, test["x"] / scale)
                if binary
                else baselines.byte_images(train["x"], test["x"])
            ),
            dataset.train,
            dataset.test,
        ),
    )


def _measures(pixels_per_image: int, binary: bool) -> dict[str, Any]:
    def mean(values: Any) -> Any:
        def fn(out: Any, batch: Batch) -> Mean:
            v = values(out, batch)
            return Mean.of(v, mask_of(batch, v))

        return fn

    told = {
        "negative_elbo": mean(lambda out, b: losses.negative_elbo(out, b["y"])),
        "reconstruction": mean(lambda out, b: losses.reconstruction(out, b["y"])),
        "kl": mean(lambda out, b: losses.gaussian_kl(out["mean"], out["log_var"])),
    }
    if not binary:
        per_dim = 1 / (pixels_per_image * np.log(2.0))
        told["bits_per_dim"] = mean(lambda out, b: losses.negative_elbo(out, b["y"]) * np.float32(per_dim))
    return told


def _predict(net: Any, resolve: Resolve, scale: float) -> Any:
    def run(view: View, batch: Batch, key: Array) -> dict[str, Array]:
        variables = {"params": resolve(view.params, view.state)["model"]}
        x = batch["x"].astype(jnp.float32) * (1 / scale)
        mean, log_var = net.apply(variables, x, method="encode")
        return {
            "mean": mean,
            "log_var": log_var,
            "reconstruction": jax.nn.sigmoid(net.apply(variables, mean, method="decode")),
        }

    return run


def _review(
    net: Any, resolve: Resolve, dataset: Dataset, scale: float, binary: bool
) -> Callable[[View, Array], Review]:
    encode = jax.jit(_predict(net, resolve, scale))

    @jax.jit
    def decode(view: View, z: Array) -> Array:
        params = resolve(view.params, view.state)["model"]
        return jax.nn.sigmoid(net.apply({"params": params}, z, method="decode"))

    def some(n: int) -> dict[str, np.ndarray]:
        return dataset.test.__getitems__(np.arange(min(n, len(dataset.test))))

    def reconstructions(view: View, key: Array) -> Images:
        x = some(20)["x"]
        out = np.asarray(encode(view, {"x": x}, key)["reconstruction"])
        both = np.concatenate([x[:10] / scale, out[:10], x[10:] / scale, out[10:]])
        return Images(both, min(10, len(x)), "Test images (odd rows) and what the model makes of them (even rows).")

    def samples(view: View, key: Array) -> Images:
        z = jax.random.normal(key, (100, net.latent))
        what = "the probability of ink" if binary else "the mean"
        return Images(np.asarray(decode(view, z)), 10, f"Images drawn from the prior; shown is {what} of each pixel.")

    def traversal(view: View, key: Array) -> Images:
        told = encode(view, {"x": some(500)["x"]}, key)
        mean, log_var = np.asarray(told["mean"]), np.asarray(told["log_var"])
        kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).mean(0)
        used = np.argsort(-kl)[: min(8, net.latent)]
        z = np.repeat(mean[:1], len(used) * 11, 0).reshape(len(used), 11, -1)
        for row, i in enumerate(used):
            z[row, :, i] = np.linspace(-2.5, 2.5, 11)
        caption = (
            "One test image, one latent variable at a time moved from -2.5 to 2.5; "
            "the variables that say most (largest KL, in nats) from the top: "
            + ", ".join(f"z{i} {kl[i]:.2f}" for i in used)
            + f". In use (KL > 0.01): {(kl > 0.01).sum()} of {net.latent}."
        )
        images = np.asarray(decode(view, z.reshape(len(used) * 11, -1)))
        return Images(images, 11, caption, tuple(f"z{i}" for i in used))

    def latent_map(view: View, key: Array) -> Scatter:
        rows = some(2000)
        mean = np.asarray(encode(view, {"x": rows["x"]}, key)["mean"], np.float64)
        flat, how = mean, "The two latent variables"
        if mean.shape[1] > 2:
            centred = mean - mean.mean(0)
            flat = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
            how = "The first two principal components of the latent means"
        told = "y" in rows and "test" not in dataset.info["hidden"]
        labels = rows["y"] if told else np.zeros(len(flat), np.int32)
        names = tuple(dataset.info["class_names"] or ()) if told else ()
        coloured = ", coloured by class; no label was trained on" if told else ""
        return Scatter(flat, labels, f"{how} of {len(flat)} test images{coloured}.", names)

    drawn = {"samples": samples, "reconstructions": reconstructions, "traversal": traversal, "latent_map": latent_map}
    return of_first_seed(drawn)
