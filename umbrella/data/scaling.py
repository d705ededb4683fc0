"""Where the values of a training set lie and how far they spread, for putting inputs on a common scale. Floor 4."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from umbrella.choices import one_of
from umbrella.data.sources import Source, sample

Scaling = Literal["minmax", "zscore", "robust", "channel"]
ROWS = 4096  # read at a time
MOST = 50_000  # rows that quantiles are taken of


def fit(kind: Scaling, source: Source, *, column: str = "x", unit: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(shift, spread) of the training rows, so that (x / unit - shift) / spread is on the scale that `kind` names.

    minmax: [0, 1] of every feature; zscore: mean 0, standard deviation 1 of every feature (of the population, as in
    scikit-learn); robust: median 0, distance of the quartiles 1; channel: zscore with one mean and one deviation for
    each entry of the last axis, as is usual for images. A feature that does not vary is shifted only.

    Args:
      source: rows of column f[N, ...] or u8[N, ...]; the training split and nothing else.
      unit: what the model's input was divided by before, 255 for bytes.

    Returns:
      f32[...] and f32[...] in the shape of a row; f32[C] each for "channel".
    """
    one_of("scaling", kind, Scaling)
    if kind == "robust":
        return _quartiles(source, column, unit)
    n, mean, squares, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for part in _parts(source, column, unit):
        if kind == "channel":
            part = part.reshape(-1, part.shape[-1])
        m, here = len(part), part.mean(0)
        # Chan, Golub and LeVeque 1983, eq. 2.1: sums of squares about a running mean do not cancel.
        apart = here - mean
        squares = squares + ((part - here) ** 2).sum(0) + apart**2 * (n * m / (n + m))
        mean, n = mean + apart * (m / (n + m)), n + m
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
    if kind == "minmax":
        return _of(low, np.asarray(high - low))
    return _of(mean, np.sqrt(squares / n))


def _parts(source: Source, column: str, unit: float) -> Iterator[np.ndarray]:
    for start in range(0, len(source), ROWS):
        rows = np.arange(start, min(start + ROWS, len(source)))
        yield np.asarray(source.__getitems__(rows)[column], np.float64) / unit


def _quartiles(source: Source, column: str, unit: float) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(source.__getitems__(sample(len(source), MOST))[column])
    q1, q2, q3 = np.quantile(rows.reshape(len(rows), -1), (0.25, 0.5, 0.75), axis=0) / unit
    return _of(q2.reshape(rows.shape[1:]), (q3 - q1).reshape(rows.shape[1:]))


def _of(shift: np.ndarray | float, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.where(spread > 1e-13 * np.abs(shift), spread, 1.0)  # in f64, a constant's spread is rounding
    return np.asarray(shift, np.float32), np.asarray(kept, np.float32)
