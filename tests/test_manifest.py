"""The manifest on plain files: no arrays, no Orbax."""

import hashlib
import json
import os
import random
from pathlib import Path

import pytest

from umbrella import manifest
from umbrella.manifest import Corrupt, Leaf, NewerFormat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "7"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "top").write_bytes(b"1234")
    (folder / "a" / "b" / "deep").write_bytes(b"")
    manifest.write(folder, 7, {"w": Leaf((2, 3), "float32")}, {"seed": 1}, {"jax": "0"})
    return folder


def forge(folder: Path, **changes: object) -> None:
    """Rewrite the manifest with a right seal, as somebody who means harm would."""
    body = json.loads((folder / manifest.NAME).read_bytes())
    del body["sha256"]
    rest = json.dumps({**body, **changes}, indent=1).split("\n", 1)[1].encode()
    head = f'{{"sha256": "{hashlib.sha256(rest).hexdigest()}",\n'.encode()
    (folder / manifest.NAME).write_bytes(head + rest)


def test_round_trip(folder):
    found = manifest.read(folder)
    assert found.step == 7 and found.meta == {"seed": 1} and found.versions == {"jax": "0"}
    assert found.leaves == {"w": Leaf((2, 3), "float32")}
    assert found.files["top"].size == 4 and found.files["a/b/deep"].sha256 == hashlib.sha256(b"").hexdigest()
    manifest.verify(folder, found)


@pytest.mark.parametrize("text", ["float32[]", "key<fry>[4]", "bfloat16[8,128]", "int4[0,3]"])
def test_leaf_reads_what_it_writes(text):
    assert str(Leaf.parse(text)) == text


@pytest.mark.parametrize("text", ["", "float32", "float32[-1]", "float32[1,]", "os.system('x')[1]", "float32[1]x"])
def test_leaf_refuses(text):
    with pytest.raises(ValueError):
        Leaf.parse(text)


def test_every_mutation_of_a_manifest_is_seen(folder):
    path, rng = folder / manifest.NAME, random.Random(0)
    good = path.read_bytes()
    for bit in range(8 * len(good)):  # every single bit
        mutated = bytearray(good)
        mutated[bit // 8] ^= 1 << bit % 8
        path.write_bytes(mutated)
        with pytest.raises(Corrupt, match="corrupt"):
            manifest.read(folder)
    for _ in range(200):
        cut = sorted(rng.sample(range(len(good)), 2))
        path.write_bytes(good[: cut[0]] + rng.randbytes(rng.randrange(9)) + good[cut[1] :])
        with pytest.raises(Corrupt):
            manifest.read(folder)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../8/top", "a/../../x", "a//b", "./top", "", "..", "a\\..\\b", "C:x", "top\0"]
)
def test_paths_stay_inside(folder, name):
    forge(folder, files={name: {"size": 4, "sha256": "0"}})
    with pytest.raises(Corrupt, match="unsafe path"):
        manifest.read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": {"top": 3}},
        {"leaves": {"w": 3}},
        {"leaves": {"w": "__import__('os')[]"}},
        {"step": "x"},
        {"meta": 3},
        {"format": None},
        {"versions": None},
    ],
)
def test_a_sealed_manifest_with_nonsense_is_corrupt(folder, changes):
    forge(folder, **changes)
    with pytest.raises(Corrupt, match="not a manifest"):
        manifest.read(folder)


def test_newer_format_names_both(folder):
    forge(folder, format=99)
    with pytest.raises(NewerFormat, match="format 99.*up to format 1"):
        manifest.read(folder)


def test_of_another_step(folder):
    with pytest.raises(Corrupt, match="belongs to step 7"):
        manifest.read(folder.rename(folder.with_name("9")))


def test_links_and_pipes_are_not_followed(folder):
    found = manifest.read(folder)
    (folder / "top").unlink()
    os.symlink("/etc/hostname", folder / "top")
    with pytest.raises(Corrupt, match="top: neither"):
        manifest.verify(folder, found)
    (folder / "top").unlink()
    os.mkfifo(folder / "top")
    with pytest.raises(Corrupt, match="top: neither"):
        manifest.verify(folder, found)


def test_survey_goes_by_name(tmp_path, folder):
    for name in ("10", "3.orbax-checkpoint-tmp-17", "4.corrupt", "4.corrupt.2", "007", "-1", "notes", "8.corruptx"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    os.symlink(folder, tmp_path / "12")
    assert manifest.survey(tmp_path) == ([7], ["10", "3.orbax-checkpoint-tmp-17"], ["4.corrupt", "4.corrupt.2"])


def test_set_aside_never_overwrites(tmp_path):
    for expected in ("5.corrupt", "5.corrupt.2", "5.corrupt.3"):
        (tmp_path / "5").mkdir()
        assert manifest.set_aside(tmp_path / "5").name == expected
