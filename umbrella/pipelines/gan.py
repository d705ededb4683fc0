"""Drawing images by a game of two networks. Floor 5."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from umbrella import data, optim, parallel, settings, transforms
from umbrella.experiment import Durations, Experiment, Review, RunSettings
from umbrella.gradients import grad_of
from umbrella.models.gan import Discriminator, Generator
from umbrella.objective import Array, Batch, Ctx, Objective, Transform, View, chain, measure, supervised
from umbrella.pipelines import _judge
from umbrella.pipelines._samples import Contest, reviewer
from umbrella.pipelines._standard import (
    RESERVED,
    evaluations,
    refuse_again,
    refuse_inert,
    refuse_unfit,
    repeated,
    scale_of,
    train_data,
)
from umbrella.settings import Count, Fraction, NonNegative, SettingsError
from umbrella.step import Metrics, Step, alternate, ema, guard, repeat, then, update
from umbrella.train_state import TrainState
from umbrella.transforms import pixels
from umbrella.transforms.game import GAMES, deceive, discriminate, gradient_penalty, r1, score_of, side_by_side

COLUMNS = ("x",)
FITTING = ("affine", "colour", "crop", "cutout", "diffaugment", "elastic", "flip")  # they rewrite each image by itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Game:
    """The keys of a config of this pipeline, beside those of `umbrella.experiment.RunSettings`.

    Raises:
      SettingsError: Wasserstein's loss with a discriminator whose slope nothing bounds.
    """

    data: dict
    generator: dict = dataclasses.field(default_factory=dict)  # the fields of umbrella.models.Generator
    discriminator: dict = dataclasses.field(default_factory=dict)  # those of umbrella.models.Discriminator
    loss: Literal["non_saturating", "hinge", "wasserstein"] = "non_saturating"
    r1: NonNegative = 0.0  # gamma of the penalty on real images (10 in Mescheder et al. 2018); 0 for none
    gradient_penalty: NonNegative = 0.0  # weight of WGAN-GP's (10 in Gulrajani et al. 2017); 0 for none
    disc_steps: Count = 1  # of the discriminator for one of the generator, each on its own slice of the batch
    optimizer: dict
    # What is different for the discriminator; all of its optimiser when it has a name.
    disc_optimizer: dict = dataclasses.field(default_factory=dict)
    techniques: tuple[str, ...] = ()  # between the images and the discriminator, in both players' passes
    ema: Fraction = 0.0  # decay of the generator's average, by which samples are drawn; 0 for none
    evals: dict[str, tuple[str, ...]]  # on test, without techniques: {"test": ()}; {} leaves test unseen
    on_nonfinite: Literal["raise", "skip", "rollback"] = "raise"
    judge: dict = dataclasses.field(default_factory=dict)  # of the classifier: umbrella.pipelines._judge.classifier
    rival: dict = dataclasses.field(default_factory=dict)  # of the VAE beside it: umbrella.pipelines._judge.autoencoder

    def __post_init__(self) -> None:
        norm = dict(self.discriminator).get("norm", Discriminator.norm)
        if self.loss == "wasserstein" and not self.gradient_penalty and norm != "spectral":
            raise SettingsError(
                "config.loss: 'wasserstein' needs a discriminator of bounded slope: set config.gradient_penalty, such "
                "as to 10, or config.discriminator.norm to 'spectral'"
            )


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    run, own = read(config)
    of_nets, of_generator = _nets(own)
    on_the_side = {
        "judge": settings.check(_judge.classifier, own.judge, "judge."),
        "rival": settings.check(_judge.autoencoder, own.rival, "rival."),
    }
    dataset = settings.call(data.load, own.data, "data.")
    if dataset.info["kind"] != "image":
        raise SettingsError(f"config.data.name: {dataset.name!r} holds no images, which this pipeline needs")
    scale, durations = scale_of(dataset), Durations.of(run, len(dataset.train))

    log: dict[str, Any] = {}
    between = _techniques(config, own, log)
    generator = Generator(shape=tuple(dataset.info["shape"]), **of_generator)
    discriminator = Discriminator(**of_nets["discriminator"])
    disc, gen = players(generator, discriminator, own, scale, between)
    both = side_by_side(disc=disc, gen=gen)
    step = alternating(disc, gen, own, durations, log)
    contest = Contest(
        dataset, scale, own.data, _judge.classifier(**on_the_side["judge"]), _judge.autoencoder(**on_the_side["rival"])
    )
    unjudged = "Samples are drawn and not judged: the classifier that would do it needs labels of train and test."
    sections = {k: v for k, v in config.items() if isinstance(v, Mapping) and k not in settings.accepts(Game)}
    return Experiment(
        run=run,
        durations=durations,
        dataset=dataset,
        train_data=train_data(dataset, COLUMNS, run, False),
        init=both.init,
        step=step,
        frozen={},
        evals=evaluations(dataset, COLUMNS, run, dict.fromkeys(own.evals, both), both),
        review=reviewer(sampler(generator), generator.latent, contest, bool(run.baselines)) if own.evals else _unseen,
        predict=predictor(discriminator, scale),
        baselines=lambda: {k: v._asdict() for k, v in contest.rivals.items()} if contest.judges else {},
        better="frechet",  # which validation has at the end of a run
        rolls_back=own.on_nonfinite == "rollback",
        objective=both,
        settings={
            **dataclasses.asdict(run),
            **dataclasses.asdict(own),
            **{k: v for k, v in sections.items() if k not in log},
            **of_nets,
            **on_the_side,
            "data": settings.check(data.load, own.data, "data."),
            **log,
        },
        notes=(*(() if contest.judges else (unjudged,)), *repeated(len(dataset.train), run.batch_size)),
    )


def read(config: Mapping[str, Any]) -> tuple[RunSettings, Game]:
    """Every key of a config, checked; the rest are sections of techniques."""
    tables = [settings.accepts(f) for f in (RunSettings, Game)]
    known = tuple(k for t in tables for k in t)
    transforms.check_sections({k: v for k, v in config.items() if k not in known}, known)
    parts = [{k: v for k, v in config.items() if k in t} for t in tables]
    run = RunSettings(**settings.check(RunSettings, parts[0]))
    own = Game(**settings.check(Game, parts[1]))
    if isinstance(run.baselines, tuple):
        raise SettingsError("config.baselines: this pipeline has no choice of rivals; say true or false")
    if taken := set(RESERVED) & set(own.evals):
        raise SettingsError(f"config.evals.{min(taken)}: this name is taken; call the evaluation something else")
    for name in (*own.techniques, *(t for ts in own.evals.values() for t in ts)):
        if name not in transforms.TABLE and name not in config:
            raise SettingsError(f"config: no technique {name!r}{settings.near(name, transforms.TABLE)}")
    if run.batch_size % own.disc_steps:
        raise SettingsError(
            f"config.disc_steps: {own.disc_steps} slices do not divide a batch of {run.batch_size}: the discriminator "
            "goes through a batch in so many steps"
        )
    parallel.check_game(run)
    return run, own


def _nets(own: Game) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """({section: settings}, the generator's): what decides the networks, but for the images' shape."""
    if "shape" in own.generator:
        raise SettingsError("config.generator.shape: the data decides this; leave it out")
    generator = settings.check(Generator, own.generator, "generator.", given=("shape",))
    return {
        "generator": generator,
        "discriminator": settings.check(Discriminator, own.discriminator, "discriminator."),
    }, generator


def _techniques(config: Mapping[str, Any], own: Game, log: dict[str, Any]) -> tuple[Transform, ...]:
    sections = {k: v for k, v in config.items() if isinstance(v, Mapping)}
    refuse_again(own.techniques, sections)
    refuse_unfit(FITTING, own.techniques, own.evals, sections)
    for name, techniques in own.evals.items():
        refuse_inert(f"evals.{name}", techniques, sections)
    return transforms.build(own.techniques, sections, log=log)


# ------------------------------------------------------------------------------------------------------------- the game
def players(
    generator: Generator, discriminator: Discriminator, own: Game, scale: float, between: tuple[Transform, ...]
) -> tuple[Objective, Objective]:
    """(the discriminator's objective, the generator's), of batches of stored images."""
    game = GAMES[own.loss]
    penalties = [
        *([r1(gamma=own.r1)] if own.r1 else []),
        *([gradient_penalty(weight=own.gradient_penalty)] if own.gradient_penalty else []),
    ]
    disc = measure(real_score=score_of(True), fake_score=score_of(False))(
        supervised(discriminator, game.disc, scope="disc")
    )
    gen = supervised(discriminator, game.gen, scope="disc")
    return (
        chain(pixels(scale), discriminate(generator), *penalties, *between)(disc),
        chain(pixels(scale), deceive(generator), *between)(gen),
    )


def alternating(disc: Objective, gen: Objective, own: Game, durations: Durations, log: dict[str, Any]) -> Step:
    """The steps of one batch: the discriminator's, each on its slice, then the generator's, on as many samples as one
    of them had."""
    k = own.disc_steps
    of_disc = own.disc_optimizer if "name" in own.disc_optimizer else {**own.optimizer, **own.disc_optimizer}
    gen_tx = _optimizer("optimizer", own.optimizer, durations, 1, log)
    disc_tx = _optimizer("disc_optimizer", of_disc, durations, k, log)
    turn = update(grad_of(disc), disc_tx, wrt=("disc",), name="disc")
    other = update(grad_of(gen), gen_tx, wrt=("gen",), name="gen")
    step = alternate(turn, other) if k == 1 else alternate(repeat(turn, k, split=True), of_every(other, k))
    if own.ema:
        step = then(step, ema(own.ema, only=("gen",)))
    return guard(step, "skip" if own.on_nonfinite == "skip" else "halt")


def of_every(step: Step, k: int) -> Step:
    """The step on every k-th row of the batch."""

    def apply(ts: TrainState, batch: Batch, ctx: Ctx) -> tuple[TrainState, Metrics]:
        return step.apply(ts, jax.tree.map(lambda x: x[::k], dict(batch)), ctx)

    return Step(step.init, apply)


def _optimizer(
    key: str, config: Mapping[str, Any], durations: Durations, k: int, log: dict[str, Any]
) -> optax.GradientTransformation:
    """The optimiser of a player that makes k steps a batch; what is said of it has the name of its section."""
    told: dict[str, Any] = {}
    try:
        tx = optim.build(
            config, total_steps=k * durations.total, to_steps=lambda text: k * durations.steps(text), log=told
        )
    except SettingsError as error:
        raise SettingsError(str(error).replace("config.optimizer", f"config.{key}", 1)) from None
    log[key] = told["optimizer"]
    return tx


def sampler(generator: Generator) -> Callable[[View, Array], Array]:
    """(view, codes f32[B, latent]) -> images f32[B, H, W, C] in (0, 1)."""

    @jax.jit
    def draw(view: View, z: Array) -> Array:
        variables = {"params": view.params["gen"], **view.state.get("gen", {})}
        images: Any = generator.apply(variables, z, train=False)
        return images

    return draw


def predictor(discriminator: Discriminator, scale: float) -> Callable[[View, Batch, Array], Mapping[str, Array]]:
    """What the discriminator says of given images: their scores f32[B]."""

    def run(view: View, batch: Batch, key: Array) -> Mapping[str, Array]:
        variables = {"params": view.params["disc"], **view.state.get("disc", {})}
        x = batch["x"].astype(jnp.float32) * (1 / scale)
        scores: Any = discriminator.apply(variables, x, train=False)
        return {"score": scores}

    return run


def _unseen(views: View, key: Array) -> Review:
    return Review({}, ())
