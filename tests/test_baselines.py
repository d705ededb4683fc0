"""The rivals against sums over everything, loops and scikit-learn."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.svm import SVC, LinearSVC

from umbrella import baselines, data
from umbrella.settings import SettingsError

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


def digits() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """1,000 rows of scikit-learn's digits to fit, 797 to test."""
    x, y = load_digits(return_X_y=True)
    rows = {"x": x.astype(np.uint8).reshape(-1, 8, 8, 1), "y": y.astype(np.int32)}
    return {k: v[:1000] for k, v in rows.items()}, {k: v[1000:] for k, v in rows.items()}


DIRECT = {  # by hand, with what scikit-learn calls them
    "majority": DummyClassifier(strategy="prior"),
    "knn": KNeighborsClassifier(3),
    "logistic": LogisticRegression(max_iter=200, tol=1e-3),
    "linear_svm": LinearSVC(C=0.05, dual="auto", random_state=0),
    "rbf_svm": SVC(C=10, gamma="scale"),
    "random_forest": RandomForestClassifier(300, random_state=0),
    "gradient_boosting": HistGradientBoostingClassifier(
        max_iter=50, max_features=0.1, max_bins=32, early_stopping=False, random_state=0
    ),
    "naive_bayes": GaussianNB(var_smoothing=0.1),
    "nearest_centroid": NearestCentroid(),
}
NO_PROBABILITIES = {"linear_svm", "rbf_svm", "nearest_centroid"}


@pytest.mark.filterwarnings("ignore:.*(standard deviation|sum to one)")  # pixels that never vary; 32 bits
@pytest.mark.parametrize("name", sorted(DIRECT))
def test_a_rival_predicts_what_scikit_learn_predicts(name: str) -> None:
    """The share of right ones by a direct call on the same pixels, and its log loss by scikit-learn's own metric."""
    train, test = digits()
    ((words, got),) = baselines.classification(train, test, 16.0, (name,)).items()
    assert words == baselines.CLASSIFIERS[name].words
    x, x_test = (a["x"].reshape(-1, 64).astype(np.float32) / 16 for a in (train, test))
    fitted = DIRECT[name].fit(x, train["y"])
    assert got["accuracy"] == np.mean(fitted.predict(x_test) == test["y"])
    assert got["seconds"] > 0
    assert ("loss" in got) == (name not in NO_PROBABILITIES)
    if "loss" in got:
        p = fitted.predict_proba(x_test).astype(np.float64)
        assert got["loss"] == pytest.approx(log_loss(test["y"], p), rel=1e-6)


def test_every_rival_is_tested_and_the_usual_ones_are_rivals() -> None:
    assert DIRECT.keys() == baselines.CLASSIFIERS.keys() >= set(baselines.USUAL)


def test_names_are_checked() -> None:
    assert baselines.chosen(True) == baselines.USUAL
    assert baselines.chosen(False) == baselines.chosen(()) == ()
    assert baselines.chosen(("knn",)) == ("knn",)
    with pytest.raises(SettingsError, match=r"no baseline 'random_forrest' \(did you mean 'random_forest'"):
        baselines.chosen(("random_forrest",))


def capped(monkeypatch: pytest.MonkeyPatch, rows: int, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(baselines.CLASSIFIERS, name, baselines.CLASSIFIERS[name]._replace(most=rows))


def test_a_part_of_a_large_set_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    capped(monkeypatch, 50, "knn", "logistic")
    r = np.random.default_rng(0)
    rows = {"x": r.integers(0, 256, (60, 4)).astype(np.uint8), "y": r.integers(0, 2, 60)}
    assert baselines.classification(rows, rows, 255.0).keys() == {
        "majority class",
        "3 nearest neighbours (on 50 rows)",
        "logistic regression (on 50 rows)",
    }


def test_a_solver_that_stops_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    capped(monkeypatch, 500, "logistic")
    monkeypatch.setitem(baselines.CLASSIFIERS["logistic"].settings, "max_iter", 2)
    train, test = digits()
    assert set(baselines.classification(train, test, 16.0, ("logistic",))) == {
        "logistic regression (on 500 rows, not converged)"
    }


def test_a_class_that_it_was_not_shown_costs_as_much_as_scikit_learn_lets_it() -> None:
    """-log 2.2e-16 = 36.04 for the one such row of two; the other is certain, at 0."""
    train = {"x": np.array([[0], [0], [0]], np.uint8), "y": np.array([4, 4, 4])}
    test = {"x": np.array([[0], [0]], np.uint8), "y": np.array([4, 5])}
    got = baselines.classification(train, test, 255.0, ("majority",))["majority class"]
    assert got["accuracy"] == 0.5 and got["loss"] == pytest.approx(36.0437 / 2, rel=1e-5)


def test_a_name_says_all_that_there_is_to_say() -> None:
    """The rows that a rival was fitted on, before those of the split; what else it says; and the part of test."""
    train, test = digits()

    class Lazy(data.Rows):
        pass

    def fit(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        return {"a": {}, "b (on 5 rows)": {}, "c (not converged)": {}, "d (on 5 rows, not converged)": {}}

    sources = [Lazy(data.Arrays(columns), np.arange(len(columns["y"]))) for columns in (train, test)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "LARGE", 900)
        assert list(baselines.on_parts(fit, *sources)) == [
            "a (on 900 rows)",
            "b (on 5 rows)",
            "c (on 900 rows, not converged)",
            "d (on 5 rows, not converged)",
        ]
        patch.setattr(baselines, "LARGE", 600)
        assert "b (on 5 rows, tested on 600)" in baselines.on_parts(fit, *sources)


def test_the_gaussian_of_a_table_is_scipys_also_with_a_row_far_out() -> None:
    """Of 2,000 rows the shrinkage hardly shows: mean and covariance of train, the density by SciPy."""
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([0, 5, -3], [[1, 0.9, 0.5], [0.9, 1, 0.3], [0.5, 0.3, 1]], 3000)
    for far in (False, True):
        if far:
            x[0] = [0, 5, 60]
        train, test = x[:2000], x[2000:]
        told = baselines.gaussians(train, test)
        together = -stats.multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(test).mean()
        alone = -stats.norm(train.mean(0), train.std(0)).logpdf(test).sum(1).mean()
        assert told["Gaussian with covariances"]["nll"] == pytest.approx(together, abs=0.02)
        assert told["independent Gaussians"]["nll"] == pytest.approx(alone, rel=1e-6)
        assert together < alone - 0.5
