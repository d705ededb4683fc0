"""The report: it shows whatever the files hold, runs nothing of it, loads nothing, and reads curves by its rules."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from umbrella import artifacts, report
from umbrella._report import charts, text
from umbrella._report.tables import results, times
from umbrella.report import Curve, read_curves

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
VOID = {"meta", "img", "input", "br", "path"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every tag is closed in order."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def page(workdir):
    parsed = Page(report.write(workdir).read_text(encoding="utf-8"))
    assert parsed.open == []
    return parsed


def summary(**changes):
    return {
        "status": "finished", "config_name": "vae", "workdir": "runs/vae", "step": 100, "epochs": 4.0, "seeds": 1,
        "metrics": {"validation": {"loss": 2.5}, "test": {"loss": 2.0, "accuracy": 0.9, "kl": 1.0}},
        "baselines": {"PCA": {"loss": 3.0, "accuracy": 0.95}, "mean": {"loss": 4.0}},
        "params": 1234567, "compile_count": 3, "examples_per_second": 5000.0,
        "seconds": {"total": 10.0, "compile": 2.0, "step": 5.0, "data_wait": 0.5, "evaluate": 1.0, "checkpoint": 0.5},
        "peak_rss_mb": 512.0, "device": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
        "versions": {"jax": "0.10.2"}, "git": "abc123",
        "data": {"name": "digits", "source": "sklearn", "fingerprint": "f00d"}
        | {"n_train": 1437, "n_validation": 180, "n_test": 180},
        "command": "python launch.py --config=configs/vae.py",
    } | changes  # fmt: skip


def run(workdir, /, *, lines=40, k=None, **changes):
    """A run's files: `lines` logs of each split, with k seeds or one."""
    (workdir / "summary.json").write_text(json.dumps(summary(**changes)))
    (workdir / "config.json").write_text(json.dumps({"model": {"name": "vae", "hidden": [64, 32]}, "seeds": k or 1}))
    with open(workdir / "metrics.jsonl", "w") as file:
        for i in range(1, lines + 1):
            for split, more in (("train", 0.0), ("validation", 0.1)):
                loss = 10 * np.exp(-i / 4) + 1 + more
                value = loss if k is None else [loss + j for j in range(k)]
                file.write(json.dumps({"step": i, "epoch": i / 2, "split": split, "seconds": i, "loss": value}) + "\n")
    return workdir


def every_artifact(directory, name="x", word="a word"):
    r = np.random.default_rng(0)
    save = artifacts.save
    save(directory, f"images {name}", artifacts.Images(r.random((4, 8, 8, 1)), 2, word, (word, word)))
    save(directory, f"text {name}", artifacts.Text(word, word))
    save(directory, f"scatter {name}", artifacts.Scatter(r.random((9, 2)), np.arange(9) % 3, word, (word, "b")))
    save(directory, f"matrix {name}", artifacts.Matrix(np.eye(2), (word, "b"), (word, "b"), word))
    save(directory, f"curves {name}", artifacts.Curves({word: (np.arange(3), np.ones(3))}, word, word, word))
    save(directory, f"table {name}", artifacts.Table((word,), ((word,), (float("nan"),)), word))


# --- The page ------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_all_there(tmp_path):
    every_artifact(run(tmp_path) / "artifacts")
    found = page(tmp_path)
    words = found.text()
    for expected in (
        "Training finished after 100 steps; test loss is 2, better than both baselines; "
        "validation had levelled off at the end.",
        "1,234,567", "PCA", "run is better", "run is worse", "Reading the curves", "Where the time went", "512 MB",
        "f00d", "python launch.py --config=configs/vae.py", "0.10.2", "abc123", "hidden", "64, 32", "5,000",
    ):  # fmt: skip
        assert expected in words, expected
    headings = [m for m in re.findall(r"<h2[^>]*>([^<]*)", (tmp_path / "report.html").read_text())]
    assert headings == [
        "Results", "Learning curves", "Reading the curves", "What the model makes", "Where the time went",
        "Data, machine, versions", "Configuration",
    ]  # fmt: skip
    assert len(found.all("figure")) == 1 + 6
    assert all(f.get("alt") for f in found.all("img"))
    assert all(s.get("aria-label") for s in found.all("svg"))
    assert all(th.get("scope") for th in found.all("th"))


def test_it_is_a_pure_function_of_the_files(tmp_path):
    every_artifact(run(tmp_path) / "artifacts")
    first = report.write(tmp_path).read_bytes()
    assert report.write(tmp_path).read_bytes() == first
    assert not (tmp_path / "report.html.tmp").exists()


def test_nothing_is_requested_and_only_the_own_script_runs(tmp_path):
    every_artifact(run(tmp_path) / "artifacts")
    found = page(tmp_path)
    source = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://", source)
    assert not re.search(r"@import|url\(", source)
    links = [v for _, attrs in found.tags for k, v in attrs.items() if k in ("src", "href", "action", "srcset", "data")]
    assert len(links) == 1 and links[0].startswith("data:image/png;base64,")
    assert not [k for _, attrs in found.tags for k in attrs if k.startswith("on")]
    policy = next(m["content"] for m in found.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "img-src data:" in policy
    script = source[source.rindex("<script>") + len("<script>") : source.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def every_run(workdir, word):
    """A run with `word` in every place that takes one."""
    workdir.mkdir()
    run(
        workdir, config_name=word, workdir=word, git=word, command=[word, word], versions={word: word},
        metrics={word: {word: 1.0, "loss": 2.0}}, baselines={word: {word: 1.0, "loss": 2.5}},
        data={"name": word, "source": word, word: word}, device={"kind": word, word: word},
    )  # fmt: skip
    (workdir / "config.json").write_text(json.dumps({word: word, "a": {word: [word, {word: word}]}}))
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 1, "epoch": 0, "split": word, word: 1.0, "loss": 1.0, "note": word}) + "\n")
    every_artifact(workdir / "artifacts", word, word)
    return workdir


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("interrupted", "Training was interrupted at step 100 and can be resumed"),
        ("diverged", "Training diverged at step 100: a loss or a gradient was no longer finite"),
    ],
)
def test_runs_that_did_not_finish(tmp_path, status, expected):
    run(tmp_path, status=status, metrics={}, baselines={})
    words = page(tmp_path).text()
    assert expected in words and status.capitalize() in words and "This run has no final metrics." in words


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_few_lines(tmp_path, lines):
    words = page(run(tmp_path, lines=lines)).text()
    assert ("No metrics were logged." in words) == (lines == 0)
    assert ("a reading needs 5 values" in words) == (lines > 0)


def test_an_empty_folder_and_broken_files(tmp_path):
    assert "The run has written no summary yet" in page(tmp_path).text()
    for name in ("summary.json", "config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes(b'{"step": 3, "lo\xff')
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/index.json").write_text("[1, null, {}]")
    assert "config.json is missing" in page(tmp_path).text()
    for value in ("[]", "3", '"x"', "null", '{"metrics": 3, "seconds": [], "data": null, "seeds": "x", "step": {}}'):
        (tmp_path / "summary.json").write_text(value)
        (tmp_path / "config.json").write_text(value)
        page(tmp_path)


def test_values_that_are_not_finite(tmp_path):
    run(tmp_path, metrics={"test": {"loss": float("nan"), "accuracy": "nan", "mse": None}}, status="diverged")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        for step, value in enumerate(["nan", "inf", "-inf", float("nan"), None], start=41):
            file.write(json.dumps({"step": step, "epoch": 1, "split": "train", "loss": value, "only": "nan"}) + "\n")
    words = page(tmp_path).text()
    assert "The training loss ended as a number that is not finite." in words
    assert "No finite value was logged." in words
    assert not re.search(r'd="[^"]*(nan|inf)', (tmp_path / "report.html").read_text())


def test_seeds_give_a_mean_an_interval_and_a_band(tmp_path):
    many = {"mean": 2.0, "ci95": [1.8, 2.2], "n": 3, "values": [1.9, 2.0, 2.1]}
    rivals = {"inside": {"loss": 2.1}, "above": {"loss": 2.3}, "below": {"loss": 1.7}}
    run(tmp_path, k=3, seeds=3, metrics={"test": {"loss": many}}, baselines=rivals)
    words = page(tmp_path).text()
    assert "1.8 – 2.2" in words and "These are the means over 3 seeds." in words
    assert re.findall(r"no difference|run is better|run is worse", words) == [
        "no difference", "run is better", "run is worse"
    ]  # fmt: skip
    assert (tmp_path / "report.html").read_text().count('class="band"') >= 2


def test_a_seed_that_is_lost_is_told_of(tmp_path):
    run(tmp_path, k=3)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 41, "epoch": 21, "split": "validation", "loss": [1.1, "nan", 3.1]}) + "\n")
    assert "the means over 3 seeds; 1 of them ended as not finite." in page(tmp_path).text()


def test_of_two_lines_of_one_step_the_later_counts_and_train_eval_is_preferred(tmp_path):
    run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        for step in (39, 40):
            file.write(json.dumps({"step": step, "epoch": 20, "split": "train_eval", "loss": 1.0}) + "\n")
        file.write(json.dumps({"step": 40, "epoch": 20, "split": "validation", "loss": 1.75}) + "\n")
    words = page(tmp_path).text()
    assert "measured like the validation data" in words
    row = re.search(
        r'validation</th><td class="n">[^<]*</td><td class="n">[^<]*</td><td class="n">([^<]*)', raw(tmp_path)
    )
    assert row and row.group(1) == "1.75"


def raw(workdir):
    return (workdir / "report.html").read_text()


def test_artifacts_that_are_missing_or_lie_elsewhere_are_named_and_not_read(tmp_path):
    every_artifact(run(tmp_path) / "artifacts")
    (tmp_path / "secret.txt").write_text("top secret")
    folder = tmp_path / "artifacts"
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    entries = json.loads((folder / "index.json").read_text())
    (folder / entries[0]["file"]).unlink()
    (folder / entries[2]["file"]).write_text('{"points": 3}')
    for i, file in enumerate(("../secret.txt", str(tmp_path / "secret.txt"), "link.txt")):
        entries.append({"name": f"out{i}", "kind": "text", "file": file, "caption": ""})
    entries.append({"name": "png", "kind": "images", "file": entries[1]["file"], "width": 1, "height": 1})
    (folder / "index.json").write_text(json.dumps(entries))
    words = page(tmp_path).text()
    assert words.count("could not be shown") == 6
    assert "top secret" not in words


def test_the_command_line(tmp_path, capsys):
    assert report.main([str(run(tmp_path))]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert "is not a run's directory" in capsys.readouterr().err
    assert report.main([]) == 2


def test_the_module_runs_without_jax(tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv[1:] = [{str(run(tmp_path))!r}]\n"
        "try: runpy.run_module('umbrella.report', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "import umbrella.artifacts, umbrella.writers\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "report.html").exists()


# --- Tables --------------------------------------------------------------------------------------------------------


def test_baselines_are_judged_against_the_headline_alone_and_by_direction():
    names, rows = results(summary())
    assert names == ["PCA", "mean"]
    table = {(r.evaluation, r.metric): [(v.text, v.mark) for v in r.rivals] for r in rows}
    assert table == {
        ("test", "loss"): [("3", "better"), ("4", "better")],
        ("test", "accuracy"): [("0.95", "worse"), ("–", "")],
        ("test", "kl"): [("–", ""), ("–", "")],
        ("validation", "loss"): [("3", ""), ("4", "")],
    }


def test_the_time_that_no_part_claims_is_other():
    total, parts = times(summary())
    assert total == 10.0
    assert [(n, s) for n, s, _ in parts] == [
        ("compile", 2.0), ("step", 5.0), ("data wait", 0.5), ("evaluate", 1.0), ("checkpoint", 0.5), ("other", 1.0),
    ]  # fmt: skip
    assert sum(p for *_, p in parts) == pytest.approx(1.0)
    assert times({"seconds": {"step": 3.0}}) == (3.0, [("step", 3.0, 1.0)])
    assert times({}) == (0.0, [])


# --- Charts and words ----------------------------------------------------------------------------------------------


def test_a_line_is_where_its_numbers_are():
    # x from 0 to 4 fills 0 to 1000. y from 0 to 10 with 5 % of room at each end: 0 is at 0.5/11 of the height.
    drawn = charts.lines(
        [charts.Series("a", np.array([0.0, 4.0]), np.array([0.0, 10.0]))], x_label="", y_label="", alt=""
    )
    assert 'd="M0.0 954.5L1000.0 45.5"' in drawn


def test_thinning_keeps_ends_and_spikes():
    y = np.zeros(10_000)
    y[1234], y[7777] = 50.0, -3.0
    s = charts.thin(charts.Series("a", np.arange(10_000.0), y, low=y - 1, high=y + 1))
    assert len(s.x) <= charts.MOST_POINTS + 2
    assert {0.0, 1234.0, 7777.0, 9999.0} <= set(s.x)
    np.testing.assert_array_equal(s.low, s.y - 1)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7.9), (1e-9, 3e-9), (123456, 123457), (-1e12, 1e12)])
def test_ticks_are_round_inside_and_enough(low, high):
    marks = charts.ticks(low, high)
    assert 3 <= len(marks) <= 9
    assert all(low - 1e-9 * abs(low) <= m <= high + 1e-9 * abs(high) for m in marks)
    assert np.allclose(np.diff(marks), marks[1] - marks[0])


def test_a_logarithmic_twin_only_where_it_helps():
    def drawn(y):
        return charts.lines([charts.Series("a", np.arange(3.0), np.array(y))], x_label="", y_label="", alt="")

    assert "log scale" in drawn([100.0, 10.0, 1.0])
    assert "log scale" not in drawn([1.0, 2.0, 3.0])
    assert "log scale" not in drawn([100.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("metric", "way"),
    [("loss", -1), ("elbo", -1), ("nll", -1), ("error", -1), ("mse", -1), ("accuracy", 1), ("auc", 1), ("f1", 1)]
    + [("robust_accuracy", 1), ("neg_log_likelihood", -1), ("grad_norm", 0), ("kl", 0), ("RMSE", -1), ("", 0)],
)
def test_directions(metric, way):
    assert text.direction(metric) == way


def test_doctests():
    import doctest

    from umbrella._report import reading

    for module in (text, charts, reading):
        assert doctest.testmod(module).failed == 0


# --- Reading the curves --------------------------------------------------------------------------------------------

STEPS = np.arange(1, 101) * 10.0


def falling(to, rate=15.0, top=10.0):
    return to + top * np.exp(-np.arange(100) / rate)


def noisy(curve, scale, seed=0):
    return curve + np.random.default_rng(seed).normal(0, scale, len(curve))


def read(train, validation, **settings):
    steps = STEPS[: len(validation)]
    return read_curves(Curve(STEPS[: len(train)], np.array(train)), Curve(steps, np.array(validation)), **settings)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_the_verdicts_on_curves_that_are_known(noise, seed):
    def verdict(train, validation):
        return read(noisy(train, noise, seed), noisy(validation, noise, seed + 100)).verdict

    up = np.maximum(0, np.arange(100) - 40) * 0.05  # rises by 3 of about 10 over the last 60 points
    assert verdict(falling(1.0), falling(1.3)) == "converged"
    assert verdict(falling(0.5), falling(1.5) + up) == "overfitting"
    assert verdict(falling(0.5), falling(5.0)) == "overfitting"  # level, but the gap is 45 % of the gain
    assert verdict(falling(1.0, rate=80.0), falling(1.2, rate=80.0)) == "still improving"
    assert verdict(falling(1.0) + up, falling(1.2) + up) == "unstable"
    assert verdict(falling(10.0) + 6 * up, falling(10.0) + 6 * up) == "diverged"
    assert verdict(falling(1.0), np.full(100, 5.0)) == "not learning"
    assert verdict(falling(1.0), 5.0 + 10 * up) == "overfitting"  # best at the start, and only worse since


def test_what_training_for_robustness_costs_is_no_divergence():
    """The same curves, read as those of a run that is trained against attacks; what is not finite stays what it is, and
    what is fine stays fine."""
    up = np.maximum(0, np.arange(100) - 40) * 0.05
    worse, fine = falling(10.0) + 6 * up, falling(1.0)
    assert read(worse, worse).verdict == "diverged" and read(worse, worse, hardened=True).verdict == "traded"
    assert read(fine, fine, hardened=True).verdict == "converged"
    assert read([1.0, np.nan], [3.0], hardened=True).verdict == "diverged"
    assert "against attacks or by bounds" in read(worse, worse, hardened=True).sentences[0]


@pytest.mark.parametrize(
    ("config", "hardened"),
    [
        (dict(techniques=["crop", "adversarial"]), True),
        (dict(techniques=["fast"], fast=dict(technique="fgsm")), True),
        (dict(techniques=["label_smoothing"]), False),
        (dict(techniques="adversarial"), False),  # no list: a broken file
        (dict(), False),
    ],
)
def test_a_config_says_whether_it_is_trained_for_robustness(config, hardened):
    assert report._hardened(config) == hardened


def test_the_sentences_quote_the_numbers():
    up = np.maximum(0, np.arange(100) - 49) * 0.02
    said = read(np.linspace(10, 0, 100), np.maximum(10 - 0.16 * np.arange(100), 2.16) + up)
    assert said.verdict == "overfitting"
    # v falls from 10 to 2.16 at index 49, step 500, and rises by 0.02 a point to 3.16. The best is a mean of 5 values:
    # of indices 49 to 53 it is 2.2, of 48 to 52 it is 2.216. The level is a mean of 10: 3.07.
    assert said.sentences[0] == "Validation loss improved from 10 to 2.2, its best, at step 520 of 1,000."
    # 0.87 of a gain of 7.8 is 11 %.
    assert said.sentences[1] == (
        "Since then it has got worse by 0.87, 11 % of what it had gained; the training one did not."
    )
    # The training level is the mean of the last ten of a line from 10 to 0: 10 * 4.5 / 99 = 0.4545; 3.07 less that.
    assert said.sentences[2] == "At the end it is 2.615 worse than the training loss, 34 % of the gain: a large gap."
    assert said.sentences[3].startswith("Worth trying: stopping earlier")


def test_too_short_and_not_finite():
    few = read([3.0, 2.0], [3.0, 2.0, 1.0, 1.0])
    assert few.verdict == "too short" and "measured 4 times; a reading needs 5" in few.sentences[0]
    assert read([], []).sentences[0].startswith("The validation loss was measured never")
    assert read([1.0, np.nan], [3.0]).verdict == "diverged"
    assert read(falling(1.0), np.append(falling(1.0)[:99], np.inf)).verdict == "diverged"
    holes = falling(1.3)
    holes[[3, 50]] = np.nan
    said = read(falling(1.0), holes)
    assert said.verdict == "converged" and "2 measurements along the way were not finite" in said.sentences[-1]
    assert read(falling(1.0)[:6], [np.nan, np.nan, np.nan, np.nan, np.nan, 1.0]).verdict == "diverged"


def test_without_a_training_curve_the_gap_is_not_read():
    said = read([], falling(1.0))
    assert said.verdict == "converged"
    assert not [s for s in said.sentences if "gap" in s]


def test_higher_is_better_is_the_mirror_image():
    down = read(falling(0.5), falling(5.0))
    up = read(-falling(0.5), -falling(5.0), metric="accuracy", lower_is_better=False)
    assert down.verdict == up.verdict == "overfitting"
    assert up.sentences[0].startswith("Validation accuracy improved from −15 to −5")


def test_a_training_loss_above_validation_is_explained():
    said = read(falling(2.0), falling(1.0))
    assert said.verdict == "converged"
    assert any("The training loss is the worse one, by 1" in s for s in said.sentences)


def test_the_verdict_does_not_depend_on_units():
    up = np.maximum(0, np.arange(100) - 40) * 0.05
    for train, validation in ((falling(0.5), falling(1.5) + up), (falling(1.0, 80.0), falling(1.2, 80.0))):
        verdicts = {read(s * train, s * validation).verdict for s in (1e-6, 1.0, 1e6)}
        assert len(verdicts) == 1


def test_curves_of_any_shape_are_read_without_an_error():
    r = np.random.default_rng(0)
    for _ in range(300):
        n, m = r.integers(0, 60, 2)
        t, v = (r.normal(0, 10.0 ** r.integers(-5, 6), k) for k in (n, m))
        if m:
            v[r.random(m) < r.choice([0, 0.3])] = r.choice([np.nan, np.inf])
        assert read(t, v).sentences
