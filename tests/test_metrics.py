"""The metrics against scikit-learn; that merging is concatenating; what padding and absence do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score

from umbrella import metrics
from umbrella.metrics import Collect, Confusion, Mean, ScoreHistogram, merge

C = 3
as_is = lambda outputs: outputs  # noqa: E731
auc, histogram = jax.jit(metrics.auc_exact(as_is)), jax.jit(metrics.score_histogram(as_is, 8))
accuracy, confusion, mean = jax.jit(metrics.accuracy), jax.jit(metrics.confusion), jax.jit(Mean.of)


def scored(n: int = 40, *, levels: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores on few levels, so with many ties, and labels that depend on them."""
    rng = np.random.default_rng(seed)
    score = (rng.integers(0, levels, n) + 0.5) / levels
    return score.astype(np.float32), (rng.random(n) < score).astype(np.int32)


def classified(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, C)).astype(np.float32), rng.integers(0, C, n).astype(np.int32)


def batch(y: np.ndarray, mask: np.ndarray | None = None) -> dict[str, jax.Array]:
    told = {"y": jnp.asarray(y)}
    return told if mask is None else told | {"mask": jnp.asarray(mask, jnp.float32)}


# ------------------------------------------------------------------------------------------ against scikit-learn
def test_mean_of_values_and_mask() -> None:
    values, mask = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 1.0, 0.0, 1.0])
    assert mean(jnp.asarray(values, jnp.float32)).compute() == 15 / 4
    told = mean(jnp.asarray(values, jnp.float32), jnp.asarray(mask, jnp.float32))
    assert (float(told.total), float(told.count)) == (11, 3)
    assert told.compute() == 11 / 3


def test_accuracy_and_confusion_are_scikit_learns() -> None:
    logits, y = classified()
    guess = logits.argmax(1)
    assert accuracy(jnp.asarray(logits), batch(y)).compute() == pytest.approx(accuracy_score(y, guess))
    told = confusion(jnp.asarray(logits), batch(y)).compute()
    np.testing.assert_array_equal(told, confusion_matrix(y, guess, labels=range(C)))


def test_accuracy_and_confusion_of_soft_labels() -> None:
    """A soft label counts as its largest entry."""
    logits, y = classified()
    soft = {"y": jnp.asarray(0.8 * np.eye(C)[y] + 0.2 / C, jnp.float32)}
    assert accuracy(jnp.asarray(logits), soft) == accuracy(jnp.asarray(logits), batch(y))
    told = [confusion(jnp.asarray(logits), b).compute() for b in (soft, batch(y))]
    np.testing.assert_array_equal(*told)


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.confusion])
def test_labels_of_another_shape_than_their_dtype_asks_for(metric: Any) -> None:
    """i32[B, 1] was taken for a soft label of one class, whose largest entry is class 0 for every row."""
    logits, y = classified()
    for wrong in (jnp.asarray(y)[:, None], jnp.asarray(y, jnp.float32)):
        with pytest.raises(ValueError, match=r"for logits \(40, 3\) their shape is"):
            metric(jnp.asarray(logits), {"y": wrong})


def test_a_mean_of_half_precision_counts_beyond_256() -> None:
    """bf16 has eight bits: 256 + 1 is 256 in it. 1,000 ones are 1,000."""
    told = mean(jnp.ones(1000, jnp.bfloat16))
    assert (float(told.total), float(told.count)) == (1000, 1000)


def test_accuracy_of_tokens() -> None:
    rng = np.random.default_rng(1)
    logits, y, mask = rng.normal(size=(4, 5, C)), rng.integers(0, C, (4, 5)), rng.integers(0, 2, (4, 5))
    told = accuracy(jnp.asarray(logits, jnp.float32), batch(y.astype(np.int32), mask))
    wanted = accuracy_score(y.ravel(), logits.argmax(-1).ravel(), sample_weight=mask.ravel())
    assert told.compute() == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_scikit_learns_with_ties(seed: int) -> None:
    """Both kinds: the histogram has a bin for each of the eight levels, so its ties are the scores' own."""
    score, y = scored(seed=seed)
    wanted = roc_auc_score(y, score)
    assert auc(jnp.asarray(score), batch(y)).compute() == pytest.approx(wanted, abs=1e-12)
    assert histogram(jnp.asarray(score), batch(y)).compute() == pytest.approx(wanted, abs=1e-12)


def test_a_histogram_misses_the_exact_auc_by_half_of_the_pairs_in_one_bin_at_most() -> None:
    score, y = scored(200, levels=1000)
    told = histogram(jnp.asarray(score), batch(y))
    shared = float((told.negative * told.positive).sum()) / (float(told.negative.sum()) * float(told.positive.sum()))
    assert abs(told.compute() - roc_auc_score(y, score)) <= shared / 2
    fpr, tpr = told.roc()
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()


def test_scores_outside_zero_and_one_fall_into_the_outermost_bins() -> None:
    told = histogram(jnp.asarray([-0.5, 0.0, 1.0, 1.5]), batch(np.array([0, 1, 0, 1], np.int32)))
    np.testing.assert_array_equal(told.negative, [1, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(told.positive, [1, 0, 0, 0, 0, 0, 0, 1])


# ------------------------------------------------------------------------------------------- merging and padding
def of_kind(kind: str, rows: slice | np.ndarray, mask: np.ndarray | None = None) -> Any:
    score, y = scored()
    logits, label = classified()
    if kind == "mean":
        return mean(jnp.asarray(score[rows]), None if mask is None else jnp.asarray(mask, jnp.float32))
    if kind in ("accuracy", "confusion"):
        fn = accuracy if kind == "accuracy" else confusion
        return fn(jnp.asarray(logits[rows]), batch(label[rows], mask))
    return (auc if kind == "auc" else histogram)(jnp.asarray(score[rows]), batch(y[rows], mask))


@pytest.mark.parametrize("kind", ["mean", "accuracy", "confusion", "histogram"])
def test_merging_is_concatenating(kind: str) -> None:
    """Of parts of different sizes, in any order, with the empty state as zero."""
    whole, parts = of_kind(kind, slice(None)), [of_kind(kind, s) for s in (slice(7), slice(7, 26), slice(26, None))]
    empty = jax.tree.map(jnp.zeros_like, whole)
    for order in ((0, 1, 2), (2, 0, 1)):
        total = empty
        for i in order:
            total = merge(total, parts[i])
        np.testing.assert_allclose(total.compute(), whole.compute(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "accuracy", "confusion", "histogram", "auc"])
def test_a_padded_row_is_no_row(kind: str) -> None:
    mask = np.ones(40)
    mask[[3, 17, 39]] = 0
    np.testing.assert_allclose(
        of_kind(kind, slice(None), mask).compute(), of_kind(kind, np.flatnonzero(mask)).compute(), rtol=1e-6
    )


def test_padded_rows_may_hold_nan() -> None:
    score, y = scored()
    logits, label = classified()
    mask, kept = np.arange(40) < 37, slice(37)
    score, logits = score.copy(), logits.copy()
    score[37:], logits[37:] = np.nan, np.nan
    got = mean(jnp.asarray(score), jnp.asarray(mask, jnp.float32)).compute()
    assert got == pytest.approx(score[kept].mean(dtype=np.float64))
    got = accuracy(jnp.asarray(logits), batch(label, mask)).compute()
    assert got == pytest.approx(accuracy_score(label[kept], logits[kept].argmax(1)))
    told = confusion(jnp.asarray(logits), batch(label, mask)).compute()
    np.testing.assert_array_equal(told, confusion_matrix(label[kept], logits[kept].argmax(1), labels=range(C)))
    wanted = roc_auc_score(y[kept], score[kept])
    assert auc(jnp.asarray(score), batch(y, mask)).compute() == pytest.approx(wanted)
    assert histogram(jnp.asarray(score), batch(y, mask)).compute() == pytest.approx(wanted)


def test_what_was_never_counted_is_nan() -> None:
    none = np.zeros(40)
    for kind in ("mean", "accuracy", "histogram", "auc"):
        assert np.isnan(of_kind(kind, slice(None), none).compute())
    assert of_kind("confusion", slice(None), none).compute().sum() == 0
    assert np.isnan(Mean(jnp.zeros(()), jnp.zeros(())).compute())
    assert np.isnan(ScoreHistogram(jnp.zeros(4), jnp.zeros(4)).compute())


@pytest.mark.parametrize("label", [0, 1])
def test_an_auc_of_one_class_is_nan(label: int) -> None:
    score, y = scored()[0], np.full(40, label, np.int32)
    assert np.isnan(auc(jnp.asarray(score), batch(y)).compute())
    assert np.isnan(histogram(jnp.asarray(score), batch(y)).compute())


def test_merging_puts_the_rows_of_a_collect_together() -> None:
    """Two halves are the whole: added up as numbers, rows would become rows that nobody saw."""
    score, y = scored()
    halves = [auc(jnp.asarray(score[h]), batch(y[h])) for h in (slice(20), slice(20, 40))]
    assert merge(*halves).compute() == pytest.approx(roc_auc_score(y, score))
    both = merge(
        {"auc": halves[0], "n": Mean(*map(jnp.asarray, (1.0, 2.0)))},
        {"auc": halves[1], "n": Mean(*map(jnp.asarray, (3.0, 4.0)))},
    )
    assert both["auc"].mask.shape == (40,)
    assert (float(both["n"].total), float(both["n"].count)) == (4.0, 6.0)


def test_collect_keeps_rows_of_any_shape_in_order() -> None:
    values = np.arange(24.0).reshape(4, 3, 2)
    got = Collect({"v": jnp.asarray(values)}, jnp.asarray([1.0, 0.0, 1.0, 1.0]), lambda v: v).compute()
    np.testing.assert_array_equal(got, values[[0, 2, 3]])


def test_sums_work_in_a_compiled_program() -> None:
    """Under jit, scan and vmap, as a step uses them."""
    logits, y = classified()

    def turn(total: Confusion, rows: tuple[jax.Array, jax.Array]) -> tuple[Confusion, None]:
        return merge(total, confusion(rows[0], {"y": rows[1]})), None

    parts = (jnp.asarray(logits).reshape(4, 10, C), jnp.asarray(y).reshape(4, 10))
    total, _ = jax.jit(lambda p: jax.lax.scan(turn, Confusion(jnp.zeros((C, C))), p))(parts)
    np.testing.assert_array_equal(total.compute(), confusion_matrix(y, logits.argmax(1), labels=range(C)))
    each = jax.vmap(lambda a, b: confusion(a, {"y": b}))(*parts)
    np.testing.assert_array_equal(each.matrix.sum(0), total.matrix)
