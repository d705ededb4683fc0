"""Running text, for language models: a file of the user's, or what comes with Python packages. Floor 4."""

import pathlib

import numpy as np

from umbrella.data import prepared, texts
from umbrella.data.files import fingerprint
from umbrella.data.reading import Text
from umbrella.data.sources import Arrays, Dataset, Source, info
from umbrella.settings import Fraction, SettingsError

LEAST = 1000  # characters: with less there is nothing to learn and nothing to hold out


def load(
    *,
    name: Text,
    path: str | None = None,
    encoding: Text = "utf-8",
    validation: Fraction = 0.05,
    test: Fraction = 0.1,
    cache: bool = True,
) -> Dataset:
    """Text in order: the last part is test, the part before it validation, the rest train. "x" is u32[N], the
    characters' code points.

    Args:
      name: docstrings, what functions of NumPy, SciPy and scikit-learn say of themselves, which needs no download; a
        set of texts that TensorFlow Datasets prepared (tiny_shakespeare); or any name, with the path of a file.
      path: a text file, or a folder of .txt files, read in the order of their names; or TFDS's data_dir.
      encoding: of the files.
      validation: the share of the text that is held out to choose by; of what is not test. At least one character.
      test: the share at the end. A prepared set has splits of its own, and then neither share is asked for.
      cache: keep the docstrings on disk once they are found.

    Raises:
      SettingsError: no such set, file or encoding; less than 1,000 characters; no share left to train on.
    """
    if path is not None and (file := pathlib.Path(path).expanduser()).exists() and not prepared.is_prepared(name, file):
        return _of_files(file, encoding, validation, test)
    if name == "docstrings" and path is None:
        found = texts.docstrings(cache=cache)
        whole = "\n".join(v.decode() for v in found.splits["train"].column("x")) + "\n"
        return _cut(name, found.source, found.fingerprint, whole, validation, test)
    if path is not None and not prepared.is_prepared(name, pathlib.Path(path).expanduser()):
        raise SettingsError(f"config.data.path: {path}: no such file or folder")
    read = prepared.read(name, path, size=None, in_memory=True, cache=cache)
    if read.info["kind"] != "text":
        raise SettingsError(f"config.data.name: {name!r} holds no texts, which a language model needs")
    parts = {k: "\n".join(v.decode("utf-8", "replace") for v in _texts(name, s)) for k, s in read.splits.items()}
    if set(parts) >= {"train", "validation", "test"}:
        return _dataset(name, read.source, read.fingerprint, parts["train"], parts["validation"], parts["test"])
    return _cut(name, read.source, read.fingerprint, "\n".join(parts.values()), validation, test)


def _texts(name: str, source: Source) -> np.ndarray:
    """S[N]: the column "x", or the only one of texts in a set without labels."""
    row = source.__getitems__(np.arange(1))
    texts = ["x"] if "x" in row else [k for k, v in row.items() if v.dtype.kind == "S"]
    if len(texts) != 1:
        raise SettingsError(f"config.data.name: which texts of {name!r} are meant is not clear: {', '.join(texts)}")
    return source.column(texts[0])


def text_of(codes: np.ndarray) -> str:
    """u32[N] code points as a string.

    >>> text_of(np.array([104, 105], np.uint32))
    'hi'
    """
    return codes.astype("<u4").tobytes().decode("utf-32-le")


def codes_of(text: str) -> np.ndarray:
    """A string as u32[N] code points; half of a surrogate pair becomes U+FFFD."""
    return np.frombuffer(text.encode("utf-32-le", "replace"), "<u4")


# -------------------------------------------------------------------------------------------------------------- helpers
def _of_files(place: pathlib.Path, encoding: str, validation: float, test: float) -> Dataset:
    files = sorted(place.glob("*.txt")) if place.is_dir() else [place]
    if not files:
        raise SettingsError(f"config.data.path: {place}: no .txt file in this folder")
    whole = "".join(texts.read_text(p, encoding) for p in files)
    where = f"text {place}" if len(files) == 1 else f"{len(files)} texts in {place}"
    root = place if place.is_dir() else place.parent
    return _cut(str(place), where, fingerprint(root, files), whole, validation, test)


def _cut(name: str, source: str, key: str, text: str, validation: float, test: float) -> Dataset:
    n = len(text)
    if n < LEAST:
        raise SettingsError(f"{source}: {n:,} characters are too few for a language model; wanted {LEAST:,} at least")
    if not test:
        raise SettingsError("config.data.test: 0 leaves nothing to tell the result on; say 0.1")
    end = n - max(1, round(n * test))
    held = max(1, round(end * validation)) if validation else 0
    if end - held < LEAST // 2:
        raise SettingsError(
            f"config.data.validation, config.data.test: {validation:g} and {test:g} leave {end - held:,} of {n:,} "
            "characters to train on; hold out less"
        )
    return _dataset(name, source, key, text[: end - held], text[end - held : end], text[end:])


def _dataset(name: str, source: str, key: str, *parts: str) -> Dataset:
    train, validation, test = (Arrays({"x": codes_of(p)}) for p in parts)
    return Dataset(name, source, key, train, validation, test, info("corpus", None))
