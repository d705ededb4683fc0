"""Two players as two objectives: what each is asked, what each pays, and penalties on the discriminator. Floor 2.

The discriminator is an ordinary model of images, `supervised` by the criterion of a game. `discriminate` and `deceive`
make the batches that it sees, from a generator's samples; so whatever rewrites images on the way (augmentations), adds
to a loss (penalties) or to the parameters composes with both players as with any other objective:

    gan = games["hinge"]
    disc = chain(discriminate(net), r1(gamma=1.0), diffaugment())(supervised(judge, gan.disc, scope="disc"))
    gen = chain(deceive(net), diffaugment())(supervised(judge, gan.gen, scope="disc"))
    step = alternate(
        update(grad_of(disc), tx, wrt=("disc",), name="disc"), update(grad_of(gen), tx, wrt=("gen",), name="gen")
    )
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from umbrella.metrics import Mean, mask_of
from umbrella.objective import (
    Array,
    Aux,
    Batch,
    Ctx,
    Objective,
    Params,
    State,
    Transform,
    add_term,
    stop_gradient,
)
from umbrella.settings import NonNegative

SCOPE = "gen"  # of the generator's parameters and state
REAL, FAKE = "real_score", "fake_score"  # the mean scores, as metrics


# --------------------------------------------------------------------------------------------------- what a player pays
class Game(NamedTuple):
    """The criteria of both players: (scores f32[B], real bool[B]) -> f32[B].

    `disc` counts every row twice: its mean over a batch of two equal halves is then the sum of their two means, as
    the papers have it. `gen` is only ever given samples.
    """

    disc: Callable[[Array, Array], Array]
    gen: Callable[[Array, Array], Array]


def non_saturating_disc(scores: Array, real: Array) -> Array:
    """2 * -log of the probability of the truth, with p(real) = sigmoid(score). Finite at any finite score.

    >>> non_saturating_disc(jnp.zeros(2), jnp.array([True, False]))  # 2 log 2
    Array([1.3862944, 1.3862944], dtype=float32)

    Source: Goodfellow et al. 2014, eq. 1.
    """
    return 2 * jax.nn.softplus(jnp.where(real, -scores, scores))


def non_saturating_gen(scores: Array, real: Array) -> Array:
    """-log p(real) of a sample: the slope does not vanish where the discriminator is sure.

    Source: Goodfellow et al. 2014, section 3.
    """
    return jax.nn.softplus(-scores)


def hinge_disc(scores: Array, real: Array) -> Array:
    """2 * max(0, 1 - score) of a real image, 2 * max(0, 1 + score) of a sample.

    Source: Lim and Ye 2017; Miyato et al. 2018, eq. 16.
    """
    return 2 * jax.nn.relu(1 + jnp.where(real, -scores, scores))


def wasserstein_disc(scores: Array, real: Array) -> Array:
    """-2 * score of a real image, 2 * score of a sample; a distance only when the score's slope is bounded.

    Source: Arjovsky et al. 2017, algorithm 1.
    """
    return 2 * jnp.where(real, -scores, scores)


def minus_score(scores: Array, real: Array) -> Array:
    """-score: the generator's loss under hinge (Miyato et al. 2018, eq. 17) and under Wasserstein."""
    return -scores


GAMES = {
    "non_saturating": Game(non_saturating_disc, non_saturating_gen),
    "hinge": Game(hinge_disc, minus_score),
    "wasserstein": Game(wasserstein_disc, minus_score),
}


# ----------------------------------------------------------------------------------------------- what a player is asked
def sampled(net: Any, params: Params, state: State, n: int, ctx: Ctx) -> tuple[Array, State]:
    """(n images of the generator, the state of the scope "gen" that the pass changed, if any). Codes are N(0, 1).

    Deviation from Radford et al. 2016: normal codes instead of uniform ones.
    """
    z = jax.random.normal(ctx.rng(f"{SCOPE}/latent"), (n, net.latent))
    own = state.get(SCOPE, {})
    variables = {"params": params[SCOPE], **own}
    with jax.named_scope(SCOPE):
        if not (ctx.train and own):
            return net.apply(variables, z, train=ctx.train), {}
        images, changed = net.apply(variables, z, train=True, mutable=list(own))
    return images, {SCOPE: dict(changed)}


def discriminate(net: Any) -> Transform:
    """Which of these are real? A batch of B images becomes one of 2B: x = [images; samples], y bool[2B], mask twice.

    The samples are drawn as the generator is trained, with the statistics of their own batch where it has a BatchNorm;
    no slope goes into them, and the state that drawing them changed is dropped: it is the generator's to change.

    Args:
      net: a Linen module, codes f32[B, latent] -> images, with `latent` and `__call__(z, *, train)`.
    """

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            n = batch["x"].shape[0]
            samples = stop_gradient(sampled(net, params, state, n, ctx)[0])
            both = {"x": jnp.concatenate([batch["x"], samples.astype(batch["x"].dtype)]), "y": jnp.arange(2 * n) < n}
            both |= {k: jnp.concatenate([batch[k], batch[k]]) for k in ("mask", "weight") if k in batch}
            return o.apply(params, state, both, ctx)

        return o._replace(init=_with_generator(net, o), apply=apply)

    return wrap


def deceive(net: Any) -> Transform:
    """Would these pass for real? x becomes as many samples as there were images, y is False throughout.

    The slope goes through the discriminator into the generator. One pass counts: the generator's state is its own to
    change, the discriminator's is left as it was.
    """

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            n = batch["x"].shape[0]
            samples, changed = sampled(net, params, state, n, ctx)
            asked = {**{k: batch[k] for k in ("mask", "weight") if k in batch}, "x": samples, "y": jnp.zeros(n, bool)}
            loss, aux = o.apply(params, state, asked, ctx)
            return loss, aux.replace(state=changed)

        return o._replace(init=_with_generator(net, o), apply=apply)

    return wrap


def _with_generator(net: Any, o: Objective) -> Any:
    def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
        params, state = o.init(batch, ctx)
        variables = dict(net.init(ctx.rng(f"{SCOPE}/params"), jnp.zeros((2, net.latent)), train=False))
        own = {SCOPE: variables.pop("params")}
        return {**own, **params}, {**({SCOPE: variables} if variables else {}), **state}

    return init


def score_of(real: bool) -> Callable[[Array, Batch], Mean]:
    """A metric: the mean score of real rows, or of samples."""

    def fn(scores: Array, batch: Batch) -> Mean:
        return Mean.of(scores, mask_of(batch, scores) * (batch["y"] == real).astype(jnp.float32))

    return fn


def side_by_side(**players: Objective) -> Objective:
    """All players' passes on one batch, as they are asked: for evaluation and for looking at, not for descending.

    The metrics have the names of their players in front, "disc/real_score". A player's loss is called its "objective",
    as `umbrella.step.update` calls what it descends, for no loss of a game says how good anything is. The loss is the
    sum of the losses; a player's noise is that of its turn in `umbrella.step.alternate`.
    """

    def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
        return next(iter(players.values())).init(batch, ctx)

    def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        losses, auxes = zip(
            *[o.apply(params, state, batch, ctx.fork("turn", i)) for i, o in enumerate(players.values())], strict=True
        )
        told = dict(zip(players, auxes, strict=True))
        return sum(losses, start=jnp.zeros(())), Aux(
            state={k: v for aux in auxes for k, v in aux.state.items()},
            outputs={name: aux.outputs for name, aux in told.items()},
            per_example=auxes[-1].per_example,
            count=auxes[-1].count,
            metrics={
                f"{name}/{'objective' if k == 'loss' else k}": v
                for name, aux in told.items()
                for k, v in aux.metrics.items()
            },
        )

    return Objective(init, apply)


# ------------------------------------------------------------------------------------ penalties on the discriminator
def r1(*, gamma: NonNegative) -> Transform:
    """gamma / 2 * E |grad_x D(x)|^2 over the real images, to the right of `discriminate`. Training only.

    D is what the term wraps, augmentations and all, as it is trained. Reported as "r1", the mean square without its
    factor.

    Source: Mescheder et al. 2018, eq. 9.
    """

    def term(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Aux) -> Array:
        n = batch["x"].shape[0] // 2
        slope = _slope(o, params, state, batch["x"][:n], batch, ctx)
        return _mean(_squares(slope), batch, n)

    return add_term(term, weight=gamma / 2, name="r1")


def gradient_penalty(*, weight: NonNegative) -> Transform:
    """weight * E (|grad_x D(x)| - 1)^2 at random points between real images and samples, to the right of
    `discriminate`. Training only.

    Image i and sample i make a pair, x = u image + (1 - u) sample with u uniform in [0, 1] for each. D is what the term
    wraps. Reported as "gradient_penalty", without its weight (10 in the paper).

    Source: Gulrajani et al. 2017, eq. 3.
    """

    def term(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Aux) -> Array:
        n = batch["x"].shape[0] // 2
        real, fake = batch["x"][:n], batch["x"][n:]
        u = jax.random.uniform(ctx.rng("gradient_penalty"), (n,) + (1,) * (real.ndim - 1), real.dtype)
        squares = _squares(_slope(o, params, state, u * real + (1 - u) * fake, batch, ctx))
        flat = squares == 0  # where the root has no slope
        length = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, squares)))
        return _mean(jnp.square(length - 1), batch, n)

    return add_term(term, weight=weight, name="gradient_penalty")


def _slope(o: Objective, params: Params, state: State, x: Array, batch: Batch, ctx: Ctx) -> Array:
    """The gradient of every row's score in that row, like x. A probe in training mode: what it changes is dropped."""
    n = x.shape[0]
    asked = {"y": batch["y"][:n], **({"mask": batch["mask"][:n]} if "mask" in batch else {})}
    ctx = ctx.replace(want=())

    def total(x: Array) -> Array:
        return jnp.sum(o.apply(params, state, {**asked, "x": x}, ctx)[1].outputs)

    return jax.grad(total)(x)


def _squares(slope: Array) -> Array:
    return jnp.sum(jnp.square(slope), tuple(range(1, slope.ndim)))


def _mean(values: Array, batch: Batch, n: int) -> Array:
    mask = mask_of(batch, batch["y"])[:n].astype(values.dtype)
    return jnp.sum(jnp.where(mask > 0, mask * values, 0)) / jnp.maximum(jnp.sum(mask), 1)
