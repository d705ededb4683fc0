"""How robust a classifier is: for every row the worst of several attacks, and whether to believe it. Floor 4.

The accuracy that is left is an upper bound of the robust accuracy: a better attack can only lower it. What makes such a
number worth anything are the checks beside it (Athalye et al. 2018, Carlini et al. 2019): see `checks`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import attacks
from umbrella.artifacts import Curves, Images, Table
from umbrella.attacks import Driven, Norm, Search
from umbrella.objective import Array, View
from umbrella.scores import interval
from umbrella.settings import Count, Natural, Positive, SettingsError, near
from umbrella.transforms.corrupt import KINDS, SEVERITIES, corrupted

Logits = Callable[[View, Array], Array]  # (view of one seed, x f32[B, ...] in its bounds) -> logits f32[B, C]
TARGETS = 9


def _square(norm: Norm, steps: int) -> Search:
    if norm != "linf":
        raise ValueError(f"square: norm {norm!r}: it is written for 'linf'")
    return attacks.square(steps=steps)


ATTACKS: dict[str, Callable[[Norm, int], tuple[Search, ...]]] = {
    "pgd": lambda norm, classes: (attacks.pgd(steps=40, norm=norm),),
    "apgd_ce": lambda norm, classes: (attacks.apgd(norm=norm),),
    "apgd_dlr": lambda norm, classes: (attacks.apgd(norm=norm, loss="dlr"),),
    "apgd_t": lambda norm, classes: tuple(
        attacks.apgd(norm=norm, loss="targeted", target=t) for t in range(1, min(TARGETS, classes - 1) + 1)
    ),
    "fab_t": lambda norm, classes: tuple(
        attacks.fab(norm=norm, target=t) for t in range(1, min(TARGETS, classes - 1) + 1)
    ),
    "square": lambda norm, classes: (_square(norm, 5000),),
    "square_1000": lambda norm, classes: (_square(norm, 1000),),
}
QUICK = ("apgd_ce", "apgd_dlr", "square_1000")
STANDARD = ("apgd_ce", "apgd_t", "fab_t", "square")  # of AutoAttack (Croce and Hein 2020), in its order
SLACK = 0.01  # of the rows that are checked: what a check may be off by, as random starts differ


class Plan(NamedTuple):
    """What is asked."""

    norm: Norm
    eps: tuple[float, ...]
    attacks: tuple[str, ...]
    rows: int
    batch_size: int
    checked: int
    corruptions: bool


def plan(
    *,
    norm: Norm = "linf",
    eps: tuple[Positive, ...],
    attacks: tuple[str, ...] = QUICK,
    rows: Count = 1000,
    batch_size: Count = 250,
    checked: Natural = 200,
    corruptions: bool = False,
) -> Plan:
    """A section of a config: robustness = dict(eps=(0.1, 0.2, 0.3)).

    Args:
      norm: of the ball: "linf", "l2" or "l1", over all axes of an example.
      eps: radii, in units of the input, which is in [0, 1].
      attacks: names of ATTACKS, in turn, each on the rows that stand; or "quick" or "standard" alone.
      rows: of the test split, the first so many; all when there are no more.
      batch_size: rows that are attacked at once.
      checked: rows of the checks; 0 for none.
      corruptions: whether the rows are corrupted, too: 11 kinds at 5 severities, see `umbrella.transforms.corrupt`.

    Raises:
      SettingsError: no such attack, or one that is not written for the norm; no radius.
    """
    names = QUICK if attacks == ("quick",) else STANDARD if attacks == ("standard",) else attacks
    if not eps:
        raise SettingsError("config.robustness.eps: no radius; give some, such as (0.1, 0.2, 0.3)")
    for name in names:
        if name not in ATTACKS:
            raise SettingsError(f"config.robustness.attacks: no attack {name!r}{near(name, ATTACKS)}")
        try:
            ATTACKS[name](norm, 2)
        except ValueError as error:
            raise SettingsError(f"config.robustness.attacks: {error}") from None
    return Plan(norm, tuple(sorted(set(eps))), names, rows, batch_size, checked, corruptions)


class Check(NamedTuple):
    """One thing that is so if the attacks do what they should."""

    what: str
    holds: bool
    told: str


class Bench(NamedTuple):
    """What was found. K seeds, E radii, N rows."""

    plan: Plan
    clean: np.ndarray  # bool[K, N]
    robust: np.ndarray  # bool[K, E, N]: right, and no attack makes it wrong
    first: dict[str, np.ndarray]  # attack -> i64[K, E]: rows that it made wrong and none before it
    x: np.ndarray  # f32[N, ...], the rows
    y: np.ndarray  # i32[N]
    worst: np.ndarray  # f32[E, N, ...], of the first seed: what fools it, or the row itself
    label: np.ndarray  # i64[E, N], of the first seed: what is predicted there
    checks: list[Check]
    corrupted: np.ndarray | None  # f64[K, kinds, 5], the accuracy on the rows when they are corrupted


def bench(plan: Plan, f: Logits, views: View, x: np.ndarray, y: np.ndarray, key: Array) -> Bench:
    """Attacks the rows x f32[N, ...] in [0, 1] with labels y i32[N], seed after seed; views have a leading seed axis.

    Radii go up; a row that falls at one counts as fallen at those above it. Whatever an attack says that it found is
    looked at again: it must lie in ball and bounds, and be classified wrongly.

    Raises:
      AssertionError: it is not so, which is a bug of the attack.
    """
    seeds = jax.tree.leaves(views)[0].shape[0]
    predict = jax.jit(lambda view, x: f(view, x).argmax(-1))
    classes = jax.eval_shape(f, views.lane(0), x[:1]).shape[-1]
    size = min(plan.batch_size, len(x))
    driven = {name: _family(ATTACKS[name](plan.norm, classes), f, size) for name in plan.attacks}
    clean = np.zeros((seeds, len(x)), bool)
    robust = np.zeros((seeds, len(plan.eps), len(x)), bool)
    first = {name: np.zeros((seeds, len(plan.eps)), np.int64) for name in plan.attacks}
    worst = np.repeat(x[None], len(plan.eps), 0)
    label = np.zeros((len(plan.eps), len(x)), np.int64)
    for k in range(seeds):
        view = views.lane(k)
        say = partial(_by_batch, partial(predict, view), size=size)
        clean[k] = say(x) == y
        there: dict[int, np.ndarray] = {}
        standing = np.flatnonzero(clean[k])
        for e, eps in enumerate(plan.eps):
            for name in plan.attacks:
                for i, attack in enumerate(driven[name]):
                    if not len(standing):
                        break
                    at = jax.random.fold_in(jax.random.fold_in(key, hash_of(name) + i), e)
                    found, fooled, _ = (np.asarray(v) for v in attack(view, x[standing], y[standing], eps, at))
                    _check_ball(plan.norm, eps, x[standing], found, name)
                    # By another program than the attack's: what only a rounding made wrong counts as standing.
                    fallen = fooled & (say(found) != y[standing])
                    first[name][k, e] += int(fallen.sum())
                    there |= dict(zip(standing[fallen].tolist(), found[fallen], strict=True))
                    standing = standing[~fallen]
            robust[k, e, standing] = True
            if k == 0:
                for row, where in there.items():
                    worst[e, row] = where
                label[e] = say(worst[e])
    some = slice(0, plan.checked)
    told = checks(plan, f, views.lane(0), x[some], y[some], jax.random.fold_in(key, 1)) if plan.checked else []
    worse = corruptions(f, views, x, y, jax.random.fold_in(key, 2), size) if plan.corruptions else None
    return Bench(plan, clean, robust, first, x, y, worst, label, told, worse)


def corruptions(f: Logits, views: View, x: np.ndarray, y: np.ndarray, key: Array, size: int) -> np.ndarray:
    """f64[K, kinds, 5]: the accuracy of every seed on the rows under every corruption, at severities 1 to 5.

    Source: Hendrycks and Dietterich 2019.
    """
    seeds = jax.tree.leaves(views)[0].shape[0]
    predict = jax.jit(lambda view, x: f(view, x).argmax(-1))
    out = np.zeros((seeds, len(KINDS), SEVERITIES))
    for i, kind in enumerate(KINDS):
        for severity in range(1, SEVERITIES + 1):
            worse = jax.jit(partial(corrupted, kind=cast(Any, kind), severity=severity))
            parts = [np.asarray(worse(x[j : j + size], jax.random.fold_in(key, j))) for j in range(0, len(x), size)]
            for k in range(seeds):
                said = _by_batch(partial(predict, views.lane(k)), np.concatenate(parts), size)
                out[k, i, severity - 1] = np.mean(said == y)
    return out


def _family(searches: tuple[Search, ...], f: Logits, size: int) -> list[Driven]:
    """Searches that differ in their target alone, compiled once."""
    first = Driven(searches[0], f, size)
    return [first, *(Driven(s, f, size, first) for s in searches[1:])]


def hash_of(name: str) -> int:
    """A small number for a name, the same in every process."""
    return sum((i + 1) * ord(c) for i, c in enumerate(name)) * 16


def _by_batch(fn: Callable[[np.ndarray], Any], x: np.ndarray, size: int) -> np.ndarray:
    out = []
    for i in range(0, len(x), size):
        part = x[i : i + size]
        fill = np.arange(size) % len(part)
        out.append(np.asarray(fn(part[fill]))[: len(part)])
    return np.concatenate(out)


def _check_ball(norm: Norm, eps: float, x: np.ndarray, found: np.ndarray, name: str) -> None:
    length = np.asarray(attacks.ball(norm).size(jnp.asarray(found - x)))
    assert (length <= eps * (1 + 1e-4) + 1e-5).all(), f"{name}: left the ball: {length.max()} > {eps}"
    assert (found >= -1e-6).all() and (found <= 1 + 1e-6).all(), f"{name}: left the bounds"


# --------------------------------------------------------------------------------------------------------------- checks
def checks(plan: Plan, f: Logits, view: View, x: np.ndarray, y: np.ndarray, key: Array) -> list[Check]:
    """What must be so, on these rows at the largest radius: Carlini et al. 2019, section 5.

    - More steps never raise the accuracy.
    - The accuracy falls to nearly 0 when the ball holds everything.
    - Random noise is weaker than the attack that follows the gradient.
    - A search without gradients is not stronger than it, or the gradients are masked.
    - What the attack climbs rises with the radius.
    - Gradients are not zero.
    """
    eps, norm, size = plan.eps[-1], plan.norm, min(plan.batch_size, len(x))
    slack = max(1, round(SLACK * len(x))) / len(x)

    def left(search: Search, radius: float) -> tuple[float, float]:
        found = Driven(search, f, size)(view, x, y, radius, key)
        return float(1 - found.fooled.mean()), float(found.margin.mean())

    steps = (1, 5, 20, 50)
    by_steps = [left(attacks.pgd(steps=n, norm=norm, loss="margin"), eps)[0] for n in steps]
    white = by_steps[-1]
    whole = {"linf": 1.0, "l2": 1.0 * np.sqrt(x[0].size), "l1": 1.0 * x[0].size}[norm]
    everything = left(attacks.pgd(steps=50, norm=norm, loss="margin"), whole)[0]
    noise = left(_noise(norm), eps)[0]
    out = [
        Check(
            "more steps never raise the accuracy",
            all(b <= a + slack for a, b in zip(by_steps, by_steps[1:], strict=False)),
            ", ".join(f"{n} steps {a:.3f}" for n, a in zip(steps, by_steps, strict=True)),
        ),
        Check(
            "nothing is left when the ball holds everything", everything <= slack, f"{everything:.3f} at eps {whole:g}"
        ),
        Check("random noise is weaker than PGD", noise >= white - slack, f"noise {noise:.3f}, PGD-50 {white:.3f}"),
    ]
    if norm == "linf" and x.ndim == 4:
        black = left(attacks.square(steps=500), eps)[0]
        out.append(
            Check(
                "a search without gradients is not stronger than PGD",
                black >= white - slack,
                f"Square, 500 queries, {black:.3f}, PGD-50 {white:.3f}",
            )
        )
    grid = [eps * share for share in (0.25, 0.5, 1.0, 2.0)]
    climbed = [left(attacks.pgd(steps=20, norm=norm, loss="margin"), e)[1] for e in grid]
    out.append(
        Check(
            "the margin rises with the radius",
            all(b >= a for a, b in zip(climbed, climbed[1:], strict=False)),
            ", ".join(f"{e:g}: {m:.3g}" for e, m in zip(grid, climbed, strict=True)),
        )
    )
    flat = {name: _flat(name, f, view, x, y, size) for name in ("ce", "margin")}
    out.append(
        Check(
            "gradients are not zero",
            flat["margin"] <= slack,
            f"all zero for {flat['margin']:.1%} of rows (margin), {flat['ce']:.1%} (cross-entropy)",
        )
    )
    return out


def _noise(norm: Norm) -> Search:
    """Random points of the ball, the best of 50."""
    return attacks.restarted(attacks.pgd(steps=1, step_size=0.0, norm=norm), 50)


def _flat(name: Any, f: Logits, view: View, x: np.ndarray, y: np.ndarray, size: int) -> float:
    """The share of rows where the gradient of what is climbed is zero in every coordinate."""
    up = attacks.climb(name)

    @jax.jit
    def zero(x: Array, y: Array) -> Array:
        g = jax.grad(lambda v: up(f(view, v), y, y).sum())(x)
        return (g.reshape(g.shape[0], -1) == 0).all(1)

    both = [np.asarray(zero(x[i : i + size], y[i : i + size])) for i in range(0, len(x), size)]
    return float(np.concatenate(both).mean())


# -------------------------------------------------------------------------------------------------------------- telling
def numbers(made: Bench) -> Mapping[str, Mapping[str, Any]]:
    """Evaluation -> metric -> one number for each seed: "linf_0.3" -> {"accuracy": f64[K]}; and of the rows, clean."""
    at = {f"{made.plan.norm}_0": made.clean.mean(-1)}
    at |= {f"{made.plan.norm}_{e:g}": made.robust[:, i].mean(-1) for i, e in enumerate(made.plan.eps)}
    if made.corrupted is not None:
        at["corrupted"] = made.corrupted.mean((1, 2))
    return {name: {"accuracy": v if len(v) > 1 else float(v[0])} for name, v in at.items()}


def figures(made: Bench, f: Logits, views: View, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """What the report shows."""
    plan, (seeds, _, n) = made.plan, made.robust.shape
    eps = np.asarray((0.0, *plan.eps))
    accuracy = np.concatenate([made.clean[:, None], made.robust], 1).mean(-1)
    mean, half = interval(accuracy)
    if seeds == 1:
        from scipy import stats

        ends = [stats.binomtest(round(a * n), n).proportion_ci(method="wilson") for a in accuracy[0]]
        low, high = np.asarray([e.low for e in ends]), np.asarray([e.high for e in ends])
        of = f"one seed; 95 % by Wilson's interval over {n:,} rows"
    else:
        low, high = np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)
        of = f"mean over {seeds} seeds, 95 %; {n:,} rows"
    caption = (
        f"Accuracy under {', '.join(plan.attacks)} within eps ({plan.norm}), the worst of all for every row; {of}."
    )
    name = "worst of all attacks"
    yield "robust_accuracy", Curves({name: (eps, mean)}, "eps", "accuracy", caption, {name: (low, high)})
    if made.checks:
        caption = f"Whether to believe it: the first {min(plan.checked, n)} rows, the first seed, eps {plan.eps[-1]:g}."
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
    margin = np.asarray(jax.jit(lambda v, y: attacks.told(lambda z: f(view, z), v, y).margin)(grid, labels))
    caption = (
        "The margin around the first row that was fooled: orange where it is classified wrongly, blue where rightly, "
        f"the stronger the surer (up to {np.abs(margin).max():.3g}). The row is in the middle; to the right along what "
        "fooled it, which is there at the edge, upwards along random signs of the same length."
    )
    shade = (margin / max(float(np.abs(margin).max()), 1e-12)).reshape(side, side)[::-1, :, None]
    colour = np.where(shade > 0, np.asarray([0.80, 0.36, 0.0]), np.asarray([0.0, 0.37, 0.59]))
    picture = 1 - np.abs(shade) * (1 - colour)
    return Images(np.repeat(np.repeat(picture, 12, 0), 12, 1)[None].astype(np.float32), 1, caption)
