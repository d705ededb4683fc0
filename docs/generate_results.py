"""Writes the tables of docs/results.md from the summary.json files in docs/results/: python docs/generate_results.py

What another library's attack left of a run (benchmarks/outside.py) is in docs/outside/, a line each in one table.

A file is called NAME.json, or NAME.SEED.json when every seed was a run of its own. `--add NAME RUN` takes the summary
of a finished run in first, with the folder it ran in told by its name alone. --check writes nothing and fails when the
page is not what the files say.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PAGE = HERE / "results.md"
MARKS = ("<!-- results -->", "<!-- /results -->")
SHOWN = (
    "negative_elbo",
    "nll",
    "bits_per_dim",
    "accuracy",
    "one_hidden_accuracy",
    "one_hidden_loss",
    "loss",
    "loss_at_temperature",
    "ece",
    "ece_at_temperature",
    "verified",
    "radius",
    "mse",
    "auroc",
    "average_precision",
    "probe_accuracy",
    "frechet",
    "class_entropy",
    "bleu",
    "chrf",
    "mase",
    "relative_mae",
    "direction",
    "qlike",
    "coverage_90",
    "judged_quality",
    "judged_coverage",
    "self_bleu",
    "start_judged_quality",
    "start_judged_coverage",
    "start_self_bleu",
    "gain_quality",
    "gain_coverage",
)


def main(argv: list[str]) -> int:
    if argv[:1] == ["--add"]:
        _, name, run = argv
        summary = json.loads((Path(run) / "summary.json").read_text())
        summary["workdir"] = Path(summary["workdir"]).name
        (HERE / "results" / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = page(PAGE.read_text(), [(p.name.split(".")[0], json.loads(p.read_text())) for p in sorted(files())])
    if "--check" in argv:
        return int(text != PAGE.read_text())
    PAGE.write_text(text)
    return 0


def files() -> list[Path]:
    return list((HERE / "results").glob("*.json"))


def page(text: str, summaries: list[tuple[str, dict[str, Any]]]) -> str:
    """The page with everything between the marks made anew."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, summary in summaries:
        groups[name].append(summary)
    before, rest = text.split(MARKS[0])
    return (
        before
        + MARKS[0]
        + "\n\n"
        + "\n\n".join(tabled(n, g[0]) if "table" in g[0] else section(n, g) for n, g in groups.items())
        + "\n\n"
        + outside()
        + MARKS[1]
        + rest.split(MARKS[1])[1]
    )


def outside() -> str:
    """The table of docs/outside/*.json, with the lines behind it."""
    told = [json.loads(p.read_text()) for p in sorted((HERE / "outside").glob("*.json"))]
    lines = [
        "## Attacked by another library",
        "",
        "The first seed's network, on the rows of the run's own attacks: python -m benchmarks.outside RUN.",
        "",
        "| run | eps | rows | attack | clean | one restart | all | umbrella's own, worst of all |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {t['run']} | {t['eps']:g} | {t['rows']} | {t['attack']} | {t['clean']:.3f} | {t['one']:.3f} "
            f"| {t['all']:.3f} | {t['umbrella']:.3f} |"
            for t in told
        ),
    ]
    return "\n".join(lines) + "\n\n" if told else ""


def section(name: str, runs: list[dict[str, Any]]) -> str:
    """One result: the command, what it ran on, and a line per metric of every evaluation on test."""
    first = runs[0]
    seeds = sum(r["seeds"] for r in runs)
    took = np.mean([r["seconds"]["total"] for r in runs])
    time = f"{took / 60:.1f} minutes" if took >= 120 else f"{took:.0f} seconds"
    versions = ", ".join(f"{k} {first['versions'][k]}" for k in ("python", "jax", "flax", "optax"))
    each = "" if len(runs) == 1 else " each"
    counted = f"{seeds} seed{'s' * (seeds > 1)}" + " as one program" * (len(runs) == 1 and seeds > 1)
    lines = [
        f"## {name}",
        "",
        f"    {first['command']}",
        "",
        f"{first['device']['kind']}; {time}{each}; {counted}; {first['epochs']:.0f} epochs; "
        f"{first['params']:,} parameters; {versions}; revision {first['git']}.",
        "",
        "| evaluation | metric | mean ± sd | seeds | baselines |",
        "|---|---|---|---|---|",
    ]
    for evaluation, metrics in first["metrics"].items():
        if evaluation in ("train_eval", "validation"):
            continue
        shown = set(metrics) & set(SHOWN)
        if "negative_elbo" in shown:
            shown -= {"loss"}  # which is the same
        for metric in sorted(shown, key=SHOWN.index):
            values = [v for r in runs for v in _values(r["metrics"][evaluation][metric])]
            if not values:
                continue
            beside = {b: v[metric] for b, v in first["baselines"].items() if v.get(metric) is not None}
            rivals = "; ".join(f"{b} {v:.4g}" for b, v in beside.items())
            sd = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
            digits = 2 if abs(np.mean(values)) > 2 else 4
            beside = rivals if evaluation == "test" else ""
            lines.append(f"| {evaluation} | {metric} | {np.mean(values):.{digits}f}{sd} | {len(values)} | {beside} |")
    return "\n".join(lines)


def tabled(name: str, told: dict[str, Any]) -> str:
    """One --mode=table: every model and rival by its metrics, over the folds."""
    rows = told["table"]
    others = (
        *("f1", "false_positive_rate", "f1_at_threshold", "false_positive_rate_at_threshold", "attended_minus_random"),
        *("loss", "seconds"),
    )
    shown = ["accuracy", *(m for m in others if any(m in r for r in rows.values()))]
    over = f"mean ± sd over {told['folds']} folds" if told["folds"] > 1 else "one split"
    versions = ", ".join(f"{k} {told['versions'][k]}" for k in ("python", "jax", "flax", "optax"))
    lines = [
        f"## {name}",
        "",
        f"    {told['command']}",
        "",
        f"{told['device']['kind']}; {over}; {versions}; revision {told['git']}.",
        "",
        f"| | {' | '.join(shown)} |",
        "|---" * (1 + len(shown)) + "|",
    ]
    for row, metrics in rows.items():
        cells = []
        for metric in shown:
            values = [v for v in metrics.get(metric, []) if v is not None]
            sd = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 and metric != "seconds" else ""
            cells.append(f"{np.mean(values):.4g}{sd}" if values else "")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(told: Any) -> list[float]:
    """One for each seed that has one: where all of validation is right, no temperature can be fitted."""
    return [v for v in (told["values"] if isinstance(told, dict) else [told]) if v is not None]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
