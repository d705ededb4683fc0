"""Batches of about one length: nothing is lost, little is padded, and a shape is compiled once."""

import jax
import numpy as np

from umbrella.data import Arrays, in_memory
from umbrella.data.buckets import Side, bucketed

N, B, T = 500, 8, 30
LONG = np.random.default_rng(0).integers(1, T + 1, N)
X = np.where(np.arange(T)[None] < LONG[:, None], np.arange(N)[:, None] + 1, 0).astype(np.int32)
SOURCE = Arrays({"x": X, "id": np.arange(N, dtype=np.int32)})
DATA = bucketed(SOURCE, B, {"x": Side(("x",), LONG)}, multiple=8, window=4)


def batch(step: int, seed: int = 0) -> dict[str, jax.Array]:
    out: dict[str, jax.Array] = DATA.fetch(DATA.resident, DATA.slot(seed, step))
    return out


def test_an_epoch_sees_every_row_once_and_whole() -> None:
    """500 rows are 62.5 batches; windows straddle epochs, and the first 124 batches hold two epochs but 8 rows."""
    seen = [batch(step) for step in range(124)]
    ids = np.concatenate([b["id"] for b in seen])
    counts = np.bincount(ids, minlength=N)
    assert len(ids) == 992 and counts.max() == 2 and counts.min() >= 1
    assert seen[0]["x"].shape == (B, T)
    for b in seen[1:]:
        x, rows = np.asarray(b["x"]), np.asarray(b["id"])
        assert x.shape[1] in (8, 16, 24, T) and x.shape[1] - LONG[rows].max() < 8
        assert (np.count_nonzero(x, 1) == LONG[rows]).all()  # nothing is cut off
    mine, other = ([np.sort(batch(step, seed)["id"]).tolist() for step in range(62)] for seed in (0, 1))
    assert not any(rows in other for rows in mine)  # another seed has other batches


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    later = bucketed(SOURCE, B, {"x": Side(("x",), LONG)}, multiple=8, window=4)
    for step in (77, 3, 78):
        for k, v in later.slot(5, step).items():
            np.testing.assert_array_equal(v, DATA.slot(5, step)[k])
    streamed = list(later.stream((5,), 76, 79))
    np.testing.assert_array_equal(streamed[1]["idx"], DATA.slot(5, 77)["idx"])


def test_seeds_side_by_side_have_one_shape_and_their_own_rows() -> None:
    (both,) = DATA.stream((0, 1), 9, 10)
    for k, seed in enumerate((0, 1)):
        np.testing.assert_array_equal(both["idx"][k], DATA.slot(seed, 9)["idx"])
    widths = [DATA.slot(seed, 9)["wide_x"].shape[-1] for seed in (0, 1)]
    assert both["wide_x"].shape == (2, B, max(widths))


def test_there_is_less_padding_and_no_compilation_for_a_length() -> None:
    """Uniform lengths from 1 to 30 have the mean 15.5, which fills 15.5 / 30 = .52 of what is padded to 30. Of four
    batches that are sorted together each spans 30 / 4 of them, and is rounded up by 7 at most: no less than 15.5 of
    15.5 + 7.5 / 2 + 7, .59. In at most four shapes."""

    @jax.jit
    def filled(x: jax.Array) -> jax.Array:
        return (x > 0).sum()

    plain = in_memory(SOURCE, B)
    found = [batch(step)["x"] for step in range(60)]
    usual = [plain.fetch(plain.resident, plain.slot(0, step))["x"] for step in range(60)]
    shares = [sum(int(filled(x)) for x in those) / sum(x.size for x in those) for those in (found, usual)]
    assert filled._cache_size() <= 4
    assert shares[0] > 0.59 and abs(shares[1] - 0.52) < 0.04
