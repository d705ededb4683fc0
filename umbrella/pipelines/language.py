"""Language models of running text: the next token, or hidden ones. Floor 5."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from umbrella import losses, metrics, models, settings
from umbrella.data import Dataset, corpus, sequences, tokenizers
from umbrella.data.tokenizers import MASK, Tokenizer
from umbrella.experiment import Experiment, Review, RunSettings
from umbrella.objective import (
    Array,
    Aux,
    Batch,
    Ctx,
    Objective,
    Params,
    State,
    Transform,
    View,
    chain,
    map_batch,
    measure,
    supervised,
)
from umbrella.pipelines import _classes, _ngrams, _writing
from umbrella.pipelines._learnt import learnt
from umbrella.pipelines._standard import Problem, Resolve, assemble
from umbrella.settings import Count, Fraction, Natural, SettingsError
from umbrella.transforms import hide, mask_tokens

FITTING = ("l1", "l2", "label_smoothing", "lora", "sam")
GIVEN = {
    "gpt": ("words", "length", "apart"),
    "recurrent_lm": ("words",),
    "bert": ("words", "length"),
    "cloze": ("words", "length"),
}
OF_TASK = {"next": ("gpt", "recurrent_lm"), "masked": ("bert", "cloze")}


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment."""
    return assemble(config, problem, corpus.load)


class Corpus(NamedTuple):
    """The splits as tokens, each with what stands before it."""

    tokenizer: Tokenizer
    parts: dict[str, sequences.Tokens]  # train, validation, test, train_eval
    lossless: bool  # whether the tokens of test are its text, to the last character
    packed: bool = False  # whether every line is a text, whose end is a token

    def width(self, split: str) -> float | None:
        """Characters of a token of a split on average; None where tokens forget what they were."""
        part = self.parts[split]
        ends = int(np.sum(part.tokens == tokenizers.END))  # of lines, which are characters of the text
        return (len(self.tokenizer.decode(part.tokens)) + ends) / len(part.tokens) if self.lossless else None


def problem(
    dataset: Dataset,
    log: dict[str, Any],
    *,
    model: dict,
    task: Literal["next", "masked"] = "next",
    tokenizer: str | None = None,
    tokens: Literal["char", "whitespace", "bpe"] = "char",
    vocabulary: Natural = 0,
    packed: bool = False,
    length: Count = 128,
    stride: Natural = 0,
    hidden: Fraction = 0.15,
    sample: dict | None = None,
    baselines: bool | tuple[str, ...] = True,
) -> Problem:
    """Cross-entropy of the next token, every one of test once; or of hidden ones, a random share of test's, and, in the
    review, of one hidden at a time.

    Args:
      task: what is to be told: the "next" token from those before it, or "masked" ones from both sides.
      tokenizer: the workdir of another run, whose tokenizer is taken; then `tokens` and `vocabulary` say nothing. With
        --init_from the model goes on from there, too.
      tokens: what text is cut into, by a tokenizer that is learnt from the training text and kept with every
        checkpoint: "char", "whitespace" (words; what stood between them is forgotten) or "bpe" (byte pairs; any text).
      vocabulary: how many tokens there are, five special ones among them; 0 for all characters or words. "bpe" needs
        it.
      packed: every line is a text of its own. Several lie in a row, one after the other, and none sees another; the
        end of each is a token, which is told like any other. For gpt.
      length: tokens of a row.
      stride: in evaluation a model that sees so many tokens at most is moved by `stride`, and scores as many; the
        others it sees as context. 0 for half of the length.
      hidden: the share of tokens that is hidden when the task is "masked"; 0 for cloze, which tells every token from
        the others and never sees it.
      sample: how text is written: see umbrella.pipelines._writing.Writing.
      baselines: names of rivals: kneser_ney_N for an N-gram model with N from 1 to 7.
    """
    asked = settings.call(_writing.writing, sample or {}, "sample.")
    log["sample"] = asked._asdict()
    if model.get("name") not in OF_TASK[task] and model.get("name") in GIVEN:
        raise SettingsError(
            f"config.model.name: {model['name']!r} is not for the task {task!r} (one of: {', '.join(OF_TASK[task])})"
        )
    if packed and model.get("name") != "gpt":
        raise SettingsError(
            f"config.packed: keeps the texts of a row apart for the model 'gpt'; {model.get('name')!r} would see all"
        )
    found = read(dataset, None if tokenizer is None else learnt(tokenizer), tokens, vocabulary, length, packed)
    _writing.check_prompt(asked, found.tokenizer)
    given = {"words": found.tokenizer.size, "length": length, "apart": tokenizers.END if packed else -1}
    mine = {k: given[k] for k in GIVEN.get(str(model.get("name")), ())}
    net = models.build(model, only=OF_TASK[task], log=log, **mine)
    stateful, blind = getattr(net, "stateful", False), getattr(net, "blind", False)
    if task == "masked" and blind != (hidden == 0):
        what = "needs no token hidden: set it to 0" if blind else "learns from hidden tokens alone: set it above 0"
        raise SettingsError(f"config.hidden: {hidden:g}: the model {model['name']!r} {what}")
    base = in_characters(measure(accuracy=metrics.accuracy)(supervised(net, losses.cross_entropy)))
    rivals = _ngrams.chosen(baselines, found.tokenizer.size)

    def feed(run: RunSettings) -> Any:
        return (sequences.tracks if stateful else sequences.windows)(found.parts["train"], run.batch_size)

    def told(split: str, size: int) -> Iterable[Batch]:
        part = found.parts[split]
        if stateful:
            made: Any = sequences.following(part, size, warm=length)
        else:
            made = sequences.sliding(part, size, length if task == "masked" else stride or max(1, length // 2))
        return told_batches(made, found.width(split), masked=task == "masked")

    alone = net.clone(stateful=False) if stateful else net

    def logits_of(resolve: Resolve, view: View, x: Array) -> Array:
        return alone.apply({"params": resolve(view.params, view.state)["model"]}, x, train=False)

    def predict(resolve: Resolve) -> Callable[[View, Batch, Array], dict[str, Array]]:
        def of_next(view: View, rows: Batch, key: Array) -> dict[str, Array]:
            return {"nats": losses.cross_entropy(logits_of(resolve, view, rows["x"]), rows["y"])}

        def of_hidden(view: View, rows: Batch, key: Array) -> dict[str, Array]:
            if blind:
                seen, chosen = rows["y"], jnp.ones(rows["y"].shape, bool)
            else:
                seen, chosen = hide(rows["y"], key, MASK, (MASK + 1, found.tokenizer.size), rate=hidden)
            nats = losses.cross_entropy(logits_of(resolve, view, seen), rows["y"])
            return {"hidden": chosen, "nats": jnp.where(chosen, nats, jnp.nan)}

        return of_hidden if task == "masked" else of_next

    def review(resolve: Resolve) -> Callable[[View, Array], Review]:
        run, test = _classes.in_turn(logits_of, resolve), found.parts["test"]

        def of(views: View, key: Array) -> Review:
            if task == "masked":
                shown = [("guesses", _writing.guesses(run, views, test, found.tokenizer))]
                return Review({"test": _writing.one_hidden(run, views, test, found.tokenizer.size)}, shown)
            return Review({}, written(resolve, run, views, key))

        def written(resolve: Resolve, run: Any, views: View, key: Array) -> Iterator[tuple[str, Any]]:
            first = views.lane(0)
            if asked.length:
                effective = View(resolve(first.params, first.state), first.state)
                yield "text", _writing.write(net, effective, found.tokenizer, test.before, asked, key)
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
            found.width("test"),
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


def read(
    dataset: Dataset, given: Tokenizer | None, kind: str, vocabulary: int, length: int, packed: bool = False
) -> Corpus:
    """The text as tokens, by the tokenizer given or one of the training text.

    Raises:
      SettingsError: a vocabulary that the text does not give, or a split of fewer tokens than a row.
    """
    if given is None and kind == "bpe" and not vocabulary:
        raise SettingsError("config.vocabulary: byte pairs need to know how many tokens there are to be; say 1000")
    text = {s: corpus.text_of(getattr(dataset, s).column("x")) for s in ("train", "validation", "test")}
    try:
        tokenizer = given or tokenizers.train(kind, [text["train"]], size=vocabulary or None)
    except SettingsError as error:
        raise SettingsError(f"config.vocabulary: {error}") from None
    cut = {s: encoded(tokenizer, t, packed) for s, t in text.items()}
    whole = "".join(lines_of(text["test"])) if packed else text["test"]
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
    return Corpus(tokenizer, parts, tokenizer.decode(cut["test"]) == whole, packed)


def encoded(tokenizer: Tokenizer, text: str, packed: bool) -> np.ndarray:
    """i32[N]; when packed END, then each line and END again, in the place of the ends of lines."""
    if not packed:
        return tokenizer.encode(text)
    end = np.array([tokenizers.END], np.int32)
    each = [part for line in lines_of(text) for part in (tokenizer.encode(line), end)]
    return np.concatenate([end, *each]) if each else end


def lines_of(text: str) -> list[str]:
    """Lines that are not blank."""
    return [line for line in text.split("\n") if line.strip()]


def outer(task: str, stateful: bool, size: int, hidden: float) -> Transform:
    """The task of a batch of tokens and their next ones."""
    parts = []
    if task == "masked" and hidden:
        parts.append(mask_tokens(MASK, (MASK + 1, size), rate=hidden))
    elif task == "masked":
        parts.append(map_batch(lambda b, key: {**b, "y": b["x"]}, name="every_token", eval=True))
    if stateful:
        parts.append(
            map_batch(lambda b, key: {**b, "x": {"tokens": b["x"], "fresh": b["fresh"]}}, name="fresh", eval=True)
        )
    return chain(*parts)


def bits_per_character(logits: Array, batch: Batch) -> metrics.Mean:
    """Nats of all tokens by ln 2 and the number of characters that they are."""
    nats = losses.cross_entropy(logits, batch["y"])
    mask = metrics.mask_of(batch, nats)
    total = jnp.sum(jnp.where(mask > 0, mask * nats, 0)) / math.log(2)
    return metrics.Mean(total, jnp.sum(mask) * jnp.mean(batch["characters"]))


def in_characters(o: Objective) -> Objective:
    """Measures bits per character where a batch knows how many characters its tokens are, as in evaluations."""
    measured = measure(bits_per_character=bits_per_character)(o)

    def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        return (measured if "characters" in batch else o).apply(params, state, batch, ctx)

    return o._replace(apply=apply)


class told_batches:
    """Evaluation batches that know how many characters a token of their split is on average: "characters" f32[B].

    Args:
      width: that number; nothing is added when None.
      masked: whether what is to be told is hidden in the targets, and not what comes after x.
    """

    def __init__(self, batches: Any, width: float | None, masked: bool):
        self.batches, self.width, self.masked = batches, width, masked

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for batch in self.batches:
            if self.masked:  # the mask is of the targets: with these as x, every token of the split may be hidden
                batch = {**batch, "x": batch["y"]}
            more = {} if self.width is None else {"characters": np.full(len(batch["fresh"]), self.width, np.float32)}
            yield {**batch, **more}


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
    if not found.lossless:
        said.append("Tokens of test are not all of its text, so there are no bits per character.")
    return tuple(said)
