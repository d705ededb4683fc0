"""Corruptions against Pillow, SciPy and closed forms; worse from one severity to the next."""

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.helpers import slow_but
from umbrella import data
from umbrella.transforms.corrupt import KINDS, STRENGTH, corrupted

KEY = jax.random.key(0)
DIGITS = jnp.asarray(data.load(name="digits").test.arrays["x"][:64] / 16, jnp.float32)
SMOOTH = ndimage.gaussian_filter(np.random.default_rng(0).random((24, 20, 3)), (2, 2, 0))
PHOTO = jnp.asarray((SMOOTH - SMOOTH.min()) / np.ptp(SMOOTH), jnp.float32)[None]


def test_every_kind_has_five_strengths() -> None:
    assert set(STRENGTH) == set(KINDS) and {len(v) for v in STRENGTH.values()} == {5}


@pytest.mark.parametrize("kind", slow_but(KINDS, ["contrast", "jpeg", "rotate", "shot_noise"]))
def test_it_gets_worse_and_stays_in_range(kind: Any) -> None:
    """The mean square distance to the image rises with severity; rows have draws of their own."""
    far = []
    for severity in (1, 3, 5):
        x = jnp.tile(PHOTO, (16, 1, 1, 1))
        out = np.asarray(corrupted(x, KEY, kind, severity))
        assert out.shape == x.shape and out.dtype == np.float32 and out.min() >= 0 and out.max() <= 1
        far.append(float(np.mean((out - np.asarray(x)) ** 2)))
        drawn = kind in ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "rotate", "translate")
        assert (np.unique(out.reshape(16, -1), axis=0).shape[0] > 1) == drawn
    assert far[0] < far[1] < far[2]


def test_noise_is_as_large_as_it_says() -> None:
    grey = jnp.full((4, 50, 50, 1), 0.5)
    noise = np.asarray(corrupted(grey, KEY, "gaussian_noise", 3)) - 0.5
    assert np.std(noise) == pytest.approx(0.08, rel=0.03)
    shot = np.asarray(corrupted(grey, KEY, "shot_noise", 3))  # Poisson of mean 50: variance 50 / 100^2
    assert np.std(shot) == pytest.approx(np.sqrt(50) / 100, rel=0.03) and shot.mean() == pytest.approx(0.5, abs=0.005)
    hit = np.asarray(corrupted(grey, KEY, "impulse_noise", 5))
    assert np.mean(hit != 0.5) == pytest.approx(0.07, abs=0.01) and np.mean(hit == 1) == pytest.approx(0.035, abs=0.008)


def test_blur_is_scipys_with_repeated_borders() -> None:
    sd = 1.0 * 24 / 32
    wanted = ndimage.gaussian_filter(np.asarray(PHOTO[0]), (sd, sd, 0), mode="nearest", truncate=4)
    np.testing.assert_allclose(corrupted(PHOTO, KEY, "blur", 5)[0], wanted, atol=1e-3)


def test_contrast_and_brightness_by_hand() -> None:
    x = np.asarray(PHOTO)
    mean = x.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(corrupted(PHOTO, KEY, "contrast", 2), 0.5 * (x - mean) + mean, atol=1e-5)
    np.testing.assert_allclose(corrupted(PHOTO, KEY, "brightness", 1), np.clip(x + 0.05, 0, 1), atol=1e-6)


def test_pixels_are_means_of_boxes() -> None:
    """Of 20 pixels at .75 fifteen boxes of 4 / 3: the first holds pixel 0 and a third of pixel 1."""
    row = np.arange(20.0) / 20
    x = jnp.asarray(np.tile(row, (20, 1))[None, :, :, None], jnp.float32)
    got = np.asarray(corrupted(x, KEY, "pixelate", 4))[0, 0, :, 0]
    assert got[0] == pytest.approx((row[0] + row[1] / 3) / (4 / 3), abs=1e-6)
    assert len(np.unique(got.round(5))) == 15


@pytest.mark.parametrize("severity", [1, 4, 5])
def test_jpeg_is_pillows_for_grey_images(severity: int) -> None:
    """Pillow's encoder rounds its cosines as integers: the same within two of 255 levels on average."""
    grey = (SMOOTH[..., 0] - SMOOTH.min()) / np.ptp(SMOOTH)
    level = np.round(grey * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(level).save(file, "JPEG", quality=int(STRENGTH["jpeg"][severity - 1]))
    wanted = np.asarray(Image.open(file), np.float32)
    got = np.asarray(corrupted(jnp.asarray(level / 255, jnp.float32)[None, :, :, None], KEY, "jpeg", severity))
    assert np.abs(got[0, :, :, 0] * 255 - wanted).mean() < 1.0
    assert np.abs(wanted - level).mean() > 0.3  # it did something


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="kind: 'blurr' is not one of"):
        corrupted(PHOTO, KEY, "blurr", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="severity 6 is not 1 to 5"):
        corrupted(PHOTO, KEY, "blur", 6)
