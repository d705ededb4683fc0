"""Language models of running text: the next token, or hidden ones. Floor 5."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from umbrella import losses, metrics, models, settings
from umbrella.data import Dataset, corpus, sequences, tokenizers
from umbrella.data.tokenizers import Tokenizer
from umbrella.experiment import Experiment, Review, RunSettings
from umbrella.objective import Array, Batch, Transform, View, chain, map_batch, measure, supervised
from umbrella.pipelines import _classes, _ngrams, _writing
from umbrella.pipelines._standard import Problem, Resolve, assemble
from umbrella.settings import Count, Fraction, Natural, SettingsError
from umbrella.transforms import mask_tokens

FITTING = ("l1", "l2", "lora", "sam")
GIVEN = {"gpt": ("words", "length"), "recurrent_lm": ("words",), "bert": ("words", "length")}
OF_TASK = {"next": ("gpt", "recurrent_lm"), "masked": ("bert",)}


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment."""
    return assemble(config, problem, corpus.load)


class Corpus(NamedTuple):
    """The splits as tokens, each with what stands before it."""

    tokenizer: Tokenizer
    parts: dict[str, sequences.Tokens]  # train, validation, test, train_eval
    characters: dict[str, int]  # of each


def problem(
    dataset: Dataset,
    log: dict[str, Any],
    *,
    model: dict,
    task: Literal["next", "masked"] = "next",
    tokens: Literal["char", "whitespace", "bpe"] = "char",
    vocabulary: Natural = 0,
    length: Count = 128,
    stride: Natural = 0,
    hidden: Fraction = 0.15,
    sample: dict | None = None,
    baselines: bool | tuple[str, ...] = True,
) -> Problem:
    """Cross-entropy of the next token, or of hidden ones; every token of test is scored once.

    Args:
      task: what is to be told: the "next" token from those before it, or "masked" ones from both sides.
      tokens: what text is cut into, by a tokenizer that is learnt from the training text and kept with every
        checkpoint: "char", "whitespace" (words; what stood between them is forgotten) or "bpe" (byte pairs; any text).
      vocabulary: how many tokens there are, five special ones among them; 0 for all characters or words. "bpe" needs
        it.
      length: tokens of a row.
      stride: in evaluation a model that sees so many tokens at most is moved by `stride`, and scores as many; the
        others it sees as context. 0 for half of the length.
      hidden: the share of tokens that is hidden when the task is "masked".
      sample: how text is written: see umbrella.pipelines._writing.Writing.
      baselines: names of rivals: kneser_ney_N for an N-gram model with N from 1 to 7.
    """
    asked = settings.call(_writing.writing, sample or {}, "sample.")
    log["sample"] = asked._asdict()
    if model.get("name") not in OF_TASK[task] and model.get("name") in GIVEN:
        raise SettingsError(
            f"config.model.name: {model['name']!r} is not for the task {task!r} (one of: {', '.join(OF_TASK[task])})"
        )
    found = read(dataset, tokens, vocabulary, length)
    given = {"words": found.tokenizer.size, "length": length}
    mine = {k: given[k] for k in GIVEN.get(str(model.get("name")), ())}
    net = models.build(model, only=OF_TASK[task], log=log, **mine)
    stateful = getattr(net, "stateful", False)
    base = measure(accuracy=metrics.accuracy, bits_per_character=bits_per_character)(
        supervised(net, losses.cross_entropy)
    )
    rivals = _ngrams.chosen(baselines, found.tokenizer.size)

    def feed(run: RunSettings) -> Any:
        return (sequences.tracks if stateful else sequences.windows)(found.parts["train"], run.batch_size)

    def told(split: str, size: int) -> Iterable[Batch]:
        part = found.parts[split]
        if stateful:
            made: Any = sequences.following(part, size, warm=length)
        else:
            made = sequences.sliding(part, size, length if task == "masked" else stride or max(1, length // 2))
        return per_character(made, found.characters[split] / len(part.tokens))

    alone = net.clone(stateful=False) if stateful else net

    def logits_of(resolve: Resolve, view: View, x: Array) -> Array:
        return alone.apply({"params": resolve(view.params, view.state)["model"]}, x, train=False)

    def predict(resolve: Resolve) -> Callable[[View, Batch, Array], dict[str, Array]]:
        return lambda view, rows, key: {"nats": losses.cross_entropy(logits_of(resolve, view, rows["x"]), rows["y"])}

    def review(resolve: Resolve) -> Callable[[View, Array], Review]:
        run, test = _classes.in_turn(logits_of, resolve), found.parts["test"]

        def of(views: View, key: Array) -> Review:
            if task == "masked":
                shown = [("guesses", _writing.guesses(run, views, test, found.tokenizer))]
                return Review({"test": _writing.one_hidden(run, views, test)}, shown)
            return Review({}, written(resolve, run, views, key))

        def written(resolve: Resolve, run: Any, views: View, key: Array) -> Iterator[tuple[str, Any]]:
            first = views.lane(0)
            if asked.length:
                effective = View(resolve(first.params, first.state), first.state)
                yield "text", _writing.write(net, effective, found.tokenizer, asked, key)
            yield "context", _writing.by_context(run, views, test)

        return of

    splits: dict[str, Any] = {s: found.parts[s] for s in ("train", "validation", "test")}
    return Problem(
        columns=("x", "y", "fresh"),
        outer=outer(task, stateful, found.tokenizer.size, hidden),
        base=base,
        context={"classes": found.tokenizer.size, "bounds": None},
        review=review,
        predict=predict,
        asks=("x", "y"),
        baselines=lambda: _ngrams.scores(
            found.parts["train"].tokens,
            found.parts["test"].before,
            found.parts["test"].tokens,
            found.tokenizer.size,
            found.characters["test"],
            rivals,
            masked=task == "masked",
        ),
        better="loss",
        dataset=dataset._replace(**splits),
        notes=notes(dataset, found),
        fitting=FITTING,
        feed=feed,
        told=told,
        kept={"tokenizer": found.tokenizer.to_json()},
    )


def read(dataset: Dataset, kind: str, vocabulary: int, length: int) -> Corpus:
    """The text as tokens, by a tokenizer of the training text.

    Raises:
      SettingsError: a vocabulary that the text does not give, or a split of fewer tokens than a row.
    """
    if kind == "bpe" and not vocabulary:
        raise SettingsError("config.vocabulary: byte pairs need to know how many tokens there are to be; say 1000")
    text = {s: corpus.text_of(getattr(dataset, s).column("x")) for s in ("train", "validation", "test")}
    try:
        tokenizer = tokenizers.train(kind, [text["train"]], size=vocabulary or None)
    except SettingsError as error:
        raise SettingsError(f"config.vocabulary: {error}") from None
    cut = {s: tokenizer.encode(t) for s, t in text.items()}
    both = np.concatenate([cut["train"], cut["validation"]])
    past = {"train": both[:0], "validation": cut["train"], "test": both}
    # As much of train as validation has, from its middle: for the gap between the two.
    n = min(len(cut["validation"]), len(cut["train"]) // 4)
    start = len(cut["train"]) // 2
    cut["train_eval"], past["train_eval"] = cut["train"][start : start + n], cut["train"][:start]
    parts = {s: sequences.Tokens(cut[s], length, past[s][-2 * length :]) for s in cut}
    if len(past["train_eval"]) < 2 * length:
        raise SettingsError(
            f"config.length: {length:,}: the training text has {len(cut['train']):,} tokens; wanted four rows at least"
        )
    characters = {s: len(tokenizer.decode(p.tokens)) for s, p in parts.items()}
    return Corpus(tokenizer, parts, characters)


def outer(task: str, stateful: bool, size: int, hidden: float) -> Transform:
    """The task of a batch of tokens and their next ones."""
    parts = []
    if task == "masked":
        parts.append(mask_tokens(tokenizers.MASK, (tokenizers.MASK + 1, size), rate=hidden))
    if stateful:
        parts.append(
            map_batch(lambda b, key: {**b, "x": {"tokens": b["x"], "fresh": b["fresh"]}}, name="fresh", eval=True)
        )
    return chain(*parts)


def bits_per_character(logits: Array, batch: Batch) -> metrics.Mean:
    """Nats of all tokens by ln 2 and the number of characters that they are; of a training batch, by that of tokens."""
    nats = losses.cross_entropy(logits, batch["y"])
    mask = metrics.mask_of(batch, nats)
    count = jnp.sum(mask)
    width = jnp.mean(batch["characters"]) if "characters" in batch else jnp.ones((), nats.dtype)
    return metrics.Mean(jnp.sum(jnp.where(mask > 0, mask * nats, 0)) / math.log(2), count * width)


class per_character:
    """Batches that know how many characters a token of their split has on average: "characters" f32[B]."""

    def __init__(self, batches: Any, width: float):
        self.batches, self.width = batches, np.float32(width)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for batch in self.batches:
            yield {**batch, "characters": np.full(len(batch["fresh"]), self.width)}


def notes(dataset: Dataset, found: Corpus) -> tuple[str, ...]:
    """What is said at the start: which text it is, and what test has that the tokenizer never saw."""
    said = []
    if dataset.name == "docstrings":
        said.append(
            "The text is what NumPy, SciPy and scikit-learn say of themselves; give your own: --config.data.path=FILE"
        )
    if lost := int(np.sum(found.parts["test"].tokens == tokenizers.UNKNOWN)):
        said.append(
            f"{lost:,} of {len(found.parts['test'].tokens):,} tokens of test do not occur in train: they count as the "
            "unknown token."
        )
    return tuple(said)
