"""N-gram models as rivals of language models: on the same tokens, scored at the same places. Floor 5."""

import re
import time

import numpy as np

from umbrella import ngrams
from umbrella.settings import SettingsError

USUAL = (1, 3, 5, 6)
MOST = 7  # tokens of an n-gram
PLACES = 20_000  # of test, at each of which one token is hidden
ASKED = 1_500_000  # tokens that n-grams are asked about, at all places together
LOOKUPS = 2_000_000  # n-grams that are looked up at a time


def chosen(names: bool | tuple[str, ...], size: int) -> tuple[int, ...]:
    """The orders of the rivals that are named; of the usual ones, those whose n-grams fit into a number.

    Raises:
      SettingsError: no such rival, or too many tokens for it.
    """
    if isinstance(names, bool):
        return tuple(n for n in USUAL if ngrams.fits(size, n)) if names else ()
    orders = []
    for name in names:
        found = re.fullmatch(r"kneser_ney_([1-9])", name)
        if not found or int(found[1]) > MOST:
            raise SettingsError(f"config.baselines: no rival {name!r} (one of: kneser_ney_1 to kneser_ney_{MOST})")
        if not ngrams.fits(size, int(found[1])):
            raise SettingsError(
                f"config.baselines: {name!r} is too long for {size:,} different tokens; say a shorter one"
            )
        orders.append(int(found[1]))
    return tuple(orders)


def scores(
    train: np.ndarray,
    before: np.ndarray,
    test: np.ndarray,
    size: int,
    width: float | None,
    orders: tuple[int, ...],
    *,
    masked: bool,
) -> dict[str, dict[str, float]]:
    """Each rival's metrics on test: of every next token, or of tokens hidden one by one at `places`.

    Args:
      train, before, test: i32[...], tokens to learn from, those that stand before test, and test.
      size: of the vocabulary.
      width: characters of a token of test on average; None where tokens forget what they were.
    """
    out = {}
    for n in orders:
        began = time.perf_counter()
        model = ngrams.train(train, order=n, size=size)
        told = _hidden(model, before, test) if masked else _next(model, before, test, width)
        out[f"kneser_ney_{n}"] = {**told, "seconds": time.perf_counter() - began}
    return out


def places(tokens: int, size: int) -> np.ndarray:
    """i64[P]: where in a split of so many tokens of a vocabulary of so many one is hidden: evenly, and not so near to
    its end that n-grams would look beyond. Fewer of a large vocabulary, all of which n-grams must be asked about."""
    room = max(1, tokens - MOST + 1)
    return np.unique(np.linspace(0, room - 1, min(PLACES, ASKED // size + 1, room)).astype(np.int64))


def _next(model: ngrams.NGrams, before: np.ndarray, test: np.ndarray, width: float | None) -> dict[str, float]:
    loss = float(-model.score(before[-2 * model.order :], test).mean())
    return {"loss": loss, **({} if width is None else {"bits_per_character": loss / float(np.log(2)) / width})}


def _hidden(model: ngrams.NGrams, before: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Of one token hidden at a time, by Bayes' rule: P(token | both sides) is proportional to the probability of the
    token and of the N - 1 after it."""
    reach = model.order - 1
    at, whole, first = (
        places(len(test), model.size),
        np.concatenate([before, test]).astype(np.int64),
        len(before),
    )
    rows = whole[first + at[:, None] + np.arange(-reach, reach + 1)[None]]  # i64[P, 2 reach + 1]
    chunk = max(1, LOOKUPS // (model.size * (reach + 1)))
    nats, hits = [], []
    for i in range(0, len(rows), chunk):
        part = rows[i : i + chunk]
        each = np.repeat(part, model.size, 0)
        each[:, reach] = np.tile(np.arange(model.size), len(part))
        steps = [model.log_probability(each[:, k : k + reach], each[:, k + reach]) for k in range(reach + 1)]
        log = np.sum(steps, axis=0).reshape(len(part), model.size)
        log -= np.logaddexp.reduce(log, axis=1, keepdims=True)
        nats.append(-log[np.arange(len(part)), part[:, reach]])
        hits.append(log.argmax(1) == part[:, reach])
    return {
        "one_hidden_loss": float(np.concatenate(nats).mean()),
        "one_hidden_accuracy": float(np.concatenate(hits).mean()),
    }
