"""What is said of classifiers of texts beside what is said of all of them. Floor 5.

Calibrated probabilities, a class that is flagged, the words that decided, and whether attention looks at what counts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, softmax

from umbrella import scores
from umbrella.artifacts import Table
from umbrella.data.words import PAD, split, without
from umbrella.scores import interval
from umbrella.text_baselines import flagging

Ask = Callable[[Sequence[str]], np.ndarray]  # texts -> logits f[N, C]
WORDS = 5  # that are named of those that decided
ROWS = 2000  # texts at most that words are deleted from
SHOWN = 20
TOGETHER = 256  # texts whose words are left out at once: each is as many texts as it has words


# ---------------------------------------------------------------------------------------------------------- decisions
class Decision(NamedTuple):
    """How one run's logits become probabilities and labels, by what its validation rows teach."""

    slope: float = 1.0
    offset: float = 0.0  # of the log odds, with two classes
    flag: int | None = None
    threshold: float = 0.5  # a text is flagged when it is at least so probable

    @classmethod
    def of(cls, logits: np.ndarray, y: np.ndarray, flag: int | None, allowed: float) -> "Decision":
        """From logits f[N, C] and labels of validation: Platt's sigmoid with two classes, else a temperature.

        Args:
          flag: a class of two, flagged where it is so probable that at most `allowed` of the other's rows are.
        """
        if logits.shape[1] > 2:
            degrees = scores.temperature(logits, y)
            return cls(1 / degrees if np.isfinite(degrees) else 1.0)
        if len(np.unique(y)) < 2:
            return cls(flag=flag)
        found = cls(*scores.platt(_log_odds(logits), y == 1), flag)
        if flag is None:
            return found
        p = found.probabilities(logits)[:, flag]
        least = scores.threshold(p, y == flag, {"tnr": 1 - allowed}).threshold  # the least that is flagged
        # Half way to the next row: at the row itself, a flag would have to be as sure as the rows of validation were.
        return found._replace(threshold=(min(least, 1.0) + p[p < least].max(initial=0.0)) / 2)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """f64[N, C]."""
        if logits.shape[1] > 2:
            return np.asarray(softmax(self.slope * np.asarray(logits, np.float64), -1))
        p = expit(self.slope * _log_odds(logits) + self.offset)
        return np.stack([1 - p, p], 1)

    def labels(self, p: np.ndarray) -> np.ndarray:
        """i[N]."""
        if self.flag is None:
            return np.asarray(p.argmax(1))
        return np.where(p[:, self.flag] >= self.threshold, self.flag, 1 - self.flag)


def _log_odds(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits[:, 1] - logits[:, 0], np.float64)


def decided(numbers: dict[str, float], logits: np.ndarray, y: np.ndarray, decision: Decision) -> None:
    """Adds to a run's numbers on test what its calibrated probabilities are worth, and its flags."""
    p = decision.probabilities(logits)
    numbers["loss_calibrated"] = scores.log_loss(p, y)
    numbers["ece_calibrated"] = scores.calibration(p, y, bins=15).error()
    if decision.flag is None:
        return
    true = y == decision.flag
    numbers |= flagging(logits.argmax(1) == decision.flag, true)
    labels = decision.labels(p)
    numbers["accuracy_at_threshold"] = float(np.mean(labels == y))
    numbers |= {f"{k}_at_threshold": v for k, v in flagging(labels == decision.flag, true).items()}
    numbers["threshold"] = decision.threshold


def flags(logits: np.ndarray, y: np.ndarray, decision: Decision, names: tuple[str, ...]) -> Table:
    """How many test texts of each class are flagged, with Wilson's 95 % interval of the share."""
    assert decision.flag is not None
    called = decision.labels(decision.probabilities(logits)) == decision.flag
    rows = []
    for what, part in ((f"{n} flagged", y == c) for c, n in enumerate(names)):
        low, high = wilson(int(called[part].sum()), int(part.sum()))
        rows.append((what, int(called[part].sum()), int(part.sum()), float(called[part].mean()), low, high))
    caption = (
        f"Test texts that are flagged as {names[decision.flag]!r}: those with a calibrated probability of "
        f"{decision.threshold:.4f} and more, a threshold that was chosen on validation."
    )
    return Table(("", "flagged", "of", "share", "95 % from", "to"), tuple(rows), caption)


def wilson(count: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of count in n (Wilson 1927).

    >>> [round(v, 4) for v in wilson(0, 10)]
    [0.0, 0.2775]
    """
    if not n:
        return float("nan"), float("nan")
    z, p = 1.959963984540054, count / n
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float((centre - half) / (1 + z * z / n))), min(1.0, float((centre + half) / (1 + z * z / n)))


# ---------------------------------------------------------------------------------------------------------------- words
def influences(ask: Ask, texts: Sequence[str], labels: np.ndarray, decision: Decision) -> list[list[tuple[str, float]]]:
    """Of every text its words and how much the calibrated log odds of its label fall without each, largest first.

    Exact, and of any classifier: a word is taken out wherever it stands, and the text is read again.
    """
    if len(texts) > TOGETHER:
        parts = (slice(i, i + TOGETHER) for i in range(0, len(texts), TOGETHER))
        return [found for part in parts for found in influences(ask, texts[part], labels[part], decision)]
    words = [list(dict.fromkeys(split(text))) for text in texts]
    asked = [without(text, word) for text, own in zip(texts, words, strict=True) for word in own]
    of = np.concatenate([np.arange(len(texts)), np.repeat(np.arange(len(texts)), [len(own) for own in words])])
    p = np.clip(decision.probabilities(ask([*texts, *asked])), 1e-12, 1 - 1e-12)
    own_p = p[np.arange(len(p)), labels[of]]
    odds = np.log(own_p) - np.log1p(-own_p)
    out, at = [], len(texts)
    for i, own in enumerate(words):
        fall = odds[i] - odds[at : at + len(own)]
        at += len(own)
        out.append([(own[j], float(fall[j])) for j in np.argsort(-fall, kind="stable")])
    return out


def in_words(found: list[tuple[str, float]], most: int = WORDS) -> str:
    """The words that speak for the label, the weightiest first: "free +2.1, prize +0.8"."""
    return ", ".join(f"{word} {fall:+.2g}" for word, fall in found[:most] if fall > 0)


def told(ask: Ask, texts: Sequence[str], decision: Decision, names: tuple[str, ...]) -> Table:
    """New texts with label, calibrated probability and the words that decided; a flag has the probability of its
    class, whatever the label."""
    p = decision.probabilities(ask(texts))
    labels = decision.labels(p)
    shown = labels if decision.flag is None else np.full(len(labels), decision.flag)
    what = "probability" if decision.flag is None else f"probability of {names[decision.flag]}"
    found = influences(ask, texts, labels, decision)
    rows = [
        (names[label], float(p[i, shown[i]]), in_words(found[i]), texts[i]) for i, label in enumerate(labels.tolist())
    ]
    caption = (
        "Labels and calibrated probabilities, and the words without which the log odds of the label would fall most, "
        "with how much."
    )
    return Table(("label", what, "decided by", "text"), tuple(rows), caption)


# ------------------------------------------------------------------------------------------------------------ attention
class Deleted(NamedTuple):
    """What deleting a word does to N texts of one run: f64[N] each, and which word was the most attended one."""

    rows: np.ndarray  # i[N] of the split
    attended: np.ndarray  # by how much the probability of the label falls without the most attended word
    random: np.ndarray  # and without another one, drawn at random
    right: tuple[float, float, float]  # accuracy on these texts: whole, without the attended word, without the other


def deletions(run: Callable[[Any], np.ndarray], attention: np.ndarray, x: np.ndarray, y: np.ndarray) -> Deleted | None:
    """Takes the most attended word out of each text of at least two words, and, beside, another one. None where no
    text has two.

    Of more than ROWS such texts a random part, the same for every run.

    Args:
      run: tokens i32[M, T] -> logits f[M, C].
      attention: f32[N, T], the weight of every word.
      x, y: tokens i32[N, T], labels i[N].
    """
    there = x != PAD
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(there.sum(1) > 1)
    rows = np.sort(rng.permutation(rows)[:ROWS])
    if not len(rows):
        return None
    x, y, there = x[rows], y[rows], there[rows]
    top = np.where(there, attention[rows], -1).argmax(1)
    draw = np.where(there, rng.random(x.shape), -1.0)
    draw[np.arange(len(x)), top] = -1.0
    whole, less, other = (softmax(np.asarray(run(z), np.float64), -1) for z in (x, cut(x, top), cut(x, draw.argmax(1))))
    label = whole.argmax(1)
    at = np.arange(len(x))
    right = tuple(float((p.argmax(1) == y).mean()) for p in (whole, less, other))
    fall = [whole[at, label] - p[at, label] for p in (less, other)]
    return Deleted(rows, fall[0], fall[1], (right[0], right[1], right[2]))


def cut(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Tokens i32[N, T] without the one at `at` i[N] of each: what is behind it moves up.

    >>> cut(np.array([[5, 6, 7, 0]]), np.array([1])).tolist()
    [[5, 7, 0, 0]]
    """
    kept = np.arange(x.shape[1])[None] != at[:, None]
    return np.pad(x[kept].reshape(len(x), -1), ((0, 0), (0, 1)), constant_values=PAD)


def attended(numbers: dict[str, float], found: Deleted) -> None:
    """Adds to a run's numbers on test what deleting words did."""
    mean, half = interval(found.attended - found.random)
    numbers |= {
        "attended_word_fall": float(found.attended.mean()),
        "random_word_fall": float(found.random.mean()),
        "attended_minus_random": float(mean),
        "attended_minus_random_low": float(mean - half),
    }
    numbers["accuracy_without_attended_word"], numbers["accuracy_without_random_word"] = found.right[1:]


def attention_tables(
    found: Deleted, attention: np.ndarray, x: np.ndarray, texts: Sequence[str], words: tuple[str, ...]
) -> Iterator[tuple[str, Table]]:
    """What deletions did, and the texts in which the most attended word weighed most."""
    rows = []
    for what, fall, right in (
        ("the most attended word", found.attended, found.right[1]),
        ("another word, at random", found.random, found.right[2]),
        ("the difference, pair by pair", found.attended - found.random, None),
    ):
        mean, half = interval(fall)
        rows.append((what, float(mean), float(mean - half), float(mean + half), "" if right is None else right))
    caption = (
        f"By how much the probability of the predicted class falls when a word is deleted, over {len(found.rows):,} "
        f"test texts of two words or more, of which {found.right[0]:.4f} are classified rightly as they are."
    )
    columns = ("deleted", "fall of probability", "95 % from", "to", "accuracy")
    yield "deletions", Table(columns, tuple(rows), caption)
    shown = []
    for i in found.rows[np.argsort(-found.attended, kind="stable")][:SHOWN]:
        order = [j for j in np.argsort(-attention[i], kind="stable") if x[i, j] != PAD][:WORDS]
        said = ", ".join(f"{words[x[i, j]]} {attention[i, j]:.2f}" for j in order)
        shown.append((said, texts[i][:300]))
    caption = "Test texts that lose most without their most attended word, and what attention weighs most in them."
    yield "attention", Table(("most attended", "text"), tuple(shown), caption)
