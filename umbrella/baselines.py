"""The rivals that are printed beside a result: methods without a neural network, on the same split. Floor 4."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from umbrella.data import Arrays, Source, sample

LARGE = 20_000  # rows: above, logistic regression is fitted on a part of the training set, and its name says so
ROOM = 2**27  # numbers in x: no more are read of a split that does not lie in memory

Told = dict[str, dict[str, float]]
Columns = dict[str, np.ndarray]


def on_parts(fit: Callable[[Columns, Columns], Told], train: Source, test: Source) -> Told:
    """fit(train, test) on all rows of splits in memory; of a split that is streamed, on a random part of bounded size.

    The names then say so: "majority class (on 20,000 rows)", or "(on 20,000 rows, tested on 5,000)".

    Args:
      fit: (train, test) -> name -> metric -> value.
      train, test: sources with the column x.
    """
    columns, rivals = part(train), part(test)
    (n, m), whole = (len(columns["x"]), len(rivals["x"])), (len(train), len(test))
    told = [f"on {n:,} rows"] * (n < whole[0]) + [f"tested on {m:,}"] * (m < whole[1])
    note = f" ({', '.join(told)})" if told else ""
    return {f"{name}{note}": metrics for name, metrics in fit(columns, rivals).items()}


def part(source: Source) -> Columns:
    """All rows of a source in memory; of any other a random part of at most LARGE rows and ROOM numbers in x."""
    n = len(source)
    if isinstance(source, Arrays):
        return source.__getitems__(np.arange(n))
    size = source.__getitems__(np.zeros(1, np.int64))["x"].size
    return source.__getitems__(sample(n, min(LARGE, max(1, ROOM // size))))


def classification(train: Columns, test: Columns, scale: float) -> Told:
    """Accuracy on test of the majority class, the nearest of 3 neighbours, and logistic regression on the pixels.

    Args:
      train, test: "x" u8[N, ...], "y" i32[N].
      scale: x / scale is in [0, 1].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    x, y = _flat(train["x"]) / np.float32(scale), train["y"]
    x_test, y_test = _flat(test["x"]) / np.float32(scale), test["y"]
    few = np.random.default_rng(0).permutation(len(x))[:LARGE]
    note = f" (on {LARGE:,} rows)" if len(x) > LARGE else ""
    majority = np.bincount(y).argmax()
    neighbours = KNeighborsClassifier(3).fit(x[few], y[few])
    logistic = LogisticRegression(max_iter=200, tol=1e-3).fit(x[few], y[few])
    return {
        "majority class": {"accuracy": float(np.mean(y_test == majority))},
        f"3 nearest neighbours{note}": {"accuracy": float(neighbours.score(x_test, y_test))},
        f"logistic regression{note}": {"accuracy": float(logistic.score(x_test, y_test))},
    }


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


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float32)
