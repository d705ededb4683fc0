"""What there is to say of language models: how context helps, one hidden token at a time, what they write. Floor 5."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import decoding, losses
from umbrella.artifacts import Curves, Table, Text
from umbrella.data.sequences import Tokens
from umbrella.data.tokenizers import END, MASK, Tokenizer
from umbrella.models.language import decoder
from umbrella.objective import Array, View
from umbrella.pipelines._ngrams import places
from umbrella.scores import interval
from umbrella.settings import Natural, NonNegative, Range, SettingsError

LogitsOf = Callable[[View, Any], Any]  # (views, i32[B, T]) -> f32[K, B, T, V]
Share = Annotated[float, Range(lambda v: 0 < v <= 1, "must be in (0, 1]")]

ROWS = 512  # of test, at most, by which it is told how context helps
BATCH = 256
SHOWN = 20
NO_END = -1  # no token: running text has none that ends it
BEFORE = 32  # tokens that stand for a prompt


class Writing(NamedTuple):
    prompt: str
    length: int
    temperature: float
    top_k: int
    top_p: float
    beam: int = 0


def writing(
    *,
    prompt: str = "",
    length: Natural = 500,
    temperature: NonNegative = 0.8,
    top_k: Natural = 0,
    top_p: Share = 1.0,
    beam: Natural = 0,
) -> Writing:
    """How text is written in the report and by --mode=sample.

    Args:
      prompt: what it begins with; when empty, the end of the text before test.
      length: tokens to write; 0 for none.
      temperature: logits are divided by it; 0 for the most probable token each time.
      top_k: draws from the k most probable tokens alone; 0 for all.
      top_p: draws from the most probable tokens that have this probability together (Holtzman et al. 2020).
      beam: so many hypotheses are kept, and the likeliest is written: nothing is drawn then; 0 for drawing. The
        likeliest text of a language model repeats itself (the same paper, section 1).
    """
    return Writing(prompt, length, temperature, top_k, top_p, beam)


def check_prompt(asked: Writing, tokenizer: Tokenizer) -> None:
    """That there is something to begin with.

    Raises:
      SettingsError: the prompt has no token, or is no text.
    """
    try:
        known = len(tokenizer.encode(asked.prompt))
    except UnicodeEncodeError:
        raise SettingsError(f"config.sample.prompt: {asked.prompt!r} is no text that can be encoded") from None
    if asked.prompt and not known:
        raise SettingsError(f"config.sample.prompt: {asked.prompt!r} has no token; say a word, or nothing at all")


def write(net: Any, view: View, tokenizer: Tokenizer, before: np.ndarray, asked: Writing, key: Array) -> Text:
    """What a model of the next token writes by itself, after its prompt or, without one, after the last of `before`
    i32[C]. `view` is of one seed, its parameters the effective ones."""
    packed = getattr(net, "apart", -1) >= 0
    if packed:
        start = tokenizer.encode(asked.prompt)
        text = "\n".join(tokenizer.decode(t) for t in several(net, view.params["model"], start, asked, key))
    else:
        start = tokenizer.encode(asked.prompt) if asked.prompt else before[-BEFORE:]
        text = tokenizer.decode(continued(net, view.params["model"], start, asked, key))
    told = [f"beam {asked.beam}" if asked.beam else f"temperature {asked.temperature:g}"]
    told += [f"top_k {asked.top_k}"] * (asked.top_k > 0) + [f"top_p {asked.top_p:g}"] * (asked.top_p < 1)
    after = "the end of the text before test, with which it begins here"
    if asked.prompt or packed:
        after = repr(asked.prompt) if asked.prompt else "nothing, a text a line"
    caption = f"What the first seed's model writes after {after}: {asked.length:,} tokens, {', '.join(told)}."
    return Text(text, caption)


def several(net: Any, params: Any, start: np.ndarray, asked: Writing, key: Array) -> list[np.ndarray]:
    """Texts i32[T], one after the other until they have asked.length tokens, each until the model ends it; the first
    begins with i32[P]."""
    made: list[np.ndarray] = []
    while (left := asked.length - sum(len(t) + 1 for t in made)) > 0:
        key, now = jax.random.split(key)
        begin = np.concatenate([[END], start if not made else start[:0]]).astype(np.int32)
        told = continued(net, params, begin, asked._replace(length=left), now)[1:]
        ends = np.flatnonzero(told[len(begin) - 1 :] == END)
        made.append(told[: len(begin) - 1 + ends[0]] if len(ends) else told)
    return made


def continued(net: Any, params: Any, start: np.ndarray, asked: Writing, key: Array) -> np.ndarray:
    """i32[P + asked.length]: the prompt i32[P] and what follows it, in segments: a model that sees T tokens at most
    goes on from the last half of them.

    Args:
      net: a model with a cache for decoding ("cache", by decode=True), or one that keeps its state ("carry").
    """
    room, written = getattr(net, "length", 0), start
    how: dict[str, Any] = {"temperature": asked.temperature, "top_k": asked.top_k, "top_p": asked.top_p}
    how = {"beam": asked.beam} if asked.beam else how
    run = jax.jit(functools.partial(_segment, net, how), static_argnames="length")
    while len(written) - len(start) < asked.length:
        context = written[-(room // 2 or 1) :] if room else written
        length = max(1, room - len(context)) if room else asked.length
        key, now = jax.random.split(key)
        told = run(params, jnp.asarray(context)[None], now, length=length)
        written = np.concatenate([written, np.asarray(told)[0]])
    return written[: len(start) + asked.length]


def _segment(net: Any, how: dict[str, Any], params: Any, prompt: Array, key: Array, *, length: int) -> Array:
    """i32[1, length]: what follows i32[1, P]."""
    step, cache = decoder(net, params, len(prompt))
    if "beam" not in how:
        return decoding.sample(step, cache, prompt, key, length=length, **how)
    if prompt.shape[1] > 1:
        cache = decoding.read(step, cache, prompt[:, :-1])[1]
    return decoding.beam(step, cache, prompt[:, -1], width=how["beam"], length=length, end=NO_END).tokens[:, 0]


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


def one_hidden(logits_of: LogitsOf, views: View, test: Tokens, size: int) -> dict[str, Any]:
    """One token hidden at a time, the model sees the others of a row around it: nats and accuracy, of one seed or of
    each."""
    at, length = places(len(test.tokens), size), test.length
    whole, first = test.whole, len(test.before)
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
    found = {"one_hidden_loss": nats, "one_hidden_accuracy": hits}
    each = {k: np.concatenate(v, 1).mean(1, dtype=np.float64) for k, v in found.items()}
    return {k: float(v[0]) if len(v) == 1 else v for k, v in each.items()}


def guesses(logits_of: LogitsOf, views: View, test: Tokens, tokenizer: Tokenizer) -> Table:
    """Some hidden tokens of test, what stood there, and what the first seed's model says of them."""
    at = np.linspace(0, len(test) - 1, min(SHOWN, len(test))).astype(int)
    x = test.__getitems__(at)["x"].copy()
    place = np.arange(len(at)) * 7 % test.length  # here and there
    y = x[np.arange(len(at)), place]
    x[np.arange(len(at)), place] = MASK
    log = np.asarray(logits_of(views, x))[0][np.arange(len(at)), place].astype(np.float64)
    p = np.exp(log - np.logaddexp.reduce(log, axis=-1, keepdims=True))
    rows = []
    for row, i, true, q in zip(x, place, y, p, strict=True):
        sides = [tokenizer.decode(row[max(0, i - 30) : i]), tokenizer.decode(row[i + 1 : i + 31])]
        said = ", ".join(f"{tokenizer.decode(np.array([t]))!r} {q[t]:.2f}" for t in np.argsort(-q)[:3])
        rows.append((" [?] ".join(sides), repr(tokenizer.decode(np.array([true]))), said))
    return Table(
        ("text", "hidden", "probable"), tuple(rows), "Tokens of test, hidden one by one, and the three guesses."
    )


def _nats(logits: Any, y: np.ndarray) -> np.ndarray:
    """f[K, ...] of logits f[K, ..., V] and tokens i32[...]."""
    return np.asarray(jax.vmap(losses.cross_entropy, (0, None))(jnp.asarray(logits), jnp.asarray(y)))
