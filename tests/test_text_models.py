"""Classifiers of texts that attend, and bags by weights: against NumPy and scikit-learn."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from umbrella.data.words import Tokens, Vocabulary
from umbrella.models import Bag, TextRNN, TextTransformer
from umbrella.models.text_sequence import _without_words

WORDS, WIDTH = 7, 4
TOKENS = jnp.array([[2, 3, 4, 0, 0], [5, 6, 0, 0, 0], [1, 1, 2, 6, 3]], jnp.int32)
TEXTS = ["to be or not to be", "Not a bee !", "be a bee , be free", "or"]
MODELS: dict[str, Any] = {
    "text_rnn": TextRNN(out=2, words=WORDS, width=WIDTH, hidden=3, attention=5),
    "text_transformer": TextTransformer(out=2, words=WORDS, width=WIDTH, layers=1, heads=2),
}
every_model = pytest.mark.parametrize("name", sorted(MODELS))


@every_model
def test_padding_says_nothing(name: str) -> None:
    """Neither how much there is of it, nor what is added to it."""
    model = MODELS[name]
    variables = jax.jit(lambda: model.init(jax.random.key(0), TOKENS, train=False))()
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    plain = apply(TOKENS)
    longer = jnp.pad(TOKENS, ((0, 1), (0, 3)))  # and a text without a word
    delta = jnp.where(longer[..., None] > 0, 0.0, 9.0) * jnp.ones((1, 1, WIDTH))
    got = apply({"tokens": longer, "delta": delta})
    np.testing.assert_allclose(got[:3], plain, atol=1e-5)
    assert np.isfinite(got).all()


@every_model
def test_the_pool_is_a_weighted_mean_by_numpy(name: str) -> None:
    """Yang et al. 2016, eq. 5 to 7: u = tanh(W h + b), a = softmax(u . v) over real words, logits of sum a h."""
    model = MODELS[name]
    variables = model.init(jax.random.key(1), TOKENS, train=False)
    body = "rnn" if name == "text_rnn" else "encoder"
    how: dict[str, Any] = dict(capture_intermediates=lambda m, _: m.path in ((body,), ("pool",)))
    logits, seen = model.apply(variables, TOKENS, train=False, mutable=["intermediates"], **how)
    h = np.asarray(seen["intermediates"][body]["__call__"][0])
    weights = np.asarray(seen["intermediates"]["pool"]["__call__"][0][1])
    p = jax.tree.map(np.asarray, variables["params"])
    for row, n in enumerate((3, 2, 5)):
        u = np.tanh(h[row, :n] @ p["pool"]["keys"]["kernel"] + p["pool"]["keys"]["bias"])
        score = np.exp((u @ p["pool"]["score"]["kernel"])[:, 0])
        want = score / score.sum()
        np.testing.assert_allclose(weights[row, :n], want, atol=1e-5)
        assert not weights[row, n:].any()
        mean = want @ h[row, :n]
        np.testing.assert_allclose(logits[row], mean @ p["head"]["kernel"] + p["head"]["bias"], atol=1e-5)


def test_whole_words_are_left_out_in_training_alone() -> None:
    e = jnp.ones((1, 1000, 3))

    class Alone(nn.Module):
        @nn.compact
        def __call__(self, x: Any, *, train: bool) -> Any:
            return _without_words(x, 0.25, train)

    model = Alone()
    made = np.asarray(model.apply({}, e, train=True, rngs={"dropout": jax.random.key(0)}))[0]
    gone = (made == 0).all(1)
    np.testing.assert_allclose(made[~gone], 4 / 3, rtol=1e-6)
    assert abs(gone.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)
    np.testing.assert_array_equal(model.apply({}, e, train=False), e)


# --------------------------------------------------------------------------------------------------------------- tokens
@pytest.mark.parametrize(
    ("tokens", "how"),
    [
        (Tokens("words", (1, 2)), dict(analyzer="word", token_pattern=r"(?u)\w+|[^\w\s]")),
        (Tokens("words", (2, 3)), dict(analyzer="word", token_pattern=r"(?u)\w+|[^\w\s]")),
        (Tokens("characters", (2, 4)), dict(analyzer="char")),
    ],
)
def test_runs_and_their_weights_are_scikit_learns(tokens: Tokens, how: dict[str, Any]) -> None:
    """The same runs, the same inverse document frequencies; and a bag by idf whose embedding and head are the unit
    matrix is the row of TfidfVectorizer."""
    counter = CountVectorizer(ngram_range=tokens.runs, binary=True, **how).fit(TEXTS)
    for text in TEXTS:
        assert set(tokens.of(text)) == set(counter.build_analyzer()(text))
    vocabulary = Vocabulary.of(TEXTS, 1000, tokens=tokens)
    assert set(vocabulary.words[2:]) == set(counter.vocabulary_)
    tfidf = TfidfVectorizer(ngram_range=tokens.runs, binary=True, **how).fit(TEXTS)
    order = [tfidf.vocabulary_[w] for w in vocabulary.words[2:]]
    np.testing.assert_allclose(vocabulary.idf[2:], tfidf.idf_[order])
    size = len(vocabulary.words)
    new = [*TEXTS, "unseen words , or not", ""]
    x = vocabulary.encode(new, 40)
    model = Bag(out=size, words=size, width=size, normalised=False, weights="idf")
    params = {"embedding": {"embedding": jnp.eye(size)}, "head": {"kernel": jnp.eye(size), "bias": jnp.zeros(size)}}
    state = {"idf": jnp.asarray(vocabulary.idf, jnp.float32)}
    got = model.apply({"params": params, "vocabulary": state}, jnp.asarray(x), train=False)
    np.testing.assert_allclose(got[:, 2:], tfidf.transform(new).toarray()[:, order], atol=1e-6)


def test_how_long_texts_are() -> None:
    """Tokens that are encoded: known runs alone, single words also when they are unknown."""
    words = Vocabulary.of(["a b", "a b c"], 1000)
    assert words.longest(["a b c d e", "a"], 100) == 5
    pairs = Vocabulary.of(["a b", "a b c"], 1000, tokens=Tokens("words", (1, 2)))
    assert pairs.longest(["a b c d e", "a"], 100) == 5  # a, b, c, a b, b c
    assert pairs.longest([""], 100) == 1
