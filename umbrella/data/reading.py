"""load: a data set by name or path. Floor 4."""

import pathlib
from typing import Annotated, Any, Literal

import numpy as np

from umbrella.data import bundled, folders, prepared, tables, texts
from umbrella.data.sources import Dataset, Found, take
from umbrella.data.splits import PLAIN, carve, held_out
from umbrella.settings import Count, Fraction, Natural, Range, SettingsError

Text = Annotated[str, Range(lambda v: bool(v.strip()), "must not be empty")]


def load(
    *,
    name: Text,
    path: str | None = None,
    validation: Fraction = 0.1,
    split_seed: Natural = 0,
    in_memory: bool | None = None,
    cache: bool = True,
    target: str | None = None,
    labelled: bool = True,
    size: Count | None = None,
    encoding: Text | None = None,
    rows: Count | None = None,
    per_class: Count | None = None,
    folds: Count | None = None,
    fold: Natural = 0,
    tested_on: Literal["test", "validation"] = "test",
) -> Dataset:
    """A data set, ready to be batched.

    Args:
      name: a set that comes with scikit-learn (digits, iris, wine, breast_cancer, diabetes), or with several packages
        (docstrings, or docstrings/scikit-learn for one of them against the others); a .csv, .npz or .tsv file, a folder
        of class folders of images or one of a file of texts for each class; or a set that TensorFlow Datasets prepared
        ("mnist", "glue/sst2", "mnist:3.0.1").
      path: where it lies: the file or folder, or TFDS's data_dir ($TFDS_DATA_DIR, then ~/tensorflow_datasets).
      validation: the share of train to hold out, in [0, 1), when the set has no official validation split.
      split_seed: chooses those rows. The 20 % test split of a set without an official one does not depend on it.
      in_memory: True decodes everything now, False reads lazily, None decides by size (2 GiB decoded). Tables and
        scikit-learn's sets are always in memory, so False is refused.
      cache: keep decoded images on disk (see umbrella.data.cache), so that the next start is instant.
      target: the target column of a .csv file; refused for anything else.
      labelled: False for a .csv file without a target, all of whose columns are inputs; refused for anything else.
      encoding: of a .tsv file or a folder of texts, utf-8 when None; refused for anything else.
      rows: train on so many of the training rows, every class with its share, chosen by split_seed; on all when there
        are no more. Validation and test are what they are without it.
      per_class: train on so many rows of every class, chosen by split_seed; for learning from a few.
      folds: cut a set without an official test split into so many parts, the same ones every time; `fold` is tested on.
      fold: which of them, counted from 0.
      tested_on: "validation" makes the official validation split the test split, where the labels of the official one
        are withheld; validation is then carved from train.
      size: resize images to size x size: those of a folder and of TensorFlow Datasets; refused for anything else.

    Raises:
      SettingsError: one line that says what is wrong and what to do, a setting that this set does not take among it. A
        set that is not there is never replaced.
    """
    if split_seed < 0:
        raise SettingsError(f"split_seed={split_seed}: must be >= 0")
    if not 0 <= validation < 1:
        raise SettingsError(f"validation={validation}: must be in [0, 1)")
    if size is not None and size < 1:
        raise SettingsError(f"size={size}: must be >= 1")
    if rows is not None and per_class is not None:
        raise SettingsError(f"rows={rows} and per_class={per_class}: which of the two?")
    if not labelled and target is not None:
        raise SettingsError(f"target={target!r} and labelled=False: which of the two?")
    if fold and fold >= (folds or 1):
        raise SettingsError(f"fold={fold}: must be below folds={folds}; they are counted from 0")
    if folds == 1:
        raise SettingsError("folds=1: would leave nothing to train on; use 2 or more")
    how: dict[str, Any] = {"in_memory": in_memory, "cache": cache, "target": target, "size": size}
    found = _find(name, path, **how, labelled=None if labelled else False, encoding=encoding)
    if tested_on == "validation":
        found = _tested_on_validation(found)
    cut = None if folds is None else (fold, folds)
    train, held, test = carve(found, validation=validation, split_seed=split_seed, fold=cut)
    if rows is not None and rows < len(train):
        labels = train.column("y") if found.info["classes"] and len(train) < PLAIN else None
        train = take(train, held_out(labels, len(train), rows / len(train), (split_seed, 5), least=1))
    if per_class is not None:
        if not found.info["classes"]:
            raise SettingsError(f"per_class={per_class}: {found.source} has no classes; use rows")
        train = take(train, _of_each(train.column("y"), per_class, split_seed, found))
    if path is not None and not prepared.is_prepared(name, pathlib.Path(path).expanduser()):
        name = path  # the file or folder itself: what a config has for a name says nothing of it
    return Dataset(name, found.source, found.fingerprint, train, held, test, found.info)


def _tested_on_validation(found: Found) -> Found:
    """With the official validation split in the place of the test split."""
    if "validation" not in found.splits or "validation" in found.info["hidden"]:
        raise SettingsError(f"tested_on='validation': {found.source} has no official validation split with labels")
    splits = {"train": found.splits["train"], "test": found.splits["validation"]}
    hidden = tuple(s for s in found.info["hidden"] if s != "test")
    return found._replace(splits=splits, info={**found.info, "hidden": hidden})


def _of_each(y: np.ndarray, count: int, seed: int, found: Found) -> np.ndarray:
    """The sorted rows of `count` of every class."""
    rng, names = np.random.default_rng((seed, 6)), found.info["class_names"]
    groups = [np.flatnonzero(y == c) for c in range(found.info["classes"])]
    if few := [c for c, g in enumerate(groups) if len(g) < count]:
        told = names[few[0]] if names else few[0]
        raise SettingsError(
            f"per_class={count}: {found.source} has {len(groups[few[0]])} training rows of class {told!r}"
        )
    return np.sort(np.concatenate([rng.permutation(g)[:count] for g in groups]))


def _find(
    name: str,
    path: str | None,
    *,
    in_memory: bool | None,
    cache: bool,
    target: str | None,
    labelled: bool | None,
    size: int | None,
    encoding: str | None,
) -> Found:
    of_files = {"target": target, "labelled": labelled, "size": size, "encoding": encoding}
    if name in bundled.NAMES and path is None:
        _refuse(
            name,
            "comes with scikit-learn",
            target=target,
            labelled=labelled,
            size=size,
            in_memory=in_memory,
            encoding=encoding,
        )
        return bundled.read(name)
    if name in texts.NAMES and path is None:
        _refuse(name, "are texts", **of_files, in_memory=in_memory)
        return texts.docstrings(cache=cache, against=name.partition("/")[2] or None)
    place = pathlib.Path(path if path is not None else name).expanduser()
    suffix = place.suffix.lower()
    if suffix in (".csv", ".npz", *texts.TABLES):
        if not place.is_file():
            raise SettingsError(f"{place}: no such file")
        if suffix in texts.TABLES:
            _refuse(place, "is a table of texts", target=target, labelled=labelled, size=size, in_memory=in_memory)
            return texts.read_table(place, encoding=encoding or "utf-8")
        if suffix == ".csv":
            _refuse(place, "is a table", size=size, in_memory=in_memory, encoding=encoding)
            return tables.read_csv(place, target=target, labelled=labelled is not False)
        _refuse(
            place,
            "is an .npz file",
            target=target,
            labelled=labelled,
            size=size,
            in_memory=in_memory,
            encoding=encoding,
        )
        return tables.read_npz(place)
    if path is not None and not place.is_dir():
        raise SettingsError(f"{place}: no such folder, and neither a .csv, a .npz nor a .tsv file")
    if place.is_dir() and not (path is not None and prepared.is_prepared(name, place)):
        if folders.is_image_folder(place):
            _refuse(place, "is a folder of images", target=target, labelled=labelled, encoding=encoding)
            return folders.read(place, size=size, in_memory=in_memory, cache=cache)
        if texts.is_text_folder(place):
            _refuse(place, "is a folder of texts", target=target, labelled=labelled, size=size, in_memory=in_memory)
            return texts.read_folder(place, encoding=encoding or "utf-8")
        if path is None or name in bundled.NAMES:
            raise SettingsError(f"{place}: a folder without class folders of images or files of texts in it")
    _refuse(name, "is a prepared set", target=target, labelled=labelled, encoding=encoding)
    if size is not None and not prepared.resizes(name, path):
        _refuse(name, "is a prepared set without images", size=size)
    return prepared.read(name, path, size=size, in_memory=in_memory, cache=cache)


_WORDS = {
    "target": "that names the target column of a .csv file",
    "labelled": "that says of a .csv file whether it has a target",
    "size": "that resizes the images of a folder or of a prepared set",
    "in_memory": "it is always in memory",
    "encoding": "that is of a .tsv file or a folder of texts",
}


def _refuse(what: object, kind: str, **settings: object) -> None:
    """Raises SettingsError for the first setting that was given and that this reader would pass over."""
    for key, value in settings.items():
        if value is not None and not (key == "in_memory" and value is True):
            raise SettingsError(f"{what} {kind} and takes no {key}={value!r}: {_WORDS[key]}; leave it out")
