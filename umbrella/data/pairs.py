"""Pairs of a text and its translation: from tables, or numbers in English and French words, made by rule. Floor 4."""

import hashlib
import pathlib
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from umbrella.data.files import fingerprint
from umbrella.data.numbers import english, french
from umbrella.data.sources import LIMIT, Arrays, Dataset, Source, info
from umbrella.data.splits import TEST
from umbrella.data.texts import read_text
from umbrella.settings import Count, Fraction, Natural, SettingsError

SPLITS = ("train", "validation", "test")
NAMED = {
    "train": ("train",),
    "validation": ("val", "dev"),
    "test": ("test",),
}  # what a file of a folder begins or holds
MOST = 1_000_000  # numbers below this one have words


class Pairs(NamedTuple):
    """Side by side, as they were read."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]


def load(
    *,
    name: Literal["numbers", "pairs"],
    path: str | None = None,
    held_out: Count | None = None,
    validation: Fraction = 0.1,
    split_seed: Natural = 0,
    rows: Count = 6000,
    encoding: str = "utf-8",
) -> Dataset:
    """Pairs of texts as bytes, "x" the source and "y" the target; no source of test or validation is in train.

    All pairs of one source are in one split, since most of a sentence's translations are alike.

    Args:
      name: "numbers", the words of numbers below a million, English to French, made by rule: real words, and a task
        that can be learnt without a file; "pairs" for those of `path`.
      path: a file of lines `source<TAB>target`, whatever follows after another tab; or a folder of three .tsv files,
        one with "train", one with "val" or "dev", one with "test" in its name, whose split is used as it is, but for
        pairs of train whose source is in another.
      held_out: distinct sources of test, drawn from all; a fifth of them when None. Not for a folder.
      validation: the share of the remaining sources that is held out for validation. Not for a folder.
      split_seed: draws those for validation. Test depends on nothing but the set.
      rows: numbers, of all splits.
      encoding: of the files.

    Raises:
      SettingsError: a file that is not there, not of this encoding or with a line that is no pair, by its number; too
        few sources to hold out so many; a setting that the set does not take.
    """
    if (name == "pairs") != (path is not None):
        told = "whose? Give path" if name == "pairs" else f"are made by rule, not read from {path}; say name='pairs'"
        raise SettingsError(f"name={name!r}: {told}")
    if path is not None and pathlib.Path(path).expanduser().is_dir():
        if held_out is not None:
            raise SettingsError(f"held_out={held_out}: a folder has its own test split; leave it out")
        return _folder(pathlib.Path(path).expanduser(), path, encoding)
    if path is None:
        found, source = _numbers(rows), f"{rows:,} numbers below {MOST:,} in English and French words, made by rule"
        key = hashlib.blake2b(repr((rows, found)).encode(), digest_size=16).hexdigest()
    else:
        place = pathlib.Path(path).expanduser()
        if not place.is_file():
            raise SettingsError(f"{place}: no such file or folder")
        found, source, key = read(place, encoding), f"pairs of {path}", fingerprint(place.parent, [place])
    parts = _parts(found, held_out, validation, split_seed, source)
    return _dataset(path or name, source, key, parts)


def read(path: pathlib.Path, encoding: str = "utf-8") -> Pairs:
    """The pairs of a file of lines `source<TAB>target[<TAB>more]`; a pair that is there twice counts once.

    Raises:
      SettingsError: the file cannot be read, or the line that has no tab, no source or no target.
    """
    found = []
    for number, line in enumerate(read_text(path, encoding).split("\n"), 1):
        if not line.strip():
            continue
        source, *rest = (part.strip() for part in line.split("\t"))
        if not (source and rest and rest[0]):
            raise SettingsError(f"{path}: line {number}: wanted source<TAB>target, found {line.strip()[:40]!r}")
        found.append((source, rest[0]))
    if not found:
        raise SettingsError(f"{path}: no pair in it; wanted lines source<TAB>target")
    return _pairs(dict.fromkeys(found))


def texts(source: Source) -> Pairs:
    """The pairs of a split."""
    made = ([bytes(v).decode() for v in source.column(c)] for c in ("x", "y"))
    return Pairs(*map(tuple, made))


def by_source(pairs: Pairs) -> dict[str, list[str]]:
    """Every source once, with all its translations, in the order in which they come."""
    out: dict[str, list[str]] = {}
    for source, target in zip(*pairs, strict=True):
        out.setdefault(source, []).append(target)
    return out


# -------------------------------------------------------------------------------------------------------------- helpers
def _pairs(found: Iterable[tuple[str, str]]) -> Pairs:
    sources, targets = zip(*found, strict=True)
    return Pairs(sources, targets)


def _numbers(rows: int) -> Pairs:
    """Numbers of every length alike: half are below 10,000, or nearly all would begin with hundreds of thousands."""
    if rows > MOST // 2:
        raise SettingsError(f"rows={rows:,}: there are numbers for {MOST // 2:,}")
    rng = np.random.default_rng([0, 8])
    small = rng.permutation(10_000)[: rows // 2]
    large = 10_000 + rng.permutation(MOST - 10_000)[: rows - len(small)]
    return _pairs((english(n), french(n)) for n in np.concatenate([small, large]).tolist())


def _parts(found: Pairs, held_out: int | None, validation: float, split_seed: int, source: str) -> dict[str, Pairs]:
    """By distinct source."""
    of = by_source(found)
    keys = list(of)
    n_test = round(TEST * len(keys)) if held_out is None else held_out
    n_validation = max(1, round((len(keys) - n_test) * validation)) if validation else 0
    if n_test < 1 or len(keys) - n_test - n_validation < 1:
        raise SettingsError(
            f"{source}: {len(keys):,} distinct sources are too few to hold out {n_test:,} for test"
            + (f" and {n_validation:,} for validation" if n_validation else "")
        )
    order = np.random.default_rng([0, 1]).permutation(len(keys)).tolist()
    test, rest = order[:n_test], order[n_test:]
    rest = [rest[i] for i in np.random.default_rng([split_seed, 2]).permutation(len(rest)).tolist()]
    chosen = {"train": rest[n_validation:], "validation": rest[:n_validation], "test": test}
    return {s: _of([(keys[i], t) for i in sorted(rows) for t in of[keys[i]]]) for s, rows in chosen.items()}


def _of(found: list[tuple[str, str]]) -> Pairs:
    return _pairs(found) if found else Pairs((), ())


def _folder(root: pathlib.Path, name: str, encoding: str) -> Dataset:
    files = sorted(p for p in root.iterdir() if p.suffix == ".tsv" and not p.name.startswith("."))
    parts, places = {}, []
    for split, words in NAMED.items():
        fit = [p for p in files if any(word in p.stem.lower() for word in words)]
        if len(fit) != 1:
            told = ", ".join(p.name for p in fit) or "none"
            raise SettingsError(
                f"{root}: wanted one .tsv file with {' or '.join(map(repr, words))} in its name, found {told}"
            )
        places += fit
        parts[split] = read(fit[0], encoding)
    if len(set(places)) < len(SPLITS):
        raise SettingsError(f"{root}: one .tsv file would be two splits, by its name; call it after one of them")
    seen = {*parts["validation"].sources, *parts["test"].sources}
    kept = [p for p in zip(*parts["train"], strict=True) if p[0] not in seen]
    if not kept:
        raise SettingsError(f"{root}: every source of train is in validation or test, too")
    source = f"pairs in {name}"
    if lost := len(parts["train"].sources) - len(kept):
        source += f", without {lost:,} of train whose source is held out"
    return _dataset(name, source, fingerprint(root, places), {**parts, "train": _of(kept)})


def _dataset(name: str, source: str, key: str, parts: dict[str, Pairs]) -> Dataset:
    made = {}
    for split, pairs in parts.items():
        columns = {
            c: np.array([t.encode() for t in side] or [b""][:0], np.bytes_) for c, side in zip("xy", pairs, strict=True)
        }
        if sum(v.nbytes for v in columns.values()) > LIMIT:
            raise SettingsError(f"{source}: padded to its longest text it is more than is kept in memory; split it")
        made[split] = Arrays(columns)
    return Dataset(name, source, key, made["train"], made["validation"], made["test"], info("text", None))
