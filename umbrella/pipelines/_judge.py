"""Models that are trained on the side, once, and kept: the classifier whose features samples are judged by, and a
rival that draws samples, too. Floor 5."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from umbrella import environment, models, pipelines
from umbrella.data import cache
from umbrella.evaluation import evaluate
from umbrella.experiment import Experiment
from umbrella.objective import Array, Ctx, View
from umbrella.settings import Count, Length, Positive
from umbrella.step import train_step
from umbrella.train_state import TrainState, create

CHUNK = 500  # images that a program sees at once
PLACES = ("path", "cache", "in_memory")  # settings of a data set that do not decide what is in it


class Trained(NamedTuple):
    """A model that was trained on the side."""

    experiment: Experiment
    view: View
    fingerprint: str  # of the numbers: equal for equal models
    accuracy: float  # on the test split; NaN for what is no classifier


class Judge(NamedTuple):
    """A classifier as what it sees in images."""

    look: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # u8[N, H, W, C] -> (features f32[N, D], labels i64[N])
    classes: int
    fingerprint: str
    accuracy: float


def classifier(
    *,
    widths: tuple[Count, ...] = (16, 32, 64),
    features: Count = 64,
    train_for: Length = "2 epochs",
    batch_size: Count = 128,
    learning_rate: Positive = 3e-3,
) -> dict[str, Any]:
    """The config of a small convolutional classifier, but for its data: AdamW, cosine.

    Args:
      widths: channels of its stages.
      features: width of the layer before the last, whose outputs, before the ReLU, are the features. Every class pulls
        them somewhere else, and each of them is nearer to normal than it would be behind the ReLU.
    """
    return {
        "pipeline": "vision",
        "model": {"name": "cnn", "widths": widths, "head": "flat", "hidden": (features,)},
        "optimizer": {"name": "adamw", "learning_rate": learning_rate, "schedule": "cosine", "weight_decay": 1e-2},
        "batch_size": batch_size,
        "train_for": train_for,
        "evals": {"test": ()},
        "baselines": False,
    }


def autoencoder(
    *,
    latent: Count = 20,
    hidden: tuple[Count, ...] = (400, 200),
    train_for: Length = "20 epochs",
    batch_size: Count = 128,
    learning_rate: Positive = 2e-3,
) -> dict[str, Any]:
    """The config of the rival, but for its data: a small dense VAE, which draws images as their mean pixels."""
    return {
        "pipeline": "generative",
        "model": {"name": "vae", "latent": latent, "hidden": hidden, "activation": "tanh"},
        "optimizer": {"name": "adam", "learning_rate": learning_rate, "schedule": "cosine"},
        "batch_size": batch_size,
        "train_for": train_for,
        "evals": {},
        "baselines": False,
    }


def judge(config: Mapping[str, Any], of: Mapping[str, Any]) -> Judge:
    """The classifier of `config` on the training split of the data settings `of`, trained when it is not kept yet."""
    made = trained(config, of)
    ex, scale = made.experiment, float(made.experiment.dataset.info["scale"])
    path = "model/hidden_0"

    @jax.jit
    def one(view: View, x: Array) -> tuple[Array, Array]:
        ctx = Ctx(jax.random.key(0), jnp.int32(0), train=False).asking(path)
        batch = {"x": x, "y": jnp.zeros(x.shape[0], jnp.int32)}
        aux = ex.objective.apply(view.params, view.state, batch, ctx)[1]
        return aux.features[path], jnp.argmax(aux.outputs, -1)

    def look(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert images.dtype == np.uint8 and images.max(initial=0) <= scale
        parts = in_chunks(lambda x: one(made.view, x), images)
        return parts[0], parts[1].astype(np.int64)

    return Judge(look, int(ex.dataset.info["classes"]), made.fingerprint, made.accuracy)


def vae_sampler(config: Mapping[str, Any], of: Mapping[str, Any]) -> Callable[[int], np.ndarray]:
    """n -> f32[n, H, W, C] in [0, 1]: the mean pixels of codes that are drawn from the prior."""
    made = trained(config, of)
    shape = tuple(made.experiment.dataset.info["shape"])
    net = models.build(made.experiment.settings["model"], only=("vae",), shape=shape, likelihood="bernoulli")

    @jax.jit
    def one(params: Any, z: Array) -> Array:
        return jax.nn.sigmoid(net.apply({"params": params}, z, method="decode"))

    def draw(n: int) -> np.ndarray:
        z = np.random.default_rng(0).standard_normal((n, net.latent), np.float32)
        return in_chunks(lambda part: (one(made.view.params["model"], part),), z)[0]

    return draw


def trained(config: Mapping[str, Any], of: Mapping[str, Any]) -> Trained:
    """The model of a config with seed 0 on the data settings `of`: from the cache where it has been trained before.

    What is kept is a row of numbers under the project's data cache, sealed like a decoded set and named by the data's
    fingerprint, everything in the config, and the versions and the kind of device that would train it. The last
    parameters count.
    """
    ex = pipelines.build({**config, "data": dict(of), "seed": 0})
    template = jax.eval_shape(lambda: _start(ex))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), View(template.params, template.state))
    flat, unravel = ravel_pytree(zeros)

    def make() -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        view = fitted(ex).view()
        told = {"accuracy": None}
        if "test" in ex.evals:
            told = evaluate(ex.evals["test"].objective, view, ex.evals["test"].batches, jax.random.key(0))
        numbers = np.asarray(ravel_pytree(view)[0])
        return {"model": {"numbers": numbers}}, {"accuracy": told["accuracy"]}

    splits, info = cache.keep(f"model-{_key(ex)}", make)
    numbers = np.asarray(splits["model"].column("numbers"))
    if numbers.shape != flat.shape:  # of another version of the model, whose settings are the same
        kept, info = make()
        numbers = kept["model"]["numbers"]
    accuracy = float("nan") if info["accuracy"] is None else float(info["accuracy"])
    return Trained(ex, unravel(jnp.asarray(numbers)), _digest(numbers.tobytes()), accuracy)


def fitted(ex: Experiment) -> TrainState:
    """The state of an experiment after its last step: on one device, without a workdir, without a word."""
    ts, resident = jax.jit(lambda: _start(ex))(), jax.device_put(ex.train_data.resident)
    run = train_step(ex.step, fetch=ex.train_data.fetch)
    with contextlib.closing(ex.train_data.stream((ex.run.seed,), 0, ex.durations.total)) as slots:
        for slot in slots:
            ts, _ = run(ts, ex.frozen, resident, slot)
    return ts


def _start(ex: Experiment) -> TrainState:
    batch = ex.train_data.fetch(ex.train_data.resident, ex.train_data.slot(ex.run.seed, 0))
    return create(ex.init, ex.step, jax.random.key(ex.run.seed), batch, ex.frozen)


def _key(ex: Experiment) -> str:
    of = {k: v for k, v in ex.settings["data"].items() if k not in PLACES}
    told = [ex.dataset.fingerprint, {**ex.settings, "data": of}, environment.versions(), jax.default_backend()]
    return _digest(json.dumps(told, sort_keys=True, default=str).encode())


def _digest(of: bytes) -> str:
    return hashlib.blake2b(of, digest_size=8).hexdigest()


def in_chunks(fn: Callable[[Any], tuple[Array, ...]], rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """fn of all rows, CHUNK at a time: one compilation, since the last chunk is filled up with its last row."""
    parts = []
    for start in range(0, len(rows), CHUNK):
        at = np.arange(start, start + CHUNK).clip(max=len(rows) - 1)
        parts.append(jax.device_get(fn(rows[at])))
    return tuple(np.concatenate(p)[: len(rows)] for p in zip(*parts, strict=True))
