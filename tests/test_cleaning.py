"""Which row of which file a row of a split is, and what --mode=clean writes of it."""

import csv
import json
import os
import resource
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from tests.conftest import ROOT
from umbrella import cleaning, cli
from umbrella.data import Dataset, load
from umbrella.data.origins import origins
from umbrella.settings import SettingsError

SPLITS = ("train", "validation", "test")
VAE = f"--config={ROOT}/configs/vae.py"


def whole(dataset: Dataset) -> dict[str, np.ndarray]:
    parts = {k: getattr(dataset, k) for k in SPLITS}
    return {k: v.__getitems__(np.arange(len(v)))["x"] for k, v in parts.items()}


def of(**data: Any) -> tuple[Dataset, Any]:
    dataset = load(**data)
    return dataset, origins({k: len(getattr(dataset, k)) for k in SPLITS}, **data)


# -------------------------------------------------------------------------------------------------------------- origins
def messy(path: Path, n: int = 60) -> dict[int, list[str]]:
    """A file with a byte-order mark, CRLF, blank lines and quotes; the fields that a spreadsheet has in each row."""
    rng = np.random.default_rng(0)
    lines, told = ['a,"b",y'], {}
    for i in range(n):
        if i % 7 == 3:
            lines += [""] * (i % 3)
        a, b, y = f"{i}.{rng.integers(10)}", f" {rng.normal():.3e}", f"kind, {i % 3}"
        lines.append(f'"{a}",{b},"{y}"')
        told[len(lines)] = [a, b, y]
    path.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n\r\n").encode())
    return told


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize(("validation", "split_seed"), [(0.1, 0), (0.25, 3), (0.0, 1)])
def test_a_row_of_a_split_is_the_row_of_the_file(
    classes: bool, validation: float, split_seed: int, tmp_path: Path
) -> None:
    """Every row of the file once, at the number that a spreadsheet gives it; stratified or not."""
    told = messy(tmp_path / "t.csv")
    if not classes:
        text = (tmp_path / "t.csv").read_text("utf-8")
        (tmp_path / "t.csv").write_text(text.replace('"kind, ', '"'), "utf-8", newline="")
    data = dict(name=str(tmp_path / "t.csv"), labelled=classes, validation=validation, split_seed=split_seed)
    dataset, found = of(**data)
    assert (dataset.info["classes"] is not None) is classes and found.kind == "csv" and found.path is not None
    for split, x in whole(dataset).items():
        assert len(x) == len(found.rows[split])
        for row, number in zip(x, found.rows[split], strict=True):
            wanted = told[number][:2] + ([] if classes else [told[number][2].removeprefix("kind, ")])
            assert row.tolist() == [np.float32(float(v)) for v in wanted]
    assert sorted(np.concatenate([found.rows[k] for k in SPLITS])) == sorted(told)
    assert len(dataset.validation) == round(0.8 * 60 * validation)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of 15 images, of noise, so that no two are alike."""
    root, rng = tmp_path / "pictures", np.random.default_rng(0)
    for name in ("apple", "pear"):
        (root / name).mkdir(parents=True)
        for i in range(15):
            Image.fromarray(rng.integers(0, 256, (5, 4), np.uint8)).save(root / name / f"{i * 7 % 15:02}.png")
    return root


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("official", [(), ("train", "test"), ("train", "val"), ("train", "validation", "test")])
def test_an_image_of_a_split_is_the_image_of_the_file(
    official: tuple[str, ...], in_memory: bool, pictures: Path, tmp_path: Path
) -> None:
    root = tmp_path / "split" if official else pictures
    for k, part in enumerate(official):
        for path in sorted(pictures.glob("*/*.png"))[k :: len(official)]:
            (root / part / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / part / path.parent.name)
    data = dict(name="digits", path=str(root), validation=0.25, split_seed=2, in_memory=in_memory, cache=False)
    dataset, found = of(**data)
    assert found.kind == "image"
    for split, x in whole(dataset).items():
        for image, file in zip(x, found.files[split], strict=True):
            np.testing.assert_array_equal(image[..., 0], np.asarray(Image.open(file)))
            parts = Path(file).relative_to(root).parts
            assert len(parts) == (3 if official else 2)
            official_one = split if split in official else {"validation": "val"}.get(split)
            assert not official or parts[0] == (official_one if official_one in official else "train")
    assert len({f for files in found.files.values() for f in files}) == 30


@pytest.mark.parametrize("more", [{"rows": 20}, {"per_class": 3}])
def test_a_part_of_train_has_rows_of_no_split(more: dict[str, int], tmp_path: Path) -> None:
    messy(tmp_path / "t.csv")
    with pytest.raises(SettingsError, match="leave rows and per_class out"):
        of(name=str(tmp_path / "t.csv"), **more)


def test_a_set_that_comes_with_scikit_learn_is_no_folder_of_its_name(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures.rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    dataset, found = of(name="digits", path=None)
    assert (found.kind, found.files) == ("row", {})
    assert {k: v.tolist() for k, v in found.rows.items()} == {k: list(range(len(getattr(dataset, k)))) for k in SPLITS}


# ---------------------------------------------------------------------------------------------------------------- clean
def first(rows: Mapping[str, Any]) -> np.ndarray:
    """A score: the first feature."""
    assert set(rows) == {"x"}
    return np.asarray(rows["x"])[:, 0]


def numbers(path: Path, n: int = 125, **more: str) -> dict[str, Any]:
    """The settings of a table of n rows whose first feature is a permutation of 0 to n - 1."""
    order = np.random.default_rng(5).permutation(n)
    path.write_text("a,b\n" + "".join(f"{i},{i % 5}.50\n" for i in order))
    return dict(name=str(path), labelled=False, validation=0.2)


def made(folder: Path, data: dict[str, Any], score: Callable[..., Any] = first, **kw: Any) -> Any:
    told = cleaning.clean(folder, load(**data), score, ("x",), **{"rate": 0.1, "batch_size": 7, **kw}, where=data)
    return told, *(read(path) for path in told.files)


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.reader(f, strict=True))


def test_every_row_is_kept_or_flagged_once(tmp_path: Path) -> None:
    data = numbers(tmp_path / "t.csv")
    told, kept, flagged = made(tmp_path / "out", data)
    assert kept[0] == flagged[0] == ["a", "b", "score", "split"]
    rows = read(tmp_path / "t.csv")[1:]
    strange = {r[0] for r in flagged[1:]}
    assert [r[:2] for r in kept[1:]] == [r for r in rows if r[0] not in strange]  # in the order of the file
    assert sorted(r[:2] for r in flagged[1:] + kept[1:]) == sorted(rows)
    values = [float(r[2]) for r in flagged[1:]]
    assert values == sorted(values, reverse=True) and min(values) > max(float(r[2]) for r in kept[1:])
    assert all(float(r[0]) == float(r[2]) for r in flagged[1:] + kept[1:])
    parts = whole(load(**data))
    assert all(float(r[0]) in parts[r[3]][:, 0] for r in flagged[1:] + kept[1:])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["flagged.csv", "kept.csv"]


@pytest.mark.parametrize(("rate", "count"), [(0.1, 2), (0.11, 3), (0.01, 1), (0.5, 10), (0.55, 11), (0.96, 20)])
def test_the_threshold_flags_at_least_the_rate_of_validation(rate: float, count: int, tmp_path: Path) -> None:
    """125 rows give 25 to test and a fifth of 100 to validation: 20 rows without a tie, of which ceil(20 rate)."""
    data = numbers(tmp_path / "t.csv")
    told, kept, flagged = made(tmp_path, data, rate=rate)
    scores = {k: x[:, 0] for k, x in whole(load(**data)).items()}
    threshold = np.sort(scores["validation"])[-count]
    assert sum(r[3] == "validation" for r in flagged) == count
    assert {float(r[0]) for r in flagged[1:]} == {v for x in scores.values() for v in x if v >= threshold}
    table = {row[0]: row[1:] for row in told.table.rows}
    assert table["validation"][:3] == (20, count, f"{count / 20:.4f}")
    k = int((scores["test"] >= threshold).sum())
    assert table["test"][:3] == (25, k, f"{k / 25:.4f}")
    assert table["train"][3:] == (f"{np.median(scores['train']):.5g}", f"{scores['train'].max():.5g}")
    # Clopper and Pearson 1934: the ends are quantiles of beta distributions.
    low = stats.beta.ppf(0.025, k, 26 - k) if k else 0.0
    high = stats.beta.ppf(0.975, k + 1, 25 - k) if k < 25 else 1.0
    assert f"95 % interval {low:.2%} to {high:.2%}" in told.words and f"{threshold:.6g} or more" in told.words


@pytest.mark.parametrize("split", SPLITS)
def test_a_score_that_is_no_number_is_flagged_and_moves_nothing_else(split: str, tmp_path: Path) -> None:
    data = numbers(tmp_path / "t.csv")
    bad = whole(load(**data))[split][:, 0].min()

    def score(rows: Mapping[str, Any]) -> np.ndarray:
        return np.where(rows["x"][:, 0] == bad, np.nan, rows["x"][:, 0])

    told, kept, flagged = made(tmp_path, data, score)
    assert flagged[1][0] == f"{bad:g}" and flagged[1][2:] == ["nan", split]
    assert sum(r[3] == "validation" for r in flagged) == 2  # of 20, with and without it
    assert len(kept) + len(flagged) == 127


def test_fields_are_written_as_they_stand(tmp_path: Path) -> None:
    """Quotes, commas, line ends within a field, blanks around a number, letters that are no ASCII."""
    kinds = ['pl"um', "a,b", "x\ny", "r\rs", " é ", "x\r\ny"]
    rows = [[f" {i}.250", f"+{i}e-3", kinds[i % 6]] for i in range(60)]
    text = "\ufeff a ,b,y\r\n" + "".join(f'{a},"{b}","{y}"\r\n'.replace('pl"um', 'pl""um') for a, b, y in rows)
    (tmp_path / "t.csv").write_bytes(text.encode())
    _, kept, flagged = made(tmp_path, dict(name=str(tmp_path / "t.csv")))
    assert kept[0] == flagged[0] == [" a ", "b", "y", "score", "split"]
    assert sorted(r[:3] for r in kept[1:] + flagged[1:]) == sorted(rows)


def test_columns_that_the_file_has_already_stay(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("score, split,a\n" + "".join(f"{i},1,2\n" for i in range(40)))
    _, kept, _ = made(tmp_path, dict(name=str(path), labelled=False))
    assert kept[0] == ["score", " split", "a", "score_", "split_"]
    kept_only = path.with_name("again.csv")
    kept_only.write_text("\n".join(",".join(r[:-1]) for r in kept) + "\n")
    assert load(name=str(kept_only), labelled=False).info["features"] == ("score", "split", "a", "score_")


def test_images_are_told_by_their_files(pictures: Path, tmp_path: Path) -> None:
    """The bytes of a name that are no UTF-8 are written as they are."""
    odd = os.fsdecode(bytes(pictures) + b"/pear/\xe9.png")
    os.rename(pictures / "pear" / "03.png", odd)
    data = dict(name=str(pictures), cache=False)
    told = cleaning.clean(
        tmp_path, load(**data), lambda rows: rows["x"].mean((1, 2, 3)), ("x",), rate=0.1, where=data, batch_size=4
    )
    found = []
    for path in told.files:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as f:
            header, *rows = csv.reader(f, strict=True)
        assert header == ["file", "score", "split"]
        for file, score, _ in rows:
            assert float(score) == pytest.approx(np.asarray(Image.open(file)).mean(), rel=1e-6)
        found.append([r[0] for r in rows])
    assert found[0] == sorted(found[0]) and odd in found[0] + found[1]
    assert sorted(found[0] + found[1]) == sorted(str(p) for p in pictures.glob("*/*.png"))


def test_rows_of_other_sets_are_those_of_their_splits(tmp_path: Path) -> None:
    iris = load(name="iris")
    told, kept, flagged = made(tmp_path, dict(name="iris"))
    assert kept[0] == ["split", "row", "score"]
    for split, row, score in kept[1:] + flagged[1:]:
        assert float(score) == pytest.approx(float(getattr(iris, split).column("x")[int(row), 0]))
    assert len(kept) + len(flagged) == 152


@pytest.mark.parametrize(
    ("rate", "more", "words"),
    [
        (0.0, {}, "config.clean.rate: 0 of the rows"),
        (1.0, {}, "config.clean.rate: 1 of the rows"),
        (0.1, {"validation": 0.0}, "no validation rows to choose a threshold by; set config.data.validation and"),
        (0.1, {"rows": 20}, "leave rows and per_class out"),
    ],
)
def test_what_clean_refuses(rate: float, more: dict[str, Any], words: str, tmp_path: Path) -> None:
    data = {**numbers(tmp_path / "t.csv"), **more}
    with pytest.raises(SettingsError, match=words):
        made(tmp_path / "out", data, rate=rate)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------- faults of the disk
@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("before", [False, True])
def test_both_files_or_none(failing: int, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that fails, the first or the second; with the files of an earlier pass there or not."""
    data, out = numbers(tmp_path / "t.csv"), tmp_path / "out"
    if before:
        made(out, data)
    real, calls = os.replace, []

    def replace(*args: Any) -> None:
        calls.append(args)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(SettingsError, match="out: cannot be written: No space left on device"):
        made(out, data, rate=0.3)
    left = sorted(p.name for p in out.iterdir()) if out.exists() else None
    assert left == (["flagged.csv", "kept.csv"] if before and failing == 1 else None)
    monkeypatch.undo()
    assert len(made(out, data)[1]) > 1


def test_a_full_disk_leaves_the_files_of_before(tmp_path: Path) -> None:
    """No file of more than 600 bytes: that of the kept rows does not fit."""
    data, out = numbers(tmp_path / "t.csv"), tmp_path / "out"
    told = made(out, data)[0]
    was = [path.read_bytes() for path in told.files]
    dataset, limits = load(**data), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(SettingsError, match="cannot be written: File too large"):
            cleaning.clean(out, dataset, first, ("x",), rate=0.3, where=data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_bytes() for path in told.files] == was
    assert sorted(p.name for p in out.iterdir()) == ["flagged.csv", "kept.csv"]


# ------------------------------------------------------------------------------------------------------ from end to end
PLANTED = {9: (0.0, 5.0, 40.0), 150: (9.0, -5.0, -3.0), 301: (-3.0, 8.0, -3.0)}  # the last is odd by correlation alone
SMALL = (
    "--config.likelihood=gaussian",
    "--config.model={'name': 'vae', 'latent': 2, 'hidden': (16,)}",
    "--config.importance_weighted.samples=2",
    "--config.eval_every=never",
    "--config.checkpoint_every=never",
    "--config.baselines=False",
    "--config.ema=0",
)


def table(path: Path) -> None:
    """400 rows of correlated Gaussians, three of them planted."""
    rng = np.random.default_rng(0)
    cov = [[1, 0.9, 0.5], [0.9, 1, 0.3], [0.5, 0.3, 1]]
    x = rng.multivariate_normal([0, 5, -3], cov, 400)
    for i, row in PLANTED.items():
        x[i] = row
    path.write_text("a,b,c\n" + "".join(",".join(f"{v:.4f}" for v in row) + "\n" for row in x))


def launch(capsys: Any, *argv: str) -> tuple[int, str, str]:
    status = cli.main(["launch.py", *argv])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with t.csv and the run w that was trained on it; read only."""
    folder = tmp_path_factory.mktemp("trained")
    table(folder / "t.csv")
    assert cli.main(["launch.py", *args(folder), "--config.train_for=500 steps"]) == 0
    return folder


def args(folder: Path) -> tuple[str, ...]:
    data = (f"--config.data.path={folder}/t.csv", "--config.data.labelled=False")
    return (VAE, *data, *SMALL, f"--workdir={folder}/w")


@pytest.fixture
def again(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, to clean and to break; the table stays where it is."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "w", tmp_path / "w")
    return tmp_path


def cleaned(capsys: Any, trained: Path, folder: Path, *more: str) -> tuple[int, str, str]:
    own = (*args(trained)[:-1], f"--workdir={folder}/w", "--mode=clean")
    return launch(capsys, *own, "--config.train_for=500 steps", *more)


def test_planted_rows_are_flagged(trained: Path, again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And another score or rate needs no other training; the report has the table, and the first results."""
    summary = json.loads((again / "w" / "summary.json").read_text())
    assert summary["data"]["overlap"] == {"validation": 0, "test": 0}
    planted = {tuple(f"{v:.4f}" for v in row) for row in PLANTED.values()}
    for more in ((), ("--config.clean.score=elbo", "--config.clean.rate=0.04")):
        status, out, err = cleaned(capsys, trained, again, *more)
        assert (status, err) == (0, "")
        folder = again / "w" / "artifacts" / "clean"
        kept, flagged = read(folder / "kept.csv"), read(folder / "flagged.csv")
        assert planted <= {tuple(r[:3]) for r in flagged}
        assert len(kept) + len(flagged) == 402
        assert f"{folder}/kept.csv\n{folder}/flagged.csv\nkept {len(kept) - 1:,} rows and flagged" in out
        # ceil(32 rate) of the 32 validation rows: one, then two
        assert sum(r[4] == "validation" for r in flagged) == (2 if more else 1)
    page = (again / "w" / "report.html").read_text()
    assert "Rows flagged as strange, with a score of" in page and "median score" in page
    assert json.loads((again / "w" / "summary.json").read_text()) == summary


@pytest.mark.parametrize("more", ["--config.clean.rate=0", "--config.clean.rate=1"])
def test_no_rate_and_every_rate_are_refused(
    more: str, trained: Path, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(cleaned(capsys, trained, again, more), again, "config.clean.rate: ")


def refused(told: tuple[int, str, str], folder: Path, words: str) -> None:
    """One line, status 2, and nothing written."""
    status, _, err = told
    assert status == 2 and err.count("\n") == 1 and words in err, err
    assert not (folder / "w" / "artifacts" / "clean").exists()


def test_a_set_that_was_changed_since_is_not_the_one_that_was_trained_on(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "w", tmp_path / "w")
    text = (trained / "t.csv").read_text()
    try:
        (trained / "t.csv").write_text(text.rsplit("\n", 2)[0] + "\n")  # the last row is gone
        refused(
            cleaned(capsys, trained, tmp_path), tmp_path, "t.csv is not what it was when this run was trained on it"
        )
        (trained / "t.csv").write_text(text.replace("\n", "\n1.0,,2.0\n", 1))
        refused(cleaned(capsys, trained, tmp_path), tmp_path, "t.csv: row 2, column 'b': is empty")
    finally:
        (trained / "t.csv").write_text(text)


def test_a_run_without_a_summary_is_no_run_yet(trained: Path, again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (again / "w" / "summary.json").unlink()
    refused(cleaned(capsys, trained, again), again, "no summary.json that can be read; train first")


def test_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(tmp_path / "t.csv")
    refused(launch(capsys, *args(tmp_path), "--mode=clean"), tmp_path, "no run there to clean; train one first")
    refused(launch(capsys, *args(tmp_path)[:-1], "--mode=clean"), tmp_path, "--mode=clean needs --workdir")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1.0,,2.0", "t.csv: row 2, column 'b': is empty"),
        ("1.0,two,2.0", "t.csv: row 2, column 'b': 'two' is no number"),
        ("1.0,nan,2.0", "t.csv: row 2, column 'b': 'nan' is not finite"),
        ("1.0,2.0", "t.csv: row 2: 2 fields, but the header has 3"),
    ],
)
def test_a_cell_that_is_no_number_is_told_before_training(
    row: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("\n", f"\n{row}\n", 1))
    refused(launch(capsys, *args(tmp_path)), tmp_path, words)
    assert not (tmp_path / "w").exists()


def test_images_of_several_sizes_are_told_before_training(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (6, 6)).save(pictures / "pear" / "07.png")
    told = launch(capsys, VAE, f"--config.data.path={pictures}", f"--workdir={tmp_path}/w")
    refused(told, tmp_path, "resize them all with data.size=")
    assert os.path.join("pear", "07.png") in told[2] and not (tmp_path / "w").exists()


def test_a_pipeline_that_tells_no_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--config.train_for=1 steps", "--config.evals={}", "--config.baselines=False", "--config.seeds=1")
    own = (f"--config={ROOT}/configs/softmax.py", *quick, f"--workdir={tmp_path}/w")
    assert launch(capsys, *own)[0] == 0
    refused(launch(capsys, *own, "--mode=clean"), tmp_path, "the pipeline 'vision' does not say how strange a row is")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--config.data.validation=0", "no validation rows to choose a threshold by"),
        ("--config.data.rows=100", "leave rows and per_class out"),
    ],
)
def test_a_run_whose_splits_do_not_do(
    more: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path / "t.csv")
    own = (*args(tmp_path), "--config.train_for=2 steps", more)
    assert launch(capsys, *own)[0] == 0
    refused(launch(capsys, *own, "--mode=clean"), tmp_path, words)


@pytest.mark.slow
def test_the_first_of_several_seeds_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the run of that seed alone scores, to rounding."""
    table(tmp_path / "t.csv")
    told = []
    for k, seeds in enumerate((2, 1)):
        own = (*args(tmp_path)[:-1], f"--workdir={tmp_path}/w{k}", "--config.train_for=20 steps")
        own = (*own, f"--config.seeds={seeds}")
        assert launch(capsys, *own)[0] == 0
        assert launch(capsys, *own, "--mode=clean")[0] == 0
        folder = tmp_path / f"w{k}" / "artifacts" / "clean"
        rows = read(folder / "kept.csv")[1:] + read(folder / "flagged.csv")[1:]
        told.append(np.array([float(r[3]) for r in sorted(rows)]))
    np.testing.assert_allclose(told[0], told[1], rtol=1e-3)


@pytest.mark.slow
def test_images_with_labels_that_are_told_from_end_to_end(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = (
        VAE,
        f"--config.data.path={pictures}",
        "--config.conditional=True",
        "--config.model={'name': 'vae', 'latent': 2, 'hidden': (8,), 'widths': (4,), 'above': 1}",
        *SMALL[2:],
        "--config.train_for=2 steps",
        "--config.batch_size=8",
        "--config.clean={'score': 'mahalanobis', 'rate': 0.3}",
        f"--workdir={tmp_path}/w",
    )
    assert launch(capsys, *own)[0] == 0
    assert launch(capsys, *own, "--mode=clean")[0] == 0
    folder = tmp_path / "w" / "artifacts" / "clean"
    rows = read(folder / "kept.csv")[1:] + read(folder / "flagged.csv")[1:]
    assert sorted(r[0] for r in rows) == sorted(str(p) for p in pictures.glob("*/*.png"))
