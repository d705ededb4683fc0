"""One self-contained HTML page per run, a pure function of the files in WORKDIR. Floor 4.

`python -m umbrella.report WORKDIR` writes it again. Whatever a file says is text: the template escapes it, and the
page's policy lets nothing run but its own script, and nothing load at all.
"""

import base64
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from umbrella._report import charts
from umbrella._report.figures import figures
from umbrella._report.files import Tracks, load, mean, over
from umbrella._report.files import tracks as read_tracks
from umbrella._report.reading import Curve, Reading, read_curves
from umbrella._report.tables import headline, mapping, results, times, tree
from umbrella._report.text import as_float, cell, direction, duration, num, plain, share

__all__ = ["Curve", "Reading", "main", "read_curves", "render", "write"]

_HERE = Path(__file__).parent / "_report"
_SPLITS = {"train": 0, "validation": 1, "train_eval": 2, "test": 3}  # the colour of each; others follow
HARDENING = ("adversarial", "apgd", "certified", "fgsm", "trades")  # techniques that the plain loss pays for
_STATUS = {
    "finished": ("Finished", "good"),
    "interrupted": ("Interrupted", "warn"),
    "diverged": ("Diverged", "bad"),
    "": ("No summary", "warn"),
}
_PHRASE = {
    "too short": "",
    "diverged": "the curves diverged",
    "traded": "plain accuracy was traded for robustness",
    "not learning": "the curves show no learning",
    "overfitting": "the curves show overfitting",
    "unstable": "the curves show an unstable end",
    "still improving": "validation was still improving at the end",
    "converged": "validation had levelled off at the end",
}


def write(workdir: Path) -> Path:
    """Write WORKDIR/report.html, whole or not at all, and return its path.

    Reads config.json, metrics.jsonl, summary.json and artifacts/; each may be missing, cut short or broken.
    Raises NotADirectoryError when `workdir` is no directory.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise NotADirectoryError(f"{workdir} is not a run's directory.")
    path = workdir / "report.html"
    temporary = path.with_name("report.html.tmp")
    temporary.write_text(render(workdir), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(workdir: Path) -> str:
    """The page as a string."""
    import jinja2

    workdir = Path(workdir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": num, "duration": duration, "share": share, "plain": plain}
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        **_contents(workdir),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: rewrite the page of one WORKDIR and print its path. Exit status 2 when there is no such run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m umbrella.report WORKDIR", file=sys.stderr)
        return 2
    try:
        print(write(Path(arguments[0])))
    except NotADirectoryError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _contents(workdir: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    summary = mapping(load(workdir / "summary.json"))
    # What it was evaluated with may be later than the training.
    config = {**mapping(load(workdir / "config.json")), **mapping(summary.get("evaluated_with"))}
    tracks = read_tracks(workdir / "metrics.jsonl")
    rivals, rows = results(summary)
    read_metric, reading, source = _reading(tracks, _hardened(config))
    label, tone = _STATUS.get(str(summary.get("status", "")), (str(summary.get("status")), "warn"))
    total, parts = times(summary)
    data = mapping(summary.get("data"))
    device = mapping(summary.get("device"))
    return {
        "title": str(summary.get("config_name") or config.get("name") or workdir.name),
        "dataset": str(data.get("name") or ""),
        "status": label,
        "tone": tone,
        "verdict": _verdict(summary, tracks, rows, reading, _own(workdir)),
        "facts": _facts(summary),
        "rivals": rivals,
        "rows": rows,
        "has_interval": any(r.interval for r in rows),
        "seeds": summary.get("seeds") or 1,
        "charts": _charts(tracks, read_metric),
        "band": any(v.shape[1] > 1 for splits in tracks.values() for _, v in splits.values()),
        "reading": reading,
        "read_metric": read_metric,
        "read_source": source,
        "figures": figures(workdir / "artifacts"),
        "total": total,
        "times": parts,
        "speed": [
            ("Examples per second", num(summary.get("examples_per_second"), 3)),
            (
                "Peak memory of the process",
                f"{num(summary.get('peak_rss_mb'), 3)} MB" if "peak_rss_mb" in summary else "–",
            ),
            ("Compilations", num(summary.get("compile_count"))),
            *_earlier(summary),
        ],
        "machine": [(k, plain(v)) for k, v in device.items()],
        "versions": [(k, plain(v)) for k, v in mapping(summary.get("versions")).items()],
        "git": plain(summary["git"]) if summary.get("git") else "not under version control",
        "data": _data(data),
        "config": list(tree(config)),
        "command": _command(summary.get("command")),
        "workdir": str(summary.get("workdir") or ""),
    }


def _own(workdir: Path) -> str:
    """The first sentence of the artifact "verdict", where the pipeline has tested its result itself; else nothing."""
    try:
        told = (workdir / "artifacts" / "verdict.txt").read_text("utf-8", "replace")
    except OSError:
        return ""
    first = told.partition("\n")[0].strip().rstrip(".")
    return first[:1].lower() + first[1:]


def _verdict(
    summary: Mapping[str, Any], tracks: Tracks, rows: list[Any], reading: Reading | None, own: str = ""
) -> str:
    """The run in one sentence: how it ended, its first result against the baselines (or what the pipeline says of it,
    `own`), what the curves say."""
    steps = [float(s[-1]) for splits in tracks.values() for s, _ in splits.values() if len(s)]
    step = num(summary.get("step")) if "step" in summary else num(max(steps)) if steps else "0"
    ended = {
        "finished": f"Training finished after {step} steps",
        "interrupted": f"Training was interrupted at step {step} and can be resumed",
        "diverged": f"Training diverged at step {step}: a loss or a gradient was no longer finite",
    }.get(str(summary.get("status")), f"The run has written no summary yet; its last logged step is {step}")
    clauses = [ended]
    best = headline(rows) if rows else None
    if best:
        against = "" if own else _against([r.mark for r in best.rivals])
        clauses.append(f"{best.evaluation} {best.metric} is {best.text}{against}")
    if own:
        clauses.append(own)
    if reading and _PHRASE[reading.verdict] and summary.get("status") != "diverged":
        clauses.append(_PHRASE[reading.verdict])
    return "; ".join([*clauses, *_mishaps(summary)]) + "."


def _mishaps(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of the result must know of: steps that were left out, and rows that were seen before."""
    told = []
    skipped, back = summary.get("skipped"), summary.get("rollbacks")
    if isinstance(skipped, int) and skipped > 0:
        told.append(f"{_count(skipped, 'step was', 'steps were')} not finite and left out")
    if isinstance(back, list) and back:
        told.append(f"training went back to a checkpoint {_count(len(back), 'time', 'times')}, past a bad batch")
    data = mapping(summary.get("data"))
    seen = mapping(data.get("overlap")).get("test")
    if isinstance(seen, int) and seen > 0:
        of = f" of {num(data.get('n_test'))}" if isinstance(data.get("n_test"), int) else ""
        told.append(f"{num(seen)}{of} rows of test occur in train, too")
    return told


def _count(n: int, one: str, many: str) -> str:
    return f"{num(n)} {one if n == 1 else many}"


def _data(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(k.replace("n_", "examples, ") if k.startswith("n_") else k, cell(v)) for k, v in data.items()]
    seen = mapping(data.get("overlap"))
    return [r for r in rows if r[0] != "overlap"] + [(f"rows of {k} also in train", cell(v)) for k, v in seen.items()]


def _against(marks: list[str]) -> str:
    """How a result stands to the baselines that have the metric; `marks` holds "" for those that do not."""
    judged = [m for m in marks if m]
    n, won = len(judged), judged.count("better")
    if not n:
        return ""
    if n == 1:
        return f", {'' if won else 'not '}better than {'its' if len(marks) == 1 else 'the only comparable'} baseline"
    which = "baselines" if n == len(marks) else "comparable baselines"
    return f", better than {f'{won} of {n}' if won < n else 'both' if n == 2 else f'all {n}'} {which}"


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    seconds = mapping(summary.get("seconds"))
    facts = [
        ("steps", num(summary.get("step"))),
        ("epochs", num(summary.get("epochs"), 3)),
        ("parameters", num(summary.get("params"))),
        ("seed" if summary.get("seeds") == 1 else "seeds", num(summary.get("seeds"))),
        ("time", duration(seconds.get("total"))),
        ("examples per second", num(summary.get("examples_per_second"), 3)),
    ]
    return [(k, v) for k, v in facts if v != "–"]


def _hardened(config: Mapping[str, Any]) -> bool:
    """Whether a technique of training makes the task harder than the plain one."""
    names = config.get("techniques")
    names = names if isinstance(names, list | tuple) else ()
    return any(mapping(config.get(n)).get("technique", n) in HARDENING for n in names if isinstance(n, str))


def _reading(tracks: Tracks, hardened: bool) -> tuple[str, Reading | None, str]:
    """(metric, reading, training split): of the loss when validation has it, else of a metric with a direction."""
    able = [m for m, s in tracks.items() if "validation" in s and direction(m)]
    ranked = sorted(able, key=lambda m: (m != "loss", not {"train", "train_eval"} & set(tracks[m]), direction(m) > 0))
    if not ranked:
        return "", None, ""
    metric = ranked[0]
    splits = tracks[metric]
    source = next((s for s in ("train_eval", "train") if s in splits), "")
    empty = (np.empty(0), np.empty((0, 1)))
    train, validation = (Curve(s, mean(v)) for s, v in (splits.get(source, empty), splits["validation"]))
    reading = read_curves(train, validation, metric=metric, lower_is_better=direction(metric) < 0, hardened=hardened)
    last = splits["validation"][1][-1]
    if len(last) > 1:
        lost = int(np.sum(~np.isfinite(last)))
        note = f"These are the means over {len(last)} seeds" + (
            f"; {lost} of them ended as not finite." if lost else "."
        )
        reading = reading._replace(sentences=[*reading.sentences, note])
    return metric, reading, source


def _charts(tracks: Tracks, first: str) -> list[dict[str, Any]]:
    """The learning curves: the one that was read first, then those with both splits, then the others."""
    order = sorted(
        tracks, key=lambda m: (m != first, m != "loss", "validation" not in tracks[m], "train" not in tracks[m])
    )
    out = []
    for metric in order:
        # An evaluation that was made once, at the end, is a number in the table, not a curve.
        splits = {s: v for s, v in tracks[metric].items() if s != "test" and (s in _SPLITS or len(v[0]) > 1)}
        if not splits or _says_nothing(metric, tracks):
            continue
        others = [s for s in splits if s not in _SPLITS]
        series = []
        for split in sorted(splits, key=lambda s: (_SPLITS.get(s, 9), s)):
            step, value = splits[split]
            slot = _SPLITS.get(split, 4 + others.index(split) if split in others else 0)
            line = charts.Series(split, step, mean(value), slot=slot, dashed=split == "train_eval")
            if value.shape[1] > 1:
                line = line._replace(low=over(np.min, value), high=over(np.max, value))
            series.append(line)
        spans = ", ".join(f"{s.name} from {num(s.y[0])} to {num(s.y[-1])}" for s in series)
        alt = f"{metric} over training steps: {spans}"
        arrow = {-1: "lower is better", 1: "higher is better"}.get(direction(metric), "")
        html = charts.lines(series, x_label="step", y_label="", alt=alt)
        ends = [_ends(s, direction(metric)) for s in series]
        out.append({"metric": metric, "way": arrow, "html": html, "ends": ends})
    return out


def _says_nothing(metric: str, tracks: Tracks) -> bool:
    """Nothing was skipped, or the objective is the loss itself: a chart would only take room."""
    if metric == "skipped":
        return all(not np.any(v) for _, v in tracks[metric].values())
    if metric == "objective":
        ours, loss = tracks[metric].get("train"), tracks.get("loss", {}).get("train")
        return ours is not None and loss is not None and np.allclose(ours[1], loss[1], equal_nan=True)
    return False


def _ends(s: charts.Series, way: int) -> dict[str, str]:
    """First, best and last value of a line."""
    best = ""
    if way and np.isfinite(s.y).any():
        at = int(np.nanargmin(np.where(np.isfinite(s.y), s.y, np.nan) * -way))
        best = f"{num(s.y[at])} at step {num(s.x[at])}"
    return {"split": s.name, "first": num(s.y[0]), "best": best, "last": num(s.y[-1])}


def _earlier(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    seconds = as_float(mapping(summary.get("seconds")).get("earlier"))
    return [("Before it was resumed", f"{num(seconds, 3)} s")] if seconds > 0 else []


def _command(value: Any) -> str:
    return " ".join(str(v) for v in value) if isinstance(value, list) else str(value or "")


if __name__ == "__main__":
    sys.exit(main())
