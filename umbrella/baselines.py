"""The rivals that are printed beside a result: methods without a neural network, on the same split. Floor 4."""

import importlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from umbrella.data import Arrays, Source, sample
from umbrella.settings import SettingsError, near

LARGE = 20_000  # rows: no more are read of a split that does not lie in memory, or fitted to by what takes long
ROOM = 2**27  # numbers in x: no more are read of a split that does not lie in memory

Told = dict[str, dict[str, float]]
Columns = dict[str, np.ndarray]


class Rival(NamedTuple):
    """A classifier of scikit-learn and how it is set."""

    words: str  # its name in tables
    made_by: str  # module.class below sklearn
    settings: Mapping[str, Any]
    most: int | None = None  # rows that it is fitted on at most: above, a random part, and the name says so
    probabilities: bool = True  # whether it gives them, and so a log loss


# The settings are for pixels in [0, 1], which share one unit: standardised, the pixels at the border, which hardly ever
# hold ink, would count as much as the others. What rests on chance has a fixed seed.
CLASSIFIERS = {
    # The shares of the classes in train: accuracy is that of the largest, log loss the entropy.
    "majority": Rival("majority class", "dummy.DummyClassifier", dict(strategy="prior")),
    # 3 is LeCun's choice for MNIST. A vote of 3 is a coarse probability: its log loss is that of three voters.
    "knn": Rival("3 nearest neighbours", "neighbors.KNeighborsClassifier", dict(n_neighbors=3, n_jobs=-1), 60_000),
    # C=1, scikit-learn's own; a tolerance of 1e-3 moves the accuracy by less than .001 and halves the time.
    "logistic": Rival("logistic regression", "linear_model.LogisticRegression", dict(max_iter=200, tol=1e-3), LARGE),
    # Pixels in [0, 1] ask for more regularisation than C=1, which takes ten times as long and is worse on MNIST.
    "linear_svm": Rival("linear SVM", "svm.LinearSVC", dict(C=0.05, dual="auto", random_state=0), 60_000, False),
    # C=10 as wide digits are separable; gamma="scale" is 1 / (pixels * variance). Time grows with the square of rows.
    "rbf_svm": Rival("RBF SVM", "svm.SVC", dict(C=10.0, gamma="scale"), 10_000, False),
    # More trees only lower the variance; behind 300 the gain is within the noise of a test set of 10,000.
    "random_forest": Rival(
        "random forest", "ensemble.RandomForestClassifier", dict(n_estimators=300, random_state=0, n_jobs=-1), 60_000
    ),
    # A tree per class and round: 50 rounds of 10 classes are 500 trees. A tenth of the pixels at each split, 32 grey
    # levels: faster.
    "gradient_boosting": Rival(
        "gradient boosting",
        "ensemble.HistGradientBoostingClassifier",
        dict(max_iter=50, max_features=0.1, max_bins=32, early_stopping=False, random_state=0),
        10_000,
    ),
    # Without smoothing, a pixel that is always blank in one class rules that class out by itself.
    "naive_bayes": Rival("naive Bayes", "naive_bayes.GaussianNB", dict(var_smoothing=0.1)),
    "nearest_centroid": Rival("nearest centroid", "neighbors.NearestCentroid", dict(), None, False),
}
UNFINISHED = "not converged"
USUAL = ("majority", "knn", "logistic")  # what config.baselines=True means


def chosen(
    baselines: bool | tuple[str, ...],
    among: Mapping[str, Any] = CLASSIFIERS,
    usual: tuple[str, ...] = USUAL,
) -> tuple[str, ...]:
    """The names that config.baselines stands for: True is the usual ones.

    Raises:
      SettingsError: no such name.
    """
    names = baselines if isinstance(baselines, tuple) else usual * baselines
    for name in names:
        if name not in among:
            raise SettingsError(f"config.baselines: no baseline {name!r}{near(name, among)}")
    return names


def on_parts(fit: Callable[[Columns, Columns], Told], train: Source, test: Source) -> Told:
    """fit(train, test) on all rows of splits in memory; of a split that is streamed, on a random part of bounded size.

    The names then say so: "majority class (on 20,000 rows)", or "(on 20,000 rows, tested on 5,000)". What a name says
    already of the rows that it was fitted on stands.

    Args:
      fit: (train, test) -> name -> metric -> value.
      train, test: sources with the column x.
    """
    columns, rivals = part(train), part(test)
    (n, m), whole = (len(columns["x"]), len(rivals["x"])), (len(train), len(test))
    tested = [f"tested on {m:,}"] * (m < whole[1])

    def told(name: str) -> str:
        plain, said = notes_of(name)
        fitted = [] if any(note.startswith("on ") for note in said) else [f"on {n:,} rows"] * (n < whole[0])
        return noted(plain, fitted + said + tested)

    return {told(name): metrics for name, metrics in fit(columns, rivals).items()}


def noted(name: str, notes: list[str]) -> str:
    """A rival's name with what there is to say of its fit: "logistic regression (on 500 rows, not converged)"."""
    return f"{name} ({', '.join(notes)})" if notes else name


def notes_of(name: str) -> tuple[str, list[str]]:
    """The other way round; brackets of another kind are of the name.

    >>> notes_of("logistic regression (on 20,000 rows, not converged)")
    ('logistic regression', ['on 20,000 rows', 'not converged'])
    >>> notes_of("majority class (the first)")
    ('majority class (the first)', [])
    """
    plain, bracket, said = name.removesuffix(")").rpartition(" (")
    notes = said.split(", ")
    if bracket and all(note == UNFINISHED or note.startswith(("on ", "tested on ")) for note in notes):
        return plain, notes
    return name, []


def part(source: Source) -> Columns:
    """All rows of a source in memory; of any other a random part of at most LARGE rows and ROOM numbers in x."""
    n = len(source)
    if isinstance(source, Arrays):
        return source.__getitems__(np.arange(n))
    size = source.__getitems__(np.zeros(1, np.int64))["x"].size
    return source.__getitems__(sample(n, min(LARGE, max(1, ROOM // size))))


def classification(train: Columns, test: Columns, scale: float, names: tuple[str, ...] = USUAL) -> Told:
    """The rivals of these names on the pixels: "accuracy" on test, "seconds", and "loss" where there are probabilities.

    The loss is the log loss in nats. As scikit-learn has it, a probability counts for at least 2.2e-16: a true class
    that is ruled out costs 36. Fitted once, tested once.

    Args:
      train, test: "x" u8[N, ...], "y" i32[N].
      scale: x / scale is in [0, 1].
      names: of CLASSIFIERS.
    """
    x, y = _flat(train["x"]) / np.float32(scale), train["y"]
    x_test, y_test = _flat(test["x"]) / np.float32(scale), test["y"]
    rows = np.random.default_rng(0).permutation(len(x))
    out = {}
    for name in names:
        rival, began = CLASSIFIERS[name], time.perf_counter()
        most = min(len(x), rival.most or len(x))
        few = np.sort(rows[:most])  # all of them in their order, when they are not too many
        fitted, converged = _fit(rival, x[few], y[few])
        notes = [f"on {most:,} rows"] * (most < len(x)) + [UNFINISHED] * (not converged)
        out[noted(rival.words, notes)] = _scores(fitted, rival, x_test, y_test) | {
            "seconds": time.perf_counter() - began
        }
    return out


def binary_images(
    train: NDArray[np.floating], test: NDArray[np.floating], *, components: int = 50, rounds: int = 30
) -> Told:
    """-log p in nats per binarised test image under independent pixels and under a mixture of Bernoullis (EM).

    Both sets are binarised once, at random, from grey values in [0, 1]. The likelihoods are exact, so they compare
    with a VAE's "nll" (an estimate from above) and "negative_elbo" (an upper bound).

    Args:
      train, test: f[N, ...] in [0, 1].
      components, rounds: of the mixture and of its EM; the seed is fixed.
    """
    rng = np.random.default_rng(0)
    x, x_test = ((rng.random(a.shape, np.float32) < a).astype(np.float32).reshape(len(a), -1) for a in (train, test))
    out = {"independent pixels": (np.ones(1), _smooth(x.sum(0)[None], np.array([float(len(x))])))}
    resp = np.zeros((len(x), components))
    resp[np.arange(len(x)), rng.integers(0, components, len(x))] = 1
    for _ in range(rounds):
        weight = resp.sum(0)
        probability = _smooth(resp.T @ x, weight)
        resp = _log_joint(x, weight / len(x), probability)
        resp = np.exp(resp - resp.max(1, keepdims=True))
        resp /= resp.sum(1, keepdims=True)
    out[f"mixture of {components} Bernoullis"] = (resp.sum(0) / len(x), _smooth(resp.T @ x, resp.sum(0)))
    return {
        name: {"nll": nll, "negative_elbo": nll}
        for name, (weight, probability) in out.items()
        for nll in [float(-_logsumexp(_log_joint(x_test, weight, probability)).mean())]
    }


def gaussians(train: np.ndarray, test: np.ndarray) -> Told:
    """-log p in nats per row under Gaussians: features alone, and with all covariances (shrunk: Chen et al. 2010).

    The likelihoods are exact, so they compare with the bounds of a model with a Gaussian likelihood on the same scale.
    A feature that does not vary is given the deviation of a thousandth.

    Args:
      train, test: f[N, ...].
    """
    from scipy.stats import multivariate_normal, norm
    from sklearn.covariance import OAS

    x, x_test = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (train, test))
    centre, spread = x.mean(0), np.maximum(x.std(0), 1e-3)
    alone = -norm.logpdf(x_test, centre[None], spread[None]).sum(1)
    # Ledoit and Wolf's shrinkage is 1, no covariances at all, with one row of 1,000 far out: it is of fourth moments.
    cov = OAS(assume_centered=False).fit(x).covariance_ + 1e-6 * np.eye(x.shape[1])
    together = -np.atleast_1d(multivariate_normal(centre, cov).logpdf(x_test))
    found = {"independent Gaussians": alone, "Gaussian with covariances": together}
    return {name: {"nll": float(v.mean()), "negative_elbo": float(v.mean())} for name, v in found.items()}


def byte_images(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> Told:
    """-log p in nats and bits per dimension of a test image: pixels alone, and each given the one to its left.

    Both count how often each of the 256 values occurs, by Laplace's rule of half a count: of every pixel by itself, and
    of every channel after each value of the pixel to the left, wherever that is (the first column by itself). The
    likelihoods are exact, so they compare with the bounds of a model with a discrete likelihood.

    Args:
      train, test: u8[N, H, W, C].
    """

    def nats(counts: np.ndarray) -> np.ndarray:
        return np.log(counts.sum(-1, keepdims=True) + 128) - np.log(counts + 0.5)

    where = np.indices(train.shape[1:])  # [3, H, W, C]
    alone = np.zeros((*train.shape[1:], 256))
    after = np.zeros((train.shape[3], 256, 256))
    for image in train:
        alone[(*where, image)] += 1
    for c in range(train.shape[3]):
        left, right = (a[..., c].astype(np.int64) for a in (train[:, :, :-1], train[:, :, 1:]))
        after[c] = np.bincount((256 * left + right).ravel(), minlength=65536).reshape(256, 256)
    alone, after = nats(alone), nats(after)
    first, total, chain = 0.0, 0.0, 0.0
    for image in test:
        told = alone[(*where, image)]
        total += told.sum()
        first += told[:, 0].sum()
        chain += after[where[2][:, 1:], image[:, :-1], image[:, 1:]].sum()
    out = {"independent pixels": total / len(test), "the pixel to the left": (first + chain) / len(test)}
    bits = 1 / (test[0].size * np.log(2))
    return {k: {"nll": float(v), "negative_elbo": float(v), "bits_per_dim": float(v * bits)} for k, v in out.items()}


def _smooth(ones: np.ndarray, total: np.ndarray) -> np.ndarray:
    """f64[K, D] probabilities of ink, by Laplace's rule of half a count, so that none is 0 or 1."""
    return (ones + 0.5) / (total[:, None] + 1.0)


def _log_joint(x: np.ndarray, weight: np.ndarray, p: np.ndarray) -> np.ndarray:
    """f[N, K]: log weight_k + log p(x_n | k)."""
    with np.errstate(divide="ignore"):
        prior = np.log(weight)
    odds, base = np.log(p) - np.log1p(-p), np.log1p(-p).sum(1) + prior
    return x @ odds.T.astype(np.float32) + base[None].astype(np.float32)


def _logsumexp(a: np.ndarray) -> np.ndarray:
    top = a.max(1)
    return top + np.log(np.exp(a - top[:, None]).sum(1))


def _fit(rival: Rival, x: np.ndarray, y: np.ndarray) -> tuple[Any, bool]:
    """(the fitted classifier, whether its solver says that it got to the end)."""
    from sklearn.exceptions import ConvergenceWarning

    module, _, kind = rival.made_by.rpartition(".")
    made = getattr(importlib.import_module(f"sklearn.{module}"), kind)(**rival.settings)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # recorded, not shown: pixels that never vary are no news
        made.fit(x, y)
    return made, not any(issubclass(w.category, ConvergenceWarning) for w in said)


def _scores(fitted: Any, rival: Rival, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """From one pass over test."""
    if not rival.probabilities:
        return {"accuracy": float(np.mean(fitted.predict(x) == y))}
    p = fitted.predict_proba(x).astype(np.float64)
    true = (p * (fitted.classes_[None] == y[:, None])).sum(1)  # 0 for a class that it was not shown
    loss = -np.log(np.maximum(true, np.finfo(np.float64).eps)).mean()
    return {"accuracy": float(np.mean(fitted.classes_[p.argmax(1)] == y)), "loss": float(loss)}


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float32)
