"""What a generator of text and its maximum-likelihood start write, drawn, judged and shown side by side. Floor 5."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella.artifacts import Curves, Table, Text
from umbrella.data.tokenizers import START, Tokenizer
from umbrella.experiment import Review
from umbrella.models import RecurrentLM
from umbrella.objective import Array, View
from umbrella.pipelines import _rows
from umbrella.pipelines._ngrams import MOST
from umbrella.scores import interval
from umbrella.settings import Count, SettingsError
from umbrella.transforms.policy import GEN, draw_rows

BEGAN = "start"  # the scope of the generator as it was
SHOWN = 20  # rows of text


class Sampling(NamedTuple):
    rows: int
    temperatures: tuple[float, ...]
    order: int


def sampling(
    *,
    rows: Count = 4000,
    temperatures: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2),
    order: Count = 5,
) -> Sampling:
    """How generators are judged.

    Args:
      rows: drawn from each generator at each temperature.
      temperatures: ascending, 1 among them.
      order: of the judge's n-grams, at most 7.

    Raises:
      SettingsError: temperatures that are not ascending, not positive or without 1; a longer order.
    """
    values = tuple(float(t) for t in temperatures)
    if any(a >= b for a, b in zip(values, values[1:], strict=False)) or not values or values[0] <= 0:
        raise SettingsError(f"config.sample.temperatures: {values}: must be positive and ascending")
    if 1.0 not in values:
        raise SettingsError(f"config.sample.temperatures: {values}: 1 must be among them, by which a game is judged")
    if order > MOST:
        raise SettingsError(f"config.sample.order: {order}: must be at most {MOST}")
    return Sampling(rows, values, order)


def reviewer(
    generator: RecurrentLM, contest: _rows.Contest, asked: Sampling, tokenizer: Tokenizer, rivals: bool, played: bool
) -> Callable[[View, Array], Review]:
    """Both generators of every seed, drawn from at every temperature by the same keys, and judged."""

    def review(views: View, key: Array) -> Review:
        drawn = {k: _drawn(generator, views.params[k], contest, asked, key) for k in (GEN, BEGAN)}
        found = {k: [[contest.told(rows) for rows in seed] for seed in seeds] for k, seeds in drawn.items()}
        metrics, said = judged(found[GEN], found[BEGAN], asked)
        said = said if played else "There was no game: all of training was maximum likelihood (config.pretrain)."
        one = len(found[GEN]) == 1

        def made() -> Iterable[tuple[str, Any]]:
            yield "verdict", Text(said, "Whether the game beat the generator that maximum likelihood left it.")
            yield "text", _text({k: seeds[0] for k, seeds in drawn.items()}, asked, tokenizer)
            yield "quality_coverage", _curves(found, asked)
            yield "samplers", _table(found, contest, asked, rivals)

        return Review({"test": {k: float(v[0]) if one else v for k, v in metrics.items()}}, made())

    return review


def _drawn(
    generator: RecurrentLM, params: Any, contest: _rows.Contest, asked: Sampling, key: Array
) -> list[list[np.ndarray]]:
    """i32[N, T] of every seed and temperature. `params` have a leading seed axis."""
    draw = jax.jit(partial(draw_rows, generator, start=START, rows=asked.rows, length=contest.length))
    seeds = len(jax.tree.leaves(params)[0])
    lanes = [jax.tree.map(lambda x, k=k: x[k], params) for k in range(seeds)]
    return [[np.asarray(draw(p, key, temperature=jnp.float32(t))) for t in asked.temperatures] for p in lanes]


def judged(
    game: list[list[_rows.Told]], start: list[list[_rows.Told]], asked: Sampling
) -> tuple[dict[str, np.ndarray], str]:
    """(metrics f64[K] by name, the verdict) of K seeds at all temperatures. Without a prefix they are of the game at
    temperature 1, with "start_" of its start; "gain_" is by how many nats per token the game is better at equal
    self-BLEU, NaN where the start's samples never are as alike."""
    one = asked.temperatures.index(1.0)
    metrics: dict[str, np.ndarray] = {}
    for prefix, seeds in (("", game), ("start_", start)):
        numbers = np.array([curve[one].numbers for curve in seeds])
        metrics |= {prefix + name: numbers[:, i] for i, name in enumerate(_rows.NAMES)}
    at = [_rows.match(curve, asked.temperatures, seed[one].self_bleu) for seed, curve in zip(game, start, strict=True)]
    each = [
        None if m is None else _rows.gains(seed[one], curve, m) for seed, curve, m in zip(game, start, at, strict=True)
    ]
    for i, name in enumerate(("gain_quality", "gain_coverage")):
        metrics[name] = np.array([np.nan if g is None else g[i].value for g in each])
    metrics["start_temperature"] = np.array([np.nan if m is None else m.temperature for m in at])
    if not all(each):
        return metrics, _rows.verdict(None, None, "")
    if len(each) == 1:
        assert each[0] is not None
        return metrics, _rows.verdict(*each[0], unit="rows of one seed; another seed may differ by more")
    gains = [_rows.mean_of(metrics[k]) for k in ("gain_quality", "gain_coverage")]
    return metrics, _rows.verdict(gains[0], gains[1], unit=f"{len(each)} seeds")


def _text(drawn: Mapping[str, list[np.ndarray]], asked: Sampling, tokenizer: Tokenizer) -> Text:
    one = asked.temperatures.index(1.0)
    parts = []
    for name, title in ((GEN, "After the game"), (BEGAN, "Its maximum-likelihood start")):
        lines = [repr(tokenizer.decode(row))[1:-1] for row in drawn[name][one][:SHOWN]]
        parts.append("\n".join([f"{title}:", *lines]))
    return Text("\n\n".join(parts), "Rows of the first seed at temperature 1, a line each, drawn by the same numbers.")


def _curves(found: Mapping[str, list[list[_rows.Told]]], asked: Sampling) -> Curves:
    series, bands = {}, {}
    for name, title in ((GEN, "the game"), (BEGAN, "its start")):
        numbers = np.array([[t.numbers for t in seed] for seed in found[name]])  # f[K, temperatures, 4]
        mean, half = interval(numbers)
        order = np.argsort(mean[:, 1], kind="stable")
        series[title] = (mean[order, 1], mean[order, 0])
        if len(numbers) > 1:
            bands[title] = ((mean - half)[order, 0], (mean + half)[order, 0])
    warm = ", ".join(f"{t:g}" for t in asked.temperatures)
    caption = (
        f"Quality against coverage at temperatures {warm}; lower is better in both. Upwards: nats per token of samples "
        f"under a Kneser-Ney model of {asked.order} of held-out text; to the right: of test text under one of samples."
    )
    return Curves(series, "coverage, nats", "quality, nats", caption, bands, ("its start",))


def _table(found: Mapping[str, list[list[_rows.Told]]], contest: _rows.Contest, asked: Sampling, rivals: bool) -> Table:
    named = {}
    for name, title in ((GEN, "the game"), (BEGAN, "its start")):
        for i, t in enumerate(asked.temperatures):
            named[f"{title}, temperature {t:g}"] = [seed[i] for seed in found[name]]
    named |= {name: [one] for name, one in contest.rivals.items()} if rivals else {}
    caption = (
        f"{asked.rows:,} rows of {contest.length} tokens each, means over seeds. Quality: nats per token under a "
        "Kneser-Ney model of validation and test; coverage: of test under one of the rows; self-BLEU: how alike rows "
        "are; copied: the share that stands in the training text. Training rows are told what perfect samples would be."
    )
    return Table(("rows of", "quality", "coverage", "self-BLEU", "copied"), _rows.table_rows(named), caption)
