"""Discriminators of text. Floor 1."""

import flax.linen as nn
import jax

from umbrella.models.layers import Dropout
from umbrella.models.recurrent import Cell, Recurrent
from umbrella.settings import Count, Fraction

Array = jax.Array


class TokenDiscriminator(nn.Module):
    """Is this token real, given those before it? i32[B, T] -> f32[B, T], a logit for every token.

    The score at t knows tokens 0, ..., t and none after: so it says which token a sample went wrong at.

    Attributes:
      words: V, size of the vocabulary.
      width: of every layer.
      layers: of cells.
      cell: see Recurrent.
      embedding: width of the vectors of tokens.
      dropout: of the vectors of tokens, between layers and before the output.

    Source: d'Autume et al. 2019, section 3.1. Deviation: learnt vectors of tokens, not pretrained ones, and no
    encoding of the position, which the state can count.
    """

    words: Count
    width: Count = 128
    layers: Count = 1
    cell: Cell = "gru"
    embedding: Count = 32
    dropout: Fraction = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        h = nn.Embed(self.words, self.embedding, embedding_init=nn.initializers.normal(0.1), name="embedding")(x)
        h = Dropout(self.dropout, deterministic=not train)(h)
        h = Recurrent(cell=self.cell, width=self.width, layers=self.layers, dropout=self.dropout, name="recurrent")(
            h, train=train
        )
        h = Dropout(self.dropout, deterministic=not train)(h)
        return nn.Dense(1, name="head")(h)[..., 0]
