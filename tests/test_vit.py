"""The Transformer of patches: which pixels are a patch, what order means, and what it learns."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import umbrella as um
from tests.test_pipelines import vision
from umbrella import pipelines
from umbrella.models import ViT
from umbrella.settings import SettingsError

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(3, 8, 12, 2)).astype(np.float32)


def test_patches_are_a_convolution_with_a_stride_of_its_size() -> None:
    """The layer over pixels (row, column, channel) of a patch is flax's Conv with the same numbers; read in rows."""
    net = ViT(out=5, patch=4, width=8, layers=1, heads=2)
    params = net.init(KEY, X, train=False)["params"]
    _, seen = net.apply({"params": params}, X, train=False, capture_intermediates=lambda m, _: m.name == "patches")
    got = seen["intermediates"]["patches"]["__call__"][0]
    kernel = params["patches"]["kernel"].reshape(4, 4, 2, 8)
    conv = nn.Conv(8, (4, 4), (4, 4), padding="VALID")
    want = conv.apply({"params": {"kernel": kernel, "bias": params["patches"]["bias"]}}, X)
    np.testing.assert_allclose(got, want.reshape(3, 6, 8), atol=1e-5)


def test_its_numbers() -> None:
    """Patches 32 x 8 + 8, positions 6 x 8, a block (two norms 2 x 16, 8 x 24 + 24, 8 x 8 + 8, 8 x 32 + 32, 32 x 8 + 8),
    the last norm 16, a head 8 x 5 + 5: 264 + 48 + 872 + 16 + 45."""
    params = ViT(out=5, patch=4, width=8, layers=1, heads=2).init(KEY, X, train=False)["params"]
    assert um.parameter_count(params) == 264 + 48 + 872 + 16 + 45


def test_only_positions_tell_the_order_of_patches() -> None:
    """Two patches change places: without what is learned about positions nothing changes."""
    net = ViT(out=5, patch=4, width=8, layers=2, heads=2)
    params = net.init(KEY, X, train=False)["params"]
    params = {**params, "head": {"kernel": jax.random.normal(KEY, (8, 5)), "bias": jnp.zeros(5)}}
    moved = X.copy()
    moved[:, :4, :4], moved[:, 4:, 8:] = X[:, 4:, 8:], X[:, :4, :4]
    blind = {**params, "transformer": {**params["transformer"], "positions": jnp.zeros((6, 8))}}
    for given, same in ((params, False), (blind, True)):
        a, b = (net.apply({"params": given}, x, train=False) for x in (X, moved))
        assert (float(jnp.abs(a - b).max()) < 1e-5) == same


def test_a_patch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(SettingsError, match="squares of 3 do not divide an image of 8 x 8"):
        pipelines.build(vision(model={"name": "vit", "patch": 3}))


@pytest.mark.slow
def test_it_learns_digits(tmp_path: Path) -> None:
    net = {"name": "vit", "patch": 2, "width": 48, "layers": 2, "heads": 4}
    slow = {"name": "adamw", "learning_rate": 5e-3, "schedule": "cosine", "warmup": "10%", "clip": 1.0}
    r = um.run(vision(model=net, optimizer=slow, train_for="50 epochs"), workdir=tmp_path, quiet=True)
    assert r.summary["metrics"]["test"]["accuracy"] > 0.93
