"""What a data set refuses, and what it keeps: settings that its reader does not take, arrays that contradict one
another, memory that grows with the number of epochs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umbrella.data import in_memory, load, order, streams
from umbrella.data.sources import Arrays
from umbrella.settings import SettingsError

BYTES = np.random.default_rng(0).integers(0, 256, (10, 4, 4), np.uint8)
HALVES = np.arange(10) % 2


def said(**settings: Any) -> str:
    """The one line that load says."""
    with pytest.raises(SettingsError) as error:
        load(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "a.npz", **arrays)
    return str(folder / "a.npz")


# --------------------------------------------------------------------------------------------------- permutations kept
def test_permutations_are_kept_within_their_bytes_whatever_the_number_of_epochs() -> None:
    """1,000 numbers of 4 bytes are 4,000 bytes: of a budget of 10,000, two fit. What is kept changes no order."""
    kept = streams._Permutations(budget=10_000)
    for epoch in range(60):
        wanted = np.random.default_rng([3, epoch]).permutation(1000)
        np.testing.assert_array_equal(kept.get(3, 1000, epoch), wanted)
        assert kept.nbytes <= 10_000
    assert kept.nbytes == 8_000
    assert kept.get(3, 1000, 59) is kept.get(3, 1000, 59)


def test_seeds_side_by_side_keep_one_permutation_each_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seeds of 4,000 bytes over a budget of 10,000: each is drawn once an epoch, not once a step."""
    kept, drawn = streams._Permutations(budget=10_000), []
    monkeypatch.setattr(streams, "_KEPT", kept)
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(tuple(seed)) or real(seed))
    data = in_memory(Arrays({"x": np.zeros((1000, 1))}), 100)
    for _ in data.stream((0, 1, 2, 3, 4), 0, 20):  # 20 steps of 100 rows are two epochs
        assert kept.nbytes <= 5 * 4000 + 4000
    assert sorted(drawn) == [(seed, epoch) for seed in range(5) for epoch in range(2)]


def test_small_permutations_do_not_pile_up() -> None:
    kept = streams._Permutations(budget=2**20, most=8)
    for epoch in range(50):
        kept.get(0, 3, epoch)
    assert len(kept._kept) == 8 and kept.nbytes == 8 * 3 * 4
    assert sorted(order(0, 3, np.arange(3)).tolist()) == [0, 1, 2]
