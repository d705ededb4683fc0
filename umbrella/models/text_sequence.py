"""Classifiers of texts that read words in their order and look at some more than at others. Floor 1.

Inputs as those of `umbrella.models.text`. The pooling over words is a submodule "pool", whose second output are the
weights of the words, f32[B, T].
"""

from typing import Any, Literal

import flax.linen as nn
import jax

from umbrella.models.attention import Additive
from umbrella.models.layers import Dropout
from umbrella.models.recurrent import Cell, Recurrent
from umbrella.models.text import Embedding
from umbrella.models.transformer import Transformer
from umbrella.settings import Count, Fraction, Natural

Array = jax.Array


class TextRNN(nn.Module):
    """Recurrent layers over words, in both directions, pooled by additive attention. x -> logits f32[B, out].

    Attributes:
      out: size of the output.
      words: size of the vocabulary.
      width: of the vectors of words.
      cell: see `Recurrent`.
      hidden: of the states of each direction.
      layers: one above the other.
      bidirectional: whether it reads backwards, too.
      attention: width of the layer that scores words.
      dropout: between layers and of the pooled vector.
      embedding_dropout: of the vectors' coordinates.
      word_dropout: of whole words.
      normalised: see Embedding.

    Source: Zhou et al. 2016, section 3, with the attention of Yang et al. 2016, eq. 5 to 7.
    """

    out: Count
    words: Count
    width: Count = 64
    cell: Cell = "lstm"
    hidden: Count = 64
    layers: Count = 1
    bidirectional: bool = True
    attention: Count = 64
    dropout: Fraction = 0.5
    embedding_dropout: Fraction = 0.2
    word_dropout: Fraction = 0.2
    normalised: bool = True

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Array:
        e, there = Embedding(self.words, self.width, self.normalised, name="embedding")(x)
        e = _without_words(e, self.word_dropout, train)
        if self.embedding_dropout:
            e = Dropout(self.embedding_dropout, deterministic=not train)(e)
        between = self.dropout if self.layers > 1 else 0.0
        layers = Recurrent(self.hidden, self.cell, self.layers, self.bidirectional, between, name="rnn")
        return _pooled(layers(e, there=there, train=train), there, self.attention, self.out, self.dropout, train)


class TextTransformer(nn.Module):
    """A Transformer encoder over words, pooled by additive attention. x -> logits f32[B, out].

    Attributes:
      out: size of the output.
      words: size of the vocabulary.
      width: of the vectors of words and of the encoder.
      layers, heads: of the encoder; heads divide the width.
      hidden: of its perceptrons; 0 for 4 times the width.
      positions: see `Transformer`.
      dropout: within the encoder and of the pooled vector.
      word_dropout: of whole words.
      normalised: see Embedding.

    Source: Vaswani et al. 2017, section 3.1, pre-norm; pooled as in Yang et al. 2016, eq. 5 to 7.
    """

    out: Count
    words: Count
    width: Count = 64
    layers: Count = 2
    heads: Count = 4
    hidden: Natural = 0
    positions: Literal["sinusoidal", "rotary", "none"] = "sinusoidal"
    dropout: Fraction = 0.3
    word_dropout: Fraction = 0.2
    normalised: bool = True

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Array:
        e, there = Embedding(self.words, self.width, self.normalised, name="embedding")(x)
        e = _without_words(e, self.word_dropout, train)
        encoder = Transformer(
            self.width,
            self.layers,
            self.heads,
            self.hidden,
            positions=self.positions,
            dropout=self.dropout,
            name="encoder",
        )
        return _pooled(encoder(e, there=there, train=train), there, self.width, self.out, self.dropout, train)


def _without_words(e: Array, rate: float, train: bool) -> Array:
    """f32[B, T, D] with whole words left out, in training: what is not known cannot be relied on."""
    return Dropout(rate, broadcast_dims=(2,), deterministic=not train)(e) if rate else e


def _pooled(h: Array, there: Array, width: int, out: int, dropout: float, train: bool) -> Array:
    """Logits from the attended mean of h f32[B, T, W]."""
    h, _ = Additive(width, name="pool")(h, there=there)
    if dropout:
        h = Dropout(dropout, deterministic=not train)(h)
    return nn.Dense(out, name="head")(h)
