"""Transformers: the stack of blocks, for encoders, decoders and both at once. Floor 1."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.models.attention import MultiHead, Positions, sinusoids
from umbrella.models.layers import ACTIVATIONS, Activation, Dense, Dropout
from umbrella.settings import Count, Fraction, Natural

Array = jax.Array
Precision = Literal["f32", "bf16", "fp16"]
Remat = bool | Literal["dots", "dots_no_batch"]
POLICIES: dict[bool | str, Callable[..., bool] | None] = {
    True: None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}


class Block(nn.Module):
    """Attention to itself, to a memory where there is one, then a perceptron of every position. See Transformer."""

    width: int
    heads: int
    hidden: int
    norm: Literal["pre", "post"]
    rotary: bool
    causal: bool
    cross: bool
    dropout: float
    activation: Activation
    length: int
    depth: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None,
        memory: Array | None,
        memory_mask: Array | None,
        decode: bool,
        train: bool,
    ) -> Array:
        def attention(name: str) -> MultiHead:
            rotary = self.rotary and name == "attention"
            return MultiHead(
                self.width,
                self.heads,
                self.dropout,
                rotary,
                length=self.length,
                depth=self.depth,
                dtype=self.dtype,
                name=name,
            )

        def add(x: Array, name: str, fn: Callable[[Array], Array]) -> Array:
            layer = nn.LayerNorm(1e-5, name=f"{name}_norm")

            def norm(h: Array) -> Array:
                return layer(h.astype(jnp.float32)).astype(self.dtype)

            made = Dropout(self.dropout, deterministic=not train)(fn(norm(x) if self.norm == "pre" else x))
            return x + made if self.norm == "pre" else norm(x + made)

        x = add(
            x,
            "attention",
            lambda h: attention("attention")(h, mask=mask, causal=self.causal, decode=decode, train=train),
        )
        if self.cross:
            x = add(x, "cross", lambda h: attention("cross")(h, memory=memory, mask=memory_mask, train=train))
        return add(x, "perceptron", self._perceptron)

    def _perceptron(self, h: Array) -> Array:
        init, last = nn.initializers.normal(0.02), nn.initializers.normal(0.02 / math.sqrt(2 * self.depth))
        h = ACTIVATIONS[self.activation](Dense(self.hidden, kernel_init=init, dtype=self.dtype, name="in")(h))
        return Dense(self.width, kernel_init=last, dtype=self.dtype, name="out")(h)


class _Layer(nn.Module):
    """A block as the body of a scan over layers: the values of x go in and out, all else is the same for each."""

    block: tuple[Any, ...]  # the attributes of Block
    remat: Remat
    decode: bool
    train: bool

    @nn.compact
    def __call__(
        self, x: Array, mask: Array | None, memory: Array | None, memory_mask: Array | None
    ) -> tuple[Array, None]:
        # What is within a loop is not merged with what is outside of it: no barrier is needed against that.
        made = _block(self.remat, prevent_cse=False)(*self.block, name="block")
        return made(x, mask, memory, memory_mask, self.decode, self.train), None


def _block(remat: Remat, *, prevent_cse: bool = True) -> Any:
    if not remat:
        return Block
    return nn.remat(Block, static_argnums=(5, 6), policy=POLICIES[remat], prevent_cse=prevent_cse)


def stacked(params: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Parameters of a Transformer with `scan=True` from those of one without: "block_0", "block_1", .. become
    "blocks", whose arrays have an axis of layers in front."""
    each = [params[f"block_{i}"] for i in range(layers)]
    rest = {k: v for k, v in params.items() if not k.startswith("block_")}
    return {**rest, "blocks": {"block": jax.tree.map(lambda *v: jnp.stack(v), *each)}}


def unstacked(params: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The other way round."""
    rest = {k: v for k, v in params.items() if k != "blocks"}
    each = params["blocks"]["block"]
    return {**rest, **{f"block_{i}": jax.tree.map(lambda v, i=i: v[i], each) for i in range(layers)}}


class Transformer(nn.Module):
    """Blocks of attention over vectors. f32[B, T, W] -> f32[B, T, W].

    Attributes:
      width: W.
      layers: blocks.
      heads: of each; they divide the width.
      hidden: width of the perceptron of each; 0 for 4 W.
      norm: "pre", before each part and once at the end, which trains without a warm-up (Xiong et al. 2020); "post",
        after each sum, as in the paper.
      positions: "learned", "sinusoidal" (both are added to x), "rotary" (turn queries and keys) or "none".
      length: most positions; as many as x has when 0, but "learned" and decoding need it.
      causal: a position sees those before it and itself alone: a decoder.
      cross: the blocks look at a memory, too.
      dropout: of the sum with the positions, of attention weights, and of what each part adds.
      activation: of the perceptrons.
      remat: computes the blocks again in the backward pass instead of keeping what is in them: memory for time. "dots"
        keeps the results of matrix products, which are what takes long; "dots_no_batch" those of dense layers alone, so
        not the scores of attention, which are what takes room; True keeps nothing but the blocks' inputs.
      scan: the blocks are one loop and their parameters one array each, [layers, ...], in place of as many programs one
        after the other: it compiles as fast for a hundred blocks as for one, and a step may take longer. For training:
        what decodes takes the parameters apart (`unstacked`).
      precision: what the blocks compute in; parameters, norms' sums, softmax and output are f32. "fp16" has 10 bits
        after the point where bf16 has 7, but ends at 65,504 and at 6e-8: train it with a loss scale
        (`umbrella.loss_scale`).

    Source: Vaswani et al. 2017; "pre" with small initial outputs as in Radford et al. 2019.
    """

    width: Count
    layers: Count = 4
    heads: Count = 4
    hidden: Natural = 0
    norm: Literal["pre", "post"] = "pre"
    positions: Positions = "learned"
    length: Natural = 0
    causal: bool = False
    cross: bool = False
    dropout: Fraction = 0.0
    activation: Activation = "gelu"
    remat: Remat = False
    scan: bool = False
    precision: Precision = "f32"

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        there: Array | None = None,
        memory: Array | None = None,
        memory_there: Array | None = None,
        text: Array | None = None,
        decode: bool = False,
        train: bool,
    ) -> Array:
        """Args:
          x: f32[B, T, W].
          there: f32[B, T], 1 where there is something to look at; everywhere when None.
          text: i32[B, T], which of the texts in its row a position belongs to: it sees no other; all of one when None.
          memory: f32[B, S, W], what the blocks look at when `cross`.
          memory_there: f32[B, S], as `there`.
          decode: x is what comes after what the collection "cache" has seen; `there` is then no use.

        Raises (while tracing):
          ValueError: more positions than `length`; learned positions or decoding without one; decoding with `scan`;
            cross without a memory.
        """
        dtype = DTYPES[self.precision]
        if self.length and x.shape[1] > self.length:
            raise ValueError(f"{x.shape[1]} positions for a transformer of at most {self.length}")
        if self.cross and memory is None:
            raise ValueError("a transformer with cross=True needs a memory")
        x = self._placed(x, decode).astype(dtype)
        x = Dropout(self.dropout, deterministic=not train)(x)
        mask = None if there is None else (there > 0)[:, None, None]
        if text is not None:
            same = text[:, None, :, None] == text[:, None, None, :]
            mask = same if mask is None else mask & same
        memory_mask = None if memory_there is None else (memory_there > 0)[:, None, None]
        memory = None if memory is None else memory.astype(dtype)
        block = (
            self.width,
            self.heads,
            self.hidden or 4 * self.width,
            self.norm,
            self.positions == "rotary",
            self.causal,
            self.cross,
            self.dropout,
            self.activation,
            self.length,
            self.layers,
            dtype,
        )
        if self.scan and decode:
            raise ValueError("a transformer with scan=True does not decode: take its parameters apart by `unstacked`")
        if self.scan:
            layers = nn.scan(
                _Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=self.layers,
            )
            x, _ = layers(block, self.remat, decode, train, name="blocks")(x, mask, memory, memory_mask)
        else:
            for i in range(self.layers):
                made = _block(self.remat)(*block, name=f"block_{i}")
                x = made(x, mask, memory, memory_mask, decode, train)
        x = x.astype(jnp.float32)
        return nn.LayerNorm(1e-5, name="norm")(x) if self.norm == "pre" else x

    def _placed(self, x: Array, decode: bool) -> Array:
        """x with what tells its positions apart, unless that is the attention's business."""
        if (decode or self.positions == "learned") and not self.length:
            raise ValueError("learned positions and decoding need the transformer's length")
        if self.positions in ("rotary", "none"):
            return x
        if self.positions == "learned":
            table = self.param("positions", nn.initializers.normal(0.02), (self.length, self.width))
        else:
            table = sinusoids(self.length or x.shape[1], self.width)
        if not decode:
            return x + table[None, : x.shape[1]]
        at = self.variable("cache", "at", lambda: jnp.zeros(x.shape[0], jnp.int32))
        here = at.value[:, None] + jnp.arange(x.shape[1])[None]
        at.value = at.value + x.shape[1]
        return x + table[here]  # beyond the last position the last one's, by JAX's rule of gathers
