"""The rivals against sums over everything, loops and scikit-learn."""

import itertools
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from umbrella import baselines

D = 4
IMAGES = np.array(list(itertools.product([0.0, 1.0], repeat=D)))  # all 16 binary images of four pixels


def training_set(n: int = 60) -> np.ndarray:
    """Two kinds of images, so that a mixture has something to find. Binary, so that binarising changes nothing."""
    r = np.random.default_rng(0)
    kind = r.integers(0, 2, n)
    return (r.random((n, D)) < np.array([[0.9, 0.8, 0.1, 0.2], [0.1, 0.3, 0.9, 0.7]])[kind]).astype(np.float64)


def told(test: np.ndarray, **kw: Any) -> dict[str, dict[str, float]]:
    return baselines.binary_images(training_set(), test, **{"components": 3, "rounds": 20, **kw})


def test_independent_pixels_by_hand() -> None:
    """p_d = (ones_d + 1/2) / (n + 1); -log p(x) = -sum_d x_d log p_d + (1 - x_d) log(1 - p_d), averaged over images."""
    train, test = training_set(), IMAGES[[3, 5, 12]]
    total = 0.0
    for image in test:
        for d in range(D):
            p = (train[:, d].sum() + 0.5) / (len(train) + 1)
            total -= np.log(p if image[d] else 1 - p)
    assert told(test)["independent pixels"]["nll"] == pytest.approx(total / 3, rel=1e-5)


def test_a_mixture_of_one_is_independent_pixels() -> None:
    both = told(IMAGES, components=1)
    assert both["mixture of 1 Bernoullis"]["nll"] == pytest.approx(both["independent pixels"]["nll"], rel=1e-5)


def test_the_likelihoods_of_all_images_add_up_to_one() -> None:
    """exp(-nll) over all 16 images of four pixels. Each is a test set of its own, of one image, under one mixture."""
    each = [told(image[None]) for image in IMAGES]
    for name in ("independent pixels", "mixture of 3 Bernoullis"):
        assert sum(np.exp(-one[name]["nll"]) for one in each) == pytest.approx(1, rel=1e-5)


def test_the_mixture_is_better_where_there_are_two_kinds() -> None:
    """And its bounds are the field's names for the same exact number."""
    both = told(training_set())
    mixture = both["mixture of 3 Bernoullis"]
    assert mixture["nll"] < both["independent pixels"]["nll"] - 0.2
    assert mixture["negative_elbo"] == mixture["nll"]


def test_em_never_falls() -> None:
    """Each round of EM raises the likelihood of the training set; Laplace's half counts allow it a little slack."""
    nll = [told(training_set(), rounds=r)["mixture of 3 Bernoullis"]["nll"] for r in (1, 2, 4, 8, 16)]
    assert (np.diff(nll) < 1e-3).all()
    assert nll[-1] < nll[0] - 0.1


def test_grey_images_are_binarised_by_their_grey() -> None:
    """Of 4,000 images of grey .3, independent pixels find the entropy of .3 within five standard errors."""
    grey = np.full((4000, 2), 0.3)
    got = baselines.binary_images(grey, grey, components=1, rounds=1)["independent pixels"]["nll"]
    p, error = 0.3, np.sqrt(0.3 * 0.7 / 4000) * np.log(0.7 / 0.3)
    assert abs(got + 2 * (p * np.log(p) + (1 - p) * np.log(1 - p))) < 5 * 2 * error


def bytes_of(n: int, shape: tuple[int, ...] = (2, 3, 2)) -> np.ndarray:
    """Images in which a pixel is close to the one to its left."""
    r = np.random.default_rng(1)
    steps = r.integers(-3, 4, (n, *shape))
    steps[:, :, 0] = r.integers(60, 200, (n, shape[0], shape[2]))
    return steps.cumsum(2).clip(0, 255).astype(np.uint8)


def test_bytes_by_hand() -> None:
    """p = (count + 1/2) / (all + 256/2), counted one pixel at a time."""
    train, test = bytes_of(50), bytes_of(53)[50:]
    alone = after = 0.0
    for image in test:
        for i, j, c in np.ndindex(image.shape):
            v, u = image[i, j, c], image[i, max(j - 1, 0), c]
            single = -np.log((np.sum(train[:, i, j, c] == v) + 0.5) / (50 + 128))
            pairs = train[:, :, :-1, c] == u
            given = (np.sum(pairs & (train[:, :, 1:, c] == v)) + 0.5) / (np.sum(pairs) + 128)
            alone += single / 3
            after += (single if j == 0 else -np.log(given)) / 3
    got = baselines.byte_images(train, test)
    assert got["independent pixels"]["nll"] == pytest.approx(alone)
    assert got["the pixel to the left"]["nll"] == pytest.approx(after)
    assert got["independent pixels"]["bits_per_dim"] == pytest.approx(alone / 12 / np.log(2))  # 2 * 3 * 2 values


def test_the_likelihoods_of_all_bytes_add_up_to_one() -> None:
    """Over the 256 values of a pixel after a given one they add up to the probability of that one."""
    train = bytes_of(50, (1, 2, 1))
    images = np.array([[[[70], [v]]] for v in range(256)], np.uint8)
    first = -np.log((np.sum(train[:, 0, 0, 0] == 70) + 0.5) / (50 + 128))
    for name in ("independent pixels", "the pixel to the left"):
        each = [baselines.byte_images(train, image[None])[name]["nll"] for image in images]
        assert np.exp(-np.array(each)).sum() == pytest.approx(np.exp(-first))


def test_classification_is_scikit_learns() -> None:
    r = np.random.default_rng(0)
    y = r.choice(3, 90, p=[0.2, 0.5, 0.3])
    x = np.clip(r.normal(size=(90, 2, 2)) * 30 + 60 * y[:, None, None] + 40, 0, 255).astype(np.uint8)
    train, test = {"x": x[:60], "y": y[:60]}, {"x": x[60:], "y": y[60:]}
    got = baselines.classification(train, test, 255.0)
    flat = x.reshape(90, 4) / 255
    wanted = {
        "majority class": np.mean(y[60:] == np.bincount(y[:60]).argmax()),
        "3 nearest neighbours": KNeighborsClassifier(3).fit(flat[:60], y[:60]).score(flat[60:], y[60:]),
        "logistic regression": LogisticRegression().fit(flat[:60], y[:60]).score(flat[60:], y[60:]),
    }
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name]["accuracy"] == pytest.approx(value, abs=1e-9)


def test_a_part_of_a_large_set_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "LARGE", 50)
    r = np.random.default_rng(0)
    rows = {"x": r.integers(0, 256, (60, 4)).astype(np.uint8), "y": r.integers(0, 2, 60)}
    assert baselines.classification(rows, rows, 255.0).keys() == {
        "majority class",
        "3 nearest neighbours (on 50 rows)",
        "logistic regression (on 50 rows)",
    }
