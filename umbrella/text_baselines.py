"""The rivals of classifiers of texts: methods without a neural network, on the same split. Floor 4.

Each is a function from the texts, counted, to what it says of the test texts. Their settings are fixed beforehand:
those of the papers, or what scikit-learn has by itself; none is chosen on test.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import logsumexp

from umbrella import scores
from umbrella.baselines import UNFINISHED, Told, noted

Texts = tuple[Sequence[str], np.ndarray]  # texts, labels i32[N]
# Words of one letter and signs count, too; scikit-learn itself leaves them out.
WORDS: dict[str, Any] = {"token_pattern": r"(?u)\w+|[^\w\s]", "dtype": np.float64}


class Fitted(NamedTuple):
    """What a rival says of M test texts: labels i[M], probabilities f64[M, C] or None, whether its solver ended."""

    labels: np.ndarray
    probabilities: np.ndarray | None = None
    converged: bool = True


class Counts:
    """The texts of train and of test as sparse rows; each kind is counted when it is first asked for."""

    def __init__(self, train: Sequence[str], test: Sequence[str]):
        self.train, self.test = train, test

    @cached_property
    def words(self) -> tuple[Any, Any]:
        """How often every word is there."""
        from sklearn.feature_extraction.text import CountVectorizer

        return self._by(CountVectorizer(**WORDS))

    @cached_property
    def pairs(self) -> tuple[Any, Any]:
        """Whether a word or a pair of words is there, not how often: better on short texts (Wang and Manning 2012)."""
        from sklearn.feature_extraction.text import CountVectorizer

        return self._by(CountVectorizer(binary=True, ngram_range=(1, 2), **WORDS))

    @cached_property
    def weighted(self) -> tuple[Any, Any]:
        """tf-idf of words and pairs, 1 + log tf; a row has length 1."""
        from sklearn.feature_extraction.text import TfidfTransformer

        weigh = TfidfTransformer(sublinear_tf=True)
        return weigh.fit_transform(self.pairs[0]), weigh.transform(self.pairs[1])

    @cached_property
    def characters(self) -> tuple[Any, Any]:
        """tf-idf of runs of 2 to 5 characters that are there twice, in lower case."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        how: dict[str, Any] = dict(analyzer="char", ngram_range=(2, 5), sublinear_tf=True, dtype=np.float32)
        try:
            return self._by(TfidfVectorizer(min_df=2, **how))
        except ValueError:  # no run is there twice
            return self._by(TfidfVectorizer(min_df=1, **how))

    def _by(self, vectorizer: Any) -> tuple[Any, Any]:
        return vectorizer.fit_transform(self.train), vectorizer.transform(self.test)


class TextRival(NamedTuple):
    words: str  # its name in tables
    fit: Callable[[Counts, np.ndarray], Fitted]  # (counts, y i32[N]) -> what it says of test


# ---------------------------------------------------------------------------------------------------- of a few lines
class NaiveBayes(NamedTuple):
    """Multinomial naive Bayes. prior f64[C] and word f64[C, V] are logarithms of probabilities."""

    prior: np.ndarray
    word: np.ndarray

    @classmethod
    def of(cls, x: Any, y: np.ndarray, *, classes: int | None = None, alpha: float = 1.0) -> "NaiveBayes":
        """Fitted to counts x f[N, V], dense or sparse, and labels y i[N].

        p(word | c) = (n_cw + alpha) / (n_c + alpha V), p(c) the share of the rows; a class without a row has the prior
        0. Source: Manning, Raghavan and Schuetze 2008, eq. 13.7, at alpha = 1.
        """
        own = np.arange(y.max() + 1 if classes is None else classes)[:, None] == y[None]
        seen = (sparse.csr_matrix(own, dtype=np.float64) @ sparse.csr_matrix(x, dtype=np.float64)).toarray()
        with np.errstate(divide="ignore"):
            prior = np.log(own.mean(1))
        return cls(prior, np.log(seen + alpha) - np.log(seen.sum(1, keepdims=True) + alpha * seen.shape[1]))

    def log_probabilities(self, x: Any) -> np.ndarray:
        """f64[M, C]: log p(c | x)."""
        joint = np.asarray(x @ self.word.T) + self.prior[None]
        return np.asarray(joint - logsumexp(joint, axis=1, keepdims=True))


def log_count_ratio(x: Any, y: np.ndarray, *, alpha: float = 1.0) -> np.ndarray:
    """f64[V]: log((p / |p|_1) / (q / |q|_1)), p = alpha + the counts of rows with y = 1, q those of the others.

    Source: Wang and Manning 2012, section 2.
    """
    p, q = (alpha + np.asarray(x[np.flatnonzero(y == c)].sum(0), np.float64).ravel() for c in (1, 0))
    return np.asarray(np.log(p / p.sum()) - np.log(q / q.sum()))


def nbsvm(x: Any, y: np.ndarray, *, C: float = 1.0, beta: float = 0.25) -> tuple[np.ndarray, np.ndarray, bool]:
    """A linear SVM on binary features times their log-count ratio, its weights drawn to their mean magnitude.

    w' = (1 - beta) m + beta w with m = |w|_1 / V: m times naive Bayes and beta times the SVM. C, beta and the squared
    hinge are the paper's.

    Deviations: the offset is drawn to that of naive Bayes as the weights are, b' = (1 - beta) m log(N+ / N-) + beta b;
    the paper keeps b, which outweighs the smaller weights where the classes have unequal sizes. One against the rest
    where there are more than two classes, of which the paper has none.

    Returns:
      (weights f64[V, C] of the features themselves, offsets f64[C], whether all solvers ended).

    Source: Wang and Manning 2012, sections 2 and 3.
    """
    from sklearn.svm import LinearSVC

    columns, offsets, ended = [], [], True
    for c in range(int(y.max()) + 1):
        own = (y == c).astype(np.int32)
        ratio = log_count_ratio(x, own)
        svm, converged = _quietly(LinearSVC(C=C, dual="auto", random_state=0), x @ sparse.diags(ratio), own)
        w = svm.coef_[0]
        mean = (1 - beta) * np.abs(w).mean()
        columns.append(ratio * (mean + beta * w))
        offsets.append(mean * np.log(own.sum() / (len(y) - own.sum())) + beta * svm.intercept_[0])
        ended &= converged
    return np.stack(columns, 1), np.asarray(offsets), ended


# --------------------------------------------------------------------------------------------------------- the table
def _majority(counts: Counts, y: np.ndarray) -> Fitted:
    share = np.bincount(y) / len(y)
    return _by_probabilities(np.repeat(share[None], len(counts.test), 0))


def _naive_bayes(counts: Counts, y: np.ndarray) -> Fitted:
    x, x_test = counts.pairs
    return _by_probabilities(np.exp(NaiveBayes.of(x, y).log_probabilities(x_test)))


def _bag_of_words(counts: Counts, y: np.ndarray) -> Fitted:
    return _logistic(*counts.words, y, C=1.0)


def _tfidf(counts: Counts, y: np.ndarray) -> Fitted:
    return _logistic(*counts.weighted, y, C=10.0)  # rows of length 1 ask for less regularisation than C=1


def _linear_svm(counts: Counts, y: np.ndarray) -> Fitted:
    return _svm(*counts.weighted, y)


def _nbsvm(counts: Counts, y: np.ndarray) -> Fitted:
    x, x_test = counts.pairs
    weights, offsets, converged = nbsvm(x, y)
    return Fitted((np.asarray(x_test @ weights) + offsets[None]).argmax(1), None, converged)


def _characters(counts: Counts, y: np.ndarray) -> Fitted:
    return _svm(*counts.characters, y)


TEXT_CLASSIFIERS = {
    "majority": TextRival("majority class", _majority),
    "naive_bayes": TextRival("naive Bayes, words and pairs", _naive_bayes),
    "bag_of_words": TextRival("logistic regression on word counts", _bag_of_words),
    "logistic": TextRival("logistic regression on tf-idf", _tfidf),
    "linear_svm": TextRival("linear SVM on tf-idf", _linear_svm),
    "nbsvm": TextRival("NB-SVM, words and pairs", _nbsvm),
    "characters": TextRival("linear SVM on characters", _characters),
}


def text_classification(train: Texts, test: Texts, names: tuple[str, ...], *, flag: int | None = None) -> Told:
    """The rivals of these names: "accuracy" on test, "seconds", "loss" where there are probabilities.

    The loss is the log loss in nats; a probability counts for at least 2.2e-16, so that a true class that is ruled out
    costs 36. Seconds are those of counting and fitting; what two rivals count alike, the first one pays for.

    Args:
      names: of TEXT_CLASSIFIERS.
      flag: a class of two: adds what `flagging` says.
    """
    counts, out = Counts(train[0], test[0]), {}
    for name in names:
        rival, began = TEXT_CLASSIFIERS[name], time.perf_counter()
        found = rival.fit(counts, train[1])
        told = {"accuracy": float(np.mean(found.labels == test[1])), "seconds": time.perf_counter() - began}
        if found.probabilities is not None:
            told["loss"] = _log_loss(found.probabilities, test[1])
        if flag is not None:
            told |= flagging(found.labels == flag, test[1] == flag)
        out[noted(rival.words, [UNFINISHED] * (not found.converged))] = told
    return out


def flagging(called: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Precision, recall, F1 and the false positive rate of bool[M] flags; NaN where there is nothing to divide by.

    >>> flagging(np.array([True, True, False, False]), np.array([True, False, False, False]))
    {'precision': 0.5, 'recall': 1.0, 'f1': 0.6666666666666666, 'false_positive_rate': 0.3333333333333333}
    """
    table = np.array(
        [[np.sum(~true & ~called), np.sum(~true & called)], [np.sum(true & ~called), np.sum(true & called)]]
    )
    by = scores.per_class(table)
    others = table[0].sum()
    told = {"precision": by.precision[1], "recall": by.recall[1], "f1": by.f1[1]}
    rate = float(table[0, 1] / others) if others else float("nan")
    return {k: float(v) for k, v in told.items()} | {"false_positive_rate": rate}


# ---------------------------------------------------------------------------------------------------------- helpers
def _logistic(x: Any, x_test: Any, y: np.ndarray, *, C: float) -> Fitted:
    from sklearn.linear_model import LogisticRegression

    made, converged = _quietly(LogisticRegression(C=C, max_iter=300), x, y)
    return _by_probabilities(made.predict_proba(x_test), converged)


def _svm(x: Any, x_test: Any, y: np.ndarray) -> Fitted:
    from sklearn.svm import LinearSVC

    made, converged = _quietly(LinearSVC(dual="auto", random_state=0), x, y)
    return Fitted(made.predict(x_test), None, converged)


def _by_probabilities(p: np.ndarray, converged: bool = True) -> Fitted:
    return Fitted(p.argmax(1), p, converged)


def _log_loss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], np.finfo(np.float64).eps)).mean())


def _quietly(made: Any, x: Any, y: np.ndarray) -> tuple[Any, bool]:
    """(fitted, whether its solver says that it got to the end)."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made.fit(x, y)
    return made, not any(issubclass(w.category, ConvergenceWarning) for w in said)
