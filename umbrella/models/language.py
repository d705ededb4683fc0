"""Language models: what token comes next, or which one is hidden. Floor 1.

An input is tokens i32[B, T]; of a recurrent model also {"tokens": i32[B, T], "fresh": f32[B]}, whose rows go on where
the last batch's ended unless they are fresh. The output is logits f32[B, T, V].
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.models.attention import Positions
from umbrella.models.layers import ACTIVATIONS, Activation, Dense, Dropout, product
from umbrella.models.recurrent import Cell, Recurrent
from umbrella.models.transformer import Precision, Remat, Transformer, unstacked
from umbrella.settings import Count, Fraction, Natural

Array = jax.Array


class Stacked(nn.Module):
    """What language models that are stacks of blocks have in common.

    Attributes:
      words: V, size of the vocabulary.
      length: positions it sees at most.
      width, layers, heads, hidden, positions, dropout, activation, remat, scan, precision: see Transformer.
      tied: the output's weights are the embedding's (Press and Wolf 2017).
    """

    words: Count
    length: Count
    width: Count = 128
    layers: Count = 4
    heads: Count = 4
    hidden: Natural = 0
    positions: Positions = "learned"
    dropout: Fraction = 0.0
    activation: Activation = "gelu"
    tied: bool = True
    remat: Remat = False
    scan: bool = False
    precision: Precision = "f32"


class GPT(Stacked):
    """The next token from those before it, by a causal Transformer. i32[B, T] -> f32[B, T, V].

    Attributes:
      apart: the token that stands before each of several texts in a row, none of which sees another; -1: a row is one
        text. What is decoded is one text: it begins with that token.
      All others: see Stacked.

    Source: Radford et al. 2019, with pre-norm blocks.
    """

    apart: int = -1

    @nn.compact
    def __call__(self, x: Any, *, decode: bool = False, train: bool) -> Array:
        tokens = x["tokens"] if isinstance(x, Mapping) else x
        embedding = nn.Embed(self.words, self.width, embedding_init=nn.initializers.normal(0.02), name="embedding")
        text = None if self.apart < 0 or decode else jnp.cumsum(tokens == self.apart, 1)
        h = stack(self, causal=True)(embedding(tokens), text=text, decode=decode, train=train)
        return _head(self, h, embedding)


class BERT(Stacked):
    """Which token stands at every position, from all that can be seen on both sides. i32[B, T] -> f32[B, T, V].

    Token 0 is padding, which nothing looks at.

    Attributes: see Stacked.

    Source: Devlin et al. 2019, its masked language model; pre-norm, and without segments, whose task is gone.
    """

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Array:
        tokens = x["tokens"] if isinstance(x, Mapping) else x
        embedding = nn.Embed(self.words, self.width, embedding_init=nn.initializers.normal(0.02), name="embedding")
        h = stack(self, causal=False)(embedding(tokens), there=(tokens > 0).astype(jnp.float32), train=train)
        table = embedding.embedding if self.tied else None
        return MaskedHead(self.words, self.activation, name="head")(h, table)


class Cloze(Stacked):
    """Which token stands at every position, from all others of its row and never from itself: one causal Transformer
    reads what stands before it, another what stands after it, from the end. i32[B, T] -> f32[B, T, V].

    So nothing has to be hidden: every token of a row is a lesson, where a masked model has the hidden ones alone, and
    what it learns from is what it will see. It has two stacks to compute for that, and the two sides meet only at the
    end.

    Attributes: see Stacked; of each of the two stacks.

    Source: Baevski et al. 2019, the two towers and their loss. Deviation: a perceptron puts the sides together, where
    the paper has attention over all states of both.
    """

    blind: ClassVar[bool] = True  # to the token that it tells

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Array:
        tokens = x["tokens"] if isinstance(x, Mapping) else x
        embedding = nn.Embed(self.words, self.width, embedding_init=nn.initializers.normal(0.02), name="embedding")
        edges = self.param("edges", nn.initializers.normal(0.02), (2, self.width))  # where nothing stands

        def read(name: str, tokens: Array, edge: Array) -> Array:
            first = jnp.broadcast_to(edge, (len(tokens), 1, self.width))
            e = jnp.concatenate([first, embedding(tokens[:, :-1])], 1)
            there = jnp.pad(tokens[:, :-1] > 0, ((0, 0), (1, 0)), constant_values=True).astype(jnp.float32)
            return stack(self, causal=True, name=name)(e, there=there, train=train)

        before = read("before", tokens, edges[0])
        after = read("after", tokens[:, ::-1], edges[1])[:, ::-1]
        h = ACTIVATIONS[self.activation](Dense(4 * self.width, name="both")(jnp.concatenate([before, after], -1)))
        h = before + after + Dense(self.width, name="together")(h)
        table = embedding.embedding if self.tied else None
        return MaskedHead(self.words, self.activation, name="head")(h, table)


class MaskedHead(nn.Module):
    """What says which token is hidden: a layer, a norm, and the words' weights. f32[B, T, W] -> f32[B, T, V].

    All that a masked language model has and a classifier on top of it has not is here, so that
    `fresh=("model/head",)` leaves it out. With a table f32[V, W] the words' weights are that.

    Source: Devlin et al. 2019, their program.
    """

    words: int
    activation: Activation

    @nn.compact
    def __call__(self, h: Array, table: Array | None) -> Array:
        h = ACTIVATIONS[self.activation](Dense(h.shape[-1], name="transform")(h))
        h = nn.LayerNorm(1e-5, name="norm")(h)
        if table is None:
            return Dense(self.words, name="words")(h)
        return product(h, table.T) + self.param("bias", nn.initializers.zeros_init(), (self.words,))[None, None]


class RecurrentLM(nn.Module):
    """The next token from those before it, by recurrent layers. -> f32[B, T, V].

    Attributes:
      words: V, size of the vocabulary.
      width: of every layer.
      layers: of cells.
      cell: see Recurrent.
      embedding: width of the vectors of tokens; that of the layers when 0.
      dropout: of the vectors of tokens, between layers and before the output (Zaremba et al. 2014).
      tied: the output's weights are the embedding's, behind a projection where widths differ.
      stateful: rows of a batch go on where those of the last one ended (truncated backpropagation through time).
    """

    words: Count
    width: Count = 256
    layers: Count = 1
    cell: Cell = "lstm"
    embedding: Natural = 0
    dropout: Fraction = 0.0
    tied: bool = False
    stateful: bool = True

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Array:
        tokens, fresh = (x["tokens"], x["fresh"]) if isinstance(x, Mapping) else (x, None)
        size = self.embedding or self.width
        embedding = nn.Embed(self.words, size, embedding_init=nn.initializers.normal(0.1), name="embedding")
        h = Dropout(self.dropout, deterministic=not train)(embedding(tokens))
        layers = Recurrent(
            cell=self.cell,
            width=self.width,
            layers=self.layers,
            dropout=self.dropout,
            stateful=self.stateful,
            name="recurrent",
        )
        h = Dropout(self.dropout, deterministic=not train)(layers(h, fresh=fresh, train=train))
        if self.tied and size != self.width:
            h = Dense(size, name="projection")(h)
        return _head(self, h, embedding)


def decoder(net: Any, params: Any, rows: int) -> tuple[Callable[[Any, Array], tuple[Array, Any]], Any]:
    """(step, the cache of `rows` rows that have read nothing), as `umbrella.decoding` wants them.

    Args:
      net: a RecurrentLM, which goes on from its state, or a GPT, which does from the keys and values it has seen.
      params: its own, without a scope.
    """
    recurrent = isinstance(net, RecurrentLM)
    kind, model = ("carry", net.clone(stateful=True)) if recurrent else ("cache", net.clone(scan=False))
    if not recurrent and net.scan:
        params = {**params, "transformer": unstacked(params["transformer"], net.layers)}
    more: dict[str, Any] = {} if recurrent else {"decode": True}

    def read(variables: Any, tokens: Array) -> tuple[Array, Any]:
        out, new = model.apply({"params": params, **variables}, tokens[:, None], train=False, mutable=[kind], **more)
        return out[:, 0], new[kind]

    empty = jax.eval_shape(lambda: read({}, jnp.zeros(rows, jnp.int32))[1])
    cache = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), empty)
    return lambda cache, tokens: read({kind: cache}, tokens), cache


def stack(of: Any, *, causal: bool, name: str = "transformer") -> Transformer:
    """The Transformer that a module with fields of these names consists of, called `name` in it."""
    return Transformer(
        width=of.width,
        layers=of.layers,
        heads=of.heads,
        hidden=of.hidden,
        positions=of.positions,
        length=of.length,
        causal=causal,
        dropout=of.dropout,
        activation=of.activation,
        remat=of.remat,
        scan=of.scan,
        precision=of.precision,
        name=name,
    )


def _head(of: Any, h: Array, embedding: nn.Embed) -> Array:
    """The output, in f32: the embedding's weights or its own, and a bias of every token."""
    if not of.tied:
        return Dense(of.words, name="head")(h)
    return product(h, embedding.embedding.T) + of.param("bias", nn.initializers.zeros_init(), (of.words,))[None, None]
