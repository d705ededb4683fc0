"""Texts as vectors of words: the models, attacks there, and the pipeline around them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import bits, context
from umbrella import losses, pipelines, transforms
from umbrella.models import Bag, TextCNN
from umbrella.models.text import Embedding
from umbrella.objective import Objective, chain, supervised
from umbrella.settings import SettingsError

WORDS, WIDTH = 7, 5
TOKENS = jnp.array([[2, 3, 4, 0, 0], [5, 6, 0, 0, 0], [1, 1, 2, 6, 3]], jnp.int32)
BATCH = {"x": TOKENS, "y": jnp.array([0, 1, 1], jnp.int32)}
MODELS: dict[str, Any] = {
    "bag": Bag(out=2, words=WORDS, width=WIDTH, hidden=(4,)),
    "text_cnn": TextCNN(out=2, words=WORDS, width=WIDTH, maps=6, spans=(1, 2, 4), dropout=0.0),
}
every_model = pytest.mark.parametrize("name", sorted(MODELS))


def objective(name: str) -> Objective:
    return chain(transforms.at_embedding(WIDTH))(supervised(MODELS[name], losses.cross_entropy))


def attacked(o: Objective, attack: Any) -> tuple[np.ndarray, Any, Any]:
    """(the perturbation that the model is given, parameters, state)."""
    seen: dict[str, Any] = {}

    def apply(params: Any, state: Any, batch: Any, ctx: Any) -> Any:
        seen["delta"] = batch["x"]["delta"]
        return inner.apply(params, state, batch, ctx)

    inner = supervised(MODELS["bag"] if o is None else o, losses.cross_entropy)
    params, state = inner.init(BATCH, context())
    spy = inner._replace(apply=apply)
    chain(transforms.at_embedding(WIDTH), transforms.adversarial(attack, probe=inner, on="x/delta"))(spy).apply(
        params, state, BATCH, context(train=True)
    )
    return np.asarray(seen["delta"]), params, state


# --------------------------------------------------------------------------------------------------------------- models
def test_embeddings_have_mean_0_and_variance_1_over_the_words_of_the_texts() -> None:
    """Miyato et al. 2017, eq. 1, by NumPy over every occurrence of a word."""
    model = Embedding(WORDS, WIDTH)
    variables = model.init(jax.random.key(0), TOKENS)
    counts = np.array([0, 2, 2, 2, 1, 1, 2])  # of the words in TOKENS; padding is none
    share = jnp.asarray(counts / counts.sum(), jnp.float32)
    e, there = model.apply({**variables, "vocabulary": {"share": share}}, TOKENS)
    seen = np.asarray(e)[np.asarray(TOKENS) > 0]
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(seen.var(0), 1, rtol=1e-5)
    assert (np.asarray(there) == (np.asarray(TOKENS) > 0)).all()
    assert not np.asarray(e)[np.asarray(TOKENS) == 0].any()


@every_model
def test_padding_says_nothing(name: str) -> None:
    """Neither how much there is of it, nor what is added to it."""
    model = MODELS[name]
    variables = model.init(jax.random.key(0), TOKENS, train=False)
    plain = model.apply(variables, TOKENS, train=False)
    longer = model.apply(variables, jnp.pad(TOKENS, ((0, 0), (0, 6))), train=False)
    np.testing.assert_allclose(plain, longer, atol=1e-6)
    delta = jnp.where(TOKENS[..., None] > 0, 0.0, 9.0) * jnp.ones((1, 1, WIDTH))
    np.testing.assert_allclose(
        plain, model.apply(variables, {"tokens": TOKENS, "delta": delta}, train=False), atol=1e-6
    )
    empty = model.apply(variables, jnp.zeros((1, 5), jnp.int32), train=False)
    assert np.isfinite(empty).all()


def test_a_text_cnn_by_numpy() -> None:
    """Every window of the text, padded by its span less one, through the filter and a ReLU; the largest counts."""
    model = MODELS["text_cnn"].clone(spans=(2,), normalised=False)
    variables = model.init(jax.random.key(1), TOKENS, train=False)
    p = jax.tree.map(np.asarray, variables["params"])
    e = p["embedding"]["embedding"][np.asarray(TOKENS)] * (np.asarray(TOKENS) > 0)[..., None]
    for row in range(3):
        n = int((TOKENS[row] > 0).sum())
        padded = np.concatenate([np.zeros((1, WIDTH)), e[row, :n], np.zeros((1, WIDTH))])
        windows = np.stack([padded[i : i + 2].reshape(-1) for i in range(n + 1)])
        h = np.maximum(windows @ p["span_2"]["kernel"].reshape(2 * WIDTH, -1) + p["span_2"]["bias"], 0).max(0)
        want = h @ p["head"]["kernel"] + p["head"]["bias"]
        np.testing.assert_allclose(model.apply(variables, TOKENS, train=False)[row], want, atol=1e-5)


def test_a_bag_is_the_mean_of_its_words() -> None:
    model = Bag(out=2, words=WORDS, width=WIDTH, normalised=False)
    variables = model.init(jax.random.key(1), TOKENS, train=False)
    p = jax.tree.map(np.asarray, variables["params"])
    table = p["embedding"]["embedding"]
    want = np.stack([table[[2, 3, 4]].mean(0), table[[5, 6]].mean(0), table[[1, 1, 2, 6, 3]].mean(0)])
    want = want @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(model.apply(variables, TOKENS, train=False), want, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- attacks
@every_model
def test_one_step_is_eps_along_the_gradient(name: str) -> None:
    """Of length eps over the whole text to 1e-6, along central differences of the loss; nothing where there is
    padding."""
    eps, model = 0.7, MODELS[name]
    attack = transforms.pgd(eps=eps, steps=1, step_size=eps, norm="l2", random_start=False)
    delta, params, state = attacked(model, attack)
    np.testing.assert_allclose(np.sqrt(np.square(delta).sum((1, 2))), eps, atol=1e-6)
    assert not delta[np.asarray(TOKENS) == 0].any()
    o = supervised(model, losses.cross_entropy)

    def loss(d: np.ndarray) -> np.ndarray:
        batch = {**BATCH, "x": {"tokens": TOKENS, "delta": jnp.asarray(d, jnp.float32)}}
        return np.asarray(o.apply(params, state, batch, context().eval())[1].per_example, np.float64)

    h, slope = 1e-2, np.zeros_like(delta, dtype=np.float64)
    for t in range(delta.shape[1]):
        for i in range(WIDTH):
            step = np.zeros_like(delta)
            step[:, t, i] = h
            slope[:, t, i] = (loss(step) - loss(-step)) / (2 * h)
    cosine = (slope * delta).sum((1, 2)) / (np.sqrt(np.square(slope).sum((1, 2))) * eps)
    np.testing.assert_allclose(cosine, 1, atol=2e-3)


def test_the_control_is_as_long_and_only_where_there_are_words() -> None:
    noise, *_ = attacked(MODELS["bag"], transforms.random_noise(eps=0.7, norm="l2", where="x/tokens"))
    np.testing.assert_allclose(np.sqrt(np.square(noise).sum((1, 2))), 0.7, atol=1e-6)
    assert not noise[np.asarray(TOKENS) == 0].any()
    assert (np.abs(noise[np.asarray(TOKENS) > 0]) > 0).all()


def test_normal_noise_has_the_deviation_that_is_asked_for() -> None:
    """Of 1e5 numbers: mean within 4 / sqrt(1e5) sigma, variance within 4 sqrt(2 / 1e5) of 1; bounds do not cut it."""
    x = jnp.zeros((100, 1000), jnp.float32)
    attack = transforms.random_noise(eps=0.5, norm="normal", bounds=(0.0, 1.0))
    o = Objective(lambda batch, ctx: ({}, {}), lambda params, state, batch, ctx: (batch["x"], None))
    noise = np.asarray(attack(o, {}, {}, {"x": x}, context(), "x")) / 0.5
    assert abs(noise.mean()) < 4 / np.sqrt(1e5) and abs(noise.var() - 1) < 4 * np.sqrt(2 / 1e5)


def test_half_of_the_loss_is_that_of_the_text_as_it_is() -> None:
    """In training the mean of two plain losses; in evaluation that of the attacked one alone."""
    o = supervised(MODELS["bag"], losses.cross_entropy)
    attack = transforms.pgd(eps=0.7, steps=1, step_size=0.7, norm="l2", random_start=False)
    room = transforms.at_embedding(WIDTH)
    params, state = o.init(BATCH, context())
    plain, alone, both = (
        chain(room, *more)(o)
        for more in (
            (),
            (transforms.adversarial(attack, on="x/delta"),),
            (transforms.adversarial(attack, on="x/delta", clean=0.25),),
        )
    )
    train = [x.apply(params, state, BATCH, context(train=True)) for x in (plain, alone, both)]
    assert float(train[1][0]) > float(train[0][0])
    assert float(train[2][0]) == pytest.approx(0.25 * float(train[0][0]) + 0.75 * float(train[1][0]), abs=1e-6)
    rows = [np.asarray(t[1].per_example) for t in train]
    np.testing.assert_allclose(rows[2], 0.25 * rows[0] + 0.75 * rows[1], atol=1e-6)
    look = context().eval()
    assert bits(both.apply(params, state, BATCH, look)[0], alone.apply(params, state, BATCH, look)[0])


def test_whole_numbers_have_no_gradient() -> None:
    o = supervised(MODELS["bag"], losses.cross_entropy)
    params, state = o.init(BATCH, context())
    with pytest.raises(TypeError, match="its dtype is int32, which has no gradient"):
        transforms.adversarial(transforms.pgd(eps=0.1))(o).apply(params, state, BATCH, context())


# ------------------------------------------------------------------------------------------------------------- pipeline
def config(tmp_path: Path, **more: Any) -> dict[str, Any]:
    path = tmp_path / "t.tsv"
    lines = (f"{('bad', 'good')[i % 2]}\tit is {('dull', 'fine')[i % 2]} , film {i}\n" for i in range(60))
    path.write_text("".join(lines))
    return dict(
        pipeline="text",
        data=dict(name="mine", path=str(path)),
        model=dict(name="bag", width=8),
        optimizer=dict(name="adam"),
        batch_size=8,
        train_for="2 steps",
        evals=dict(test=()),
        **more,
    )


def test_the_shares_of_the_words_are_those_of_the_training_texts(tmp_path: Path) -> None:
    ex = pipelines.build(config(tmp_path))
    batch = {k: v[:8] for k, v in ex.dataset.train.__getitems__(np.arange(8)).items()}
    _, state = ex.init(batch, context())
    share = np.asarray(state["model"]["vocabulary"]["embedding"]["share"])
    assert share.sum() == pytest.approx(1) and share[0] == 0
    tokens = ex.dataset.train.column("x")  # at most six words a text: nothing is cut off
    np.testing.assert_allclose(
        share, np.bincount(tokens[tokens > 0], minlength=len(share)) / (tokens > 0).sum(), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(techniques=("mixup",)), "config.techniques: 'mixup' is not for this pipeline's inputs"),
        (dict(least=1000), "config.least: no word of the training texts occurs 1,000 times"),
        (dict(baselines=("knn",)), "config.baselines: no baseline 'knn'"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        pipelines.build(config(tmp_path, **more))


def test_images_are_no_texts(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'digits' holds no labelled texts"):
        pipelines.build({**config(tmp_path), "data": dict(name="digits")})


def test_the_rivals_are_scikit_learns(tmp_path: Path) -> None:
    """One word tells the classes apart here, so each of them is right about every test text; the majority is not."""
    told = pipelines.build(config(tmp_path)).baselines()
    assert told.pop("majority class")["accuracy"] == pytest.approx(0.5)
    assert len(told) == 6 and all(v["accuracy"] == 1 for v in told.values())
