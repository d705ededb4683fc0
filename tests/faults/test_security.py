"""F51 to F60: files made to do harm."""

import ast
import html
import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import umbrella as um
from tests.conftest import ROOT, tfds_dir
from tests.faults.kit import config, make, struct_of
from tests.faults.loaders import LOADERS, attack
from tests.test_floors import SOURCES, imports
from tests.test_report import EVIL, every_artifact, every_run, page
from tests.test_report import run as report_of
from umbrella import artifacts, cli, manifest, report
from umbrella.checkpoint import CheckpointError, Checkpoints, Corrupt
from umbrella.data import load
from umbrella.settings import SettingsError


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.fixture
def canary(tmp_path: Path) -> Any:
    """A path that nothing may make."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


# -------------------------------------------------------------------------------------------------------------- pickles
@pytest.mark.parametrize("column", ["x", "extra"])
def test_F51_a_pickled_object_in_an_npz_is_refused_and_does_not_run(tmp_path: Path, canary: Path, column: str) -> None:
    arrays: dict[str, Any] = {"x": np.zeros((2, 1)), "y": np.arange(2)}
    np.savez(tmp_path / "a.npz", **{**arrays, column: np.array([Canary(canary)] * 2, object)})
    canary.unlink(missing_ok=True)
    with pytest.raises(SettingsError, match="pickled"):
        load(name=str(tmp_path / "a.npz"))


@pytest.mark.parametrize("suffix", ["npz", "csv", "png"])
def test_F52_a_pickle_of_another_name(tmp_path: Path, canary: Path, suffix: str) -> None:
    folder = tmp_path / "set" / "a"
    folder.mkdir(parents=True)
    path = folder / f"b.{suffix}"
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(SettingsError):
        load(name=str(path if suffix != "png" else tmp_path / "set"))


def test_F52_a_pickle_in_place_of_an_array_of_a_checkpoint(run: Path, canary: Path) -> None:
    """Even sealed into a manifest that fits: what reads arrays reads arrays, and Orbax refuses in its own words."""
    for path in (run / "3" / "default").rglob("*"):
        if path.is_file():
            path.write_bytes(pickle.dumps(Canary(canary)))
    before = manifest.read(run / "3")
    (run / "3" / manifest.NAME).unlink()
    manifest.write(run / "3", 3, before.leaves, before.meta, before.versions)
    with Checkpoints(run) as checkpoints, pytest.raises((ValueError, OSError, CheckpointError)):
        checkpoints.restore(struct_of(make()), step=3)


def test_F52_no_file_of_ours_reads_a_pickle() -> None:
    """Nor evaluates text: tests/test_floors.py looks through every source for both."""
    for path in SOURCES:
        assert not {n.split(".")[0] for n in imports(path.read_text())} & {"pickle", "dill", "joblib", "shelve"}


# ---------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pipeline", "os.system"),
        ("model.name", "os.system"),
        ("optimizer.name", "subprocess.run"),
        ("techniques", "os.system"),
        ("data.name", "os.system"),
        ("model.activation", "__import__('os').system('true')"),
    ],
)
def test_F53_a_name_in_a_config_is_looked_up_and_never_imported(
    key: str, value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda *a: pytest.fail("called"))
    assert cli.main(["launch.py", f"--config={ROOT}/configs/mlp.py", f"--config.{key}={value}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_F53_a_name_in_the_manifest_of_a_checkpoint(run: Path) -> None:
    """A dtype or a path that names a function is a mismatch, in a manifest sealed as it should be."""
    before = manifest.read(run / "3")
    leaves = {**before.leaves, "os.system": manifest.Leaf((), "os.system")}
    with pytest.raises((Corrupt, ValueError)):
        manifest.write(run / "3", 3, leaves, before.meta, before.versions)
        manifest.read(run / "3")


@pytest.mark.skipif(tfds_dir() is None, reason="no prepared sets: set TFDS_DATA_DIR")
def test_F53_a_class_named_by_a_prepared_set_is_not_imported(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TFDS would import the module of whatever class features.json names."""
    import shutil

    shutil.copytree(tfds_dir() / "titanic", tmp_path / "tfds" / "titanic")  # type: ignore[operator]
    (path,) = (tmp_path / "tfds").rglob("features.json")
    (tmp_path / "evil_module.py").write_text(f"open({str(canary)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = path.read_text()
    assert "tensor_feature.Tensor" in text
    for name in ("evil_module.Feature", "tensorflow_datasets.core.features.evil_module.a.B"):
        path.write_text(text.replace("tensorflow_datasets.core.features.tensor_feature.Tensor", name))
        with pytest.raises(SettingsError, match=f"names '{re.escape(name)}', which is no class of TFDS's own"):
            load(name="titanic", path=str(tmp_path / "tfds"), cache=False)


# ------------------------------------------------------------------------------------------------------------- archives
def test_F54_no_archive_is_ever_unpacked() -> None:
    """There is no slip without unpacking: the one archive that is read, an npz, is read member by member in memory."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        calls = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert not calls & {"extractall", "extract", "unpack_archive"}, path
        assert "tarfile" not in imports(path.read_text()), path


@pytest.mark.parametrize("name", ["../../x.npy", "/x.npy", "..\\..\\x.npy", "a/../../../x.npy", "C:\\x.npy"])
def test_F54_members_of_an_npz_that_point_outside(tmp_path: Path, name: str) -> None:
    member = io.BytesIO()
    np.save(member, np.zeros((4, 2), np.uint8))
    home = tmp_path / "deep" / "deeper"
    home.mkdir(parents=True)
    with zipfile.ZipFile(home / "a.npz", "w") as z:
        z.writestr(name, member.getvalue())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError):
        load(name=str(home / "a.npz"))
    assert sorted(p for p in tmp_path.rglob("*") if "cache" not in p.parts) == before


def npy_header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


def test_F55_a_shape_that_the_file_does_not_hold_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as z:
        z.writestr("x.npy", npy_header((10**9, 10**3)))
    with pytest.raises(SettingsError, match="which is not what it holds"):
        load(name=str(tmp_path / "bomb.npz"))


def test_F55_a_bomb_is_refused_by_what_it_would_unpack_to(tmp_path: Path) -> None:
    """Sizes that a zip may claim: a petabyte. None of it is read."""
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x.npy", npy_header((2**48,)))
    content = bytearray((tmp_path / "bomb.npz").read_bytes())
    size = len(npy_header((2**48,))).to_bytes(4, "little")
    at = content.rindex(size)  # in the central directory
    content[at : at + 4] = (2**32 - 2).to_bytes(4, "little")
    (tmp_path / "bomb.npz").write_bytes(bytes(content))
    with pytest.raises(SettingsError):
        load(name=str(tmp_path / "bomb.npz"))


def test_F55_members_that_overlap(tmp_path: Path) -> None:
    """Two entries of the directory that share the bytes of one member."""
    member = io.BytesIO()
    np.save(member, np.zeros((4, 2), np.float32))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as z:
        z.writestr("x.npy", member.getvalue())
        z.writestr("y.npy", member.getvalue())
    content = (tmp_path / "a.npz").read_bytes()
    second = content.rindex(b"PK\x01\x02")
    first_offset = (0).to_bytes(4, "little")
    patched = content[: second + 42] + first_offset + content[second + 46 :]
    (tmp_path / "a.npz").write_bytes(patched)
    with pytest.raises(SettingsError):
        load(name=str(tmp_path / "a.npz"))


def test_F56_no_yaml_is_read() -> None:
    for path in SOURCES:
        assert not any(n.split(".")[0] in ("yaml", "ruamel") for n in imports(path.read_text())), path


# --------------------------------------------------------------------------------------------------------------- report
def test_F57_markup_in_any_name_or_value_is_text(tmp_path: Path) -> None:
    plain = page(every_run(tmp_path / "plain", "harmless"))
    evil = page(every_run(tmp_path / "evil", EVIL))
    assert [t for t, _ in evil.tags] == [t for t, _ in plain.tags]  # not one tag more
    assert not [k for _, attrs in evil.tags for k in attrs if k.startswith("on")]
    assert (tmp_path / "evil/report.html").read_text().count(html.escape(EVIL, quote=False).split('"')[0]) > 20


def test_F57_formulas_are_defused_in_tables(tmp_path: Path) -> None:
    formula = '=HYPERLINK("evil")'
    report_of(tmp_path, baselines={formula: {"loss": 1.0}}, versions={"+cmd": "@sum"})
    (tmp_path / "config.json").write_text(json.dumps({"name": formula, "lr": -0.5}))
    artifacts.save(tmp_path / "artifacts", "t", artifacts.Table(("=1+1",), (("-2+3",), (-2.5,)), ""))
    cells = [html.unescape(c) for c in re.findall(r"<t[dh][^>]*>([^<]*)", report.write(tmp_path).read_text())]
    assert not [c for c in cells if c[:1] in ("=", "+", "@")]
    assert {"'" + formula, "'=1+1", "'-2+3", "'+cmd", "'@sum", "-0.5", "−2.5"} <= set(cells)


# ---------------------------------------------------------------------------------------------------------------- links
def test_F58_links_are_neither_followed_nor_removed_by_retention(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "file").write_text("of value")
    (run / "0").symlink_to(outside)  # in the place of an old step, which retention would remove
    (run / "5.orbax-checkpoint-tmp").symlink_to(outside)  # and of a leftover
    manifest.write_journal(run, {0, 5})
    (run / "1" / "default" / "link").symlink_to(outside)  # and inside a step that goes
    with Checkpoints(run, keep=1) as checkpoints:
        checkpoints.save(4, make(4), {"position": 4})
    assert manifest.survey(run).steps == [4]
    assert (outside / "deep" / "file").read_text() == "of value"
    assert (run / "0").is_symlink() and (run / "5.orbax-checkpoint-tmp").is_symlink()


def test_F58_a_link_inside_a_step_is_corrupt(run: Path, tmp_path: Path) -> None:
    target = run / "3" / "default" / "_METADATA"
    (tmp_path / "elsewhere").write_bytes(target.read_bytes())
    target.unlink()
    target.symlink_to(tmp_path / "elsewhere")  # the same bytes, which may change at any time
    with pytest.raises(Corrupt, match="neither a file nor a folder"), Checkpoints(run) as checkpoints:
        checkpoints.restore(struct_of(make()), step=3)


def test_F58_artifacts_that_lie_elsewhere_are_named_and_not_read(tmp_path: Path) -> None:
    every_artifact(report_of(tmp_path) / "artifacts")
    (tmp_path / "secret.txt").write_text("top secret")
    folder = tmp_path / "artifacts"
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    entries = json.loads((folder / "index.json").read_text())
    for i, file in enumerate(("../secret.txt", str(tmp_path / "secret.txt"), "link.txt")):
        entries.append({"name": f"out{i}", "kind": "text", "file": file, "caption": ""})
    (folder / "index.json").write_text(json.dumps(entries))
    words = page(tmp_path).text()
    assert words.count("could not be shown") == 3
    assert "top secret" not in words


def test_F59_no_environment_and_no_secret_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token in the environment is in no file of a run, whatever its name."""
    secret = "s3cr3t" * 4
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "SOMETHING_ELSE"):
        monkeypatch.setenv(name, secret)
    um.run(config(train_for="4 steps"), workdir=tmp_path / "w", quiet=True)
    files = [p for p in (tmp_path / "w").rglob("*") if p.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        assert secret.encode() not in content, path
        assert b"WANDB_API_KEY" not in content, path


# ------------------------------------------------------------------------------------------------------------ mutations
@pytest.mark.parametrize("name", LOADERS)
def test_F60_random_mutations_give_typed_errors_only(name: str, tmp_path: Path) -> None:
    """100 here; 1,000 in `make faults`."""
    refused, read = attack(LOADERS[name], tmp_path, 30 if "TFDS" in name else 100)
    assert refused + read in (30, 100)
    if name in ("manifest of a checkpoint", "arrays of a checkpoint"):
        assert read == 0
