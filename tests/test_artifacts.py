"""Artifacts on disk: pictures that open as they were, JSON without nan, names that stay where they belong."""

import json

import numpy as np
import pytest
from PIL import Image

from umbrella import artifacts
from umbrella.artifacts import Curves, Images, Matrix, Scatter, Table, Text, save


def index(directory):
    return json.loads((directory / "index.json").read_text())


def test_pictures_are_enlarged_by_whole_numbers_with_transparent_gaps(tmp_path):
    x = np.zeros((3, 8, 8, 1), np.float32)
    x[0, 0, 0], x[1, 7, 7], x[2] = 1.0, 0.5, 2.0  # the last is clipped to 1
    save(tmp_path, "samples", Images(x, columns=2, caption="three", rows=("a", "b")))
    with Image.open(tmp_path / "samples.png") as picture:
        # 8 pixels become 56 (scale 7); two columns and two rows with a gap of 4: 56 + 4 + 56.
        assert picture.size == (116, 116)
        grid = np.asarray(picture)
    assert grid.shape == (116, 116, 2)
    assert (grid[:7, :7, 0] == 255).all() and (grid[:7, 7:56, 0] == 0).all()
    assert (grid[49:56, 109:116, 0] == 128).all()  # round(255 / 2), to even
    assert (grid[60:, :56] == 255).all()
    assert (grid[:, 56:60, 1] == 0).all() and (grid[60:, 60:, 1] == 0).all()  # the gap, and the missing fourth
    assert index(tmp_path) == [
        {"name": "samples", "kind": "images", "file": "samples.png", "caption": "three", "rows": ["a", "b"]}
        | {"columns": 2, "width": 116, "height": 116}
    ]


def test_colour_and_large_pictures_keep_their_pixels(tmp_path):
    x = np.random.default_rng(0).random((1, 60, 70, 3)).astype(np.float32)
    save(tmp_path, "one", Images(x, 4, ""))
    with Image.open(tmp_path / "one.png") as picture:
        grid = np.asarray(picture)
    np.testing.assert_array_equal(grid[..., :3], np.round(255 * x[0]).astype(np.uint8))


def test_pictures_that_are_not_finite_are_counted(tmp_path):
    x = np.zeros((4, 2, 2, 1))
    x[1, 0, 0], x[3, 1, 1] = np.nan, np.inf
    save(tmp_path, "x", Images(x, 4, ""))
    assert index(tmp_path)[0]["not_finite"] == 2


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/abs", "..", ".", "", "a/b", "a\\b", "index", "INDEX", "x\0y", "ä" * 300, "<script>"]
)
def test_no_name_leaves_the_folder(tmp_path, name):
    folder = tmp_path / "run" / "artifacts"
    save(folder, name, Table(("a",), ((1,),), ""))
    save(folder, "other", Text("t", ""))
    entries = index(folder)
    assert [e["name"] for e in entries] == [name, "other"]
    assert {p.name for p in folder.iterdir()} == {"index.json"} | {e["file"] for e in entries}
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.parent != folder] == []


def test_two_names_never_share_a_file(tmp_path):
    for name in ("a b", "a_b", "a/b"):
        save(tmp_path, name, Text(name, ""))
    assert sorted((tmp_path / e["file"]).read_text() for e in index(tmp_path)) == ["a b", "a/b", "a_b"]


def test_a_name_is_replaced_in_its_place_and_leaves_no_old_file(tmp_path):
    save(tmp_path, "x", Text("old", ""))
    save(tmp_path, "y", Text("y", ""))
    save(tmp_path, "x", Table(("c",), ((2,),), "new"))
    assert [(e["name"], e["kind"], e["caption"]) for e in index(tmp_path)] == [("x", "table", "new"), ("y", "text", "")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.json", "x.json", "y.txt"]


def test_json_holds_finite_numbers_or_null(tmp_path):
    def strict(name):
        def refuse(constant):
            raise AssertionError(f"{constant} in {name}")

        return json.loads((tmp_path / f"{name}.json").read_text(), parse_constant=refuse)

    bad = np.array([np.nan, np.inf, -np.inf, 0.1], np.float32)
    save(tmp_path, "scatter", Scatter(bad.reshape(2, 2), np.array([0, 1]), "", ("a", "b")))
    save(tmp_path, "matrix", Matrix(bad.reshape(2, 2), ("r", "s"), ("c", "d"), ""))
    save(tmp_path, "curves", Curves({"a": (np.arange(4), bad)}, "x", "y", ""))
    save(tmp_path, "table", Table(("a", "b"), ((float("nan"), "text"), (np.float64("inf"), np.int32(3))), ""))
    assert strict("scatter")["points"] == [[None, None], [None, 0.1]]
    assert strict("matrix")["values"] == [[None, None], [None, 0.1]]
    assert strict("curves")["series"] == {"a": [[0, 1, 2, 3], [None, None, None, 0.1]]}
    assert strict("table")["rows"] == [[None, "text"], [None, 3]]


@pytest.mark.parametrize(
    "value",
    [
        Images(np.zeros((2, 8, 8)), 1, ""),
        Images(np.zeros((0, 8, 8, 1)), 1, ""),
        Images(np.zeros((2, 8, 8, 2)), 1, ""),
        Images(np.zeros((2, 8, 8, 1)), 0, ""),
        Images(np.zeros((2, 8, 8, 1)), 1, "", rows=("one",)),
        Scatter(np.zeros((3, 3)), np.zeros(3), ""),
        Scatter(np.zeros((3, 2)), np.zeros(2), ""),
        Matrix(np.zeros((2, 2)), ("a",), ("b", "c"), ""),
        Curves({"a": (np.zeros(3), np.zeros(2))}, "", "", ""),
        Table(("a", "b"), ((1,),), ""),
    ],
)
def test_shapes_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, value):
    with pytest.raises(ValueError):
        save(tmp_path / "new", "x", value)
    assert not (tmp_path / "new").exists()


def test_what_is_no_artifact_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match="'x' is a ndarray"):
        save(tmp_path, "x", np.zeros(3))


def test_a_broken_index_is_started_anew(tmp_path):
    (tmp_path / "index.json").write_text('[{"name": "x"')
    save(tmp_path, "y", Text("t", ""))
    assert [e["name"] for e in artifacts.read_index(tmp_path)] == ["y"]
