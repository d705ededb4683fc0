"""What samples are worth, against scipy, closed forms and sets made by hand."""

import numpy as np
import pytest
from scipy import linalg

from umbrella import frechet
from umbrella.frechet import Gaussian


def drawn(n: int, d: int, seed: int) -> np.ndarray:
    """f64[n, d], correlated."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


@pytest.mark.parametrize("d", [1, 5, 40])
def test_the_distance_is_that_of_scipys_root(d: int) -> None:
    """tr (C_a C_b)^(1/2) by scipy.linalg.sqrtm of the product, as the reference implementation of the FID has it."""
    a, b = (frechet.gaussian(drawn(300, d, seed)) for seed in (0, 1))
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    wanted = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-4)
    assert frechet.frechet_distance(b, a) == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(a.covariance, np.atleast_2d(np.cov(drawn(300, d, 0).T)))


def test_the_distance_of_diagonal_gaussians_is_a_sum_over_axes() -> None:
    """(m - n)^2 + (s - t)^2 on every axis, s and t the standard deviations; some of them 0: singular covariances."""
    rng = np.random.default_rng(0)
    m, n, s, t = rng.normal(size=6), rng.normal(size=6), rng.random(6), rng.random(6)
    s[:2] = t[1:3] = 0
    a, b = Gaussian(m, np.diag(s**2)), Gaussian(n, np.diag(t**2))
    assert frechet.frechet_distance(a, b) == pytest.approx(np.sum((m - n) ** 2 + (s - t) ** 2), abs=1e-9)
    assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_fewer_rows_than_dimensions_have_a_distance() -> None:
    """The covariance has rank 4 of 20; the root of a product of two such has rounding that is not real."""
    a, b = (frechet.gaussian(drawn(5, 20, seed)) for seed in (0, 1))
    assert 0 < frechet.frechet_distance(a, b) < np.inf


@pytest.mark.parametrize("rows", [np.zeros((1, 3)), np.full((4, 3), np.nan)])
def test_what_has_no_gaussian(rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least two rows, all finite"):
        frechet.gaussian(rows)


def test_the_entropy_of_classes() -> None:
    """Shares 1/2, 1/4, 1/4: 1.5 bits, and 1.5 log 2 nats."""
    assert frechet.class_entropy(np.array([0, 0, 1, 2]), 10) == pytest.approx(1.5 * np.log(2))


def test_precision_and_recall_of_points_on_a_line() -> None:
    """k = 1. Real 0, 1, 10, 11: every ball has radius 1, so what is real is [-1, 2] and [9, 12]. Samples 0.5, 1.5, 5:
    their balls have radii 1, 1 and 3.5. Of the samples the first two are within: 2/3. Of the real points 0 and 1 lie in
    the ball of 0.5, 10 and 11 are 5 and 6 from the last sample, whose ball ends at 8.5: 2/4."""
    real = frechet.manifold(np.array([[0.0], [1.0], [10.0], [11.0]]), k=1)
    fake = frechet.manifold(np.array([[0.5], [1.5], [5.0]]), k=1)
    np.testing.assert_allclose(np.sqrt(real.radii), [1, 1, 1, 1])
    np.testing.assert_allclose(np.sqrt(fake.radii), [1, 1, 3.5])
    assert frechet.precision_recall(real, fake) == (pytest.approx(2 / 3), 0.5)


def test_precision_and_recall_of_the_same_and_of_nothing_alike() -> None:
    x = drawn(50, 4, 0)
    same, far = frechet.manifold(x), frechet.manifold(x + 1e3)
    assert frechet.precision_recall(same, same) == (1.0, 1.0)
    assert frechet.precision_recall(same, far) == (0.0, 0.0)
    one_mode = frechet.manifold(x[:1] + 1e-3 * drawn(50, 4, 1))  # one real point over and over: true, and no variety
    precision, recall = frechet.precision_recall(same, one_mode)
    assert precision == 1 and recall <= 0.1


def test_radii_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By scikit-learn, whose first neighbour of a point is itself; in several chunks."""
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr(frechet, "CHUNK", 7)
    x = drawn(40, 3, 2)
    wanted = NearestNeighbors(n_neighbors=4).fit(x).kneighbors(x)[0][:, 3]
    np.testing.assert_allclose(np.sqrt(frechet.manifold(x).radii), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="no 3 neighbours"):
        frechet.manifold(x[:3])


def test_the_nearest_row_and_its_distance() -> None:
    from sklearn.neighbors import NearestNeighbors

    among, queries = drawn(60, 5, 0).reshape(60, 5, 1), drawn(20, 5, 1).reshape(20, 5, 1)
    queries[3] = among[17]
    away, found = frechet.nearest(queries, among)
    wanted, index = NearestNeighbors(n_neighbors=1).fit(among[..., 0]).kneighbors(queries[..., 0])
    np.testing.assert_allclose(away, wanted[:, 0], atol=1e-5)
    np.testing.assert_array_equal(found, index[:, 0])
    assert found[3] == 17 and away[3] < 1e-6


def test_who_copies_is_found_out() -> None:
    """Fresh rows of the same distribution are at a hundredth, by definition; rows of train are at 1."""
    rng = np.random.default_rng(0)
    train, held, fresh = (rng.normal(size=(2000, 8)) for _ in range(3))
    (seen, _), (other, _), (copy, _) = (frechet.nearest(v, train) for v in (held, fresh, train[:500] + 1e-4))
    assert frechet.copied(seen, seen) == pytest.approx(0.01, abs=1e-3)
    assert frechet.copied(other, seen) == pytest.approx(0.01, abs=4 * np.sqrt(0.01 * 0.99 * 2 / 2000))
    assert frechet.copied(copy, seen) == 1.0
