"""Classifiers of texts on top of a masked language model. Floor 1."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.models.attention import Additive, Positions
from umbrella.models.language import stack
from umbrella.models.layers import Activation, Dropout
from umbrella.models.transformer import Precision, Remat
from umbrella.settings import Count, Fraction, Natural

Array = jax.Array


class TextBERT(nn.Module):
    """The network of `umbrella.models.BERT` with another head: additive attention over the text. -> logits f32[B, out].

    Its parameters have BERT's names, so that a run of one starts from a run of the other (`--init_from`,
    `config.fresh=("model/head",)`) where width, layers, heads, hidden, positions and length are equal and the tokenizer
    is that run's.

    Attributes:
      out: size of the output.
      words: size of the vocabulary.
      length: positions it has learnt, at least as many as a text has.
      width, layers, heads, hidden, positions, activation, remat, scan, precision: see BERT.
      dropout: within the encoder and of the pooled vector.

    Source: Devlin et al. 2019, section 3.2. Deviation: pooled by attention over the text and not by the vector of a
    token of its own, which the pretraining on running text has not.
    """

    out: Count
    words: Count
    length: Count = 64
    width: Count = 128
    layers: Count = 4
    heads: Count = 4
    hidden: Natural = 0
    positions: Positions = "learned"
    dropout: Fraction = 0.1
    activation: Activation = "gelu"
    remat: Remat = False
    scan: bool = False
    precision: Precision = "f32"

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Array:
        tokens = x["tokens"] if isinstance(x, Mapping) else x
        there = (tokens > 0).astype(jnp.float32)
        e = nn.Embed(self.words, self.width, embedding_init=nn.initializers.normal(0.02), name="embedding")(tokens)
        if isinstance(x, Mapping):
            e = e + x["delta"] * there[..., None]
        h = stack(self, causal=False)(e, there=there, train=train)
        return PooledHead(self.out, self.dropout, name="head")(h, there, train)


class PooledHead(nn.Module):
    """Logits of the attended mean of h f32[B, T, W]."""

    out: int
    dropout: float

    @nn.compact
    def __call__(self, h: Array, there: Array, train: bool) -> Array:
        h, _ = Additive(h.shape[-1], name="pool")(h, there=there)
        return nn.Dense(self.out, name="out")(Dropout(self.dropout, deterministic=not train)(h))
