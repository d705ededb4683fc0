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
from umbrella.pipelines._standard import Problem, Resolve, assemble, everything
from umbrella.settings import SettingsError
from umbrella.transforms import pixels


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment."""
    return assemble(config, problem)


def problem(dataset: Dataset, log: dict[str, Any], *, model: dict) -> Problem:
    """Cross-entropy of a classifier of images with pixels in [0, 1]; measures accuracy."""
    if dataset.info["kind"] != "image" or not dataset.info["classes"]:
        raise SettingsError(f"config.data.name: {dataset.name!r} holds no labelled images, which this pipeline needs")
    classes, scale = dataset.info["classes"], float(dataset.info["scale"])
    net = models.build(model, only=("mlp",), log=log, out=classes)
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

        def on_test(view: View, key: Array) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
            rows = everything(dataset.test)
            parts = [rows["x"][i : i + 1000] for i in range(0, len(rows["x"]), 1000)]
            probabilities = np.concatenate([np.asarray(told(view, {"x": x}, key)["probabilities"]) for x in parts])
            return rows, probabilities, probabilities.argmax(-1)

        def confusion(view: View, key: Array) -> Matrix:
            rows, _, label = on_test(view, key)
            counts = np.zeros((classes, classes))
            np.add.at(counts, (rows["y"], label), 1)
            return Matrix(counts, names, names, "Test examples by true class (rows) and predicted class (columns).")

        def mistakes(view: View, key: Array) -> Images:
            rows, probabilities, label = on_test(view, key)
            sure = probabilities.max(-1) * (label != rows["y"])
            worst = [i for i in np.argsort(-sure, kind="stable")[:30] if sure[i] > 0] or [0]
            told = ", ".join(f"{names[rows['y'][i]]}→{names[label[i]]}" for i in worst[:10])
            caption = f"The test examples it is wrong about and most sure of (true→predicted, the first ten: {told})."
            if sure[worst[0]] == 0:
                caption = "No test example is classified wrongly; here is the first."
            return Images(rows["x"][worst] / scale, 10, caption)

        return {"confusion": confusion, "mistakes": mistakes}

    return Problem(
        columns=("x", "y"),
        outer=pixels(scale),
        base=base,
        context={"classes": classes, "bounds": (0.0, 1.0)},
        artifacts=artifacts,
        predict=predict,
        baselines=lambda: baselines.classification(everything(dataset.train), everything(dataset.test), scale),
        better="accuracy",
    )
