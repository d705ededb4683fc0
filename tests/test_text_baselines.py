"""The rivals on texts against scikit-learn and against sums written out."""

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.svm import LinearSVC

from umbrella import text_baselines
from umbrella.text_baselines import NaiveBayes, flagging, log_count_ratio, nbsvm


def counts(classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    r = np.random.default_rng(0)
    y = r.permutation(np.arange(40) % classes)
    return r.poisson(0.3 + (np.arange(25)[None] % classes == y[:, None])).astype(np.float64), y


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("alpha", [1.0, 0.1])
def test_naive_bayes_is_scikit_learns(classes: int, alpha: float) -> None:
    x, y = counts(classes)
    wanted = MultinomialNB(alpha=alpha).fit(x, y)
    for rows in (x, sparse.csr_matrix(x)):
        got = NaiveBayes.of(rows, y, alpha=alpha)
        np.testing.assert_allclose(got.word, wanted.feature_log_prob_, atol=1e-8)
        np.testing.assert_allclose(got.prior, wanted.class_log_prior_, atol=1e-8)
        np.testing.assert_allclose(got.log_probabilities(rows), wanted.predict_log_proba(rows), atol=1e-8)


def test_naive_bayes_on_texts_is_scikit_learns() -> None:
    """Probabilities of the table's rival, those of scikit-learn's on the same counts: to 1e-8."""
    texts = ["win a prize now", "call me", "win win !", "are you there ?", "prize call now", "see you there"]
    y = np.array([1, 0, 1, 0, 1, 0])
    own = text_baselines._naive_bayes(text_baselines.Counts(texts, texts[::-1]), y)
    vectorizer = CountVectorizer(binary=True, ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]")
    wanted = MultinomialNB().fit(vectorizer.fit_transform(texts), y).predict_proba(vectorizer.transform(texts[::-1]))
    assert own.probabilities is not None
    np.testing.assert_allclose(own.probabilities, wanted, atol=1e-8)


def test_a_class_without_rows_has_no_part() -> None:
    x, y = counts(2)
    p = NaiveBayes.of(x, y, classes=3).log_probabilities(x)
    assert (p[:, 2] == -np.inf).all()
    np.testing.assert_allclose(np.exp(p).sum(1), 1)


def test_the_ratio_by_hand() -> None:
    """p = 1 + [2, 1], q = 1 + [0, 1]: (3/5, 2/5) against (1/3, 2/3)."""
    x = sparse.csr_matrix(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    got = log_count_ratio(x, np.array([1, 1, 0]))
    np.testing.assert_allclose(got, np.log([(3 / 5) / (1 / 3), (2 / 5) / (2 / 3)]), atol=1e-12)


def test_nbsvm_is_an_svm_of_features_times_their_ratio() -> None:
    """At beta = 1 nothing is drawn to the mean; at 0 every weight is the ratio times the mean magnitude."""
    x, y = counts(2)
    x = sparse.csr_matrix((x > 0).astype(np.float64))
    ratio = log_count_ratio(x, y)
    svm = LinearSVC(C=1.0, dual="auto", random_state=0).fit(x.multiply(ratio[None]).tocsr(), y)
    weights, offsets, ended = nbsvm(x, y, beta=1.0)
    assert ended
    np.testing.assert_allclose(weights[:, 1], ratio * svm.coef_[0], atol=1e-8)
    np.testing.assert_allclose(offsets[1], svm.intercept_[0], atol=1e-8)
    mean = nbsvm(x, y, beta=0.0)[0][:, 1] / ratio
    np.testing.assert_allclose(mean, np.abs(svm.coef_[0]).mean(), atol=1e-8)
    between = nbsvm(x, y, beta=0.25)[0]
    np.testing.assert_allclose(between, 0.25 * weights + 0.75 * nbsvm(x, y, beta=0.0)[0], atol=1e-12)


def test_flags_by_hand() -> None:
    """3 called, 2 of them rightly, of 4: precision 2/3, recall 1/2, F1 4/7; 1 of 5 others is flagged."""
    true = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0], bool)
    called = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0], bool)
    wanted = {"precision": 2 / 3, "recall": 1 / 2, "f1": 4 / 7, "false_positive_rate": 1 / 5}
    assert flagging(called, true) == pytest.approx(wanted)
    nothing: Any = flagging(np.zeros(2, bool), np.ones(2, bool))
    assert np.isnan(nothing["false_positive_rate"]) and nothing["recall"] == 0


def test_every_rival_reads_what_one_word_tells() -> None:
    """The word decides in train and test alike; three classes, so that those of two have to be put together."""
    words = ("red", "green", "blue")
    texts = [f"{w} is number {i}" for i, w in enumerate(words * 8)]
    y = np.arange(len(texts)) % 3
    told = text_baselines.text_classification((texts, y), (texts[:9], y[:9]), tuple(text_baselines.TEXT_CLASSIFIERS))
    assert len(told) == 7
    for name, found in told.items():
        assert found["accuracy"] == (pytest.approx(1 / 3) if name == "majority class" else 1), name
        assert found["seconds"] >= 0
    assert told["majority class"]["loss"] == pytest.approx(np.log(3))
