"""What a trained model says of rows: of the test split, of a file of the user's, of a whole set. Floor 4."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from umbrella import artifacts, cleaning
from umbrella.data.texts import read_text
from umbrella.experiment import Experiment
from umbrella.objective import View
from umbrella.settings import SettingsError


def predictions(ex: Experiment, views: View, key: jax.Array, folder: Path) -> Path:
    """Predictions for every row of the test split, as predictions.npz in the folder; by the first seed, or, where
    lanes are parts of one training, by the lane whose part a row is of.

    Args:
      views: of one training, or with an axis of seeds in front where config.seeds > 1.
      key: for what is drawn.
    """
    fn, many = jax.jit(ex.predict), ex.run.seeds > 1

    def told(view: View) -> dict[str, np.ndarray]:
        parts, size, n = [], ex.run.eval_batch_size or ex.run.batch_size, len(ex.dataset.test)
        for start in range(0, n, size):
            index = np.arange(start, start + size).clip(max=n - 1)  # the last batch repeats a row
            found = ex.dataset.test.__getitems__(index)
            parts.append(jax.device_get(fn(view, {k: found[k] for k in ex.asks}, key)))
        return {k: np.concatenate([p[k] for p in parts])[:n] for k in parts[0]}

    if ex.fold is None or not many:
        out = told(views.lane(0) if many else views)
    else:
        lane = np.asarray(ex.dataset.test.column(ex.fold))
        each = [told(views.lane(k)) for k in range(ex.lanes_each)]
        out = {k: np.stack([t[k] for t in each])[lane, np.arange(len(lane))] for k in each[0]}
    artifacts.save_arrays(folder / "predictions.npz", out)
    return folder / "predictions.npz"


def of_file(ex: Experiment, view: View, trained_on: Callable[[], str], path: Path, folder: Path) -> Path:
    """What is said of every line of a text file that is not blank, as answers.csv in the folder.

    Args:
      trained_on: tells the fingerprint of the data that the model has seen.

    Raises:
      SettingsError: the pipeline reads no lines, the file has none, or the data have changed.
    """
    if ex.reader is None:
        raise SettingsError(
            f"--input: the pipeline {ex.settings['pipeline']!r} reads no lines of text; leave it out to predict "
            "the rows of the test split"
        )
    _check_data(ex, trained_on, "--mode=predict")
    encoding = ex.settings["data"].get("encoding") or "utf-8"
    try:
        lines = [line.strip() for line in read_text(path, encoding).split("\n")]  # as training texts are read
    except SettingsError as error:
        raise SettingsError(f"--input={error}") from None
    if not (lines := [line for line in lines if line]):
        raise SettingsError(f"--input={path}: no text in it; wanted one a line")
    return artifacts.save_table(folder / "answers.csv", ex.reader(view, lines))


def cleaned(ex: Experiment, view: View, trained_on: Callable[[], str], folder: Path) -> cleaning.Cleaned:
    """Every row of the set scored, and told apart: see `umbrella.cleaning`. Arguments and errors as above."""
    if ex.scorer is None:
        raise SettingsError(
            f"--mode=clean: the pipeline {ex.settings['pipeline']!r} does not say how strange a row is; "
            "train configs/vae.py on the set"
        )
    _check_data(ex, trained_on, "--mode=clean")
    how: dict[str, Any] = {"where": ex.settings["data"], "batch_size": ex.run.eval_batch_size or ex.run.batch_size}
    made = cleaning.clean(folder / "clean", ex.dataset, ex.scorer(view), ex.asks, rate=ex.strange, **how)
    artifacts.save(folder, "cleaning", made.table)
    return made


def _check_data(ex: Experiment, trained_on: Callable[[], str], mode: str) -> None:
    """Raises SettingsError where the set is another than the one that was trained on."""
    if trained_on() != ex.dataset.fingerprint:
        raise SettingsError(
            f"{mode}: {ex.dataset.name} is not what it was when this run was trained on it; train on it in another "
            "workdir"
        )
