"""Where the rows of a data set come from: the row of its file, or the file of an image. Floor 4."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from umbrella.data import bundled, folders, prepared, tables, texts
from umbrella.data.sources import Arrays, Found, Source
from umbrella.data.splits import carve
from umbrella.settings import SettingsError


class Origins(NamedTuple):
    """Of every row of each split. `kind` is "csv", "image" or "row"."""

    kind: str
    rows: dict[str, np.ndarray]  # split -> i64[N]: of a csv file's row, as in a spreadsheet (the header is 1); of an
    # image in the folder that it was read from; or of a row in its split, from 0
    files: dict[str, list[str]]  # split -> the image's file; empty for the others
    path: pathlib.Path | None  # the csv file


def origins(lengths: dict[str, int], **data: Any) -> Origins:
    """For the set that load(**data) gives, whose splits are so long.

    Raises:
      SettingsError: a part of the training rows was chosen, so that some have no place in a split.
    """
    settings = {k: v for k, v in data.items() if v is not None}
    if "rows" in settings or "per_class" in settings:
        raise SettingsError("config.data: a part of the training rows was chosen; leave rows and per_class out")
    name, path = data["name"], data.get("path")
    place = pathlib.Path(name if path is None else path).expanduser()
    by_name = name in (*bundled.NAMES, *texts.NAMES) if path is None else prepared.is_prepared(name, place)
    if by_name:  # whatever file or folder has the same name
        return Origins("row", {k: np.arange(n) for k, n in lengths.items()}, {}, None)
    if place.suffix.lower() == ".csv" and place.is_file():
        found = tables.read_csv(place, target=data.get("target"), labelled=data.get("labelled", True))
        lines = np.asarray(tables.lines(place))
        parts = _divided(found, data)
        return Origins("csv", {k: lines[v] for k, v in parts.items()}, {}, place)
    if place.is_dir() and folders.is_image_folder(place):
        found = folders.read(place, size=data.get("size"), in_memory=False, cache=False)
        paths = {k: s.paths for k, s in found.splits.items() if isinstance(s, folders.ImageFiles)}
        parts = _divided(found, data)
        files = {k: [paths[k if k in paths else "train"][i] for i in v] for k, v in parts.items()}
        return Origins("image", parts, files, None)
    return Origins("row", {k: np.arange(n) for k, n in lengths.items()}, {}, None)


def _divided(found: Found, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """Split -> the numbers of its rows in the split that they were read from: carve's own draw, of numbers."""

    def numbered(source: Source) -> Source:
        columns = {"number": np.arange(len(source))}
        return Arrays({**columns, "y": source.column("y")} if found.info["classes"] else columns)

    numbers = found._replace(splits={k: numbered(s) for k, s in found.splits.items()})
    three = carve(numbers, validation=data.get("validation", 0.1), split_seed=data.get("split_seed", 0))
    return {k: s.column("number") for k, s in zip(("train", "validation", "test"), three, strict=True)}
