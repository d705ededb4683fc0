"""Classifying images. Floor 5."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import baselines, losses, metrics, models
from umbrella.artifacts import Images, Matrix
from umbrella.data import Dataset
from umbrella.experiment import Experiment
from umbrella.objective import Array, Batch, View, measure, supervised
from umbrella.pipelines._standard import Problem, Resolve, assemble, scale_of
from umbrella.settings import SettingsError
from umbrella.transforms import pixels

CLASSIFIERS = ("cnn", "lenet", "mlp", "resnet")


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment."""
    return assemble(config, problem)


def problem(dataset: Dataset, log: dict[str, Any], *, model: dict) -> Problem:
    """Cross-entropy of a classifier of images with pixels in [0, 1]; measures accuracy."""
    if dataset.info["kind"] != "image" or not dataset.info["classes"]:
        raise SettingsError(f"config.data.name: {dataset.name!r} holds no labelled images, which this pipeline needs")
    classes, scale = dataset.info["classes"], scale_of(dataset)
    net = models.build(model, only=CLASSIFIERS, log=log, out=classes)
    base = measure(accuracy=metrics.accuracy)(supervised(net, losses.cross_entropy))
    names = tuple(dataset.info["class_names"] or (str(i) for i in range(classes)))

    def predict(resolve: Resolve) -> Any:
        def run(view: View, batch: Batch, key: Array) -> dict[str, Array]:
            params = resolve(view.params, view.state)["model"]
            x = batch["x"].astype(jnp.float32) * (1 / scale)
            logits = net.apply({"params": params, **view.state.get("model", {})}, x, train=False)
            return {"label": jnp.argmax(logits, -1), "probabilities": jax.nn.softmax(logits)}

        return run

    def artifacts(resolve: Resolve) -> dict[str, Any]:
        told = jax.jit(predict(resolve))

        def on_test(view: View, key: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            n, y, parts = len(dataset.test), [], []
            for i in range(0, n, 1000):  # the images of a streamed set are never in memory together
                rows = dataset.test.__getitems__(np.arange(i, min(i + 1000, n)))
                y.append(rows["y"])
                parts.append(np.asarray(told(view, {"x": rows["x"]}, key)["probabilities"]))
            probabilities = np.concatenate(parts)
            return np.concatenate(y), probabilities, probabilities.argmax(-1)

        def confusion(view: View, key: Array) -> Matrix:
            y, _, label = on_test(view, key)
            counts = np.zeros((classes, classes))
            np.add.at(counts, (y, label), 1)
            return Matrix(counts, names, names, "Test examples by true class (rows) and predicted class (columns).")

        def mistakes(view: View, key: Array) -> Images:
            y, probabilities, label = on_test(view, key)
            sure = probabilities.max(-1) * (label != y)
            worst = [i for i in np.argsort(-sure, kind="stable")[:30] if sure[i] > 0] or [0]
            told = ", ".join(f"{names[y[i]]}→{names[label[i]]}" for i in worst[:10])
            caption = f"The test examples it is wrong about and most sure of (true→predicted, the first ten: {told})."
            if sure[worst[0]] == 0:
                caption = "No test example is classified wrongly; here is the first."
            return Images(dataset.test.__getitems__(np.asarray(worst))["x"] / scale, 10, caption)

        return {} if "test" in dataset.info["hidden"] else {"confusion": confusion, "mistakes": mistakes}

    return Problem(
        columns=("x", "y"),
        outer=pixels(scale),
        base=base,
        context={"classes": classes, "bounds": (0.0, 1.0)},
        artifacts=artifacts,
        predict=predict,
        baselines=lambda: baselines.on_parts(
            lambda train, test: baselines.classification(train, test, scale), dataset.train, dataset.test
        ),
        better="accuracy",
    )
