"""Data sets as numpy, and batches that are pure functions of (seed, step). Floor 4.

    data = load(name="mnist")                   # a Dataset: train, validation, test
    train = in_memory(data.train, 128)          # a Data: what the training loop reads
    slot = train.slot(seed=0, step=7)           # the same bits today, tomorrow and after a resume
    for batch in batches(data.test, 500): ...   # every example once, the last batch masked

Importing this package reads no data, imports neither scikit-learn nor TensorFlow Datasets, and starts no JAX backend.
"""

from umbrella.data.reading import load
from umbrella.data.sources import Arrays, Dataset, Rows, Source, sample
from umbrella.data.splits import overlap
from umbrella.data.streams import Data, Share, batches, bootstrap, in_memory, order, streaming

__all__ = [
    "Arrays",
    "Data",
    "Dataset",
    "Rows",
    "Share",
    "Source",
    "batches",
    "bootstrap",
    "in_memory",
    "load",
    "order",
    "overlap",
    "sample",
    "streaming",
]
