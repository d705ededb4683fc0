"""Classifiers of short texts, from the numbers of their words. Floor 1.

An input is i32[B, T], 0 for padding; or {"tokens": i32[B, T], "delta": f32[B, T, D]}, whose delta is added to what the
words are embedded as: there a text has a gradient.
"""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.models.layers import Dropout
from umbrella.settings import Count, Fraction

Array = jax.Array


class Embedding(nn.Module):
    """Words as vectors: x -> (f32[B, T, D], zero where there is padding; f32[B, T], one where there is none).

    Normalised, every coordinate has mean 0 and variance 1 over the words of the training texts, so that no word grows
    away from a perturbation of fixed length (Miyato et al. 2017, eq. 1). The shares of the words are state, in the
    collection "vocabulary": equal ones until somebody puts others there.

    Attributes:
      words: size of the vocabulary, padding among it.
      width: D.
      normalised: whether the vectors are.
    """

    words: Count
    width: Count
    normalised: bool = True

    @nn.compact
    def __call__(self, x: Array | Mapping[str, Array]) -> tuple[Array, Array]:
        tokens = x["tokens"] if isinstance(x, Mapping) else x
        # Normalised vectors do not know their scale, but steps of Adam do: at .1 a word seen ten times can turn.
        table = self.param("embedding", nn.initializers.normal(0.1), (self.words, self.width))
        if self.normalised:
            share = self.variable("vocabulary", "share", lambda: jnp.full((self.words,), 1 / self.words)).value
            mean = (share @ table)[None]
            spread = jnp.sqrt(share @ jnp.square(table - mean))[None]
            table = (table - mean) / jnp.maximum(spread, 1e-6)
        there = (tokens > 0).astype(table.dtype)
        e = table[tokens]
        if isinstance(x, Mapping):
            e = e + x["delta"]
        return e * there[..., None], there


class Bag(nn.Module):
    """The mean of a text's words, or their sum by weights, through a perceptron. x -> logits f32[B, out].

    The weights are the words' inverse document frequencies, drawn to the length 1 over a text, as those of tf-idf are;
    the frequencies are state, `idf` in the collection "vocabulary": ones until somebody puts others there.

    Attributes:
      out: size of the output.
      words: size of the vocabulary.
      width: of the vectors of words.
      hidden: widths of hidden layers; none for a linear classifier of the mean (Joulin et al. 2017).
      dropout: of whole words before the mean, and of hidden units (Iyyer et al. 2015).
      normalised: see Embedding.
      weights: "mean", or "idf" for the sum by weights.
    """

    out: Count
    words: Count
    width: Count = 64
    hidden: tuple[Count, ...] = ()
    dropout: Fraction = 0.0
    normalised: bool = True
    weights: Literal["mean", "idf"] = "mean"

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Array:
        e, there = Embedding(self.words, self.width, self.normalised, name="embedding")(x)
        if self.dropout:
            there = Dropout(self.dropout, deterministic=not train)(there)
        if self.weights == "idf":
            idf = self.variable("vocabulary", "idf", lambda: jnp.ones((self.words,))).value
            there = there * idf[x["tokens"] if isinstance(x, Mapping) else x]
            length = jnp.sqrt(jnp.square(there).sum(1))
        else:
            length = there.sum(1)
        e = jnp.einsum("btd,bt->bd", e, there) / jnp.where(length > 0, length, 1)[:, None]
        for i, width in enumerate(self.hidden):
            e = nn.relu(nn.Dense(width, name=f"hidden_{i}")(e))
            if self.dropout:
                e = Dropout(self.dropout, deterministic=not train)(e)
        return nn.Dense(self.out, name="head")(e)


class TextCNN(nn.Module):
    """Filters over several words in a row, the largest response of each over the text. x -> logits f32[B, out].

    Attributes:
      out: size of the output.
      words: size of the vocabulary.
      width: of the vectors of words.
      maps: filters of each span.
      spans: how many words in a row; for each the text is padded by the span less one on both sides, so that every
        place of a filter sees every word (Kim 2014 has the spans 3, 4 and 5 with 100 maps each).
      dropout: of the largest responses (1/2 in the paper).
      embedding_dropout: of the vectors' coordinates.
      normalised: see Embedding.

    Source: Kim 2014, section 2, CNN-rand.
    """

    out: Count
    words: Count
    width: Count = 128
    maps: Count = 100
    spans: tuple[Count, ...] = (3, 4, 5)
    dropout: Fraction = 0.5
    embedding_dropout: Fraction = 0.0
    normalised: bool = True

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Array:
        e, there = Embedding(self.words, self.width, self.normalised, name="embedding")(x)
        if self.embedding_dropout:
            e = Dropout(self.embedding_dropout, deterministic=not train)(e)
        pooled = []
        for span in self.spans:
            edge = ((0, 0), (span - 1, span - 1))
            z = nn.Conv(self.maps, (span,), padding="VALID", name=f"span_{span}")(jnp.pad(e, (*edge, (0, 0))))
            words = jnp.pad(there, edge)
            seen = jnp.stack([words[:, i : i + z.shape[1]] for i in range(span)]).any(0)  # not windows of padding alone
            pooled.append(jnp.max(jnp.where(seen[..., None], nn.relu(z), 0), 1))
        h = jnp.concatenate(pooled, -1)
        if self.dropout:
            h = Dropout(self.dropout, deterministic=not train)(h)
        return nn.Dense(self.out, name="head")(h)
