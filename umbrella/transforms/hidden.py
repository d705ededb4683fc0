"""Tokens that are hidden and to be told: the task of masked language models. Floor 2."""

import jax
import jax.numpy as jnp

from umbrella.objective import Array, Batch, Transform, map_batch
from umbrella.settings import Fraction


def mask_tokens(
    token: int, words: tuple[int, int], *, rate: Fraction = 0.15, replaced: Fraction = 0.1, kept: Fraction = 0.1
) -> Transform:
    """Hides tokens of x i32[B, T]; y becomes the tokens as they were, and the loss is of the hidden ones alone.

    Makes the task, so it acts in evaluation, too. Padding, token 0, is neither hidden nor counted; a mask that a batch
    has already says which tokens may be.

    Args:
      token: what stands in for a hidden token.
      words: the first token that may stand in by chance, and the first that may not any more.
      rate: the share of tokens that are to be told, each by its own coin.
      replaced: of these, the share that are another token, drawn evenly.
      kept: of these, the share that are left as they are; the rest is hidden by `token`.

    Source: Devlin et al. 2019, section 3.1 and appendix A.1. Deviation: every token by its own coin, where the paper's
    program takes a fixed number of a text's.
    """

    def fn(batch: Batch, key: Array) -> Batch:
        x = batch["x"]
        mask = batch["mask"] if "mask" in batch else jnp.ones(x.shape)
        may = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)) > 0
        seen, chosen = hide(x, key, token, words, rate=rate, replaced=replaced, kept=kept, may=may)
        return {**batch, "x": seen, "y": x, "mask": chosen.astype(jnp.float32)}

    return map_batch(fn, name="mask_tokens", eval=True)


def hide(
    x: Array,
    key: Array,
    token: int,
    words: tuple[int, int],
    *,
    rate: float = 0.15,
    replaced: float = 0.1,
    kept: float = 0.1,
    may: Array | None = None,
) -> tuple[Array, Array]:
    """(tokens i32[B, T] with some hidden, bool[B, T] which are to be told); see `mask_tokens`. Only where `may`."""
    told, how, by = jax.random.split(key, 3)
    chosen = (x > 0) & (jax.random.uniform(told, x.shape) < rate)
    chosen = chosen if may is None else chosen & may
    coin = jax.random.uniform(how, x.shape)
    other = jax.random.randint(by, x.shape, *words, x.dtype)
    seen = jnp.where(coin < replaced, other, jnp.where(coin < replaced + kept, x, jnp.asarray(token, x.dtype)))
    return jnp.where(chosen, seen, x), chosen
