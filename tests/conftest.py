"""Strictness for every test: two CPU devices, dtypes that promote only where allowed, ranks that never do."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2").strip()
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
# Nearly all the time of a test is spent in the compiler, for programs that run once: without LLVM's expensive passes it
# is half of that. Set it to 0 to test what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["UMBRELLA_KEEP_MEMORY"] = "0"  # of a thousand programs one after the other

import shutil
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

ROOT = Path(__file__).resolve().parent.parent


def tfds_dir() -> Path | None:
    """Where prepared TFDS sets are: TFDS_DATA_DIR, or shared/data/tfds beside the checkout; else None."""
    for place in (os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared" / "data" / "tfds"):
        if place and (Path(place) / "mnist").is_dir():
            return Path(place).resolve()
    return None


needs_mnist = pytest.mark.skipif(tfds_dir() is None, reason="MNIST is not here: set TFDS_DATA_DIR")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave the user's cache alone."""
    base = tmp_path_factory.getbasetemp() / "cache"
    base.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the steps 1, 2 and 3; read only."""
    from tests.faults.kit import three_steps

    return three_steps(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy of them, to break."""
    return Path(shutil.copytree(saved, tmp_path / "run"))
