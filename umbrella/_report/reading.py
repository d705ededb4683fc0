"""A plain-language reading of two learning curves, computed by the rules below and by nothing else.

With v the validation curve, t the training curve, both turned so that lower is better:

- *noise* is the spread of v around its own trend: 1.4826 * median |second difference| / sqrt(6), over the second half.
- *level* is the mean of the last tenth of a curve (at least one value); *best* is the lowest point of v, averaged over
  a window of one twentieth of its length (at least one value).
- *improvement* is v's first value minus best. The shares below are shares of it.
- **too short**: fewer than 5 values of v.
- **diverged**: the last value of v or t is not finite, or both ended above their start, by more than 3 noise and a
  tenth of it.
- **traded**: training is against attacks or by bounds, and it would be diverged (but finite) or unstable.
- **not learning**: improvement is within 3 noise or a thousandth of the first value.
- **overfitting**: v has risen since best by more than 3 noise and 5 %, while t has not; or v has levelled off with the
  gap between the levels of v and t above 30 %. **unstable**: v has risen, and t with it.
- **still improving**: the line fitted to the last quarter of v falls by more than 2 % over it, and by more than two
  standard errors.
- **converged**: none of these.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from umbrella._report.text import num, share

Verdict = Literal[
    "too short", "diverged", "traded", "not learning", "overfitting", "unstable", "still improving", "converged"
]

MIN_POINTS = 5  # of the validation curve
RISE = 0.05  # share of the improvement that counts as turned up
GAP_LARGE, GAP_SMALL = 0.30, 0.10  # shares of the improvement
FALLING = 0.02  # share of the improvement, over the last quarter
NOISY = 0.10  # share of the improvement

ADVICE: dict[Verdict, str] = {
    "too short": "",
    "diverged": "Worth trying: a lower learning rate, a warm-up, gradient clipping.",
    "traded": "",
    "not learning": "Worth checking: the learning rate, the labels, and whether the model can fit one small batch.",
    "overfitting": "Worth trying: stopping earlier, more data or augmentation, weight decay, dropout, a smaller model.",
    "unstable": "Worth trying: a lower or decaying learning rate, gradient clipping, larger batches.",
    "still improving": "Worth trying: training longer; until then the model is underfitting.",
    "converged": "",
}


class Curve(NamedTuple):
    """One metric of one split. step f64[N], ascending; value f64[N], which may hold non-finite numbers."""

    step: np.ndarray
    value: np.ndarray


class Reading(NamedTuple):
    """What the curves say: one of the verdicts above, and the sentences that justify it."""

    verdict: Verdict
    sentences: list[str]


def read_curves(
    train: Curve, validation: Curve, *, metric: str = "loss", lower_is_better: bool = True, hardened: bool = False
) -> Reading:
    """Read over- and underfitting from a training and a validation curve of the same metric, by this module's rules.

    The curves may be logged at different steps; `train` may be empty, then the gap is not read. Never raises on values.

    Args:
      hardened: whether the model is trained against attacks or by bounds, so that the plain loss is not what falls.

    >>> steps = np.arange(20.0)
    >>> read_curves(Curve(steps, np.exp(-steps)), Curve(steps, np.exp(-steps) + 0.05)).verdict
    'converged'
    """
    t, v = np.asarray(train.value, np.float64), np.asarray(validation.value, np.float64)
    name = f"validation {metric}"
    broken = [s for s, c in (("training", t), ("validation", v)) if len(c) and not math.isfinite(c[-1])]
    if broken:
        return _reading("diverged", [f"The {' and '.join(broken)} {metric} ended as a number that is not finite."])
    if len(v) < MIN_POINTS:
        return _reading(
            "too short", [f"The {name} was measured {_times(len(v))}; a reading needs {MIN_POINTS} values."]
        )
    sign = 1.0 if lower_is_better else -1.0
    tf, vf = np.isfinite(t), np.isfinite(v)
    if vf.sum() < MIN_POINTS:
        return _reading("diverged", [f"The {name} was finite only {_times(int(vf.sum()))} in {len(v)} measurements."])
    facts = _facts(Curve(train.step[tf], sign * t[tf]), Curve(validation.step[vf], sign * v[vf]))
    if hardened and facts.verdict in ("diverged", "unstable"):
        facts = facts._replace(verdict="traded")
    sentences = _sentences(facts, name, metric, sign)
    if not vf.all() or not tf.all():
        sentences.append(
            f"{int((~vf).sum() + (~tf).sum())} measurements along the way were not finite; they were left out."
        )
    return _reading(facts.verdict, sentences)


class _Facts(NamedTuple):
    verdict: Verdict
    first: float
    best: float
    best_step: float
    last_step: float
    improvement: float
    rise: float  # level minus best
    gap: float | None  # level of validation minus level of training
    fall: float  # of the fitted line over the last quarter
    noise: float
    train_rose: bool


def _facts(t: Curve, v: Curve) -> _Facts:
    noise = _noise(v.value)
    width = max(1, len(v.value) // 20)
    smooth = np.convolve(v.value, np.full(width, 1 / width), "valid")
    at = int(np.argmin(smooth))
    best, best_step, level = float(smooth[at]), float(v.step[at + width // 2]), _level(v.value)
    first, improvement, rise = float(v.value[0]), float(v.value[0] - best), float(level - best)
    fall, error = _last_quarter(v)
    gap = float(level - _level(t.value)) if len(t.value) else None
    train_rose = False
    if len(t.value):
        then = float(np.interp(best_step, t.step, t.value))
        train_rose = _level(t.value) - then > max(3 * _noise(t.value), RISE * abs(t.value[0] - t.value.min()))
    risen = rise > max(3 * noise / math.sqrt(width), RISE * improvement, 1e-3 * abs(first))
    learned = improvement > max(3 * noise, 1e-3 * abs(first))

    verdict: Verdict
    if _climbed(v.value) and (not len(t.value) or _climbed(t.value)):
        verdict = "diverged"
    elif risen and not train_rose and (learned or _fell(t.value)):
        verdict = "overfitting"
    elif not learned:
        verdict = "not learning"
    elif risen:
        verdict = "unstable"
    elif fall > FALLING * improvement and fall > 2 * error:
        verdict = "still improving"
    elif gap is not None and gap > GAP_LARGE * improvement:
        verdict = "overfitting"
    else:
        verdict = "converged"
    return _Facts(verdict, first, best, best_step, float(v.step[-1]), improvement, rise, gap, fall, noise, train_rose)


def _sentences(f: _Facts, name: str, metric: str, sign: float) -> list[str]:
    name = name[0].upper() + name[1:]
    where = f"at step {num(round(f.best_step))} of {num(round(f.last_step))}"
    if f.verdict == "diverged":
        return [f"{name} and the training {metric} both ended worse than they started."]
    if f.verdict == "traded":
        return [
            f"{name} was at its best, {num(sign * f.best)}, {where}, and so was the training {metric}, or near it. "
            "Both got worse since: training is against attacks or by bounds, which ask for more as they grow, and the "
            f"plain {metric} is what it costs."
        ]
    if f.verdict == "not learning":
        return [f"{name} never moved away from its first value, {num(sign * f.first)}, by more than its noise."]
    if f.improvement <= 3 * f.noise:
        return [f"{name} was at its best, {num(sign * f.best)}, {where}, and has only got worse since."]
    out = [f"{name} improved from {num(sign * f.first)} to {num(sign * f.best)}, its best, {where}."]
    rise, fall = f.rise / f.improvement, f.fall / f.improvement
    if f.verdict == "unstable" or (f.verdict == "overfitting" and rise > RISE):
        also = "the training one got worse too" if f.train_rose else "the training one did not"
        out.append(f"Since then it has got worse by {num(f.rise)}, {share(rise)} of what it had gained; {also}.")
    elif f.verdict == "still improving":
        out.append(
            f"It was still improving at the end: {share(fall)} of the whole gain came in the last quarter of training."
        )
    else:
        out.append(
            "It has levelled off: the last quarter of training brought little, and it has not turned since its best."
        )
    if f.gap is not None:
        gap = f.gap / f.improvement
        size = "large" if gap > GAP_LARGE else "moderate" if gap > GAP_SMALL else "small"
        if f.gap >= 0:
            apart = f"At the end it is {num(f.gap)} worse than the training {metric}"
            out.append(f"{apart}, {share(gap)} of the gain: a {size} gap.")
        else:
            why = "usual when dropout, noise or augmentation act only in training, or while it falls fast"
            out.append(f"The training {metric} is the worse one, by {num(-f.gap)}: {why}.")
    if f.noise > NOISY * f.improvement:
        out.append(
            f"The curve is noisy: it jumps by about {share(f.noise / f.improvement)} of the gain between measurements."
        )
    return out


def _reading(verdict: Verdict, sentences: list[str]) -> Reading:
    return Reading(verdict, sentences + ([ADVICE[verdict]] if ADVICE[verdict] else []))


def _level(value: np.ndarray) -> float:
    return float(np.mean(value[-max(1, len(value) // 10) :]))


def _noise(value: np.ndarray) -> float:
    tail = value[len(value) // 2 :] if len(value) >= 8 else value
    if len(tail) < 3:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.diff(tail, 2))) / math.sqrt(6))


def _climbed(value: np.ndarray) -> bool:
    return _level(value) - value[0] > max(3 * _noise(value), 0.1 * abs(value[0]))


def _fell(value: np.ndarray) -> bool:
    return len(value) > 0 and value[0] - _level(value) > max(3 * _noise(value), 0.01 * abs(value[0]))


def _last_quarter(v: Curve) -> tuple[float, float]:
    """The fall of the least-squares line over the last quarter of the steps (3 values at least), its standard error."""
    x, y = v.step, v.value
    n = max(3, int(np.sum(x >= x[-1] - 0.25 * (x[-1] - x[0]))))
    x, y = x[-n:], y[-n:]
    span = float(x[-1] - x[0])
    if span <= 0:
        return 0.0, 0.0
    centred = x - x.mean()
    slope = float(np.dot(centred, y) / np.dot(centred, centred))
    residual = y - y.mean() - slope * centred
    spread = math.sqrt(float(np.dot(residual, residual)) / (n - 2) / float(np.dot(centred, centred)))
    return -slope * span, spread * span


def _times(n: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(n, f"{n} times")
