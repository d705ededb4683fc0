"""Translating with a trained model: the texts of predictions, and what is said of them at the end. Floor 5."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import decoding
from umbrella.data import tokenizers
from umbrella.data.tokenizers import END, PAD, START, Tokenizer
from umbrella.experiment import Review
from umbrella.models.seq2seq import attention_of, begin, stepper
from umbrella.objective import Array, Batch, View
from umbrella.pipelines import _translated
from umbrella.pipelines._standard import Resolve
from umbrella.settings import Count, NonNegative

SCORED = ("validation", "test")  # translated at the end; what is chosen is chosen by the first
MAPS = 3  # of attention
ROWS = 128  # sources that are translated at once


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


class Translation(NamedTuple):
    """All that it takes to translate with the parameters of a run."""

    net: Any  # of umbrella.models.seq2seq
    tokenizer: Tokenizer
    how: Search
    lengths: tuple[int, int]  # of a source and of a target, with their END
    known: Mapping[str, Mapping[str, list[str]]]  # split -> source -> its translations

    def predict(self, resolve: Resolve) -> Callable[[View, Batch, Array], dict[str, Array]]:
        """Of sources "x" i32[B, S]: "tokens" i32[B, T] of the best translation, its "score" f32[B], and its "text"
        u8[B, M] as UTF-8 with zeros behind."""
        translate = translator(self.net, self.how, self.lengths[1])

        def run(view: View, rows: Batch, key: Array) -> dict[str, Array]:
            best, score = translate(jax.tree.map(lambda v: v[None], self._variables(resolve, view)), rows["x"])
            return {"tokens": best, "score": score, "text": spelt(self.tokenizer, best)}

        return run

    def review(self, resolve: Resolve) -> Callable[[View, Array], Review]:
        translate = translator(self.net, self.how, self.lengths[1])
        run = jax.jit(lambda views, x: translate(jax.vmap(functools.partial(self._variables, resolve))(views), x)[0])

        def of(views: View, key: Array) -> Review:
            lanes = len(jax.tree.leaves(views)[0])
            numbers: dict[str, dict[str, Any]] = {}
            shown: Any = None
            for split in (s for s in SCORED if self.known[s]):
                alone = [jax.tree.map(lambda v, k=k: v[k : k + 1], views) for k in range(lanes)]
                made = [self._texts(run, one, split) for one in alone]
                shown = made[0] if split == "test" else shown
                each = [self._scores(texts, split) for _, _, texts in made]
                numbers[split] = {m: [e[m] for e in each] if lanes > 1 else each[0][m] for m in each[0]}
            if lanes > 1:
                numbers["ensemble"] = self._scores(self._texts(run, views, "test")[2], "test")
            return Review(numbers, self._figures(self._variables(resolve, views.lane(0)), *shown))

        return of

    def _variables(self, resolve: Resolve, view: View) -> dict[str, Any]:
        return {"params": resolve(view.params, view.state)["model"]}

    def _texts(self, run: Any, views: View, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """(the distinct sources of a split i32[N, S], their translations i32[N, T], and as texts)."""
        x = tokenizers.padded(self.tokenizer, list(self.known[split]), self.lengths[0], end=True)
        rows = _in_parts(functools.partial(run, views), x)
        return x, rows, [self.tokenizer.decode(row) for row in rows]

    def _scores(self, texts: list[str], split: str) -> dict[str, float]:
        return _translated.scored(texts, list(self.known[split].values()))

    def _figures(self, variables: Any, x: np.ndarray, made: np.ndarray, texts: list[str]) -> Iterator[tuple[str, Any]]:
        yield "translations", _translated.examples(self.known["test"], texts, self.known["train"])
        some = np.argsort([len(t) for t in texts], kind="stable")[-MAPS * 4 :: 4]  # long ones say most
        given = {"source": x[some], "target_in": _translated.shifted(made[some])}
        weights = np.asarray(jax.jit(lambda v, g: attention_of(self.net, v, g))(variables, given))
        for i, row in enumerate(some.tolist()):
            yield f"attention_{i}", _translated.heat(weights[i], x[row], made[row], self.tokenizer)


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


def _in_parts(run: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """run of rows [N, ...], ROWS at a time; the last part is filled with its last row."""
    parts = []
    for start in range(0, len(x), ROWS):
        rows = np.arange(start, start + ROWS).clip(max=len(x) - 1)
        parts.append(np.asarray(run(x[rows])))
    return np.concatenate(parts)[: len(x)]


def spelt(tokenizer: Tokenizer, tokens: Array) -> Array:
    """The texts of i32[B, T] as UTF-8, u8[B, M] and zeros behind; by the host, inside of a program."""
    most = tokens.shape[1] * (1 + max(len(piece.encode()) for piece in tokenizer.pieces))  # words are joined by blanks

    def write(tokens: np.ndarray) -> np.ndarray:
        texts = [tokenizer.decode(row).encode() for row in np.asarray(tokens)]
        return np.stack([np.frombuffer(t.ljust(most, b"\0"), np.uint8) for t in texts])

    shape = jax.ShapeDtypeStruct((tokens.shape[0], most), jnp.uint8)
    out: Array = jax.pure_callback(write, shape, tokens)
    return out
