"""python -m umbrella.data prepare NAME | list | describe NAME. Exit status 2 and one line when the input is wrong."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterable

import numpy as np

from umbrella.data import bundled, load, prepared
from umbrella.settings import SettingsError, near


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m umbrella.data", description="Data sets: fetch, list, describe.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("prepare", "download a TFDS set"), ("describe", "what a set holds"), ("list", "what is here")):
        command = commands.add_parser(name, help=words)
        if name != "list":
            command.add_argument("name", help="mnist, glue/sst2, digits, table.csv ...")
        command.add_argument("--data_dir", help="where prepared sets lie (default: $TFDS_DATA_DIR)")
        if name == "describe":
            command.add_argument("--target", help="the target column of a .csv")
    args = parser.parse_args(argv)
    try:
        if args.command == "prepare":
            prepare(args.name, args.data_dir)
        elif args.command == "list":
            show(args.data_dir)
        else:
            describe(args.name, args.data_dir, args.target)
    except SettingsError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def prepare(name: str, data_dir: str | None = None) -> None:
    """Downloads a set and prepares it in array_record format; needs TensorFlow and the network.

    Raises:
      SettingsError: TensorFlow is not installed, an unknown set, no network, a checksum that differs.
    """
    if name in bundled.NAMES:
        raise SettingsError(f"{name} comes with scikit-learn: there is nothing to prepare")
    import tensorflow_datasets as tfds

    known = prepared.catalogue()
    plain = name.split("/")[0].split(":")[0]
    if plain not in known:
        raise SettingsError(f"TFDS has no set {plain!r}{near(plain, known) if _close(plain, known) else ''}")
    if importlib.util.find_spec("tensorflow") is None:
        raise SettingsError("preparing a set needs TensorFlow (training does not): pip install -e '.[prepare]'")
    base = prepared.default_dir(data_dir)
    try:
        if (module := known[plain]) is not None:
            importlib.import_module(module)
        builder = tfds.builder(name, data_dir=str(base), file_format="array_record")
        builder.download_and_prepare()
    except Exception as e:  # network, checksum, disk, a manual download: all for the user to put right
        said = " ".join(str(e).split())[:300] or type(e).__name__
        raise SettingsError(f"{name} could not be prepared in {base}: {said}") from None
    print(f"{name} is in {builder.data_dir}")


def show(data_dir: str | None = None) -> None:
    """Prints the names of the sets that can be loaded here without a network."""
    base = prepared.default_dir(data_dir)
    for name in bundled.NAMES:
        print(f"{name:24} scikit-learn")
    for name in prepared.on_disk(base):
        root = prepared.place(name, str(base))
        print(f"{name:24} {root}")
    if not base.is_dir():
        print(f"({base} does not exist: python -m umbrella.data prepare NAME makes it)")


def describe(name: str, data_dir: str | None = None, target: str | None = None) -> None:
    """Prints splits, sizes, columns and fingerprint."""
    data = load(name=name, path=data_dir, target=target)
    print(f"{data.name}: {data.source}\nfingerprint {data.fingerprint}")
    for key, value in data.info.items():
        if value not in (None, ()):
            print(f"  {key:12} {value if len(str(value)) < 80 else str(value)[:77] + '...'}")
    for split, source in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        print(f"{split:12} {len(source)} examples")
        if len(source):
            for column, v in source.__getitems__(np.zeros(1, np.int64)).items():
                print(f"  {column:12} {v.dtype}[{', '.join(str(n) for n in (len(source), *v.shape[1:]))}]")


def _close(word: str, words: Iterable[str]) -> bool:
    return "did you mean" in near(word, words)


if __name__ == "__main__":
    sys.exit(main())
