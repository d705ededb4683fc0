"""A folder of class folders of images. Floor 4."""

import pathlib

import numpy as np

from umbrella.data import cache as caching
from umbrella.data.files import fingerprint
from umbrella.data.images import decode, stack
from umbrella.data.sources import LIMIT, Columns, Found, info
from umbrella.settings import SettingsError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}


def is_image_folder(root: pathlib.Path) -> bool:
    """Whether there are images two folders down (a class each), or three (splits, then classes)."""
    return any(_is_image(p) for pattern in ("*/*", "*/*/*") for p in root.glob(pattern))


def read(root: pathlib.Path, *, size: int | None, in_memory: bool | None, cache: bool) -> Found:
    """root/CLASS/*.png, or root/train/CLASS/*.png with test and validation beside it. Classes in alphabetical order.

    The first image decides size and channels. Other files and hidden ones are passed over.

    Raises:
      SettingsError: no image, an empty class folder, a class that train does not have, an image that cannot be read, is
        of another size (and `size` is None) or in colour where the first is grey; two folders of one split.
    """
    parts = {SPLITS[p.name]: p for p in _folders(root) if p.name in SPLITS and not any(map(_is_image, p.iterdir()))}
    named = [p.name for p in _folders(root) if p.name in SPLITS]
    if "train" in parts and len(named) > len({SPLITS[name] for name in named}):
        raise SettingsError(f"{root}: {', '.join(sorted(named))}: two of these are the same split; leave one out")
    parts = parts if "train" in parts else {"train": root}
    classes = tuple(p.name for p in _folders(parts["train"]))
    listed = {split: _listing(p, classes) for split, p in parts.items()}
    first = decode(listed["train"][0][0].read_bytes(), str(listed["train"][0][0]), size=size)
    about = info("image", first.shape, scale=255, classes=len(classes), class_names=classes)
    files = [path for rows in listed.values() for path, _ in rows]
    key = fingerprint(root, files)
    lazy = {k: ImageFiles(rows, first.shape, size) for k, rows in listed.items()}
    small = first.size * len(files) < LIMIT
    if not (small if in_memory is None else in_memory):
        return Found(f"images in {root}", key, dict(lazy), about)

    def make() -> caching.Made:
        return {k: s.__getitems__(np.arange(len(s))) for k, s in lazy.items()}, about

    splits, about = caching.keep(f"images-{key}-{size or 'as-is'}", make, disk=cache)
    return Found(f"images in {root}", key, dict(splits), about)


class ImageFiles:
    """A source that decodes images as they are asked for."""

    def __init__(self, rows: list[tuple[pathlib.Path, int]], shape: tuple[int, ...], size: int | None):
        self.paths = [str(path) for path, _ in rows]
        self.labels = np.array([label for _, label in rows], np.int32)
        self.shape, self.size = shape, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: np.ndarray) -> Columns:
        x = np.empty((len(indices), *self.shape), np.uint8)
        for row, i in enumerate(indices):
            path = self.paths[i]
            image = decode(pathlib.Path(path).read_bytes(), path, channels=self.shape[-1], size=self.size)
            # stack compares with the first image of the set and words the error.
            x[row] = image if image.shape == self.shape else stack([x[row], image], [self.paths[0], path])
        return {"x": x, "y": self.labels[indices]}

    def column(self, name: str) -> np.ndarray:
        return self.labels if name == "y" else self.__getitems__(np.arange(len(self)))[name]


def _listing(folder: pathlib.Path, classes: tuple[str, ...]) -> list[tuple[pathlib.Path, int]]:
    rows: list[tuple[pathlib.Path, int]] = []
    for sub in _folders(folder):
        if sub.name not in classes:
            raise SettingsError(f"{sub}: a class that the training images do not have")
        images = sorted(filter(_is_image, sub.iterdir()))
        if not images:
            raise SettingsError(f"{sub}: no images in this class folder ({', '.join(SUFFIXES)}); remove it or fill it")
        rows += [(path, classes.index(sub.name)) for path in images]
    if not rows:
        raise SettingsError(f"{folder}: no class folders with images in them")
    return rows


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
