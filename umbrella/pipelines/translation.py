"""Translating short texts, or any other task from a text to a text. Floor 5."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import decoding, losses, metrics, models, settings
from umbrella.data import Arrays, Data, Dataset, pairs, tokenizers
from umbrella.data import buckets as lengths
from umbrella.data.tokenizers import END, PAD, START, Tokenizer
from umbrella.experiment import Experiment, Review, RunSettings
from umbrella.models.seq2seq import attention_of, begin, stepper
from umbrella.objective import Array, Batch, View, map_batch, measure, supervised
from umbrella.pipelines import _translated
from umbrella.pipelines._standard import Problem, Resolve, assemble
from umbrella.settings import Count, Natural, NonNegative, SettingsError

COLUMNS = ("x", "target_in", "y", "mask")
GIVEN = {"seq2seq": ("words",), "transformer_seq2seq": ("words", "length")}
FITTING = ("l1", "l2", "label_smoothing", "lora", "sam")
LONGEST = 99  # percentile of the training texts' tokens
MAPS = 3  # of attention
ROWS = 128  # sources that are translated at once


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment."""
    return assemble(config, problem, pairs.load)


class Search(NamedTuple):
    """How the best translation is looked for."""

    width: int
    alpha: float


def search(*, width: Count = 4, alpha: NonNegative = 0.6) -> Search:
    """Args:
    width: of the beam; 1 takes the likeliest token at a time.
    alpha: of the length penalty (see umbrella.decoding.length_penalty).
    """
    return Search(width, alpha)


class Read(NamedTuple):
    """The pairs as tokens of one vocabulary."""

    tokenizer: Tokenizer
    splits: dict[str, Arrays]  # of COLUMNS
    pairs: dict[str, pairs.Pairs]
    lengths: tuple[int, int]  # of a source and of a target, with their END
    notes: tuple[str, ...]


def problem(
    dataset: Dataset,
    log: dict[str, Any],
    *,
    model: dict,
    tokens: Literal["char", "whitespace", "bpe"] = "bpe",
    vocabulary: Natural = 1000,
    length: Natural = 0,
    buckets: Natural = 0,
    beam: dict | None = None,
    baselines: bool = True,
) -> Problem:
    """Cross-entropy of the next token of the target; test is translated by beam search at the end.

    Measures, on test: bleu, chrf, bleu_one_reference and exact_accuracy of the translations of every distinct source
    (see umbrella.pipelines._translated.scored); of several seeds also as "ensemble", where the next token's
    probabilities are the mean of theirs.

    Args:
      tokens: what texts are cut into, by one tokenizer for both languages, which is learnt from the training texts.
      vocabulary: how many tokens there are, five special ones among them; 0 for all characters or words. "bpe" needs
        it.
      length: tokens of a source and of a target, their end among them; 0 for as many as 99 in 100 of the training
        texts have. Longer pairs are left out of train, and cut in validation and test.
      buckets: training batches are of pairs of about one length, padded to a multiple of so many tokens, each shape a
        compilation; steps_per_call must then be 1. 0 pads all to `length`, which is better for short texts.
      beam: width and alpha of the search.
      baselines: the translation of the most similar source of train, and the source as it is.
    """
    found = read(dataset, tokens, vocabulary, length)
    how = settings.call(search, beam or {}, "beam.")
    log["beam"] = how._asdict()
    size = found.tokenizer.size
    given = {"words": size, "length": max(found.lengths)}
    net = models.build(
        model, only=tuple(GIVEN), log=log, **{k: given[k] for k in GIVEN.get(str(model.get("name")), ())}
    )
    base = measure(accuracy=metrics.accuracy)(supervised(net, losses.cross_entropy))
    known = {s: pairs.by_source(p) for s, p in found.pairs.items()}
    translate = translator(net, how, found.lengths[1])

    def predict(resolve: Resolve) -> Callable[[View, Batch, Array], dict[str, Array]]:
        def run(view: View, rows: Batch, key: Array) -> dict[str, Array]:
            own = {"params": resolve(view.params, view.state)["model"]}
            best, score = translate(jax.tree.map(lambda v: v[None], own), rows["x"])
            return {"tokens": best, "score": score, "text": spelt(found.tokenizer, best)}

        return run

    def review(resolve: Resolve) -> Callable[[View, Array], Review]:
        run = jax.jit(
            lambda views, x: translate({"params": jax.vmap(resolve)(views.params, views.state)["model"]}, x)[0]
        )
        sources, references = list(known["test"]), list(known["test"].values())
        x = tokenizers.padded(found.tokenizer, sources, found.lengths[0], end=True)

        def by(views: View) -> tuple[np.ndarray, list[str]]:
            rows = in_parts(functools.partial(run, views), x)
            return rows, [found.tokenizer.decode(row) for row in rows]

        def of(views: View, key: Array) -> Review:
            lanes = len(jax.tree.leaves(views)[0])
            made = [by(jax.tree.map(lambda v, k=k: v[k : k + 1], views)) for k in range(lanes)]
            each = [_translated.scored(texts, references) for _, texts in made]
            if lanes == 1:
                numbers: dict[str, dict[str, Any]] = {"test": each[0]}
            else:
                together = _translated.scored(by(views)[1], references)
                numbers = {"test": {m: [e[m] for e in each] for m in each[0]}, "ensemble": together}
            return Review(numbers, figures(views.lane(0), resolve, x, *made[0]))

        return of

    def figures(
        view: View, resolve: Resolve, x: np.ndarray, made: np.ndarray, texts: list[str]
    ) -> Iterator[tuple[str, Any]]:
        yield "translations", _translated.examples(known["test"], texts, known["train"])
        middle = np.argsort([len(t) for t in texts], kind="stable")[-MAPS * 4 :: 4]  # long ones say most
        variables = {"params": resolve(view.params, view.state)["model"]}
        given = {"source": x[middle], "target_in": _translated.shifted(made[middle])}
        weights = np.asarray(jax.jit(lambda v, g: attention_of(net, v, g))(variables, given))
        for i, row in enumerate(middle.tolist()):
            yield f"attention_{i}", _translated.heat(weights[i], x[row], made[row], found.tokenizer)

    return Problem(
        columns=COLUMNS,
        outer=map_batch(both_sides, name="both_sides", eval=True),
        base=base,
        context={"classes": size, "bounds": None},
        review=review,
        predict=predict,
        baselines=lambda: _translated.rivals(known["train"], known["test"]) if baselines else {},
        dataset=dataset._replace(
            train=found.splits["train"], validation=found.splits["validation"], test=found.splits["test"]
        ),
        notes=found.notes,
        fitting=FITTING,
        feed=functools.partial(by_length, found.splits["train"], buckets) if buckets else None,
        kept={"tokenizer": found.tokenizer.to_json()},
    )


def read(dataset: Dataset, kind: str, vocabulary: int, length: int) -> Read:
    """The pairs as tokens, by a tokenizer of the training texts of both sides.

    Raises:
      SettingsError: a vocabulary that the texts do not give; a length that leaves no training pair.
    """
    if kind == "bpe" and not vocabulary:
        raise SettingsError("config.vocabulary: byte pairs need to know how many tokens there are to be; say 1000")
    texts = {s: pairs.texts(getattr(dataset, s)) for s in pairs.SPLITS}
    try:
        both = [t for side in texts["train"] for t in dict.fromkeys(side)]
        tokenizer = tokenizers.train(kind, both, size=vocabulary or None)
    except SettingsError as error:
        raise SettingsError(f"config.vocabulary: {error}") from None
    long = {s: np.array([[len(tokenizer.encode(t)) + 1 for t in side] for side in p]) for s, p in texts.items()}
    usual = [int(n) for n in np.percentile(long["train"], LONGEST, axis=1, method="higher")]
    most = (length or usual[0], length or usual[1])
    fits: dict[str, np.ndarray] = {s: (n <= np.array(most)[:, None]).min(0) for s, n in long.items()}
    if not fits["train"].any():
        raise SettingsError(f"config.length: {length}: every training pair is longer; say more, or 0")
    notes = []
    for split, kept in fits.items():
        if out := int((~kept).sum()):
            done = "left out" if split == "train" else "cut"
            notes.append(f"{out:,} of {len(kept):,} pairs of {split} are longer than {most[0]} or {most[1]}: {done}.")
    sides = texts["train"]
    texts["train"] = pairs.Pairs(*(tuple(t for t, k in zip(s, fits["train"], strict=True) if k) for s in sides))
    splits = {s: encoded(tokenizer, p, most) for s, p in texts.items()}
    return Read(tokenizer, splits, texts, most, tuple(notes))


def encoded(tokenizer: Tokenizer, texts: pairs.Pairs, lengths: tuple[int, ...]) -> Arrays:
    """Columns "x" i32[N, S], the source and its END; "target_in" i32[N, T], START and the target; "y" i32[N, T], the
    target and its END; "mask" f32[N, T], 1 where y is no padding."""
    x = tokenizers.padded(tokenizer, texts.sources, lengths[0], end=True)
    y = tokenizers.padded(tokenizer, texts.targets, lengths[1], end=True)
    columns = {"x": x, "target_in": _translated.shifted(y), "y": y, "mask": (y != PAD).astype(np.float32)}
    return Arrays(columns)


def by_length(train: Arrays, multiple: int, run: RunSettings) -> Data:
    """Training batches of pairs of about one length.

    Raises:
      SettingsError: calls of several steps, for which their slots must have one shape.
    """
    if run.steps_per_call != 1:
        raise SettingsError("config.steps_per_call: batches of several lengths are made one at a time; set it to 1")
    source, target = ((train.column(c) > 0).sum(1) for c in ("x", "mask"))
    sides = {"source": lengths.Side(("x",), source), "target": lengths.Side(("target_in", "y", "mask"), target)}
    return lengths.bucketed(train, run.batch_size, sides, multiple=multiple)


def both_sides(batch: Batch, key: Array) -> Batch:
    """The batch with x as a model of two sides takes it."""
    rest = {k: v for k, v in batch.items() if k != "target_in"}
    return {**rest, "x": {"source": batch["x"], "target_in": batch["target_in"]}}


def translator(net: Any, how: Search, length: int) -> Callable[[Any, Array], tuple[Array, Array]]:
    """(variables of K models, each leaf [K, ...]; sources i32[B, S]) -> (the best translations i32[B, T], with their
    END, their scores f32[B]). Several models are one whose probabilities are the mean of theirs."""

    def run(variables: Any, source: Array) -> tuple[Array, Array]:
        def step(cache: Any, tokens: Array) -> tuple[Array, Any]:
            each = jax.vmap(lambda v, c: stepper(net, v)(c, tokens), in_axes=(0, 1), out_axes=(0, 1))
            logits, cache = each(variables, cache)
            log_p = jax.nn.log_softmax(logits)
            return jax.nn.logsumexp(log_p, 0) - math.log(log_p.shape[0]), cache

        found = decoding.beam(
            step,
            jax.vmap(lambda v: begin(net, v, source), out_axes=1)(variables),  # rows first, then models
            jnp.full(source.shape[0], START, jnp.int32),
            width=how.width,
            length=length,
            end=END,
            alpha=how.alpha,
            pad=PAD,
        )
        return found.tokens[:, 0], found.score[:, 0]

    return run


def in_parts(run: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """run of rows [N, ...], ROWS at a time; the last part is filled with its last row."""
    parts = []
    for start in range(0, len(x), ROWS):
        rows = np.arange(start, start + ROWS).clip(max=len(x) - 1)
        parts.append(np.asarray(run(x[rows])))
    return np.concatenate(parts)[: len(x)]


def spelt(tokenizer: Tokenizer, tokens: Array) -> Array:
    """The texts of i32[B, T] as UTF-8, u8[B, M] and zeros behind; by the host, inside of a program."""
    most = tokens.shape[1] * max(len(piece.encode()) for piece in tokenizer.pieces)

    def write(tokens: np.ndarray) -> np.ndarray:
        texts = [tokenizer.decode(row).encode() for row in np.asarray(tokens)]
        return np.stack([np.frombuffer(t.ljust(most, b"\0"), np.uint8) for t in texts])

    shape = jax.ShapeDtypeStruct((tokens.shape[0], most), jnp.uint8)
    out: Array = jax.pure_callback(write, shape, tokens)
    return out
