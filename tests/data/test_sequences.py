"""Running text as batches: every token once, tracks that go on, and batches that are functions of (seed, step)."""

from typing import Any

import jax
import numpy as np
import pytest

from umbrella.data import corpus
from umbrella.data.sequences import Tokens, following, sliding, tracks, windows
from umbrella.settings import SettingsError

TEXT = np.arange(1000, 1103, dtype=np.int32)  # 103 tokens, each different


def fetched(data: Any, seed: int, step: int) -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, data.fetch(data.resident, data.slot(seed, step)))


def test_an_epoch_of_windows_goes_once_through_the_text() -> None:
    """(103 - 10) // 10 = 9 rows of ten targets: nothing twice, y is x one further on, at every cut."""
    data = windows(Tokens(TEXT, 10), 3)
    assert data.size == 9
    epochs = [[fetched(data, 0, step) for step in range(3 * e, 3 * e + 3)] for e in range(3)]
    firsts = set()
    for batches in epochs:
        x, y = (np.concatenate([b[k] for b in batches]) for k in "xy")
        np.testing.assert_array_equal(y, x + 1)
        assert len(np.unique(y)) == 90
        firsts.add(int(x.min()))
    assert firsts <= set(range(1000, 1013)) and len(firsts) > 1  # cut anew in every epoch
    np.testing.assert_array_equal(fetched(data, 1, 5)["x"], fetched(data, 1, 5)["x"])
    assert (fetched(data, 1, 5)["x"] != fetched(data, 2, 5)["x"]).any()


def test_tracks_go_on_where_they_ended() -> None:
    """102 // 4 = 25 tokens a track, two rows of ten targets each."""
    data = tracks(Tokens(TEXT, 10), 4)
    for turn in range(3):
        first, second = fetched(data, 0, 2 * turn), fetched(data, 0, 2 * turn + 1)
        np.testing.assert_array_equal(first["fresh"], 1)
        np.testing.assert_array_equal(second["fresh"], 0)
        np.testing.assert_array_equal(second["x"][:, 0], first["y"][:, -1])
        np.testing.assert_array_equal(np.diff(first["x"][:, 0]), 25)
    with pytest.raises(SettingsError, match="do not make 20 tracks"):
        tracks(Tokens(TEXT, 10), 20)


@pytest.mark.parametrize("n", [1, 9, 10, 37, 40])
@pytest.mark.parametrize("size", [1, 4])
def test_every_token_is_a_target_once(n: int, size: int) -> None:
    before = np.arange(1000 - 30, 1000, dtype=np.int32)
    part = Tokens(TEXT[:n], 10, before)
    for batches in (sliding(part, size, 5), sliding(part, size, 10), sliding(part, size, 3), following(part, size, 10)):
        scored = []
        for b in batches:
            assert b["x"].shape == b["mask"].shape == (size, 10)
            at = b["mask"] > 0
            np.testing.assert_array_equal(b["x"][at] + 1, b["y"][at])
            scored += b["y"][at].tolist()
        assert sorted(scored) == TEXT[:n].tolist(), batches
        assert len(list(batches)) == len(batches)


def test_a_target_has_its_context() -> None:
    """Moved by 5 in rows of 10, every target has 5 tokens or more before it, and in a track all since it began."""
    part = Tokens(TEXT[:40], 10, np.arange(970, 1000, dtype=np.int32))
    for b in sliding(part, 2, 5):
        assert not b["mask"][:, :5].any() and b["mask"][:, 5:].all()
        np.testing.assert_array_equal(np.diff(b["x"], axis=1), 1)
    fresh = [b["fresh"].tolist() for b in following(part, 2, 10)]
    assert fresh == [[1, 1]] + [[0, 0]] * 2
    with pytest.raises(ValueError, match="stand before the split"):
        sliding(Tokens(TEXT, 10), 2, 5)


def test_rows_of_a_split_cover_it() -> None:
    """Without what stands before, the first token is no target: 102 targets in 11 rows of ten, the last two overlap."""
    part = Tokens(TEXT, 10)
    assert len(part) == 11
    assert sorted(set(part.column("y").ravel().tolist())) == TEXT[1:].tolist()
    assert len(Tokens(TEXT[:7], 10, TEXT)) == 1


def test_a_text_is_cut_in_order(tmp_path: Any) -> None:
    text = "".join(chr(97 + i % 26) for i in range(1000)) + "é\N{GRINNING FACE}"
    (tmp_path / "a.txt").write_text(text, "utf-8")
    found = corpus.load(name="mine", path=str(tmp_path / "a.txt"), validation=0.1, test=0.1)
    parts = [corpus.text_of(s.column("x")) for s in (found.train, found.validation, found.test)]
    assert "".join(parts) == text
    assert [len(p) for p in parts] == [812, 90, 100]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (dict(name="x", path="none.txt"), "no such file"),
        (dict(name="x", path="short.txt"), "too few for a language model"),
        (dict(name="x", path="empty"), "no .txt file"),
        (dict(name="x", path="long.txt", test=0), "leaves nothing to tell"),
        (dict(name="x", path="long.txt", test=0.7), "hold out less"),
        (dict(name="x", path="latin.txt"), "is not utf-8"),
    ],
)
def test_refusals(tmp_path: Any, monkeypatch: Any, how: dict[str, Any], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("ab")
    (tmp_path / "long.txt").write_text("ab" * 600)
    (tmp_path / "latin.txt").write_bytes(b"\xe9" * 2000)
    with pytest.raises(SettingsError, match=words):
        corpus.load(**how)
