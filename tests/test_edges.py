"""Filters learnt from pairs, against scipy, closed forms and the book's numbers."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

import umbrella as um
from tests.conftest import ROOT
from umbrella import cli, data, pipelines
from umbrella.pipelines import edges
from umbrella.settings import SettingsError


def config(variant: str, **more: Any) -> dict[str, Any]:
    made = cli.load_config(f"{ROOT}/configs/edges.py:{variant}")
    return {**made, **more}


def test_correlation_is_scipys() -> None:
    x = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
    for k in edges.KERNELS.values():
        wanted = np.stack([correlate2d(image, k, mode="valid") for image in x])
        np.testing.assert_allclose(edges.correlate(x, k), wanted, atol=1e-6)


def test_the_models_pass_is_scipys_and_not_flipped() -> None:
    """A convolution of deep learning is a cross-correlation: with Sobel's kernel the two differ in sign."""
    net, x = um.models.Filter(), np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    k = edges.KERNELS["sobel"]
    got = net.apply({"params": {"kernel": {"kernel": jnp.asarray(k)[:, :, None, None]}}}, x[..., None], train=False)
    for image, made in zip(x, np.asarray(got), strict=True):
        np.testing.assert_allclose(made[:, :, 0], correlate2d(image, k, mode="valid"), atol=1e-5)
    assert set(net.init(jax.random.key(0), x[..., None], train=False)["params"]["kernel"]) == {"kernel"}  # no bias


def test_the_books_image_and_its_edges() -> None:
    """Dive into Deep Learning, 7.2.3: 1 from white to black at column 1, -1 from black to white at column 5."""
    made = edges.pairs(name="step", kernel="difference")
    x, y = made.train.column("x"), made.train.column("y")
    assert x.shape == (1, 6, 8, 1) and (x[0, :, :, 0] == [1, 1, 0, 0, 0, 0, 1, 1]).all()
    assert (y[0, :, :, 0] == [0, 1, 0, 0, 0, -1, 0]).all()


def test_least_squares_is_exact_without_noise_and_is_where_the_gradient_is_zero_with_it() -> None:
    clean = edges.pairs(name="digits", kernel="sobel")
    k = edges.least_squares(clean.train.column("x"), clean.train.column("y"), (3, 3))
    np.testing.assert_allclose(k, edges.KERNELS["sobel"], atol=1e-6)
    noisy = edges.pairs(name="digits", kernel="sobel", noise=0.5)
    x, y = noisy.train.column("x")[..., 0].astype(np.float64), noisy.train.column("y")[..., 0]
    k = edges.least_squares(x[..., None], y[..., None], (3, 3))
    left = np.stack([correlate2d(a, k, mode="valid") for a in x]) - y
    slope = np.stack([correlate2d(a, r, mode="valid") for a, r in zip(x, left, strict=True)]).mean(0)
    assert np.abs(slope).max() < 1e-6


def test_noise_is_on_train_alone_and_has_the_size_that_was_asked_for() -> None:
    clean, noisy = (edges.pairs(name="digits", kernel="sobel", noise=s) for s in (0.0, 0.5))
    for split in ("validation", "test"):
        np.testing.assert_array_equal(getattr(clean, split).column("y"), getattr(noisy, split).column("y"))
    difference = noisy.train.column("y") - clean.train.column("y")
    assert difference.std() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(2 * difference.size))
    other = edges.pairs(name="digits", kernel="sobel", noise=0.5, seed=1)
    assert noisy.fingerprint != other.fingerprint and clean.fingerprint != noisy.fingerprint


@pytest.mark.slow
def test_the_step_is_learnt_to_a_thousandth(tmp_path: Path) -> None:
    """A batch is the one image, twice: the tests run on two devices."""
    r = um.run(config("step", batch_size=2), workdir=tmp_path, quiet=True)
    k = np.asarray(edges.kernel_of(r.ts.params))
    assert np.abs(k - [[1, -1]]).max() <= 1e-3
    assert r.summary["metrics"]["test"]["kernel_error"] == pytest.approx(np.abs(k - [[1, -1]]).max(), abs=1e-9)
    assert r.summary["baselines"]["no edges"]["kernel_error"] == 1
    assert r.summary["baselines"]["least squares"]["kernel_error"] < 1e-6
    table = json.loads((tmp_path / "artifacts" / "kernel.json").read_text())
    assert table["columns"] == ["row", "column", "true", "learnt", "least squares"]
    assert [row[2] for row in table["rows"]] == ["1.00000", "-1.00000"]
    index = json.loads((tmp_path / "artifacts" / "index.json").read_text())
    assert {"kernel", "edges", "receptive_fields"} <= {e["name"] for e in index}


@pytest.mark.slow
def test_sobel_is_learnt_from_noise_as_well_as_by_least_squares(tmp_path: Path) -> None:
    """Its error is that of the noise: within 1 % of least squares', which is not zero."""
    r = um.run(config("sobel"), workdir=tmp_path, quiet=True)
    rival = r.summary["baselines"]["least squares"]
    assert 0.001 < rival["kernel_error"] < 0.1
    for metric in ("kernel_error", "loss"):
        assert r.summary["metrics"]["test"][metric] == pytest.approx(rival[metric], rel=0.01)
    made = r.experiment.dataset
    error = np.asarray(edges.kernel_of(r.ts.params)) - edges.KERNELS["sobel"]
    left = np.stack([correlate2d(a, error, mode="valid") for a in made.test.column("x")[..., 0]])
    assert r.summary["metrics"]["test"]["loss"] == pytest.approx(np.mean(left**2), rel=1e-3)


def test_the_field_of_uniform_weights_is_ones_correlated_with_themselves() -> None:
    """By scipy: the gradient of the centre through d layers of ones is ones(3, 3) convolved with itself d times."""
    wanted = np.ones((1, 1))
    for depth in edges.DEPTHS:
        wanted = correlate2d(wanted, np.ones((3, 3)), mode="full")
        got = edges.stacked_field(edges.Stack(depth, uniform=True), 11, jax.random.key(0))
        pad = (11 - len(wanted)) // 2
        np.testing.assert_allclose(got, np.pad(wanted, pad), rtol=1e-6)


def test_the_field_of_random_weights_ends_where_the_theory_says() -> None:
    for depth in edges.DEPTHS:
        got = np.asarray(edges.stacked_field(edges.Stack(depth, 8), 11, jax.random.key(1)))
        at = np.abs(np.arange(11) - 5)
        assert (got[np.maximum(*np.ix_(at, at)) > depth] == 0).all() and (got != 0).any()


def test_the_picture_of_fields() -> None:
    drawn = edges.fields(jax.random.key(0))
    assert drawn.images.shape == (8, 11, 11, 1) and drawn.columns == 4
    assert drawn.images.max() == 1 and drawn.images.min() >= 0
    assert "3 pixels wide, sd 0.82" in drawn.caption and "9 pixels wide, sd 1.63" in drawn.caption  # sqrt(2 d / 3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(model=dict(name="filter", size=(2, 2))), "config.model.size: (2, 2), but the kernel"),
        (dict(model=dict(name="mlp")), "config.model.name: no model 'mlp'"),
        (dict(data=dict(name="step", kernel="sobal")), "did you mean 'sobel'?"),
        (dict(data=dict(name="step", kernel="sobel", noise=-1.0)), "config.data.noise: -1.0 must be >= 0"),
        (dict(baselines=("knn",)), "has no choice of rivals"),
    ],
)
def test_what_it_refuses(more: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        pipelines.build(config("step", **more))
    assert words in str(error.value)


def test_a_split_is_a_data_set_like_any_other() -> None:
    made = edges.pairs(name="digits", kernel="sobel", noise=0.1)
    digits = data.load(name="digits")
    assert [len(s) for s in made[3:6]] == [len(s) for s in digits[3:6]]
    assert made.info["shape"] == (8, 8, 1) and made.train.column("y").shape[1:] == (6, 6, 1)
