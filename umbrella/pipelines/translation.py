"""Translating short texts, or any other task from a text to a text. Floor 5."""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from umbrella import losses, metrics, models, settings
from umbrella.data import Arrays, Data, Dataset, pairs, tokenizers
from umbrella.data import buckets as lengths
from umbrella.data.tokenizers import PAD, Tokenizer
from umbrella.experiment import Experiment, RunSettings
from umbrella.objective import Array, Batch, map_batch, measure, supervised
from umbrella.pipelines import _translated
from umbrella.pipelines._standard import Problem, assemble
from umbrella.pipelines._translating import Translation, search
from umbrella.settings import Natural, SettingsError

COLUMNS = ("x", "target_in", "y", "mask")
GIVEN = {"seq2seq": ("words",), "transformer_seq2seq": ("words", "length")}
FITTING = ("l1", "l2", "label_smoothing", "lora", "sam")
LONGEST = 99  # percentile of the training texts' tokens


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment."""
    return assemble(config, problem, pairs.load)


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

    Measures, at the end, on validation and test: bleu, chrf, bleu_one_reference and exact_accuracy of the translations
    of every distinct source (see umbrella.pipelines._translated.scored); of several seeds on test also as "ensemble",
    where the next token's probabilities are the mean of theirs.

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
    made = Translation(net, found.tokenizer, how, found.lengths, known)

    return Problem(
        columns=COLUMNS,
        outer=map_batch(both_sides, name="both_sides", eval=True),
        base=base,
        context={"classes": size, "bounds": None},
        review=made.review,
        predict=made.predict,
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
