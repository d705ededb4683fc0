"""What there is to say of language models: how context helps, one hidden token at a time, what they write. Floor 5."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import losses
from umbrella.artifacts import Curves
from umbrella.data.sequences import Tokens
from umbrella.data.tokenizers import MASK
from umbrella.objective import View
from umbrella.pipelines._ngrams import MOST, places
from umbrella.scores import interval
from umbrella.settings import Natural, NonNegative, Range, SettingsError

LogitsOf = Callable[[View, Any], Any]  # (views, i32[B, T]) -> f32[K, B, T, V]
Share = Annotated[float, Range(lambda v: 0 < v <= 1, "must be in (0, 1]")]

ROWS = 512  # of test, at most, by which it is told how context helps
BATCH = 256


class Writing(NamedTuple):
    prompt: str
    length: int
    temperature: float
    top_k: int
    top_p: float


def writing(
    *,
    prompt: str = "\n",
    length: Natural = 500,
    temperature: NonNegative = 0.8,
    top_k: Natural = 0,
    top_p: Share = 1.0,
) -> Writing:
    """How text is written in the report and by --mode=sample.

    Args:
      prompt: what it begins with; not shown to a model of hidden tokens.
      length: tokens to write; 0 for none.
      temperature: logits are divided by it; 0 for the most probable token each time.
      top_k: draws from the k most probable tokens alone; 0 for all.
      top_p: draws from the most probable tokens that have this probability together (Holtzman et al. 2020).
    """
    if not prompt:
        raise SettingsError("config.sample.prompt: must not be empty; text begins with something, such as a line's end")
    return Writing(prompt, length, temperature, top_k, top_p)


def by_context(logits_of: LogitsOf, views: View, test: Tokens) -> Curves:
    """Nats per token of test by how many tokens of its row stand before it; over seeds."""
    rows = test.__getitems__(np.linspace(0, len(test) - 1, min(ROWS, len(test))).astype(int))
    nats = []
    for start in range(0, len(rows["x"]), BATCH):
        logits = logits_of(views, rows["x"][start : start + BATCH])
        nats.append(_nats(logits, rows["y"][start : start + BATCH]))
    each = np.concatenate(nats, 1).mean(1)  # f[K, T]
    edges = np.unique(np.r_[0, 2 ** np.arange(0, np.log2(max(2, test.length))), test.length].astype(int))
    x = np.asarray([(a + b - 1) / 2 for a, b in zip(edges, edges[1:], strict=False)])
    y = np.stack([each[:, a:b].mean(1) for a, b in zip(edges, edges[1:], strict=False)], 1)
    mean, half = interval(y)
    bands = {"the model": (mean - half, mean + half)} if len(y) > 1 else {}
    caption = f"Nats per token on test by how many tokens of its row stand before it ({len(rows['x']):,} rows)."
    return Curves({"the model": (x, mean)}, "tokens before it", "nats", caption, bands)


def one_hidden(logits_of: LogitsOf, views: View, test: Tokens) -> dict[str, np.ndarray]:
    """One token hidden at a time, the model sees the others of a row around it: nats and accuracy, f64[K] each."""
    at, length = places(len(test.tokens), length_after(test)), test.length
    whole, first = np.concatenate([test.before, test.tokens]), len(test.before)
    start = np.minimum(first + at - length // 2, len(whole) - length)
    nats, hits = [], []
    for i in range(0, len(at), BATCH):
        rows = np.minimum(np.arange(i, i + BATCH), len(at) - 1)  # the last batch repeats a place
        x = whole[start[rows][:, None] + np.arange(length)[None]]
        place = first + at[rows] - start[rows]
        y = x[np.arange(BATCH), place]
        x = x.copy()
        x[np.arange(BATCH), place] = MASK
        told = np.asarray(logits_of(views, x))[:, np.arange(BATCH), place]  # f[K, B, V]
        kept = len(at[i : i + BATCH])
        nats.append(_nats(told, y)[:, :kept])
        hits.append((told.argmax(-1) == y[None])[:, :kept])
    return {
        "one_hidden_loss": np.concatenate(nats, 1).mean(1, dtype=np.float64),
        "one_hidden_accuracy": np.concatenate(hits, 1).mean(1),
    }


def length_after(test: Tokens) -> int:
    """How many tokens at the end of test no token is hidden among: those that n-grams would look beyond."""
    return min(MOST - 1, len(test.tokens) - 1)


def _nats(logits: Any, y: np.ndarray) -> np.ndarray:
    """f[K, ...] of logits f[K, ..., V] and tokens i32[...]."""
    return np.asarray(jax.vmap(losses.cross_entropy, (0, None))(jnp.asarray(logits), jnp.asarray(y)))
