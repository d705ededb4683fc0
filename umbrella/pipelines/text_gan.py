"""Writing text by a game of two networks, beside the maximum-likelihood start of that game. Floor 5."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from umbrella import losses, optim, settings, transforms
from umbrella.artifacts import Curves, Table, Text
from umbrella.data import corpus, sequences
from umbrella.data.tokenizers import START, Tokenizer
from umbrella.experiment import Durations, Experiment, Review, RunSettings
from umbrella.gradients import grad_of
from umbrella.metrics import Mean
from umbrella.models import RecurrentLM
from umbrella.models.critic import TokenDiscriminator
from umbrella.objective import (
    Array,
    Aux,
    Batch,
    Ctx,
    Objective,
    Params,
    State,
    View,
    add_term,
    map_batch,
    measure,
    supervised,
)
from umbrella.phases import during, snapshot
from umbrella.pipelines import _rows, language
from umbrella.pipelines._standard import RESERVED, evaluations
from umbrella.scores import interval
from umbrella.settings import Cadence, Count, Fraction, NonNegative, SettingsError
from umbrella.step import Step, alternate, guard, then, update
from umbrella.transforms.game import GAMES, score_of
from umbrella.transforms.policy import discriminate_rows, draw_rows, policy_loss, reinforce, shifted

COLUMNS = ("x", "y", "fresh")
GEN, DISC, BEGAN = "gen", "disc", "start"  # scopes
SHOWN = 20  # rows of text
MOST_ORDER = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextGame:
    """The keys of a config of this pipeline, beside those of `umbrella.experiment.RunSettings`.

    The first `pretrain` of training is maximum likelihood. Then the generator learns from the discriminator's rewards
    by REINFORCE, and what it was before is kept beside it. With "100%" there is no game: the rival that had as many
    steps.
    """

    data: dict
    tokens: Literal["char", "whitespace", "bpe"] = "char"
    vocabulary: settings.Natural = 0  # how many tokens there are, see the pipeline `language`
    length: Count = 32  # tokens of a row
    generator: dict = dataclasses.field(default_factory=dict)  # the fields of umbrella.models.RecurrentLM
    discriminator: dict = dataclasses.field(default_factory=dict)  # of umbrella.models.critic.TokenDiscriminator
    pretrain: Cadence = "70%"  # of maximum likelihood
    ahead: Cadence = "5%"  # the discriminator learns for so long before the game begins
    discount: Fraction = 0.9  # of the rewards of later tokens
    likelihood: NonNegative = 0.0  # weight of the likelihood of text in the generator's loss during the game
    optimizer: dict  # of maximum likelihood; its schedule ends where the game begins
    game_optimizer: dict = dataclasses.field(default_factory=dict)  # what is different in the game; all with a name
    disc_optimizer: dict = dataclasses.field(default_factory=dict)  # what is different for the discriminator
    evals: dict[str, tuple[str, ...]]  # on test: {"test": ()}; {} leaves test unseen
    on_nonfinite: Literal["raise", "skip", "rollback"] = "raise"
    sample: dict = dataclasses.field(default_factory=dict)  # what is drawn and how it is judged: see `sampling`


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
    if order > MOST_ORDER:
        raise SettingsError(f"config.sample.order: {order}: must be at most {MOST_ORDER}")
    return Sampling(rows, values, order)


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    run, own = read(config)
    asked = settings.call(sampling, own.sample, "sample.")
    nets = _nets(own)
    dataset = settings.call(corpus.load, own.data, "data.")
    found = language.read(dataset, own.tokens, own.vocabulary, own.length)
    size = found.tokenizer.size
    if size**asked.order >= 2**62:
        raise SettingsError(f"config.sample.order: {asked.order} is too long for {size:,} different tokens; say less")
    durations = Durations.of(run, len(found.parts["train"]))
    generator = RecurrentLM(words=size, stateful=False, **nets["generator"])
    critic = TokenDiscriminator(words=size, **nets["discriminator"])
    log: dict[str, Any] = {}
    game = players(generator, critic, own)
    step = phases(game, own, durations, log)
    both = told(game)

    def batches(split: str, rows: int) -> Iterable[Batch]:
        return sequences.sliding(found.parts[split], rows, own.length)

    contest = _rows.Contest(found.parts, size, own.length, asked.order, asked.rows)
    shown = {"rivals": bool(run.baselines), "played": durations.steps(own.pretrain) < durations.total}
    splits: dict[str, Any] = {s: found.parts[s] for s in ("train", "validation", "test")}
    dataset = dataset._replace(**splits)
    return Experiment(
        run=run,
        durations=durations,
        dataset=dataset,
        train_data=sequences.windows(found.parts["train"], run.batch_size),
        init=both.init,
        step=step,
        frozen={},
        evals=evaluations(dataset, COLUMNS, run, dict.fromkeys(own.evals, both), both, told=batches),
        review=reviewer(generator, contest, asked, found.tokenizer, **shown) if own.evals else _unseen,
        predict=predictor(generator, critic),
        asks=("y",),
        baselines=lambda: {k: dict(zip(_rows.NAMES, t.numbers, strict=True)) for k, t in contest.rivals.items()},
        better="loss",
        rolls_back=own.on_nonfinite == "rollback",
        objective=both,
        kept={"tokenizer": found.tokenizer.to_json()},
        settings={
            **dataclasses.asdict(run),
            **dataclasses.asdict(own),
            **nets,
            "data": settings.check(corpus.load, own.data, "data."),
            "sample": asked._asdict(),
            **log,
        },
        notes=language.notes(dataset, found),
    )


def read(config: Mapping[str, Any]) -> tuple[RunSettings, TextGame]:
    """Every key of a config, checked."""
    tables = [settings.accepts(f) for f in (RunSettings, TextGame)]
    known = tuple(k for t in tables for k in t)
    parts = [{k: v for k, v in config.items() if k in t} for t in tables]
    rest = {k: v for k, v in config.items() if k not in known and not (k == "techniques" and not v)}
    transforms.check_sections(rest, known)
    run = RunSettings(**settings.check(RunSettings, parts[0]))
    own = TextGame(**settings.check(TextGame, parts[1]))
    if rest or any(own.evals.values()):
        raise SettingsError("config.techniques: this pipeline has none: neither network sees anything but tokens")
    if isinstance(run.baselines, tuple):
        raise SettingsError("config.baselines: this pipeline has no choice of rivals; say true or false")
    if taken := set(RESERVED) & set(own.evals):
        raise SettingsError(f"config.evals.{min(taken)}: this name is taken; call the evaluation something else")
    if run.resample:
        raise SettingsError(
            "config.resample: needs rows that are drawn one by one, and this pipeline trains on running text"
        )
    if run.batch_size < 2:
        raise SettingsError("config.batch_size: 1: a sample's rewards are told from those of others; say 2 at least")
    return run, own


def _nets(own: TextGame) -> dict[str, dict[str, Any]]:
    """{section: settings}: what decides the networks, but for the vocabulary."""
    out = {}
    for key, module, given in (
        ("generator", RecurrentLM, ("words", "stateful")),
        ("discriminator", TokenDiscriminator, ("words",)),
    ):
        config = getattr(own, key)
        if taken := set(given) & set(config):
            raise SettingsError(f"config.{key}.{min(taken)}: the pipeline decides this; leave it out")
        checked = settings.check(module, config, f"{key}.", given=given)
        out[key] = {k: v for k, v in checked.items() if k not in given}
    return out


# ------------------------------------------------------------------------------------------------------------- the game
class Players(NamedTuple):
    """Three objectives over two networks."""

    likelihood: Objective
    disc: Objective
    gen: Objective


def players(generator: RecurrentLM, critic: TokenDiscriminator, own: TextGame) -> Players:
    """Of batches whose "y" i32[B, T] are rows of text."""
    likelihood = map_batch(lambda b, key: {**b, "x": shifted(b["y"], START)}, name="rows", eval=True)(
        supervised(generator, losses.cross_entropy, scope=GEN)
    )
    judged = measure(real_score=score_of(True), fake_score=score_of(False))(
        supervised(critic, GAMES["non_saturating"].disc, scope=DISC)
    )
    policy = reinforce(generator, critic, start=START, discount=own.discount)(
        supervised(generator, policy_loss, scope=GEN)
    )
    if own.likelihood:

        def text(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Aux) -> Array:
            return likelihood.apply(params, state, batch, ctx)[0]

        policy = add_term(text, weight=own.likelihood, name="likelihood")(policy)
    return Players(likelihood, discriminate_rows(generator, start=START)(judged), policy)


def phases(game: Players, own: TextGame, durations: Durations, log: dict[str, Any]) -> Step:
    """Maximum likelihood; the discriminator, a little ahead; the game; the start of the game is kept."""
    at, ahead = durations.steps(own.pretrain), durations.steps(own.ahead)
    if not 1 <= at <= durations.total:
        raise SettingsError(
            f"config.pretrain: {own.pretrain!r} is {at:,} of {durations.total:,} steps; a game is told beside its "
            "maximum-likelihood start, so say from one step to all of them, such as '70%'"
        )
    begins = max(0, at - ahead)
    tx = _optimizer("optimizer", own.optimizer, durations._replace(total=at), log)
    steps = [during(update(grad_of(game.likelihood), tx, wrt=(GEN,), name="likelihood"), 0, at)]
    if at < durations.total:
        rest = durations.total - at
        gen_tx = _optimizer("game_optimizer", _of(own, own.game_optimizer), durations._replace(total=rest), log)
        rest = durations.total - begins
        disc_tx = _optimizer("disc_optimizer", _of(own, own.disc_optimizer), durations._replace(total=rest), log)
        steps.append(during(update(grad_of(game.disc), disc_tx, wrt=(DISC,), name=DISC), begins))
        steps.append(during(update(grad_of(game.gen), gen_tx, wrt=(GEN,), name=GEN), at))
    step = then(alternate(*steps), snapshot(GEN, to=BEGAN, at=at))
    return guard(step, "skip" if own.on_nonfinite == "skip" else "halt")


def _of(own: TextGame, different: Mapping[str, Any]) -> dict[str, Any]:
    return dict(different) if "name" in different else {**own.optimizer, **different}


def _optimizer(
    key: str, config: Mapping[str, Any], durations: Durations, log: dict[str, Any]
) -> optax.GradientTransformation:
    """The optimiser of a phase of so many steps; what is said of it has the name of its section."""
    said: dict[str, Any] = {}
    try:
        tx = optim.build(config, total_steps=durations.total, to_steps=durations.steps, log=said)
    except SettingsError as error:
        raise SettingsError(str(error).replace("config.optimizer", f"config.{key}", 1)) from None
    log[key] = said["optimizer"]
    return tx


def told(game: Players) -> Objective:
    """The likelihood of text under the generator, and in evaluation under what it was before the game: "start_loss"."""

    def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
        (gen, _), (disc, _) = game.likelihood.init(batch, ctx), game.disc.init(batch, ctx)
        return {**gen, **disc}, {}

    def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        loss, aux = game.likelihood.apply(params, state, batch, ctx)
        if ctx.train or BEGAN not in params:
            return loss, aux
        before: Mean = game.likelihood.apply({GEN: params[BEGAN]}, state, batch, ctx)[1].metrics["loss"]
        return loss, aux.replace(metrics={**aux.metrics, "start_loss": before})

    return Objective(init, apply)


def predictor(
    generator: RecurrentLM, critic: TokenDiscriminator
) -> Callable[[View, Batch, Array], Mapping[str, Array]]:
    """Of rows of text i32[B, T]: the generator's nats and the discriminator's scores of every token, f32[B, T]."""

    def run(view: View, batch: Batch, key: Array) -> Mapping[str, Array]:
        rows = jnp.asarray(batch["y"])
        logits: Any = generator.apply({"params": view.params[GEN]}, shifted(rows, START), train=False)
        scores: Any = critic.apply({"params": view.params[DISC]}, rows, train=False)
        return {"nats": losses.cross_entropy(logits, rows), "score": scores}

    return run


# --------------------------------------------------------------------------------------------------------------- review
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


def _unseen(views: View, key: Array) -> Review:
    return Review({}, ())
