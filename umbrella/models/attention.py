"""Attention: additive, dot-product and multi-head; where positions are told apart; the cache of decoding. Floor 1."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.models.layers import Dense, drop
from umbrella.settings import Count, Fraction, Natural, SettingsError

Array = jax.Array
Positions = Literal["learned", "sinusoidal", "rotary", "none"]
NOWHERE = -1e30  # the score of what may not be looked at: finite, so that a row without anything to look at is, too
FLASH = (jnp.bfloat16, jnp.float16)  # the dtypes of cuDNN's fused attention
WIDEST = 128  # numbers of a head there
BLOCK, BLOCKS = 64, 8  # queries that are looked at together in a causal pass, and the most such blocks


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """softmax(q k^T / sqrt(D)) v, of every head by itself.

    cuDNN's fused kernel on a GPU, where it can: in 16 bits, without a mask of one's own and without dropout. The
    softmax is in f32 either way.

    Args:
      q: f32[B, T, H, D].
      k, v: f32[B, S, H, D].
      mask: bool[B or 1, H or 1, T or 1, S], what may be looked at; all when None.
      causal: position t sees positions up to t alone (T is S).
      dropout: the share of weights that are left out, by `key`.

    Returns:
      f32[B, T, H, D]; of a position that may look at nothing, the mean of v.

    Source: Vaswani et al. 2017, eq. 1.
    """
    plain = mask is None and not (dropout and key is not None)
    fits = q.dtype in FLASH and q.shape[-1] <= WIDEST and q.shape[-1] % 8 == 0
    if plain and fits and "cuda" in jax.devices()[0].client.platform_version.lower():
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    t = q.shape[1]
    blocks = min(BLOCKS, t // BLOCK) if causal else 1
    if not blocks or t % blocks:
        blocks = 1
    q, k, v = (jnp.swapaxes(z, 1, 2) for z in (q * (1 / math.sqrt(q.shape[-1])), k, v))
    keys = [key] if key is None or blocks == 1 else list(jax.random.split(key, blocks))
    made = []
    for i in range(blocks):  # what comes after a block of queries is not multiplied with it, only to be hidden
        start, end = i * t // blocks, (i + 1) * t // blocks
        reach = end if causal else k.shape[2]
        seen = None if mask is None else _part(mask, start, end, reach)
        if causal:
            before = jnp.arange(reach)[None, None, None] <= jnp.arange(start, end)[None, None, :, None]
            seen = before if seen is None else before & seen
        drawn = None if key is None else keys[i]
        made.append(_mix(q[:, :, start:end], k[:, :, :reach], v[:, :, :reach], seen, dropout, drawn))
    return jnp.swapaxes(jnp.concatenate(made, 2) if blocks > 1 else made[0], 1, 2)


def _mix(q: Array, k: Array, v: Array, seen: Array | None, dropout: float, key: Array | None) -> Array:
    """f32[B, H, T, D], f32[B, H, S, D] twice, bool[B or 1, H or 1, T or 1, S] or None -> f32[B, H, T, D]."""
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k).astype(jnp.float32)
    if seen is not None:
        scores = jnp.where(seen, scores, NOWHERE)
    weights = jax.nn.softmax(scores, -1).astype(v.dtype)
    if dropout and key is not None:
        weights = drop(key, weights, dropout)
    return jnp.einsum("bhts,bhsd->bhtd", weights, v)


def _part(mask: Array, start: int, end: int, reach: int) -> Array:
    rows = mask if mask.shape[2] == 1 else mask[:, :, start:end]
    return rows[..., :reach]


def additive(keys: Array, scores: Array, there: Array | None = None) -> tuple[Array, Array]:
    """The mean of keys f32[B, S, D], weighted by the softmax of scores f32[B, S] over where there is something.

    Returns:
      (f32[B, D], the weights f32[B, S]).
    """
    if there is not None:
        scores = jnp.where(there > 0, scores, NOWHERE)
    weights = jax.nn.softmax(scores, -1)
    return jnp.einsum("bs,bsd->bd", weights, keys), weights


class Additive(nn.Module):
    """Additive attention: score = v^T tanh(W keys + U query). -> (f32[B, D], the weights f32[B, S]).

    Attributes:
      width: of the layer that scores.

    Source: Bahdanau et al. 2015, section 3.1 and appendix A.1.2. Without a query it is the word attention of Yang et
    al. 2016, eq. 5 to 7.
    """

    width: Count

    @nn.compact
    def __call__(self, keys: Array, query: Array | None = None, *, there: Array | None = None) -> tuple[Array, Array]:
        h = Dense(self.width, name="keys")(keys)
        if query is not None:
            h = h + nn.Dense(self.width, use_bias=False, name="query")(query)[:, None]
        scores = nn.Dense(1, use_bias=False, name="score")(jnp.tanh(h))[..., 0]
        return additive(keys, scores, there)


class Dot(nn.Module):
    """Dot-product attention: score = query^T W keys. -> (f32[B, D], the weights f32[B, S]).

    Source: Luong et al. 2015, section 3.1, "general".
    """

    @nn.compact
    def __call__(self, keys: Array, query: Array, *, there: Array | None = None) -> tuple[Array, Array]:
        q = nn.Dense(keys.shape[-1], use_bias=False, name="query")(query)
        return additive(keys, jnp.einsum("bsd,bd->bs", keys, q) / math.sqrt(keys.shape[-1]), there)


class MultiHead(nn.Module):
    """Attention of several heads, of x to itself or to a memory. f32[B, T, W] -> f32[B, T, W].

    Decoding: with `decode` the keys and values of what has been read are kept in the collection "cache", for as many
    positions as `length`; x is then what comes next, one position or several, and sees what is before it. Cached and
    full passes agree to rounding.

    Attributes:
      width: W, of the output.
      heads: H, which divides W.
      dropout: of the weights.
      rotary: turns queries and keys by their positions (Su et al. 2021, eq. 34); heads are then of even width.
      bias: of the four projections.
      length: positions that a cache has room for.
      depth: attention layers of the whole stack: the output's initial weights are smaller by sqrt(2 depth), so that
        what the layers add to the stream does not grow with their number (Radford et al. 2019, section 2.3).
      dtype: what is computed in; parameters are f32.
    """

    width: Count
    heads: Count
    dropout: Fraction = 0.0
    rotary: bool = False
    bias: bool = True
    length: Natural = 0
    depth: Count = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        memory: Array | None = None,
        mask: Array | None = None,
        causal: bool = False,
        decode: bool = False,
        train: bool,
    ) -> Array:
        if self.width % self.heads:
            raise SettingsError(
                f"config.model.heads: {self.heads} heads do not divide a width of {self.width}; say another number"
            )
        size = self.width // self.heads
        source = x if memory is None else memory
        init, last = nn.initializers.normal(0.02), nn.initializers.normal(0.02 / math.sqrt(2 * self.depth))

        def heads(name: str, at: Array, of: int) -> list[Array]:
            """One product for all, head by head, so that devices that have some of the heads have all of each."""
            made = Dense(of * self.width, self.bias, kernel_init=init, dtype=self.dtype, name=name)(at)
            each = jnp.split(
                made.reshape(*at.shape[:2], self.heads, of * size), of, -1
            )  # whose gradient adds nothing up
            return each

        if memory is None:
            q, k, v = heads("query_key_value", x, 3)
        else:
            (q,), (k, v) = heads("query", x, 1), heads("key_value", source, 2)
        start = None
        if decode and memory is None:
            start = self.variable("cache", "at", lambda: jnp.zeros(x.shape[0], jnp.int32))
        if self.rotary and memory is None:
            at = jnp.arange(x.shape[1])[None] + (0 if start is None else start.value[:, None])
            q, k = rotate(q, at), rotate(k, at)
        if start is not None:
            k, v, mask = self._cached(start, k, v)
            causal = False
        key = self.make_rng("dropout") if self.dropout and train else None
        h = attend(q, k, v, mask=mask, causal=causal, dropout=self.dropout, key=key)
        h = h.reshape(*h.shape[:2], self.width)
        return Dense(self.width, self.bias, kernel_init=last, dtype=self.dtype, name="out")(h)

    def _cached(self, start: nn.Variable, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """(keys, values, what each new position may look at), of all positions that there is room for."""
        if not self.length:
            raise ValueError("decode: length=0 has no room for what was read")
        rows, new = k.shape[:2]
        at = start.value
        kept = []
        for name, fresh in (("k", k), ("v", v)):
            shape = (rows, self.length, *fresh.shape[2:])
            var = self.variable("cache", name, lambda s=shape, d=fresh.dtype: jnp.zeros(s, d))
            var.value = jax.vmap(lambda old, add, i: jax.lax.dynamic_update_slice_in_dim(old, add, i, 0))(
                var.value, fresh, at
            )
            kept.append(var.value)
        reach = at[:, None] + jnp.arange(new)[None]  # i32[B, T]
        start.value = at + new
        seen = jnp.arange(self.length)[None, None] <= reach[:, :, None]
        return kept[0], kept[1], seen[:, None]


def rotate(x: Array, position: Array, base: float = 10_000.0) -> Array:
    """x f32[B, T, H, D], each pair of numbers turned by position i32[B or 1, T] times a frequency of its own.

    The scalar product of two turned vectors knows their distance alone.

    Raises (while tracing):
      SettingsError: D is odd.

    Source: Su et al. 2021, eq. 34; the pairs are (i, i + D/2), a fixed permutation of the paper's.
    """
    if x.shape[-1] % 2:
        raise SettingsError(
            f"config.model.positions: 'rotary' turns pairs, and a head of {x.shape[-1]} numbers has an odd one; say "
            "other heads or another width"
        )
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[..., None, None] * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def sinusoids(length: int, width: int, base: float = 10_000.0) -> Array:
    """f32[length, width]: sines in the even places and cosines in the odd ones, of wavelengths from 2 pi to base 2 pi.

    Source: Vaswani et al. 2017, section 3.5.
    """
    place = jnp.arange(width)
    wave = base ** (-2.0 / width * (place // 2).astype(jnp.float32))
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * wave[None]
    return jnp.where(place[None] % 2 == 0, jnp.sin(angle), jnp.cos(angle))
