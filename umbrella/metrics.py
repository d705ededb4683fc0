"""Metric states that merge: what a pass returns, what an evaluation adds up, what a run reports. Floor 0.

Two kinds. *Sums* (Mean, Confusion, ScoreHistogram): the empty state is zeros and merge is +, so they add up over
batches, microbatches, devices and steps inside a compiled program. *Collect* keeps every row, for metrics that are no
sums; it is for evaluation only. A metric is a function `(outputs, batch) -> state`; `umbrella.objective.measure`
attaches it.

`mask` counts in the denominator, `weight` does not: a padded row is no row, an important row is still one row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from umbrella.losses import are_indices

Array = jax.Array


class Mean(struct.PyTreeNode):
    """A weighted mean as (sum, count). f32[] each."""

    total: Array
    count: Array

    @classmethod
    def of(cls, values: Array, mask: Array | None = None) -> "Mean":
        """The mean of `values` f32[...] where `mask` (same shape) is positive; rows with mask 0 may hold anything.

        Summed in f32 at least: bf16 counts to 256 and no further.
        """
        values = widened(values)
        mask = jnp.ones(values.shape, values.dtype) if mask is None else mask.astype(values.dtype)
        return cls(jnp.sum(jnp.where(mask > 0, mask * values, 0)), jnp.sum(mask))

    def compute(self) -> float:
        """The mean; nan when nothing was counted."""
        return float(np.float64(self.total) / np.float64(self.count)) if self.count > 0 else float("nan")


class Confusion(struct.PyTreeNode):
    """Counts by (true class, predicted class). f32[C, C]."""

    matrix: Array

    def compute(self) -> np.ndarray:
        return np.asarray(self.matrix)


class ScoreHistogram(struct.PyTreeNode):
    """Scores in [0, 1] binned by class, for ROC curves of sets that are too large to keep. f32[bins] each.

    The AUC from n bins differs from the exact one by at most the share of pairs that fall into one bin, halved.
    """

    negative: Array
    positive: Array

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """(false positive rate, true positive rate), f64[bins + 1] each, thresholds descending."""
        fall = [
            np.concatenate([[0.0], np.cumsum(np.asarray(h, np.float64)[::-1])]) for h in (self.negative, self.positive)
        ]
        return fall[0] / max(fall[0][-1], 1.0), fall[1] / max(fall[1][-1], 1.0)

    def compute(self) -> float:
        """The area under the ROC curve, ties counted half; nan when one class is absent."""
        if not (np.sum(self.negative) > 0 and np.sum(self.positive) > 0):
            return float("nan")
        fpr, tpr = self.roc()
        return float(np.trapezoid(tpr, fpr))


class Collect(struct.PyTreeNode):
    """Every row: `values` name -> [B, ...], and mask f32[B]. Concatenated on the host in order, masked rows dropped."""

    values: dict[str, Array]
    mask: Array
    reduce: Callable[..., Any] = struct.field(pytree_node=False)

    def compute(self) -> Any:
        keep = np.asarray(self.mask) > 0
        return self.reduce(**{k: np.asarray(v)[keep] for k, v in self.values.items()})


def merge(a: Any, b: Any) -> Any:
    """Two states (or trees of states) of the same kind as one: sums are added, the rows of a Collect put together."""

    def one(x: Any, y: Any) -> Any:
        if isinstance(x, Collect):
            return jax.tree.map(lambda v, w: jnp.concatenate([v, w]), x, y)
        return x + y

    return jax.tree.map(one, a, b, is_leaf=lambda x: isinstance(x, Collect))


def widened(x: Array) -> Array:
    """Floats of less than 32 bits as f32, all else as it is: what is to be added up."""
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32 else x


def mask_of(batch: Mapping[str, Any], like: Array) -> Array:
    """The batch's mask, or ones in the shape of `like`."""
    return batch["mask"] if "mask" in batch else jnp.ones(like.shape, jnp.float32)


def labels_of(batch: Mapping[str, Any], logits: Array) -> Array:
    """i32[...]: class indices i32[...] as they are, soft labels f32[..., C] by their largest entry.

    Raises (while tracing):
      ValueError: y has another shape than its dtype asks for.
    """
    y = batch["y"]
    return y if are_indices(y, logits) else jnp.argmax(y, -1)


def accuracy(logits: Array, batch: Mapping[str, Any]) -> Mean:
    """The share of rows whose largest logit is the label. logits f32[..., C]; y i32[...] or soft f32[..., C]."""
    hit = (jnp.argmax(logits, -1) == labels_of(batch, logits)).astype(jnp.float32)
    return Mean.of(hit, mask_of(batch, hit))


def confusion(logits: Array, batch: Mapping[str, Any]) -> Confusion:
    """Confusion counts. logits f32[B, C]; y i32[B] or soft f32[B, C]."""
    classes, y = logits.shape[-1], labels_of(batch, logits)
    empty = jnp.zeros((classes, classes), jnp.float32)
    return Confusion(empty.at[y, jnp.argmax(logits, -1)].add(mask_of(batch, y)))


def auc_exact(score: Callable[[Any], Array]) -> Callable[[Any, Mapping[str, Any]], Collect]:
    """The exact area under the ROC curve of `score(outputs)` f32[B] against y in {0, 1}, by Mann-Whitney with ties."""

    def reduce(score: np.ndarray, y: np.ndarray) -> float:
        from scipy.stats import rankdata

        ranks, ones, zeros = rankdata(score), float((y == 1).sum()), float((y == 0).sum())
        return float((ranks[y == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros)) if ones * zeros else float("nan")

    return lambda outputs, batch: Collect(
        {"score": score(outputs), "y": batch["y"]}, mask_of(batch, batch["y"]), reduce
    )


def score_histogram(
    score: Callable[[Any], Array], bins: int = 1024
) -> Callable[[Any, Mapping[str, Any]], ScoreHistogram]:
    """A histogram of `score(outputs)` f32[B] in [0, 1] for each class of y in {0, 1}."""

    def fn(outputs: Any, batch: Mapping[str, Any]) -> ScoreHistogram:
        place = jnp.clip((score(outputs) * bins).astype(jnp.int32), 0, bins - 1)
        mask, empty = mask_of(batch, batch["y"]), jnp.zeros(bins, jnp.float32)
        is_one = (batch["y"] == 1).astype(jnp.float32)
        return ScoreHistogram(empty.at[place].add(mask * (1 - is_one)), empty.at[place].add(mask * is_one))

    return fn
