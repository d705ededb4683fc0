"""Numbers, durations and metric names as a reader wants them. Pure and total: anything from a JSON file may come."""

import math
import re
from typing import Any

LOWER = frozenset(
    {
        "loss", "elbo", "nll", "error", "err", "mse", "mae", "rmse", "bce", "bpd", "perplexity", "ppl", "ece",
        "brier", "fid", "mape", "smape", "logloss", "deviance", "xent", "eer", "wer", "cer", "distortion", "regret",
        "frechet", "bits",
    }
)  # fmt: skip
HIGHER = frozenset(
    {
        "accuracy", "acc", "auc", "auroc", "auprc", "f1", "precision", "recall", "ndcg", "mrr", "hit", "hits", "r2",
        "bleu", "chrf", "rouge", "psnr", "ssim", "iou", "dice", "kappa", "mcc", "likelihood", "correlation", "purity",
    }
)  # fmt: skip


def direction(metric: str) -> int:
    """-1 when lower is better, 1 when higher is, 0 when the name does not say; the last telling word decides.

    `elbo` is the negative bound, a loss, as everywhere in this project; `negative` or `neg` turns a direction around.

    What samples are beside each other ("self_bleu") is no merit and no fault.

    >>> direction("top1_error"), direction("robust/accuracy"), direction("neg_likelihood"), direction("self_bleu")
    (-1, 1, -1, 0)
    """
    found = 0
    if re.search(r"(^|[^a-z])self([^a-z]|$)", metric.lower()):
        return 0
    for word in re.split(r"[^a-z0-9]+", metric.lower()):
        found = -1 if word in LOWER else 1 if word in HIGHER else found
    if found == 1 and re.search(r"(^|[^a-z])neg(ative)?([^a-z]|$)", metric.lower()):
        return -1
    return found


def as_float(value: Any) -> float:
    """The number in a JSON value, nan when there is none; "nan", "inf" and "-inf" stand for the non-finite ones."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def num(value: Any, digits: int = 4) -> str:
    """A number to `digits` significant ones, with thousands separated; a dash when there is none.

    >>> num(1234567), num(0.123456), num(12345.678), num(1.5e-7), num(None)
    ('1,234,567', '0.1235', '12,346', '1.5e-07', '–')
    """
    if value is None:
        return "–"
    x = as_float(value)
    if not math.isfinite(x):
        return {math.inf: "∞", -math.inf: "−∞"}.get(x, "nan")
    if isinstance(value, int) or (x == round(x) and abs(x) < 1e5):
        text = f"{round(x):,}"
    elif abs(x) >= 1e7 or abs(x) < 1e-4:
        text = f"{x:.{digits - 1}g}"
    elif abs(x) >= 1000:
        text = f"{x:,.{max(0, digits - 1 - math.floor(math.log10(abs(x))))}f}"
    else:
        text = f"{x:.{digits}g}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def share(value: float) -> str:
    """A fraction as whole per cent.

    >>> share(0.123), share(0.001)
    ('12 %', 'under 1 %')
    """
    return "under 1 %" if 0 < value < 0.005 else f"{100 * value:,.0f} %"


def duration(seconds: Any) -> str:
    """Seconds in the two units that matter.

    >>> duration(0.25), duration(75), duration(7300)
    ('0.25 s', '1 min 15 s', '2 h 1 min')
    """
    x = as_float(seconds)
    if not math.isfinite(x):
        return "–"
    if x < 60:
        return f"{x:.2g} s" if x < 10 else f"{x:.0f} s"
    whole = round(x)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plain(value: Any) -> str:
    """Any JSON value on one line. A leading = + @ or - before a non-number gets an apostrophe: no spreadsheet runs it.

    >>> plain("=HYPERLINK(1)"), plain("-0.5"), plain([1, 2]), plain(True)
    ("'=HYPERLINK(1)", '-0.5', '1, 2', 'true')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, (list, tuple)):
        text = ", ".join(plain(v) for v in value)
    elif isinstance(value, dict):
        text = ", ".join(f"{k}: {plain(v)}" for k, v in value.items())
    else:
        text = str(value)
    if text[:1] in ("=", "+", "@", "-", "\t", "\r") and math.isnan(as_float(text.split(", ")[0])):
        return "'" + text
    return text


def cell(value: Any) -> str:
    """A table's cell: numbers as `num`, the rest as `plain`."""
    return num(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else plain(value)
