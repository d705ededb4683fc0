"""Classifying images. Floor 5."""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import data, losses, metrics, models, settings
from umbrella.artifacts import Images
from umbrella.baselines import chosen, classification, on_parts
from umbrella.data import Dataset, scaling
from umbrella.experiment import Experiment, Review
from umbrella.objective import Array, Ctx, View, measure, supervised
from umbrella.pipelines import _attacked, _classes, _memory
from umbrella.pipelines._standard import Problem, Resolve, assemble, scale_of
from umbrella.robustness import Plan, bench, check_bound, plan
from umbrella.settings import SettingsError
from umbrella.transforms import pixels
from umbrella.transforms.standardise import scaled, standardise

CLASSIFIERS = ("cifar_fast", "cnn", "lenet", "mlp", "resnet", "rows", "vit")


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment."""
    return assemble(config, problem)


def problem(
    dataset: Dataset,
    log: dict[str, Any],
    *,
    model: dict,
    normalise: Literal["none", "minmax", "zscore", "robust", "channel"] = "none",
    baselines: bool | tuple[str, ...] = True,
    robustness: dict | None = None,
) -> Problem:
    """Cross-entropy of a classifier of images with pixels in [0, 1]; measures accuracy.

    Args:
      normalise: what the model makes of them first, by numbers of the training split that are saved with it.
      baselines: names of umbrella.baselines.CLASSIFIERS; True for the usual ones.
      robustness: attacks on the test rows at the end, see `umbrella.robustness.plan`; none when None.
    """
    rivals = chosen(baselines)
    attacked = None if robustness is None else settings.call(plan, robustness, "robustness.")
    if dataset.info["kind"] != "image" or not dataset.info["classes"]:
        raise SettingsError(f"config.data.name: {dataset.name!r} holds no labelled images, which this pipeline needs")
    classes, scale = dataset.info["classes"], scale_of(dataset)
    _classes.check_labels(dataset)
    net = models.build(model, only=CLASSIFIERS, log=log, out=classes)
    base = supervised(net, losses.cross_entropy)
    if normalise != "none":
        base = standardise(*scaling.fit(normalise, dataset.train, unit=scale))(base)
    base = measure(accuracy=metrics.accuracy)(base)
    names = tuple(dataset.info["class_names"] or (str(i) for i in range(classes)))
    hidden = dataset.info["hidden"]

    def logits_of(resolve: Resolve, view: View, x: Array) -> Array:
        return of_pixels(resolve, view, x.astype(jnp.float32) * (1 / scale))

    def of_pixels(resolve: Resolve, view: View, x: Array) -> Array:
        """x f32[B, H, W, C] in [0, 1]."""
        params = resolve(view.params, view.state)["model"]
        if normalise != "none":
            x = scaled(view.state["input"], x)
        return net.apply({"params": params, **view.state.get("model", {})}, x, train=False)

    if attacked is not None and attacked.bound != "none":
        row = jax.ShapeDtypeStruct((1, *dataset.info["shape"]), jnp.float32)
        shapes = jax.eval_shape(lambda x: base.init({"x": x}, Ctx(jax.random.key(0), jnp.int32(0))), row)
        check_bound(attacked, partial(of_pixels, lambda params, state: params), View(*shapes), row)

    def review(resolve: Resolve) -> Callable[[View, Array], Review]:
        run = _classes.in_turn(logits_of, resolve)

        def of(views: View, key: Array) -> Review:
            if "test" in hidden:
                return Review({}, ())
            test = _classes.told(run, views, dataset.test)
            seen = len(dataset.validation) and "validation" not in hidden
            held = _classes.told(run, views, dataset.validation) if seen else None
            made = _classes.review(test, held, names)
            made = made._replace(artifacts=(*made.artifacts, ("mistakes", mistakes(test))))
            if isinstance(net, models.Rows):
                figure = _memory.figure(net, of_pixels, resolve, views, some(_memory.ROWS), key)
                made = made._replace(artifacts=itertools.chain(made.artifacts, figure))
            return made if attacked is None else under_attack(attacked, made, views, key)

        def under_attack(plan: Plan, made: Review, views: View, key: Array) -> Review:
            logits = partial(of_pixels, resolve)
            found = bench(plan, logits, views, *some(plan.rows), key)
            more = _attacked.figures(found, logits, views, names)
            return made._replace(
                metrics={**made.metrics, **_attacked.numbers(found)}, artifacts=itertools.chain(more, made.artifacts)
            )

        return of

    def some(rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Test images f32[N, H, W, C] in [0, 1] and labels i32[N], drawn: many sets lie class by class."""
        drawn = dataset.test.__getitems__(data.sample(len(dataset.test), rows))
        return (drawn["x"] / scale).astype(np.float32), np.asarray(drawn["y"], np.int32)

    def mistakes(test: _classes.Told) -> Images:
        probabilities = np.nan_to_num(test.probabilities).mean(0)
        label, y = probabilities.argmax(-1), test.y
        sure = probabilities.max(-1) * (label != y)
        worst = [i for i in np.argsort(-sure, kind="stable")[:30] if sure[i] > 0] or [0]
        told = ", ".join(f"{names[y[i]]}→{names[label[i]]}" for i in worst[:10])
        who = "it is" if len(test.logits) == 1 else f"the {len(test.logits)} seeds together are"
        caption = f"The test examples {who} wrong about and most sure of (true→predicted, the first ten: {told})."
        if sure[worst[0]] == 0:
            caption = "No test example is classified wrongly; here is the first."
        return Images(dataset.test.__getitems__(np.asarray(worst))["x"] / scale, 10, caption)

    return Problem(
        columns=("x", "y"),
        outer=pixels(scale),
        base=base,
        context={"classes": classes, "bounds": (0.0, 1.0), "on": "x", "where": None},
        review=review,
        predict=_classes.predictor(logits_of),
        baselines=lambda: on_parts(
            lambda train, test: classification(train, test, scale, rivals), dataset.train, dataset.test
        ),
        better="accuracy",
        on_test=("robustness",) * (attacked is not None),
        notes=("Nothing is attacked: the labels of the test split are withheld.",)
        * bool(attacked and "test" in hidden),
    )
