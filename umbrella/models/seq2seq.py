"""Sequence to sequence: a recurrent encoder and decoder with attention, and the Transformer of both. Floor 1.

Tokens of source and target are of one vocabulary, 0 for padding. Training sees the target shifted by one (teacher
forcing); decoding is a step at a time, by `begin` and `stepper`, for `umbrella.decoding`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.models.attention import NOWHERE, additive
from umbrella.models.layers import Activation, Dense, Dropout, orthogonal, product
from umbrella.models.recurrent import KINDS, Recurrent, ends
from umbrella.models.transformer import Precision, Remat, Transformer
from umbrella.settings import Count, Fraction, Natural

Array = jax.Array
Cache = dict[str, Any]
Step = Callable[[Cache, Array], tuple[Array, Cache]]


class RecurrentSeq2Seq(nn.Module):
    """A bidirectional encoder, and a decoder that looks at all of its states at every step.

    {"source": i32[B, S], "target_in": i32[B, T]} -> logits f32[B, T, V] of the token after each.

    Attributes:
      words: V, size of the vocabulary.
      width: of the vectors of tokens.
      hidden: of the states of the decoder and of each direction of the encoder.
      cell: of both.
      layers: of the encoder; the decoder has one.
      attention: "additive", of the state before the step, whose result is an input of the step (Bahdanau et al. 2015);
        "dot", of the state after it, with the result fed to the next step (Luong et al. 2015, "general").
      tied: whether the output's matrix is that of the vectors of tokens (Press and Wolf 2017).
      dropout: of the vectors, between the layers and of what the output is made of.

    Source: Bahdanau et al. 2015, appendix A; Luong et al. 2015, sections 3.1 and 3.3. Deviations: the first state is
    made of both directions' ends, and the output of one tanh layer for either attention.
    """

    words: Count
    width: Count = 128
    hidden: Count = 256
    cell: Literal["rnn", "lstm", "gru"] = "gru"
    layers: Count = 1
    attention: Literal["additive", "dot"] = "additive"
    tied: bool = True
    dropout: Fraction = 0.2

    def setup(self) -> None:
        self.embedding = nn.Embed(self.words, self.width, embedding_init=nn.initializers.normal(self.width**-0.5))
        self.encoder = Recurrent(self.hidden, self.cell, self.layers, bidirectional=True, dropout=self.dropout)
        self.first = [nn.Dense(self.hidden) for _ in range(KINDS[self.cell].states)]
        self.decoder = AttentionCell(self.hidden, self.cell, self.attention, 2 * self.hidden, self.width)
        self.readout = nn.Dense(self.width)
        if self.tied:
            self.bias = self.param("bias", nn.initializers.zeros, (self.words,))
        else:
            self.head = Dense(self.words)
        self.drop = Dropout(self.dropout)

    def __call__(self, x: Mapping[str, Array], *, train: bool) -> Array:
        return self.decode(self.encode(x["source"], train=train), x["target_in"], train=train)[0]

    def encode(self, source: Array, *, train: bool = False) -> Cache:
        """What a decoder starts from, for sources i32[B, S]."""
        there = (source > 0).astype(jnp.float32)
        h = self.encoder(self.vectors(source, train), there=there, train=train)
        end = ends(h, there)
        states = tuple(jnp.tanh(first(end)) for first in self.first)
        return {"states": states, "fed": jnp.zeros_like(h[:, 0]), "keys": self.decoder.keys(h), "h": h, "there": there}

    def vectors(self, tokens: Array, train: bool) -> Array:
        return self.drop(self.embedding(tokens), deterministic=not train)

    def decode(self, memory: Cache, target_in: Array, *, train: bool = False) -> tuple[Array, Array, Cache]:
        """(logits f32[B, T, V], the weights of attention f32[B, T, S], what the next step starts from)."""
        e = self.vectors(target_in, train)
        states, fed, out, context, weights = self.decoder(memory, e)
        h = jnp.tanh(self.readout(jnp.concatenate([out, context, e], -1)))
        h = self.drop(h, deterministic=not train)
        logits = product(h, self.embedding.embedding.T) + self.bias[None, None] if self.tied else self.head(h)
        return logits, weights, {**memory, "states": states, "fed": fed}

    def next(self, memory: Cache, tokens: Array) -> tuple[Array, Cache]:
        logits, _, memory = self.decode(memory, tokens[:, None])
        return logits[:, 0], memory

    def weights(self, x: Mapping[str, Array]) -> Array:
        """f32[B, T, S]: what each step of the target looked at."""
        return self.decode(self.encode(x["source"]), x["target_in"])[1]


class AttentionCell(nn.Module):
    """A recurrent layer with attention: what does not depend on the states is made for all steps at once.

    Attributes:
      width: W, of the states.
      cell: of `umbrella.models.recurrent.KINDS`.
      attention: see RecurrentSeq2Seq.
      source: C, width of what is looked at.
      inputs: E, width of the inputs.
    """

    width: int
    cell: str
    attention: str
    source: int
    inputs: int

    def setup(self) -> None:
        kind, w = KINDS[self.cell], self.width
        wide, init = len(kind.gates) * w, nn.initializers.lecun_normal()
        self.from_input = Dense(wide)
        self.from_context = self.param("context", init, (self.source, wide))
        self.from_state = self.param("state", orthogonal, (w, wide))
        self.own = {
            k: self.param(k, nn.initializers.constant(start), (n * w,)) for k, (n, start) in kind.weights.items()
        }
        size = w if self.attention == "additive" else self.source
        self.query = self.param("query", init, (w, size))
        if self.attention == "additive":
            self.to_keys = Dense(size)
            self.score = self.param("score", nn.initializers.normal(size**-0.5), (size,))

    def keys(self, h: Array) -> Array:
        """f32[B, S, C] -> what queries are compared with."""
        return self.to_keys(h) if self.attention == "additive" else h

    def __call__(self, memory: Cache, e: Array) -> tuple[tuple[Array, ...], Array, Array, Array, Array]:
        """e f32[B, T, E] -> (states, the last context, outputs f32[B, T, W], contexts f32[B, T, C], weights f32[B, T,
        S])."""
        z = jnp.swapaxes(self.from_input(e), 0, 1)
        own = {k: v[None] for k, v in self.own.items()}
        from_context, from_state, look = self.from_context, self.from_state, self._looker(memory)
        point = functools.partial(KINDS[self.cell].point, own)
        before = self.attention == "additive"

        def step(carry: tuple[Any, Array], z: Array) -> tuple[tuple[Any, Array], tuple[Array, Array, Array]]:
            states, context = carry
            weights: Array | None = None
            if before:
                context, weights = look(states[0])
            states = point(z + context @ from_context, states[0] @ from_state, states)
            if not before:
                context, weights = look(states[0])
            assert weights is not None
            return (states, context), (states[0], context, weights)

        (states, fed), made = jax.lax.scan(step, (memory["states"], memory["fed"]), z)
        out, context, weights = (jnp.swapaxes(v, 0, 1) for v in made)
        return states, fed, out, context, weights

    def _looker(self, memory: Cache) -> Callable[[Array], tuple[Array, Array]]:
        """state f32[B, W] -> (context f32[B, C], weights f32[B, S])."""
        h, keys, there, query = memory["h"], memory["keys"], memory["there"], self.query
        if self.attention == "additive":
            v = self.score
            return lambda state: additive(h, jnp.tanh(keys + (state @ query)[:, None]) @ v, there)
        scale = 1 / math.sqrt(self.source)
        return lambda state: additive(h, jnp.einsum("bsc,bc->bs", keys, state @ query) * scale, there)


class TransformerSeq2Seq(nn.Module):
    """Encoder and decoder of attention alone, with one table of vectors for source, target and output.

    {"source": i32[B, S], "target_in": i32[B, T]} -> logits f32[B, T, V] of the token after each.

    Attributes:
      words: V, size of the vocabulary.
      length: most positions, of source and of target.
      width: of the vectors.
      layers: of the encoder, and as many of the decoder.
      heads, hidden, norm, activation, dropout, remat, precision: see `umbrella.models.Transformer`.
      positions: added to the vectors; "sinusoidal" as in the paper.
      tied: whether the output's matrix is that of the vectors.

    Source: Vaswani et al. 2017, sections 3.1 to 3.5.
    """

    words: Count
    length: Count
    width: Count = 128
    layers: Count = 2
    heads: Count = 4
    hidden: Natural = 0
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    activation: Activation = "relu"
    dropout: Fraction = 0.1
    tied: bool = True
    remat: Remat = False
    precision: Precision = "f32"

    def setup(self) -> None:
        self.embedding = nn.Embed(self.words, self.width, embedding_init=nn.initializers.normal(self.width**-0.5))
        stack = functools.partial(
            Transformer,
            self.width,
            self.layers,
            self.heads,
            self.hidden,
            self.norm,
            self.positions,
            self.length,
            dropout=self.dropout,
            activation=self.activation,
            remat=self.remat,
            precision=self.precision,
        )
        self.encoder, self.decoder = stack(), stack(causal=True, cross=True)
        if not self.tied:
            self.head = Dense(self.words, use_bias=False)

    def __call__(self, x: Mapping[str, Array], *, train: bool) -> Array:
        return self.decode(self.encode(x["source"], train=train), x["target_in"], train=train)

    def encode(self, source: Array, *, train: bool = False) -> Cache:
        """What a decoder looks at, for sources i32[B, S]."""
        there = (source > 0).astype(jnp.float32)
        return {"h": self.encoder(self.vectors(source), there=there, train=train), "there": there}

    def vectors(self, tokens: Array) -> Array:
        return self.embedding(tokens) * math.sqrt(self.width)

    def decode(self, memory: Cache, target_in: Array, *, train: bool = False, cached: bool = False) -> Array:
        """logits f32[B, T, V]; with `cached`, those of what comes after what the collection "cache" has seen."""
        at = {"memory": memory["h"], "memory_there": memory["there"]}
        h = self.decoder(self.vectors(target_in), **at, decode=cached, train=train)
        return product(h, self.embedding.embedding.T) if self.tied else self.head(h)

    def next(self, memory: Cache, tokens: Array) -> Array:
        return self.decode(memory, tokens[:, None], cached=True)[:, 0]


Seq2Seq = RecurrentSeq2Seq | TransformerSeq2Seq


def begin(net: Seq2Seq, variables: Mapping[str, Any], source: Array) -> Cache:
    """The cache of `stepper` for sources i32[B, S]: nothing of the target has been read."""
    memory: Any = net.apply(variables, source, method="encode")
    if isinstance(net, RecurrentSeq2Seq):
        return dict(memory)
    tokens = jnp.zeros(source.shape[0], jnp.int32)
    shapes = jax.eval_shape(lambda: net.apply(variables, memory, tokens, method="next", mutable=["cache"])[1]["cache"])
    return {"memory": memory, "cache": jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)}


def stepper(net: Seq2Seq, variables: Mapping[str, Any]) -> Step:
    """(cache, tokens i32[B]) -> (logits f32[B, V] of what comes next, cache), for `umbrella.decoding`."""

    def recurrent(cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        made: Any = net.apply(variables, cache, tokens, method="next")
        return made

    def transformer(cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        own = {**variables, "cache": cache["cache"]}
        logits, new = net.apply(own, cache["memory"], tokens, method="next", mutable=["cache"])
        return logits, {**cache, "cache": new["cache"]}

    return recurrent if isinstance(net, RecurrentSeq2Seq) else transformer


def attention_of(net: Seq2Seq, variables: Mapping[str, Any], x: Mapping[str, Array]) -> Array:
    """f32[B, T, S]: how much each step of the target looks at each token of the source; of a Transformer the mean over
    the heads of its last layer."""
    if isinstance(net, RecurrentSeq2Seq):
        made: Any = net.apply(variables, x, method="weights")
        return made
    net = net.clone(remat=False)
    block = f"block_{net.layers - 1}"

    def asked(module: nn.Module, _: str) -> bool:
        return module.path[-3:-1] == (block, "cross") and module.path[-1] in ("query", "key_value")

    _, new = net.apply(variables, x, train=False, capture_intermediates=asked, mutable=["intermediates"])
    made = new["intermediates"]["decoder"][block]["cross"]
    q, both = made["query"]["__call__"][0], made["key_value"]["__call__"][0]
    both = both.reshape(*both.shape[:2], net.heads, 2, -1)[:, :, :, 0]
    q, k = (v.reshape(*v.shape[:2], net.heads, -1).astype(jnp.float32) for v in (q, both))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    scores = jnp.where((x["source"] > 0)[:, None, None], scores, NOWHERE)
    return jax.nn.softmax(scores, -1).mean(1)
