"""Sequences out of a model that gives one token at a time: by chance, by the likeliest, by beam search. Floor 0.

All are pure and may be compiled, with static lengths. A model is a function `step(cache, tokens) -> (logits, cache)`:

    cache: a pytree of arrays, each with a leading axis of rows [B, ...]: whatever was read so far
    tokens: i32[B], what comes next
    logits: f32[B, V], of the token after that
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Cache = Any
Step = Callable[[Cache, Array], tuple[Array, Cache]]
NEVER = -1e30  # a log probability that loses against every other and is finite, so that differences are


def read(step: Step, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
    """(the logits f32[B, V] after i32[B, P], the cache by then), P >= 1, one token at a time."""
    logits, cache = step(cache, tokens[:, 0])

    def one(carry: tuple[Array, Cache], token: Array) -> tuple[tuple[Array, Cache], None]:
        return step(carry[1], token), None

    return jax.lax.scan(one, (logits, cache), tokens[:, 1:].T)[0]


# ------------------------------------------------------------------------------------------------------------ by chance
def keep_top_k(logits: Array, k: int) -> Array:
    """f32[..., V]: the k largest as they are, -inf elsewhere; of equal ones the first. All when k is 0 or beyond V.

    Source: Fan et al. 2018, section 4.2.
    """
    if not 0 < k < logits.shape[-1]:
        return logits
    kept = jax.nn.one_hot(jax.lax.top_k(logits, k)[1], logits.shape[-1], dtype=bool).any(-2)
    return jnp.where(kept, logits, -jnp.inf)


def keep_top_p(logits: Array, p: float) -> Array:
    """f32[..., V]: the fewest that have the probability p together, the likeliest first; -inf elsewhere. One is always
    kept, and all when p is 1.

    Source: Holtzman et al. 2020, section 3.1, eq. 2.
    """
    if p >= 1:
        return logits
    order = jnp.argsort(-logits, axis=-1, stable=True)
    probability = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1)
    before = jnp.cumsum(probability, -1) - probability
    kept = (before < p) | (jnp.arange(logits.shape[-1]) == 0).reshape((1,) * (logits.ndim - 1) + (-1,))
    kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), -1)
    return jnp.where(kept, logits, -jnp.inf)


def draw(logits: Array, key: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Array:
    """i32[B]: a token for each row of logits f32[B, V].

    Args:
      temperature: what logits are divided by; 0 takes the likeliest token, the first of equal ones.
      top_k: draws among so many of the likeliest; among all when 0.
      top_p: draws among the fewest that have this probability together, after temperature and top_k.

    Raises:
      ValueError: a setting out of range.
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature={temperature}, top_k={top_k} must be >= 0, top_p={top_p} in (0, 1]")
    if temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    kept = keep_top_p(keep_top_k(logits / temperature, top_k), top_p)
    return jax.random.categorical(key, kept, -1).astype(jnp.int32)


def sample(
    step: Step,
    cache: Cache,
    prompt: Array,
    key: Array,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    end: int | None = None,
    pad: int = 0,
) -> Array:
    """i32[B, length]: what follows the prompt, a token drawn at a time.

    Args:
      prompt: i32[B, P], P >= 1, such as a start token alone.
      key: position i draws with fold_in(key, i), so a longer sample begins with the shorter one.
      end: the token that ends a row; `pad` follows it. None for no such token.
      temperature, top_k, top_p: see `draw`.
    """
    logits, cache = read(step, cache, prompt)

    def one(carry: tuple[Array, Cache, Array], i: Array) -> tuple[tuple[Array, Cache, Array], Array]:
        logits, cache, over = carry
        token = draw(logits, jax.random.fold_in(key, i), temperature=temperature, top_k=top_k, top_p=top_p)
        token = jnp.where(over, pad, token)
        over = over if end is None else over | (token == end)
        logits, cache = step(cache, token)
        return (logits, cache, over), token

    begin = (logits, cache, jnp.zeros(prompt.shape[0], bool))
    return jax.lax.scan(one, begin, jnp.arange(length))[1].T


def greedy(step: Step, cache: Cache, prompt: Array, *, length: int, end: int | None = None, pad: int = 0) -> Array:
    """i32[B, length]: what follows the prompt, the likeliest token at a time."""
    return sample(step, cache, prompt, jax.random.key(0), length=length, temperature=0.0, end=end, pad=pad)


# ------------------------------------------------------------------------------------------------------- by beam search
class Beams(NamedTuple):
    """Hypotheses, the best first."""

    tokens: Array  # i32[B, K, length], with their end, then padding
    score: Array  # f32[B, K], log probability over the length penalty
    ended: Array  # bool[B, K]; one that is cut off at `length` comes after all that ended


class _Search(NamedTuple):
    at: Array  # i32[], tokens so far
    cache: Cache  # [B K, ...], of the living
    last: Array  # i32[B, K]
    tokens: Array  # i32[B, K, length]
    log_p: Array  # f32[B, K]
    done_tokens: Array  # i32[B, K, length]
    done_score: Array  # f32[B, K], NEVER where there is none


def length_penalty(length: Array | int, alpha: float) -> Array:
    """((5 + length) / 6)^alpha, what a log probability is divided by. f32[].

    Source: Wu et al. 2016, eq. 14; the length is in tokens, the end among them.
    """
    return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


def beam(
    step: Step, cache: Cache, start: Array, *, width: int, length: int, end: int, alpha: float = 0.6, pad: int = 0
) -> Beams:
    """The sequences of the highest log probability over `length_penalty` that a beam search finds.

    It goes on until no living hypothesis can come before the worst of the `width` that have ended, so a wide enough
    beam finds the best sequence of all.

    Args:
      cache: [B, ...], of B rows; the search makes width copies of it.
      start: i32[B], the token that is read first.
      width: K, hypotheses kept alive, and returned.
      length: most tokens, the end among them.
      alpha: 0 for none, which favours short sequences.

    Raises:
      ValueError: width or length < 1, alpha < 0; a leaf of the cache without the leading axis B.

    Source: Wu et al. 2016, section 7, without the coverage penalty and without pruning.
    """
    rows = start.shape[0]
    if width < 1 or length < 1 or alpha < 0:
        raise ValueError(f"width={width}, length={length} must be >= 1, alpha={alpha} >= 0")
    if any(x.shape[:1] != (rows,) for x in jax.tree.leaves(cache)):
        raise ValueError(f"every leaf of the cache must have the leading axis {rows}, one for each row")
    empty = jnp.full((rows, width, length), pad, jnp.int32)
    never = jnp.full((rows, width), NEVER)
    search = _Search(
        at=jnp.int32(0),
        cache=jax.tree.map(lambda x: jnp.repeat(x, width, 0), cache),
        last=jnp.repeat(start[:, None], width, 1),
        tokens=empty,
        log_p=never.at[:, 0].set(0.0),  # all are alike at first, so one is enough
        done_tokens=empty,
        done_score=never,
    )
    longest = length_penalty(length, alpha)

    def going(s: _Search) -> Array:
        best = s.log_p.max(1) / longest  # the most that a living one can come to
        return (s.at < length) & jnp.any(best > s.done_score.min(1))

    s = jax.lax.while_loop(going, lambda s: _extend(step, s, end=end, alpha=alpha), search)
    living = jnp.where(s.at == length, s.log_p / length_penalty(s.at, alpha), NEVER)
    score = jnp.concatenate([s.done_score, living], 1)
    ended = jnp.concatenate([s.done_score > NEVER, jnp.zeros_like(living, bool)], 1)
    order = jnp.lexsort((-score, ~ended), axis=-1)[:, :width]  # by the last key first
    tokens = jnp.concatenate([s.done_tokens, s.tokens], 1)
    return Beams(
        jnp.take_along_axis(tokens, order[..., None], 1),
        jnp.take_along_axis(score, order, 1),
        jnp.take_along_axis(ended, order, 1),
    )


def _extend(step: Step, s: _Search, *, end: int, alpha: float) -> _Search:
    """Every living hypothesis by every token; the best go on, those that end leave."""
    rows, width = s.last.shape
    logits, cache = step(s.cache, s.last.reshape(-1))
    log_p = s.log_p[..., None] + jax.nn.log_softmax(logits).reshape(rows, width, -1)
    words = log_p.shape[-1]
    # Of twice as many at most half end, since each hypothesis ends in one way: enough are left to go on.
    found, index = jax.lax.top_k(log_p.reshape(rows, -1), min(2 * width, width * words))
    parent, token = index // words, (index % words).astype(jnp.int32)
    tokens = jnp.take_along_axis(s.tokens, parent[..., None], 1).at[:, :, s.at].set(token)
    ends = token == end

    score = jnp.where(ends & (found > NEVER / 2), found / length_penalty(s.at + 1, alpha), NEVER)
    done_score, kept = jax.lax.top_k(jnp.concatenate([s.done_score, score], 1), width)
    done_tokens = jnp.take_along_axis(jnp.concatenate([s.done_tokens, tokens], 1), kept[..., None], 1)

    alive, kept = jax.lax.top_k(jnp.where(ends, NEVER, found), width)
    parent = jnp.take_along_axis(parent, kept, 1)
    flat = (parent + width * jnp.arange(rows)[:, None]).reshape(-1)
    return _Search(
        s.at + 1,
        jax.tree.map(lambda x: x[flat], cache),
        jnp.take_along_axis(token, kept, 1),
        jnp.take_along_axis(tokens, kept[..., None], 1),
        alive,
        done_tokens,
        done_score,
    )
