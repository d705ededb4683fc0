"""Two players, against NumPy, closed forms and a game written out by hand."""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit

import umbrella as um
from tests.conftest import ROOT
from tests.helpers import bits, context, gap
from umbrella import cli, pipelines
from umbrella.evaluation import evaluate
from umbrella.gradients import grad_of
from umbrella.models import Discriminator, Generator
from umbrella.objective import Objective, chain, supervised
from umbrella.pipelines import _judge, _samples
from umbrella.runs import Session
from umbrella.settings import SettingsError
from umbrella.step import alternate, ema, guard, program, repeat, then, update
from umbrella.train_state import TrainState, create
from umbrella.transforms import diffaugment, game
from umbrella.transforms.game import GAMES, deceive, discriminate, gradient_penalty, r1

SHAPE = (5, 6, 2)
NET = Generator(shape=SHAPE, latent=3, widths=(4, 8))
SCORES = np.array([-1e4, -30.0, -1.0, -0.5, 0.0, 0.5, 2.0, 1e4], np.float32)


class Linear(nn.Module):
    """f(x) = w . x, whose slope is w everywhere."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(1, use_bias=False, name="w")(x.reshape((x.shape[0], -1)))[:, 0]


def images(n: int = 8, seed: int = 0) -> dict[str, Any]:
    return {"x": jnp.asarray(np.random.default_rng(seed).random((n, *SHAPE)), jnp.float32)}


def players(loss: str = "hinge", judge: Any = None, between: Any = ()) -> tuple[Objective, Objective]:
    judge = Discriminator(widths=(4, 8)) if judge is None else judge
    disc, gen = (supervised(judge, criterion, scope="disc") for criterion in GAMES[loss])
    return chain(discriminate(NET), *between)(disc), chain(deceive(NET), *between)(gen)


def made(o: Objective) -> Any:
    """(params, state), fresh."""
    return jax.jit(o.init)(images(), context())


def passed(o: Objective, params: Any, state: Any, batch: Any, ctx: Any) -> Any:
    """(loss, aux), compiled: operation by operation it takes ten times as long."""
    return jax.jit(o.apply)(params, state, batch, ctx)


def start(objective: Objective, step: Any, batch: Any) -> TrainState:
    return create(objective.init, step, jax.random.key(0), batch)


# --------------------------------------------------------------------------------------------------------------- losses
@pytest.mark.parametrize("real", [True, False])
def test_losses_are_those_of_the_papers(real: bool) -> None:
    """In NumPy, in 64 bits. Goodfellow 2014: -log sigmoid of the score, or of minus the score; hinge and Wasserstein as
    they are written. A discriminator's rows count twice, so that a mean over both halves is the sum of two means."""
    s, y = SCORES.astype(np.float64), np.full(len(SCORES), real)
    sign = 1 if real else -1
    wanted = {
        "non_saturating": 2 * np.logaddexp(0, -sign * s),
        "hinge": 2 * np.maximum(0, 1 - sign * s),
        "wasserstein": -2 * sign * s,
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(GAMES[name].disc(jnp.asarray(SCORES), jnp.asarray(y)), values, rtol=1e-5)
    np.testing.assert_allclose(
        GAMES["non_saturating"].gen(jnp.asarray(SCORES), jnp.asarray(y)), np.logaddexp(0, -s), rtol=1e-5, atol=1e-7
    )
    for name in ("hinge", "wasserstein"):
        np.testing.assert_array_equal(GAMES[name].gen(jnp.asarray(SCORES), jnp.asarray(y)), -SCORES)


@pytest.mark.parametrize("name", sorted(GAMES))
def test_losses_and_slopes_are_finite_at_scores_of_ten_thousand(name: str) -> None:
    y = jnp.asarray(np.arange(len(SCORES)) % 2 == 0)
    for criterion in GAMES[name]:
        loss, slope = jax.value_and_grad(lambda s, c=criterion: c(s, y).sum())(jnp.asarray(SCORES))
        assert np.isfinite(loss) and np.isfinite(slope).all()
    slope = jax.grad(lambda s: GAMES["non_saturating"].gen(s, y[:1]).sum())(jnp.float32([-1e4]))
    assert slope == -1  # does not saturate where the discriminator is sure of a sample: -sigmoid(1e4)


@pytest.mark.slow
def test_the_discriminators_loss_is_the_sum_of_two_means() -> None:
    """By NumPy from the scores of eight images and of eight samples, which are the generator's own."""
    disc, _ = players("non_saturating")
    params, state = made(disc)
    loss, aux = passed(disc, params, state, images(), context())
    scores = np.asarray(aux.outputs, np.float64)
    assert scores.shape == (16,)
    wanted = -np.log(expit(scores[:8])).mean() - np.log(1 - expit(scores[8:])).mean()
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    fake, _ = game.sampled(NET, params, state, 8, context())
    own = Discriminator(widths=(4, 8)).apply({"params": params["disc"], **state["disc"]}, fake, train=False)
    np.testing.assert_allclose(scores[8:], own, atol=1e-5)


@pytest.mark.slow
def test_a_game_written_out_has_the_same_gradients() -> None:
    """Plain JAX, with the same codes: mean softplus(-D(G(z))) in G, mean softplus(-D(x)) + mean softplus(D(G(z))) in D.
    What the other player would get is not asked for."""
    judge = Discriminator(widths=(4, 8), norm="none")
    disc, gen = players("non_saturating", judge)
    params, state = made(disc)
    z = jax.random.normal(context().rng("gen/latent"), (8, 3))

    def drawn(g: Any) -> jax.Array:
        return NET.apply({"params": g, **state["gen"]}, z, train=True, mutable=["batch_stats"])[0]

    def score(d: Any, x: jax.Array) -> jax.Array:
        return judge.apply({"params": d}, x, train=True)

    softplus = jax.nn.softplus
    for_g = jax.jit(jax.grad(lambda g: softplus(-score(params["disc"], drawn(g))).mean()))(params["gen"])
    samples = jax.jit(drawn)(params["gen"])
    for_d = jax.jit(jax.grad(lambda d: softplus(-score(d, images()["x"])).mean() + softplus(score(d, samples)).mean()))(
        params["disc"]
    )
    for o, own, wanted in ((gen, "gen", for_g), (disc, "disc", for_d)):
        other = {k: v for k, v in params.items() if k != own}
        got = jax.jit(grad_of(o))({own: params[own]}, other, state, images(), context())[0]
        assert gap(got[own], wanted) < 1e-5
    both = jax.jit(grad_of(disc))(params, {}, state, images(), context())[0]
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(both["gen"]))  # nothing flows into samples


@pytest.mark.slow
def test_padding_does_not_count() -> None:
    disc, gen = players()
    batch = images(8)
    params, state = disc.init(batch, context(train=False))
    padded = {"x": batch["x"].at[6:].set(jnp.nan), "mask": jnp.asarray([1.0] * 6 + [0.0] * 2)}
    for o in (disc, gen):
        loss, aux = passed(o, params, state, padded, context(train=False))
        full = passed(o, params, state, batch, context(train=False))[1].per_example
        n = 8 if o is disc else 0
        rows = [*range(6), *range(n, n + 6)] if n else [*range(6)]
        assert float(loss) == pytest.approx(float(np.asarray(full)[rows].mean()), rel=1e-5)
        assert float(aux.count) == len(rows)


# ------------------------------------------------------------------------------------------------------------ penalties
def penalised(transform: Any, w: np.ndarray | None = None) -> tuple[float, float, Any]:
    """(what the term adds to the loss of a linear critic, what is reported, its gradient in w); w [D, 1]."""
    disc, _ = players("wasserstein", Linear())
    more, _ = players("wasserstein", Linear(), (transform,))
    params, state = made(disc)
    if w is not None:
        params["disc"]["w"]["kernel"] = jnp.asarray(w, jnp.float32)
    plain = passed(disc, params, state, images(), context())[0]
    loss, aux = passed(more, params, state, images(), context())
    slope = jax.jit(jax.grad(lambda p: more.apply(p, state, images(), context())[0]))(params)["disc"]
    name = next(k for k in aux.metrics if k != "loss")
    return float(loss - plain), aux.metrics[name].compute(), (np.asarray(params["disc"]["w"]["kernel"]), slope)


def test_the_gradient_penalty_of_a_linear_critic_is_in_closed_form() -> None:
    """grad_x w . x = w at every x, so it is lambda (|w| - 1)^2, wherever the points lie."""
    added, told, (w, _) = penalised(gradient_penalty(weight=10.0))
    wanted = (np.linalg.norm(w.astype(np.float64)) - 1) ** 2
    assert told == pytest.approx(wanted, rel=1e-5) and added == pytest.approx(10 * wanted, rel=1e-4)


def test_r1_of_a_linear_critic_is_in_closed_form() -> None:
    added, told, (w, _) = penalised(r1(gamma=3.0))
    wanted = np.sum(w.astype(np.float64) ** 2)
    assert told == pytest.approx(wanted, rel=1e-5) and added == pytest.approx(1.5 * wanted, rel=1e-4)


@pytest.mark.slow
def test_a_critic_without_a_slope_has_a_penalty_and_a_gradient() -> None:
    """(0 - 1)^2; the root has no slope at zero, and 0 is what a step can be made with."""
    _, told, (_, slope) = penalised(gradient_penalty(weight=1.0), np.zeros((60, 1)))
    assert told == 1 and np.isfinite(slope["w"]["kernel"]).all()


def test_r1_is_of_real_images_alone_and_the_penalty_of_points_between() -> None:
    """D(x) = |x|^2 / 2 has the slope x: r1 is the mean square length of the images. With images of zeros the points
    between are (1 - u) times the samples: (|x| - 1)^2 lies between those of the ends only if u is in [0, 1]."""

    class Square(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            flat = x.reshape((x.shape[0], -1))
            return 0.5 * jnp.sum(flat * flat, -1) * self.param("one", nn.initializers.ones, ())

    disc, _ = players("hinge", Square(), (r1(gamma=1.0), gradient_penalty(weight=1.0)))
    params, state = made(disc)
    told = passed(disc, params, state, images(), context())[1].metrics
    assert told["r1"].compute() == pytest.approx(np.mean(np.sum(np.square(images()["x"]), (1, 2, 3))), rel=1e-5)
    zeros = {"x": jnp.zeros((8, *SHAPE))}
    told = passed(disc, params, state, zeros, context())[1].metrics
    samples, _ = game.sampled(NET, params, state, 8, context())
    u = jax.random.uniform(context().rng("gradient_penalty"), (8, 1, 1, 1))
    length = np.linalg.norm(np.asarray((1 - u) * samples, np.float64).reshape(8, -1), axis=1)
    assert told["r1"].compute() == 0
    assert told["gradient_penalty"].compute() == pytest.approx(np.mean((length - 1) ** 2), rel=1e-4)


@pytest.mark.slow
def test_penalties_are_of_training() -> None:
    plain, _ = players()
    more, _ = players(between=(r1(gamma=1.0), gradient_penalty(weight=1.0)))
    params, state = made(plain)
    out = [passed(o, params, state, images(), context(train=False)) for o in (plain, more)]
    assert bits(out[0][0], out[1][0]) and set(out[1][1].metrics) == {"loss"}


# ------------------------------------------------------------------------------------------------------------- the game
def test_each_player_moves_alone() -> None:
    """To the bit: a step of one leaves parameters, state and moments of the other as they were. The vectors of the
    spectral norm move with the discriminator, BatchNorm's statistics with the generator."""
    disc, gen = players()
    tx = optax.adam(1e-2)
    d = update(grad_of(disc), tx, wrt=("disc",), name="disc")
    g = update(grad_of(gen), tx, wrt=("gen",), name="gen")
    ts = jax.jit(lambda: start(disc, alternate(d, g), images()))()
    both = [jax.jit(lambda o=o: o.init(images(), context()))() for o in (disc, gen)]
    assert bits(*both)  # either objective makes the same players
    for step, own, other in ((d, "disc", "gen"), (g, "gen", "disc")):
        new, _ = jax.jit(step.apply)(ts, images(), context())
        for part in ("params", "state", "opt_state"):
            assert bits(getattr(new, part)[other], getattr(ts, part)[other]), (own, part)
            assert not bits(getattr(new, part)[own], getattr(ts, part)[own]), (own, part)


@pytest.mark.slow
def test_five_turns_of_the_critic_see_a_fifth_of_the_batch_each() -> None:
    from umbrella.pipelines.gan import of_every

    disc, gen = players("wasserstein", between=(gradient_penalty(weight=10.0),))
    d = update(grad_of(disc), optax.adam(1e-3), wrt=("disc",), name="disc")
    g = update(grad_of(gen), optax.adam(1e-3), wrt=("gen",), name="gen")
    step = guard(then(alternate(repeat(d, 5, split=True), of_every(g, 5)), ema(0.9, only=("gen",))))
    ts = jax.jit(lambda: start(disc, step, images(20)))()
    new, told = jax.jit(program(step))(ts, {}, {}, images(20))
    assert float(told["disc/loss"].count) == 5 * 2 * 4 and float(told["gen/loss"].count) == 4
    assert int(new.opt_state["disc"][0].count) == 5 and int(new.opt_state["gen"][0].count) == 1
    assert set(new.ema.params) == {"gen"} and bits(new.eval_view().params["disc"], new.params["disc"])


# --------------------------------------------------------------------------------------------------------------- models
@pytest.mark.parametrize(
    "shape",
    [pytest.param((28, 28, 1), marks=pytest.mark.slow), (8, 8, 1), pytest.param((7, 5, 3), marks=pytest.mark.slow)],
)
def test_any_side_is_drawn_and_judged(shape: tuple[int, ...]) -> None:
    net = Generator(shape=shape, latent=4, widths=(4, 6))
    x, _ = net.init_with_output(jax.random.key(0), jnp.ones((3, 4)), train=False)
    assert x.shape == (3, *shape) and 0 < x.min() < x.max() < 1
    scores, _ = Discriminator(widths=(4, 6)).init_with_output(jax.random.key(0), x, train=False)
    assert scores.shape == (3,)


def test_the_spectral_norm_is_the_largest_singular_value() -> None:
    """By SVD after enough steps of power iteration: what is applied, W / sigma, has 1. In evaluation nothing moves."""
    net = Discriminator(widths=(4, 8))
    x = images()["x"]
    variables = net.init(jax.random.key(1), x, train=False)
    step = jax.jit(lambda v: net.apply(v, x, train=True, mutable=["spectral"])[1])
    for _ in range(150):
        variables = {**variables, **step(variables)}
    for name in ("conv_0", "conv_1", "head"):
        kernel = np.asarray(variables["params"][name]["kernel"], np.float64)
        largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        sigma = float(variables["spectral"][f"spectral_{name}"][f"{name}/kernel/sigma"])
        assert largest / sigma == pytest.approx(1, abs=1e-3)
    larger = {**variables, "params": jax.tree.map(lambda w: 7 * w if w.ndim > 1 else w, variables["params"])}
    np.testing.assert_allclose(net.apply(variables, x, train=False), net.apply(larger, x, train=False), rtol=1e-3)


@pytest.mark.slow
def test_no_row_of_a_discriminator_meets_another() -> None:
    for norm in ("none", "spectral", "layer", "group", "instance"):
        net = Discriminator(widths=(4, 8), norm=norm)  # type: ignore[arg-type]
        x = jnp.asarray(np.random.default_rng(0).random((4, 9, 9, 1)), jnp.float32)
        variables = net.init(jax.random.key(0), x, train=False)
        alone = jnp.concatenate([net.apply(variables, row[None], train=False) for row in x])
        np.testing.assert_allclose(net.apply(variables, x, train=False), alone, atol=1e-5)


# ------------------------------------------------------------------------------------------ differentiable augmentation
def augmented(x: Any, **kw: Any) -> np.ndarray:
    """Of f32[B, H, W, C], by a model that gives its input back."""

    class Same(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            return x

    none = dict.fromkeys(("brightness", "saturation", "contrast", "translation", "cutout"), 0.0)
    o = diffaugment(**{**none, **kw})(supervised(Same(), lambda out, y: out.sum((1, 2, 3))))
    return np.asarray(o.apply({"model": {}}, {}, {"x": jnp.asarray(x)}, context())[1].outputs)


def test_colours_move_by_what_the_paper_says() -> None:
    """brightness: one number for a whole image; saturation: about each pixel's mean; contrast: about the image's."""
    x = np.asarray(images(64)["x"], np.float64)
    moved = augmented(x.astype(np.float32), brightness=0.25) - x
    assert np.ptp(moved, axis=(1, 2, 3)).max() < 1e-6
    assert np.abs(moved).max() <= 0.25 and np.unique(np.round(moved[:, 0, 0, 0], 6)).size > 60
    for name, axes in (("saturation", (3,)), ("contrast", (1, 2, 3))):
        mean = x.mean(axes, keepdims=True)
        factor = (augmented(x.astype(np.float32), **{name: 0.5}) - mean) / (x - mean)
        usual = np.median(factor, axis=(1, 2, 3), keepdims=True)
        assert np.abs(factor - usual)[np.abs(x - mean) > 0.05].max() < 1e-4
        assert 0.5 <= usual.min() < 0.7 and 1.3 < usual.max() <= 1.5


def test_places_move_by_whole_pixels_and_a_rectangle_is_covered() -> None:
    x = np.random.default_rng(0).random((200, 8, 8, 1)).astype(np.float32)
    moved, seen = augmented(x, translation=0.25, fill=0.5), set()
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=0.5)
    for image, wide in zip(moved, padded, strict=True):
        fits = [(i, j) for i in range(5) for j in range(5) if (wide[i : i + 8, j : j + 8] == image).all()]
        assert len(fits) == 1
        seen |= set(fits)
    assert len(seen) == 25  # every shift of -2 .. 2 in 200 draws: one is missed with probability 25 * .96^200 = .007
    covered = augmented(x, cutout=0.5, fill=0.0)
    hidden = (covered == 0) & (x != 0)
    assert ((covered == x) | hidden).all()
    rows, columns = hidden.any((2, 3)).sum(1), hidden.any((1, 3)).sum(1)
    assert (hidden.sum((1, 2, 3)) == rows * columns).all()  # a rectangle
    assert rows.max() == columns.max() == 4 and rows.min() >= 2  # half the side; at the border a part lies outside


@pytest.mark.slow
def test_both_players_look_through_it_and_a_slope_comes_back() -> None:
    disc, gen = players(between=(diffaugment(),))
    plain, _ = players()
    params, state = made(disc)
    assert not bits(*(passed(o, params, state, images(), context())[0] for o in (disc, plain)))
    slope = jax.jit(grad_of(gen))({"gen": params["gen"]}, {"disc": params["disc"]}, state, images(), context())[0]
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(slope)) and optax.tree.norm(slope) > 0
    off = [passed(o, params, state, images(), context(train=False))[0] for o in (disc, plain)]
    assert bits(*off)


# ------------------------------------------------------------------------------------------------------------- pipeline
def config(variant: str = "digits", **more: Any) -> dict[str, Any]:
    made = cli.load_config(f"{ROOT}/configs/gan.py:{variant}")
    small = dict(
        generator=dict(latent=4, widths=(4, 8)),
        discriminator=dict(widths=(4, 8)),
        judge=dict(widths=(4,), features=8, train_for="3 steps"),
        rival=dict(hidden=(8,), train_for="3 steps"),
        optimizer=dict(name="adam", learning_rate=1e-3),
        batch_size=32,
        train_for="4 steps",
        log_every="1 steps",
        eval_every="2 steps",
        checkpoint_every="2 steps",
    )
    return {**made, **small, **more}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(loss="hinged"), "config.loss: 'hinged' is not one of the choices (did you mean 'hinge'?)"),
        (dict(generator=dict(width=(4,))), "config.generator.width: no such setting (did you mean 'widths'?)"),
        (dict(generator=dict(shape=(4,))), "config.generator.shape: the data decides this; leave it out"),
        (dict(discriminator=dict(norm="batch")), "config.discriminator.norm: 'batch' is not one of the choices"),
        (dict(loss="wasserstein", discriminator=dict(norm="none")), "needs a discriminator of bounded slope"),
        (dict(disc_steps=5), "config.disc_steps: 5 slices do not divide a batch of 32"),
        (dict(techniques=("mixup",)), "config.techniques: 'mixup' is not for this pipeline's inputs"),
        (dict(techniques=("difaugment",)), "no technique 'difaugment' (did you mean 'diffaugment'?)"),
        (dict(evals=dict(test=("diffaugment",))), "config.evals.test: 'diffaugment' acts in training only"),
        (dict(evals=dict(validation=())), "config.evals.validation: this name is taken"),
        (dict(data=dict(name="wine")), "config.data.name: 'wine' holds no images"),
        (dict(r1=-1.0), "config.r1: -1.0 must be >= 0"),
        (dict(judge=dict(train_for="never")), "config.judge.train_for: 'never' cannot be 'never' here"),
        (dict(disc_optimizer=dict(learning_rat=1.0)), "config.disc_optimizer.learning_rat: adam has no such setting"),
        (dict(baselines=("knn",)), "has no choice of rivals"),
        (dict(model=dict(name="mlp")), "config.model: no such setting"),
    ],
)
def test_what_it_refuses(more: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        pipelines.build(config(**more))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_each_player_has_the_optimiser_that_was_asked_for() -> None:
    ex = pipelines.build(config(disc_optimizer=dict(learning_rate=4e-3), disc_steps=2))
    told = ex.settings
    assert told["optimizer"]["learning_rate"] == 1e-3 and told["disc_optimizer"]["learning_rate"] == 4e-3
    assert told["disc_optimizer"]["b1"] == told["optimizer"]["b1"]
    own = pipelines.build(config(disc_optimizer=dict(name="sgd", momentum=0.5))).settings["disc_optimizer"]
    assert own["name"] == "sgd" and "b1" not in own


@pytest.mark.slow
def test_an_evaluation_is_of_what_predict_says() -> None:
    """real_score of the test split is the mean of the scores that predict gives; the loss by NumPy from the scores."""
    ex = pipelines.build(config())
    batch = ex.train_data.fetch(ex.train_data.resident, ex.train_data.slot(0, 0))
    view = um.View(*ex.init(batch, context(train=False)))
    told = evaluate(ex.evals["test"].objective, view, ex.evals["test"].batches, jax.random.key(0))
    rows = ex.dataset.test.__getitems__(np.arange(len(ex.dataset.test)))
    scores = np.asarray(ex.predict(view, {"x": rows["x"]}, jax.random.key(0))["score"], np.float64)
    assert told["disc/real_score"] == pytest.approx(scores.mean(), rel=1e-4)
    assert set(told) == {"disc/objective", "disc/real_score", "disc/fake_score", "gen/objective"}


@pytest.mark.slow
def test_the_judge_is_trained_once_and_kept() -> None:
    """The second time nothing is trained and every number is the same; another seed of the split is another judge."""
    of, how = {"name": "digits"}, _judge.classifier(widths=(4,), features=8, train_for="2 steps")
    first = _judge.judge(how, of)
    fitted = _judge.fitted
    try:
        _judge.fitted = None  # type: ignore[assignment]
        again = _judge.judge(how, of)
        assert again.fingerprint == first.fingerprint and again.accuracy == first.accuracy
        x = np.random.default_rng(0).integers(0, 17, (7, 8, 8, 1), np.uint8)
        np.testing.assert_array_equal(first.look(x)[0], again.look(x)[0])
        assert first.look(x)[0].shape == (7, 8) and first.classes == 10 and 0 <= first.accuracy <= 1
        with pytest.raises(TypeError):
            _judge.judge(how, {**of, "split_seed": 1})
    finally:
        _judge.fitted = fitted


def test_the_features_are_those_of_the_layer_before_the_last() -> None:
    """logits = relu(features) W + b, and the label is the largest of them."""
    how = _judge.classifier(widths=(4,), features=8, train_for="2 steps")
    made, found = _judge.trained(how, {"name": "digits"}), _judge.judge(how, {"name": "digits"})
    x = made.experiment.dataset.test.__getitems__(np.arange(50))["x"]
    features, labels = found.look(x)
    head = made.view.params["model"]["head"]
    logits = np.maximum(features, 0) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    told = made.experiment.predict(made.view, {"x": x}, jax.random.key(0))
    np.testing.assert_array_equal(labels, told["label"])
    np.testing.assert_array_equal(labels, logits.argmax(1))


def test_a_pca_and_a_gaussian_draw_the_mean_and_the_covariance_of_their_components() -> None:
    """Far from the borders nothing is clipped: 20,000 draws have the moments of the set, to sampling error."""
    rng = np.random.default_rng(0)
    x = (0.5 + 0.02 * rng.normal(size=(500, 2)) @ rng.normal(size=(2, 6))).reshape(500, 2, 3, 1).astype(np.float32)
    drawn = _samples.pca_gaussian(x, 20_000, held=0.999).reshape(20_000, 6)
    flat = x.reshape(500, 6).astype(np.float64)
    np.testing.assert_allclose(drawn.mean(0), flat.mean(0), atol=1e-3)
    scale = np.abs(np.cov(flat.T)).max()
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(flat.T), atol=0.05 * scale)


def test_codes_on_the_way_are_as_long_as_codes_are() -> None:
    codes = np.random.default_rng(0).normal(size=(16, 50))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    seen: list[np.ndarray] = []

    def draw(z: np.ndarray) -> np.ndarray:
        seen.append(z)
        return np.zeros((len(z), 2, 2, 1))

    _samples.interpolation(draw, codes)
    ways = seen[0].reshape(8, 10, 50)
    np.testing.assert_allclose(np.linalg.norm(ways, axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(ways[:, 0], codes[:8], atol=1e-5)
    np.testing.assert_allclose(ways[:, -1], codes[8:], atol=1e-5)


@pytest.mark.slow
def test_a_run_is_trained_judged_and_told(tmp_path: Path) -> None:
    r = um.run(config(ema=0.5), workdir=tmp_path, quiet=True)
    test, rivals = r.summary["metrics"]["test"], r.summary["baselines"]
    assert {"frechet", "class_entropy", "precision", "recall", "copied", "disc/objective", "gen/objective"} <= set(test)
    assert set(rivals) == {"training images", "PCA and a Gaussian", "VAE"}
    assert all(set(v) == {"frechet", "class_entropy", "precision", "recall"} for v in rivals.values())
    assert rivals["training images"]["frechet"] < min(test["frechet"], rivals["PCA and a Gaussian"]["frechet"])
    assert r.summary["metrics"]["validation"]["frechet"] > 0
    index = json.loads((tmp_path / "artifacts" / "index.json").read_text())
    assert {"samples", "interpolation", "nearest", "samplers"} <= {e["name"] for e in index}
    told = json.loads((tmp_path / "artifacts" / "samplers.json").read_text())
    assert [row[0] for row in told["rows"]] == ["this run", "training images", "PCA and a Gaussian", "VAE"]
    assert "this run" not in rivals and "frechet" in (tmp_path / "report.html").read_text()
    assert set(r.ts.ema.params) == {"gen"}


@pytest.mark.slow
def test_a_resumed_run_is_the_run_to_the_bit(tmp_path: Path) -> None:
    how = config(ema=0.5, r1=1.0, techniques=("diffaugment",), evals={})
    whole = um.run(how, workdir=tmp_path / "whole", quiet=True)
    um.run({**how, "train_for": "2 steps"}, workdir=tmp_path / "parts", quiet=True)
    parts = um.run(how, workdir=tmp_path / "parts", quiet=True)
    assert bits(whole.ts, parts.ts)


@pytest.mark.slow
def test_two_seeds_are_two_runs_and_are_sampled_and_evaluated_again(tmp_path: Path) -> None:
    how = config(seeds=2, baselines=False, optimizer=dict(name="sgd", learning_rate=0.01))
    both = um.run(how, workdir=tmp_path / "both", quiet=True)
    alone = um.run({**how, "seeds": 1, "seed": 1}, workdir=tmp_path / "alone", quiet=True)
    assert gap(jax.tree.map(lambda x: x[1], both.ts.params), alone.ts.params) < 1e-5
    values = both.summary["metrics"]["test"]["frechet"]["values"]
    assert len(values) == 2 and values[1] == pytest.approx(alone.summary["metrics"]["test"]["frechet"], rel=1e-2)
    with Session(how, tmp_path / "both", quiet=True) as session:
        ts, step = session.start(session.place.replicated(session.experiment.train_data.resident))
        assert step == 4 and any(p.name == "samples.png" for p in session.review(ts))
        assert session.amend()["metrics"]["test"]["frechet"]["values"] == pytest.approx(values)
