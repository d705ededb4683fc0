"""What is told of a classifier under attack. Floor 5."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import attacks
from umbrella.artifacts import Curves, Images, Table
from umbrella.objective import View
from umbrella.robustness import Bench, Logits, by_batch
from umbrella.scores import interval
from umbrella.transforms.corrupt import KINDS, SEVERITIES

Band = tuple[np.ndarray, np.ndarray]


def numbers(made: Bench) -> Mapping[str, Mapping[str, Any]]:
    """Evaluation -> metric -> one number for each seed: "linf_0.3" -> {"accuracy": f64[K]}; of the rows as they are,
    clean; and "verified" where there are proofs.

    Of a smoothed classifier "smoothed_0.25" -> "accuracy", "abstained" and "radius", the mean of what is certified, 0
    where it is wrong or abstains (Zhai et al. 2020); in l2 also "certified_0.5", the share that is right for certain
    within 0.5, for every radius of the plan.
    """
    plan = made.plan
    at = {f"{plan.norm}_0": {"accuracy": made.clean.mean(-1)}}
    for i, e in enumerate(plan.eps):
        at[f"{plan.norm}_{e:g}"] = {"accuracy": made.robust[:, i].mean(-1)}
        if made.proved is not None:
            at[f"{plan.norm}_{e:g}"]["verified"] = made.proved[:, i].mean(-1)
    if made.corrupted is not None:
        at["corrupted"] = {"accuracy": made.corrupted.mean((1, 2))}
    if made.smoothed:
        right = np.asarray([s.label == made.y for s in made.smoothed])
        radius = np.asarray([s.radius for s in made.smoothed])
        at[f"smoothed_{plan.sigma:g}"] = {
            "accuracy": right.mean(-1),
            "radius": np.where(right, radius, 0).mean(-1),
            "abstained": np.asarray([(s.label < 0).mean() for s in made.smoothed]),
            **{f"certified_{e:g}": (right & (radius >= e)).mean(-1) for e in plan.eps if plan.norm == "l2"},
        }
    return {name: {metric: v if len(v) > 1 else float(v[0]) for metric, v in told.items()} for name, told in at.items()}


def figures(made: Bench, f: Logits, views: View, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """What the report shows."""
    plan, n = made.plan, made.robust.shape[-1]
    eps = np.asarray((0.0, *plan.eps))
    mean, band, of = _banded(np.concatenate([made.clean[:, None], made.robust], 1))
    caption = (
        f"Accuracy under {', '.join(plan.attacks)} within eps ({plan.norm}), the worst of all for every row; {of}."
    )
    name = "worst of all attacks"
    series, bands = {name: (eps, mean)}, {name: band}
    if made.proved is not None:
        name = f"proved ({plan.bound})"
        mean, band, _ = _banded(np.concatenate([made.clean[:, None], made.proved], 1))
        series, bands = {**series, name: (eps, mean)}, {**bands, name: band}
        caption += " The truth is between what is proved and what no attack has found."
    yield "robust_accuracy", Curves(series, "eps", "accuracy", caption, bands)
    if made.smoothed:
        yield "certified_radius", _radii(made)
    if made.checks:
        caption = f"Whether to believe it: {min(plan.checked, n)} of these rows, the first seed, eps {plan.eps[-1]:g}."
        told = tuple((c.what, "holds" if c.holds else "VIOLATED", c.told) for c in made.checks)
        yield "checks", Table(("what must be so", "", "measured"), told, caption)
    rows = tuple((name, *(f"{v:.1f}" for v in made.first[name].mean(0))) for name in plan.attacks)
    caption = "Rows that an attack was the first to fool, at each radius, of those that stood until there."
    yield "attacks", Table(("attack", *(f"eps {e:g}" for e in plan.eps)), rows, caption)
    if made.corrupted is not None:
        error = 1 - made.corrupted.mean(0)
        cells = tuple((kind.replace("_", " "), *row, row.mean()) for kind, row in zip(KINDS, error, strict=True))
        caption = f"Errors on corrupted rows, a mean over seeds; of all, the mean corruption error, {error.mean():.4f}."
        columns = ("corruption", *(f"severity {i + 1}" for i in range(SEVERITIES)), "mean")
        yield "corruptions", Table(columns, tuple((r[0], *map(float, r[1:])) for r in cells), caption)
    if made.x.ndim == 4 and made.x.shape[-1] in (1, 3):
        yield "adversarial", _twins(made, names)
    fooled = np.flatnonzero(made.clean[0] & ~made.robust[0, -1])
    if len(fooled):
        yield "loss_surface", _surface(made, int(fooled[0]), f, views.lane(0))


def _banded(right: np.ndarray) -> tuple[np.ndarray, Band, str]:
    """(mean f64[E], its 95 % interval, how that was made) of bool[K, E, N]: over seeds, or over the rows of one."""
    seeds, _, n = right.shape
    mean, half = interval(right.mean(-1))
    if seeds > 1:
        band = (np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1))
        return mean, band, f"mean over {seeds} seeds, 95 %; {n:,} rows"
    from scipy import stats

    ends = [stats.binomtest(int(hits), n).proportion_ci(method="wilson") for hits in right[0].sum(-1)]
    band = (np.asarray([e.low for e in ends]), np.asarray([e.high for e in ends]))
    return mean, band, f"one seed; 95 % by Wilson's interval over {n:,} rows"


def _radii(made: Bench, points: int = 101) -> Curves:
    """Which share of rows is certified right within a radius in l2 (Cohen et al. 2019, figure 6)."""
    sigma, n = made.plan.sigma, len(made.y)
    # No more votes than all of them: the radius of a row is at most the one that they give.
    most = max(float(s.radius.max()) for s in made.smoothed)
    at = np.linspace(0, max(most, sigma) * 1.02, points)
    right = np.asarray([[(s.label == made.y) & (s.radius >= r) for r in at] for s in made.smoothed])
    mean, band, of = _banded(right)
    name = f"smoothed, sigma {sigma:g}"
    caption = (
        f"Rows that the classifier, asked {made.plan.draws:,} times under Gaussian noise, gets right within a radius "
        f"(l2), of each with probability .999 (Clopper and Pearson); {of}."
    )
    return Curves({name: (at, mean)}, "radius (l2)", f"certified accuracy, {n:,} rows", caption, {name: band})


def _twins(made: Bench, names: tuple[str, ...]) -> Images:
    """Rows as they are, what fools the first seed at the largest radius, and the difference around grey."""
    fooled = np.flatnonzero(made.clean[0] & ~made.robust[0, -1])[:8]
    picked = fooled if len(fooled) else np.arange(min(8, len(made.x)))
    there, delta = made.worst[-1][picked], made.worst[-1][picked] - made.x[picked]
    scale = 0.5 / max(float(np.abs(delta).max()), 1e-6)
    images = np.concatenate([made.x[picked], there, np.clip(0.5 + scale * delta, 0, 1)])
    told = ", ".join(f"{names[made.y[i]]}→{names[made.label[-1, i]]}" for i in picked)
    caption = (
        f"As they are, attacked within eps {made.plan.eps[-1]:g}, and the perturbation, {scale:.3g} times as strong "
        f"around grey (true→predicted: {told})."
    )
    if not len(fooled):
        caption = "No row was fooled; here are the first."
    return Images(images, len(picked), caption, ("clean", "attacked", "perturbation"))


def _surface(made: Bench, row: int, f: Logits, view: View, side: int = 21) -> Images:
    """The margin around one row: along what fooled it, and along a random direction of the same length in the norm."""
    x, delta = made.x[row], made.worst[-1, row] - made.x[row]
    other = np.random.default_rng(0).choice((-1.0, 1.0), size=x.shape).astype(np.float32)
    around = attacks.ball(made.plan.norm)
    length = [float(around.size(jnp.asarray(d[None]))[0]) for d in (delta, other)]
    other = other * np.float32(length[0] / max(length[1], 1e-12))
    at = np.linspace(-1, 1, side, dtype=np.float32)
    grid = np.stack([np.clip(x + a * delta + b * other, 0, 1) for b in at for a in at])
    labels = np.full(len(grid), made.y[row], np.int32)
    look = jax.jit(lambda v, y: attacks.margin(f(view, v), y))
    margin = by_batch(look, grid, labels, size=made.plan.batch_size)
    caption = (
        "The margin around the first row that was fooled: orange where it is classified wrongly, blue where rightly, "
        f"the stronger the surer (up to {np.abs(margin).max():.3g}). The row is in the middle; to the right along what "
        "fooled it, which is there at the edge, upwards along random signs of the same length."
    )
    shade = (margin / max(float(np.abs(margin).max()), 1e-12)).reshape(side, side)[::-1, :, None]
    colour = np.where(shade > 0, np.asarray([0.80, 0.36, 0.0]), np.asarray([0.0, 0.37, 0.59]))
    picture = 1 - np.abs(shade) * (1 - colour)
    return Images(np.repeat(np.repeat(picture, 12, 0), 12, 1)[None].astype(np.float32), 1, caption)
