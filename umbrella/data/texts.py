"""Labelled texts: a table of label and text, files of one class each, and sentences that come with Python packages.
Floor 4."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import pathlib
import re

import numpy as np

from umbrella.data import cache as caching
from umbrella.data.files import fingerprint
from umbrella.data.sources import LIMIT, Arrays, Found, Source, info
from umbrella.settings import SettingsError

PACKAGES = {"numpy": "numpy", "scipy": "scipy", "scikit-learn": "sklearn"}  # distribution -> package
NAMES = ("docstrings", *(f"docstrings/{name}" for name in PACKAGES))
OTHERS = "others"
TABLES = (".tsv", ".tab")
LONGEST = 400  # characters of a docstring's sentence


def is_text_folder(root: pathlib.Path) -> bool:
    """Whether it is a folder of at least two files of text, and of nothing else."""
    files = _files(root)
    prepared = any(p.suffix == ".json" for p in files)  # a folder of TensorFlow Datasets
    return len(files) > 1 and not prepared and not any(p.is_dir() for p in root.iterdir() if p.name[0] != ".")


def read_table(path: pathlib.Path, *, encoding: str) -> Found:
    """A file of lines `label<TAB>text`, without a header; quotes are as they are. Classes in alphabetical order.

    A line that is there twice counts once: a copy in another split would be known there.

    Raises:
      SettingsError: names the file and the line that has no tab, no label or no text, or the first if its label is its
        own, as that of a header; a single class; not the encoding.
    """
    labels, texts = [], []
    for number, line in enumerate(_lines(path, encoding), 1):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not (tab and label.strip() and text.strip()):
            raise SettingsError(f"{path}: line {number}: wanted label<TAB>text, found {line.strip()[:40]!r}")
        labels.append(label.strip())
        texts.append(text.strip())
    if len(labels) > 2 and labels.count(labels[0]) == 1:
        raise SettingsError(f"{path}: line 1: no other text has the label {labels[0]!r}; a header? Remove it")
    return _found(f"texts {path}", fingerprint(path.parent, [path]), texts, labels, str(path))


def read_folder(root: pathlib.Path, *, encoding: str) -> Found:
    """A folder of files of one class each, a text a line: spam.txt and ham.txt, or reviews.pos and reviews.neg.

    The class is what differs: the ending where all files are called the same, else the name without it. Classes in
    alphabetical order.

    Raises:
      SettingsError: two files of one class; a file without a text; not the encoding.
    """
    files = _files(root)
    same = len({p.stem for p in files}) == 1
    names = [p.suffix.lstrip(".") if same else p.stem for p in files]
    if len(set(names)) < len(names):
        raise SettingsError(f"{root}: two files for one class among {', '.join(p.name for p in files)}; rename one")
    labels, texts = [], []
    for path, name in zip(files, names, strict=True):
        found = [line.strip() for line in _lines(path, encoding) if line.strip()]
        if not found:
            raise SettingsError(f"{path}: no text in it; wanted one a line")
        texts += found
        labels += [name] * len(found)
    return _found(f"texts in {root}", fingerprint(root, files), texts, labels, str(root))


def docstrings(*, cache: bool, against: str | None = None) -> Found:
    """What a function or class of NumPy, SciPy and scikit-learn says of itself in its first paragraph; which of the
    three it is of is the class. Real sentences without a network; they change with the versions installed.

    Without the packages' tests, and every sentence once: of four words and more.

    Args:
      against: one of PACKAGES, whose class is then told from that of all others together.
    """
    versions = [f"{name}-{importlib.metadata.version(name)}" for name in PACKAGES]

    def make() -> caching.Made:
        texts, labels, seen = [], [], set()
        for name, package in PACKAGES.items():
            for said in _said_by(package):
                if said[:LONGEST] not in seen and len(said.split()) >= 4:
                    seen.add(said[:LONGEST])
                    texts.append(said[:LONGEST])
                    labels.append(name)
        found = _found("docstrings", "", texts, labels, "docstrings")
        train = found.splits["train"]
        return {"train": {k: train.column(k) for k in ("x", "y")}}, found.info

    splits, about = caching.keep("docstrings-" + "-".join(versions), make, disk=cache)
    digest = hashlib.blake2b(splits["train"].column("x").tobytes(), digest_size=16).hexdigest()
    found = Found(f"docstrings of {', '.join(versions)}", digest, dict(splits), about)
    return found if against is None else _against(found, against)


def read_text(path: pathlib.Path, encoding: str) -> str:
    """A whole file, without the mark that some begin with.

    Raises:
      SettingsError: it cannot be read, is not in that encoding or is no text; no such encoding.
    """
    try:
        content = path.read_bytes()
        wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))
        if b"\0" in content and not wide:
            utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
            hint = "it begins as encoding='utf-16' does" if utf16 else "this is no text"
            raise SettingsError(f"{path}: byte {content.index(0):,} is zero; {hint}")
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise SettingsError(
            f"encoding={encoding!r}: no such encoding; utf-8, latin-1 and windows-1252 are some"
        ) from None
    except UnicodeDecodeError as e:
        raise SettingsError(
            f"{path}: byte {e.start:,} is not {encoding} text; name what it is, such as encoding='windows-1252'"
        ) from None
    except OSError as e:
        raise SettingsError(f"{path}: cannot be read ({e.strerror})") from None


# -------------------------------------------------------------------------------------------------------------- helpers
def _against(found: Found, name: str) -> Found:
    """One class against all others."""
    names = (OTHERS, name)  # not in the order of the alphabet: the class 1 is the one that is looked for
    train = found.splits["train"]
    y = (train.column("y") == found.info["class_names"].index(name)).astype(np.int32)
    splits: dict[str, Source] = {"train": Arrays({"x": train.column("x"), "y": y})}
    about = {**found.info, "classes": 2, "class_names": names}
    return found._replace(fingerprint=f"{found.fingerprint}-{name}", splits=splits, info=about)


def _said_by(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    out = []
    for root in map(pathlib.Path, spec.submodule_search_locations):
        for path in sorted(root.rglob("*.py")):
            if "tests" in path.relative_to(root).parts or path.name.startswith("test_"):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (told := ast.get_docstring(node)):
                    out.append(" ".join(re.split(r"\n\s*\n", told)[0].split()))
    return out


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in root.iterdir() if p.is_file() and not p.name.startswith("."))


def _lines(path: pathlib.Path, encoding: str) -> list[str]:
    return read_text(path, encoding).split("\n")


def _found(source: str, key: str, texts: list[str], labels: list[str], where: str) -> Found:
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        found = f"all texts are of the class {names[0]!r}" if names else "no text in it"
        raise SettingsError(f"{where}: {found}; wanted two classes or more")
    once = list(dict.fromkeys(zip(texts, labels, strict=True)))
    number = {name: i for i, name in enumerate(names)}
    y = np.array([number[label] for _, label in once], np.int32)
    written = [text.encode() for text, _ in once]
    longest = max(map(len, written))
    if longest * len(written) > LIMIT:
        raise SettingsError(
            f"{where}: its longest text has {longest:,} bytes, and {len(written):,} of that length are more than is "
            "kept in memory; split it"
        )
    x = np.array(written)
    if (copies := len(texts) - len(once)) > 0:
        source += f", without {copies:,} copies"
    return Found(
        source, key, {"train": Arrays({"x": x, "y": y})}, info("text", None, classes=len(names), class_names=names)
    )
