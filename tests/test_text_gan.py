"""A game of tokens: its gradient against all sequences there are, its phases to the bit, its judges by hand."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import umbrella as um
from umbrella import ngrams, pipelines
from umbrella.gradients import grad_of
from umbrella.loop import Window
from umbrella.metrics import Mean
from umbrella.models import RecurrentLM
from umbrella.models.critic import TokenDiscriminator
from umbrella.objective import Ctx, View, supervised
from umbrella.phases import during, snapshot
from umbrella.pipelines import _rows
from umbrella.pipelines._written import BEGAN, judged, sampling
from umbrella.settings import SettingsError
from umbrella.step import alternate, then, train_step, update
from umbrella.train_state import create
from umbrella.transforms.policy import (
    DISC,
    GEN,
    advantages,
    draw_rows,
    policy_batch,
    policy_loss,
    reinforce,
    returns,
    rewards_of,
    shifted,
)

KEY = jax.random.key(0)
START = 2
NET = RecurrentLM(words=3, width=4, cell="gru", stateful=False)
CRITIC = TokenDiscriminator(words=3, width=4, embedding=3)
ALL = np.array(list(itertools.product(range(3), repeat=2)), np.int32)  # all rows of two tokens


def parameters() -> dict[str, Any]:
    def made() -> dict[str, Any]:
        keys = {GEN: KEY, DISC: jax.random.key(1)}
        nets = {GEN: NET, DISC: CRITIC}
        return {k: nets[k].init(keys[k], jnp.asarray(ALL), train=False)["params"] for k in nets}

    return jax.tree.map(lambda p: 3 * p, jax.jit(made)())  # away from uniform


def log_p(params: Any) -> jax.Array:
    """f32[9, 2]: of both tokens of all rows."""
    logits = NET.apply({"params": params}, shifted(jnp.asarray(ALL), START), train=False)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(ALL)[..., None], -1)[..., 0]


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


# ----------------------------------------------------------------------------------------------------------- the policy
def test_returns_and_advantages_by_hand() -> None:
    """R_2 = 4, R_1 = 2 + 4 / 2, R_0 = 1 + 4 / 2. Of 3, 1 and 2 the others' means are 3/2, 5/2 and 2."""
    np.testing.assert_allclose(returns(jnp.array([[1.0, 2, 4], [0, 0, 1]]), 0.5), [[3, 4, 4], [0.25, 0.5, 1]])
    np.testing.assert_allclose(returns(jnp.array([[1.0, 2, 4]]), 0.0), [[1, 2, 4]])
    np.testing.assert_allclose(advantages(jnp.array([[3.0], [1], [2]])), [[1.5], [-1.5], [0]], atol=1e-6)


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_the_gradient_of_two_samples_is_that_of_all_sequences_on_average(discount: float) -> None:
    """Over all 81 pairs of rows, each by its probability, the mean of REINFORCE's gradient with its baseline is the
    gradient of the expected reward by enumeration: with discount 1 of minus the mean reward of a token, summed over all
    nine rows; with less of sum_t R_t log p_t, R held fixed. The baseline is then without bias, not just small."""
    params = parameters()
    rewards = jax.jit(lambda p: rewards_of(CRITIC, p, jnp.asarray(ALL)))(params)
    o = supervised(NET, policy_loss, scope=GEN)
    ctx = Ctx(KEY, jnp.int32(0))
    p = jnp.exp(jax.jit(log_p)(params[GEN]).sum(1))

    def exact(gen: Any) -> jax.Array:
        if discount == 1.0:
            return -jnp.sum(jnp.exp(log_p(gen).sum(1)) * rewards.sum(1)) / 2
        to_come = jnp.stack([rewards[:, 0] + discount * rewards[:, 1], rewards[:, 1]], 1)
        return -jnp.sum(p * jnp.sum(to_come * log_p(gen), 1)) / 2

    def pair(gen: Any, i: jax.Array) -> jax.Array:
        rows = jnp.asarray(ALL)[i]
        asked = policy_batch(rows, rewards[i], start=START, discount=discount)
        return o.apply({**params, GEN: gen}, {}, asked, ctx)[0]

    pairs = jnp.asarray(list(itertools.product(range(9), repeat=2)))
    weight = p[pairs[:, 0]] * p[pairs[:, 1]]
    assert float(weight.sum()) == pytest.approx(1, abs=1e-5)
    mean = jax.jit(jax.grad(lambda g: jnp.sum(weight * jax.vmap(pair, (None, 0))(g, pairs))))(params[GEN])
    wanted = jax.jit(jax.grad(exact))(params[GEN])
    assert np.abs(flat(wanted)).max() > 1e-3
    np.testing.assert_allclose(flat(mean), flat(wanted), atol=2e-6)


def test_samples_are_of_the_model_and_only_the_generator_learns_of_them() -> None:
    """Of 20,000 rows each of the nine has its probability's share, within four standard errors; the discriminator's
    parameters have no slope, and what is reported is of these rewards."""
    params = parameters()
    rows = np.asarray(jax.jit(lambda k: draw_rows(NET, params[GEN], k, start=START, rows=20_000, length=2))(KEY))
    p = np.exp(np.asarray(jax.jit(log_p)(params[GEN]).sum(1), np.float64))
    share = np.array([(rows == row).all(1).mean() for row in ALL])
    assert (np.abs(share - p) < 4 * np.sqrt(p * (1 - p) / 20_000)).all()
    gen = reinforce(NET, CRITIC, start=START, discount=0.5)(supervised(NET, policy_loss, scope=GEN))
    batch = {"y": jnp.zeros((64, 2), jnp.int32)}
    (_, aux), slope = jax.jit(jax.value_and_grad(gen.apply, has_aux=True))(params, {}, batch, Ctx(KEY, jnp.int32(0)))
    assert not flat(slope[DISC]).any() and flat(slope[GEN]).any()
    each = np.asarray(rewards_of(CRITIC, params, jnp.asarray(ALL)).mean(1))
    spread = np.sqrt(p @ (each - p @ each) ** 2 / 64)
    assert aux.metrics["reward"].compute() == pytest.approx(p @ each, abs=4 * spread)


def test_a_score_knows_no_later_token() -> None:
    params = parameters()[DISC]
    rows = jnp.array([[0, 1, 2, 0], [0, 1, 1, 2]])
    scores = CRITIC.apply({"params": params}, rows, train=False)
    np.testing.assert_array_equal(scores[0, :2], scores[1, :2])
    assert (scores[0, 2:] != scores[1, 2:]).all()


# ----------------------------------------------------------------------------------------------------------- the phases
@pytest.fixture
def text(tmp_path: Any) -> str:
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat"]
    (tmp_path / "text.txt").write_text("\n".join(" ".join(rng.choice(words, 6)) for _ in range(150)))
    return str(tmp_path / "text.txt")


def config(path: str, **more: Any) -> dict[str, Any]:
    return {
        "pipeline": "text_gan",
        "data": {"name": "mine", "path": path, "validation": 0.1, "test": 0.1},
        "length": 6,
        "generator": {"width": 6, "cell": "gru"},
        "discriminator": {"width": 5, "embedding": 4},
        "pretrain": "3 steps",
        "ahead": "1 steps",
        "evals": {"test": ()},
        "optimizer": {"name": "adam", "learning_rate": 1e-2},
        "batch_size": 4,
        "train_for": "5 steps",
        "sample": {"rows": 30, "temperatures": (0.5, 1.0, 2.0), "order": 3},
        **more,
    }


def test_the_phases_of_a_run(text: str) -> None:
    """Three steps of likelihood; the discriminator from the third on; the game in steps four and five. A step of the
    discriminator alone leaves the generator as it is, the kept start is the generator after three steps, to the bit
    and for good, and a phase that is off counts nothing."""
    ex = pipelines.build(config(text))
    feed, run = ex.train_data, train_step(ex.step, fetch=ex.train_data.fetch)
    ts = create(ex.init, ex.step, KEY, feed.fetch(feed.resident, feed.slot(0, 0)))
    seen = [jax.device_get(ts.params)]
    told = []
    for i in range(5):
        ts, m = run(ts, {}, feed.resident, feed.slot(0, i))
        seen.append(jax.device_get(ts.params))
        told.append({k: float(v.count) for k, v in m.items()})

    def same(scope: str, a: int, b: int, other: str | None = None) -> bool:
        return bool((flat(seen[a][scope]) == flat(seen[b][other or scope])).all())

    assert [same(GEN, i, i + 1) for i in range(5)] == [False] * 5
    assert [same(DISC, i, i + 1) for i in range(5)] == [True, True, False, False, False]
    assert [same(GEN, i, i, BEGAN) for i in range(6)] == [True, True, True, True, False, False]
    assert same(BEGAN, 3, 5) and not same(BEGAN, 2, 3)
    assert [t["mle/loss"] > 0 for t in told] == [True, True, True, False, False]
    assert [t["gen/loss"] > 0 for t in told] == [False, False, False, True, True]
    assert set(ts.opt_state) == {"mle", DISC, GEN, "guard"}

    view = View(ts.params, ts.state)  # and the whole review, of this view as one seed
    review = ex.review(jax.tree.map(lambda x: x[None], view), KEY)
    assert {"judged_quality", "start_judged_coverage", "gain_quality"} <= set(review.metrics["test"])
    made = dict(review.artifacts)
    assert set(made) == {"verdict", "text", "quality_coverage", "samplers"}
    assert "not" in made["verdict"].text and len(made["text"].text.splitlines()) == 43
    loss = um.evaluate(ex.evals["test"].objective, view, ex.evals["test"].batches, KEY)
    assert loss["loss"] != loss["start_loss"]


def test_a_step_of_the_discriminator_leaves_the_generator_alone() -> None:
    """And one outside of its phase leaves everything; `snapshot` and `during` refuse what would never act."""
    o = supervised(NET, lambda out, y: out[..., 0], scope=GEN)
    batch = {"x": jnp.zeros((2, 2), jnp.int32)}
    one = update(grad_of(o), optax.sgd(0.1), wrt=(GEN,), name="a")
    step = then(alternate(during(one, 1, 2)), snapshot(GEN, to="kept", at=1))
    ts = create(o.init, step, KEY, batch)
    before = jax.device_get(ts.params)
    run = train_step(step)
    ts, _ = run(ts, {}, {}, batch)
    np.testing.assert_array_equal(flat(ts.params), flat(before))
    ts, _ = run(ts, {}, {}, batch)
    assert (flat(ts.params[GEN]) != flat(before[GEN])).any()
    np.testing.assert_array_equal(flat(ts.params["kept"]), flat(before[GEN]))
    with pytest.raises(ValueError, match="is never"):
        during(one, 3, 3)
    with pytest.raises(ValueError, match="nothing to keep"):
        snapshot(GEN, to="kept", at=0)
    with pytest.raises(ValueError, match="have the scopes"):
        snapshot("nobody", to="kept", at=1).init(ts)


def test_means_that_counted_nothing_are_left_out_unless_a_step_was_undone() -> None:
    def told(n: float, skipped: float) -> dict[str, Mean]:
        return {"a": Mean(jnp.float32(n), jnp.float32(n)), "skipped": Mean(jnp.float32(skipped), jnp.float32(1))}

    window = Window.of(told(1, 0))
    assert window.compute(window.pack(told(2, 0))) == {"a": 1.0, "skipped": 0.0}
    assert window.compute(window.pack(told(0, 0))) == {"skipped": 0.0}
    undone = window.compute(window.pack(told(0, 1)))
    assert np.isnan(undone["a"]) and undone["skipped"] == 1.0


# ----------------------------------------------------------------------------------------------------------- the judges
def test_ngrams_of_rows() -> None:
    """In tokens "ab", "ab", "ac" (5, 6 and 7; `start` is 2) a follows the start three times. All discounts are 1/2,
    there being no counts of 2 but one: see `_discounts`. Probabilities of all tokens add up to 1 after any context, a
    row's end is no target, and what `draw` draws has these probabilities, within four standard errors."""
    rows = np.array([[5, 6], [5, 6], [5, 7]])
    model = ngrams.train_rows(rows, order=2, size=8, start=2)
    assert model.levels[1].grams.tolist() == [2 * 8 + 5, 5 * 8 + 6, 5 * 8 + 7]
    assert model.levels[1].counts.tolist() == [3, 2, 1]
    assert model.levels[0].grams.tolist() == [5, 6, 7]
    for context in (2, 5, 6):
        p = model.probability(np.full((8, 1), context), np.arange(8))
        assert p.sum() == pytest.approx(1)
        drawn = model.draw(np.full((20_000, 1), context), np.random.default_rng(context))
        share = np.bincount(drawn, minlength=8) / 20_000
        assert (np.abs(share - p) <= 4 * np.sqrt(p * (1 - p) / 20_000)).all()
    scored = model.score_rows(np.array([[5, 7]]), 2)
    by_hand = model.log_probability(np.array([[2], [5]]), np.array([5, 7]))
    np.testing.assert_allclose(scored[0], by_hand)
    assert ngrams.sample_rows(model, 4, 3, 2, 0).shape == (4, 3)


def test_self_bleu_by_hand() -> None:
    """Rows aab, abb, aaa. One token: of aab a counts 2 (aaa has three) and b 1: 3; of abb a 1, b 1 (aab has one): 2; of
    aaa a 2 (aab has two): 2; 7 of 9. Two tokens: aa 1 and ab 1; ab 1 and bb 0; aa 1 of 2: 4 of 6."""
    rows = np.array([[0, 0, 1], [0, 1, 1], [0, 0, 0]])
    assert _rows.self_bleu(rows, 1, 2) == pytest.approx(7 / 9)
    assert _rows.self_bleu(rows, 2, 2) == pytest.approx(np.sqrt(7 / 9 * 4 / 6))
    assert _rows.self_bleu(rows, 3, 2) == 0  # no three tokens occur in two rows
    assert _rows.self_bleu(np.repeat(rows, 2, 0), 3, 2) == pytest.approx(1)


def told(quality: float, coverage: float, self_bleu: float, spread: float = 0.01) -> _rows.Told:
    noise = spread * np.tile([-1.0, 1.0], 50)
    return _rows.Told(quality + noise, coverage + noise, self_bleu, 0.0)


def test_the_verdict() -> None:
    """The start's samples are as alike as the game's, .6, halfway from temperature .5 (.8) to 1 (.4), where it stands
    at 1.5 and 2.5. A game at 1.4 and 2.4 gains a tenth twice; one at 1.6 loses one; one of .9 cannot be compared."""
    curve = [told(1.0, 3.0, 0.8), told(2.0, 2.0, 0.4)]
    asked = sampling(temperatures=(0.5, 1.0))

    def against(*games: _rows.Told) -> tuple[dict[str, np.ndarray], str]:
        return judged([[curve[0], g] for g in games], [curve] * len(games), asked)

    metrics, said = against(told(1.4, 2.4, 0.6))
    assert metrics["gain_quality"] == pytest.approx([0.1]) and metrics["gain_coverage"] == pytest.approx([0.1])
    assert metrics["start_temperature"] == pytest.approx([0.75])
    assert said.startswith("The game beats") and "rows of one seed" in said
    assert against(told(1.6, 2.4, 0.6))[1].startswith(
        "The game does not beat its maximum-likelihood start: it is worse"
    )
    assert "at no temperature" in against(told(1.4, 2.4, 0.9))[1]
    _, said = against(told(1.4, 2.4, 0.6), told(1.41, 2.38, 0.6), told(1.39, 2.39, 0.6))
    assert said.startswith("The game beats") and "3 seeds" in said
    _, said = against(told(1.4, 2.4, 0.6), told(1.7, 2.4, 0.6), told(1.3, 2.4, 0.6))  # 0.033 on average, +- 0.5
    assert said.startswith("The game does not beat its maximum-likelihood start.")


def test_rows_that_stand_in_the_training_text(text: str) -> None:
    ex = pipelines.build(config(text))
    parts = {s: getattr(ex.dataset, s) for s in ("train", "validation", "test")}
    contest = _rows.Contest(parts, 40, 6, 3, 10)
    own = np.stack([parts["train"].tokens[i : i + 6] for i in range(7)] + [parts["train"].tokens[:6][::-1]])
    assert contest.told(own).copied == 7 / 8
    assert set(contest.rivals) == {"training rows", "kneser_ney_3"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(pretrain="never"), "config.pretrain: 'never'"),
        (dict(pretrain="6 steps"), "is 6 of 5 steps"),
        (dict(batch_size=1), "config.batch_size: 1"),
        (dict(techniques=("mixup",)), "config.techniques"),
        (dict(evals={"test": ("pgd",)}), "config.techniques"),
        (dict(resample=True), "config.resample"),
        (dict(generator={"words": 3}), "config.generator.words"),
        (dict(generator={"stateful": True}), "config.generator.stateful"),
        (dict(generator={"widht": 3}), "did you mean 'width'"),
        (dict(sample={"temperatures": (0.5, 0.7)}), "1 must be among them"),
        (dict(sample={"temperatures": (1.0, 0.7)}), "ascending"),
        (dict(sample={"order": 8}), "config.sample.order: 8"),
        (dict(disc_optimizer={"learning_rate": -1.0}), "config.disc_optimizer.learning_rate"),
        (dict(length=5000), "config.length"),
        (dict(discount=2.0), "config.discount"),
    ],
)
def test_refusals(text: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        pipelines.build({**config(text), **more})


def test_without_a_game_all_of_training_is_likelihood(text: str) -> None:
    ex = pipelines.build(config(text, pretrain="100%"))
    shapes = jax.eval_shape(lambda: create(ex.init, ex.step, KEY, {"y": jnp.zeros((4, 6), jnp.int32)}))
    assert set(shapes.opt_state) == {"mle", "guard"} and set(shapes.params) == {GEN, DISC, BEGAN}
