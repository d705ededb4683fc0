"""Writing text by a game of two networks, beside the maximum-likelihood start of that game. Floor 5."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

from umbrella import losses, ngrams, optim, parallel, settings, transforms
from umbrella.data import corpus, sequences
from umbrella.data.tokenizers import START
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
from umbrella.pipelines._written import BEGAN, GEN, reviewer, sampling
from umbrella.settings import Cadence, Count, Fraction, NonNegative, SettingsError
from umbrella.step import Step, alternate, guard, then, update
from umbrella.transforms.game import GAMES, score_of
from umbrella.transforms.policy import DISC, discriminate_rows, policy_loss, reinforce, shifted

MLE = "mle"  # the name of the first phase
COLUMNS = ("x", "y", "fresh")


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


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    run, own = read(config)
    asked = settings.call(sampling, own.sample, "sample.")
    nets = _nets(own)
    dataset = settings.call(corpus.load, own.data, "data.")
    found = language.read(dataset, None, own.tokens, own.vocabulary, own.length)
    size = found.tokenizer.size
    if not ngrams.fits(size, asked.order):
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
    parallel.check_game(run)
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
    steps = [during(update(grad_of(game.likelihood), tx, wrt=(GEN,), name=MLE), 0, at)]
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


def _unseen(views: View, key: Array) -> Review:
    return Review({}, ())
