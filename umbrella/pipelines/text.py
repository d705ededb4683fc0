"""Classifying texts. Floor 5."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import losses, metrics, models
from umbrella.artifacts import Table
from umbrella.baselines import chosen
from umbrella.data import Arrays, Dataset
from umbrella.data.words import UNKNOWN, Vocabulary, split
from umbrella.experiment import Experiment, Review
from umbrella.objective import Array, Batch, Ctx, Objective, Params, State, Transform, View, measure, supervised
from umbrella.pipelines import _classes
from umbrella.pipelines._standard import Problem, Resolve, assemble
from umbrella.settings import Count, Natural, SettingsError
from umbrella.text_baselines import TEXT_CLASSIFIERS, text_classification
from umbrella.transforms import at_embedding

CLASSIFIERS = ("bag", "text_cnn")
FITTING = ("adversarial", "awp", "l1", "l2", "label_smoothing", "lora", "noise", "sam", "trades", "vat")
SHOWN = 20


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment."""
    return assemble(config, problem)


def problem(
    dataset: Dataset,
    log: dict[str, Any],
    *,
    model: dict,
    vocabulary: Count = 20_000,
    least: Count = 1,
    length: Natural = 0,
    baselines: bool | tuple[str, ...] = True,
) -> Problem:
    """Cross-entropy of a classifier of texts, from the first so many words; measures accuracy.

    Attacks act on the vectors of words: an eps is the length of a perturbation of a whole text's.

    Args:
      vocabulary: how many words are told apart, the commonest of the training texts; the others are all one.
      least: how often a word must occur in them.
      length: words of a text that are read; 0 for as many as 99 in 100 of the training texts have.
      baselines: names of umbrella.text_baselines.TEXT_CLASSIFIERS; True for all.
    """
    rivals = chosen(baselines, TEXT_CLASSIFIERS, tuple(TEXT_CLASSIFIERS))
    if dataset.info["kind"] != "text" or not dataset.info["classes"]:
        raise SettingsError(f"config.data.name: {dataset.name!r} holds no labelled texts, which this pipeline needs")
    _classes.check_labels(dataset)
    classes, names = dataset.info["classes"], tuple(dataset.info["class_names"] or ())
    names = names or tuple(map(str, range(classes)))
    raw = {s: strings(getattr(dataset, s)) for s in ("train", "validation", "test")}
    words = Vocabulary.of(raw["train"], vocabulary, least)
    if vocabulary <= UNKNOWN + 1:
        raise SettingsError(f"config.vocabulary: {vocabulary}: padding and unknown words take two of them; say more")
    if len(words.words) <= UNKNOWN + 1:
        raise SettingsError(f"config.least: no word of the training texts occurs {least:,} times; say less")
    if not length:
        long = [len(row) for row in map(split, raw["train"])]
        length = max(1, int(np.percentile(long, 99, method="higher")))
    told = {
        s: Arrays({"x": words.encode(texts, length), "y": getattr(dataset, s).column("y")}) for s, texts in raw.items()
    }
    net = models.build(model, only=CLASSIFIERS, log=log, out=classes, words=len(words.words))
    base = measure(accuracy=metrics.accuracy)(supervised(net, losses.cross_entropy))
    if net.normalised:
        base = counted(words.counts)(base)

    def logits_of(resolve: Resolve, view: View, x: Array) -> Array:
        params = resolve(view.params, view.state)["model"]
        return net.apply({"params": params, **view.state.get("model", {})}, x, train=False)

    def review(resolve: Resolve) -> Callable[[View, Array], Review]:
        run = _classes.in_turn(logits_of, resolve)

        def of(views: View, key: Array) -> Review:
            if "test" in dataset.info["hidden"]:
                return Review({}, ())
            test = _classes.told(run, views, told["test"])
            seen = len(told["validation"]) and "validation" not in dataset.info["hidden"]
            made = _classes.review(test, _classes.told(run, views, told["validation"]) if seen else None, names)
            return made._replace(artifacts=(*made.artifacts, ("mistakes", mistakes(test, raw["test"], names))))

        return of

    return Problem(
        columns=("x", "y"),
        outer=at_embedding(net.width),
        base=base,
        context={"classes": classes, "bounds": None, "on": "x/delta", "where": "x/tokens"},
        review=review,
        predict=_classes.predictor(logits_of),
        baselines=lambda: text_classification(
            (raw["train"], told["train"].column("y")), (raw["test"], told["test"].column("y")), rivals
        ),
        better="accuracy",
        dataset=dataset._replace(train=told["train"], validation=told["validation"], test=told["test"]),
        fitting=FITTING,
    )


def strings(source: Any) -> list[str]:
    """The texts of a split."""
    return [bytes(v).decode("utf-8", "replace") for v in source.column("x")]


def counted(counts: np.ndarray) -> Transform:
    """Puts the shares of the words, from i64[V] counts, where the model's Embedding has them. Innermost by rule."""

    def wrap(o: Objective) -> Objective:
        def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
            params, state = o.init(batch, ctx)
            own = dict(state["model"])
            share = jnp.asarray(counts / counts.sum(), jnp.float32)
            own["vocabulary"] = jax.tree.map(lambda old: share.reshape(old.shape), own["vocabulary"])
            return params, {**state, "model": own}

        return o._replace(init=init)

    return wrap


def mistakes(test: _classes.Told, texts: list[str], names: tuple[str, ...]) -> Table:
    """The texts that the seeds together are most sure of and wrong about."""
    p = np.nan_to_num(test.probabilities).mean(0)
    label, sure = p.argmax(-1), p.max(-1)
    wrong = np.flatnonzero(label != test.y)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:SHOWN]
    rows = tuple((names[test.y[i]], names[label[i]], f"{sure[i]:.3f}", texts[i][:300]) for i in worst)
    caption = "The test texts that are classified wrongly with the greatest certainty."
    return Table(("true", "predicted", "probability", "text"), rows or (("", "", "", "none"),), caption)
