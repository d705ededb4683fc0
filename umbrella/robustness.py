"""How robust a classifier is: for every row the worst of several attacks, and whether to believe it. Floor 4.

The accuracy that is left is an upper bound of the robust accuracy: a better attack can only lower it. What makes such a
number worth anything are the checks beside it (Athalye et al. 2018, Carlini et al. 2019): see `checks`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import attacks, bounds
from umbrella.attacks import Driven, Norm, Search
from umbrella.data import sample
from umbrella.objective import Array, View
from umbrella.settings import Count, Natural, NonNegative, Positive, SettingsError, near
from umbrella.smoothing import Smoothed, certify
from umbrella.transforms.corrupt import KINDS, SEVERITIES, corrupted

Logits = Callable[[View, Array], Array]  # (view of one seed, x f32[B, ...] in its bounds) -> logits f32[B, C]
TARGETS = 9


Bound = Literal["none", "interval", "crown"]


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
    "square": lambda norm, classes: (attacks.square(steps=5000, norm=norm),),
    "square_1000": lambda norm, classes: (attacks.square(steps=1000, norm=norm),),
}
QUICK = ("apgd_ce", "apgd_dlr", "square_1000")
STANDARD = ("apgd_ce", "apgd_t", "fab_t", "square")  # of AutoAttack (Croce and Hein 2020), in its order
ROUNDING = 1e-6  # of the largest logit: by so much two programs may differ about the same input
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
    bound: Bound
    sigma: float
    draws: int


def plan(
    *,
    norm: Norm = "linf",
    eps: tuple[Positive, ...],
    attacks: tuple[str, ...] = QUICK,
    rows: Count = 1000,
    batch_size: Count = 250,
    checked: Natural = 200,
    corruptions: bool = False,
    bound: Bound = "none",
    sigma: NonNegative = 0.0,
    draws: Count | None = None,
) -> Plan:
    """A section of a config: robustness = dict(eps=(0.1, 0.2, 0.3)).

    Args:
      norm: of the ball: "linf", "l2" or "l1", over all axes of an example.
      eps: radii, in units of the input, which is in [0, 1].
      attacks: names of ATTACKS, in turn, each on the rows that stand; or "quick" or "standard" alone, without Square
        in l1, for which there is none.
      rows: of the test split, so many at random, the same every time; all when there are no more.
      batch_size: rows that are attacked at once.
      checked: rows of the checks; 0 for none.
      corruptions: whether the rows are corrupted, too: 11 kinds at 5 severities, see `umbrella.transforms.corrupt`.
      bound: proves of rows that nothing within eps is classified wrongly, by "interval" or "crown": for "linf" and
        networks of ReLUs without norms that look at a row.
      sigma: of the noise under which the smoothed classifier is asked, in units of the input; 0 for none.
      draws: how often a row is asked for its radius; 1000 when None.

    Raises:
      SettingsError: no such attack, or one that is not written for the norm; no radius; a bound in another norm.
    """
    families = {QUICK: QUICK, ("quick",): QUICK, ("standard",): STANDARD}
    names = families.get(attacks, attacks)
    if attacks in families and norm == "l1":
        names = tuple(name for name in names if not name.startswith("square"))
    if not eps:
        raise SettingsError("config.robustness.eps: no radius; give some, such as (0.1, 0.2, 0.3)")
    for name in names:
        if name not in ATTACKS:
            raise SettingsError(f"config.robustness.attacks: no attack {name!r}{near(name, ATTACKS)}")
        try:
            ATTACKS[name](norm, 2)
        except ValueError as error:
            raise SettingsError(f"config.robustness.attacks: {error}") from None
    if bound != "none" and norm != "linf":
        raise SettingsError(f"config.robustness.bound: {bound!r} is about boxes, which are the balls of 'linf'")
    if draws is not None and not sigma:
        raise SettingsError("config.robustness.draws: asked under which noise? Give sigma, too, or leave it out")
    eps = tuple(sorted(set(eps)))
    return Plan(norm, eps, names, rows, batch_size, checked, corruptions, bound, sigma, draws or 1000)


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
    corrupted: np.ndarray | None = None  # f64[K, kinds, 5], the accuracy on the rows when they are corrupted
    proved: np.ndarray | None = None  # bool[K, E, N]: right, and no input in the ball is wrong
    smoothed: tuple[Smoothed, ...] = ()  # of every seed


def bench(plan: Plan, f: Logits, views: View, x: np.ndarray, y: np.ndarray, key: Array) -> Bench:
    """Attacks the rows x f32[N, ...] in [0, 1] with labels y i32[N], seed after seed; views have a leading seed axis.

    Radii go up; a row that falls at one counts as fallen at those above it. Whatever an attack says that it found is
    looked at again, by another program: it must lie in ball and bounds, and its margin be 0 or more, to rounding.
    Logits that are not finite are never right. What is out of the ball does not count, nor does a proof of a row that
    fell: either is a bug, and a check says so.
    """
    seeds = jax.tree.leaves(views)[0].shape[0]
    predict = jax.jit(partial(_predicted, f))
    wrong = jax.jit(partial(_wrong, f))
    classes = jax.eval_shape(f, views.lane(0), x[:1]).shape[-1]
    size = min(plan.batch_size, len(x))
    driven = {name: _family(ATTACKS[name](plan.norm, classes), f, size) for name in plan.attacks}
    clean = np.zeros((seeds, len(x)), bool)
    robust = np.zeros((seeds, len(plan.eps), len(x)), bool)
    first = {name: np.zeros((seeds, len(plan.eps)), np.int64) for name in plan.attacks}
    worst = np.repeat(x[None], len(plan.eps), 0)
    label = np.zeros((len(plan.eps), len(x)), np.int64)
    outside: list[str] = []
    for k in range(seeds):
        view = views.lane(k)
        say = partial(by_batch, partial(predict, view), size=size)
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
                    inside = _inside(plan.norm, eps, x[standing], found)
                    outside += [f"{name}: {int((~inside).sum())} rows at eps {eps:g}"] * (not inside.all())
                    fallen = fooled & inside & by_batch(partial(wrong, view), found, y[standing], size=size)
                    first[name][k, e] += int(fallen.sum())
                    there |= dict(zip(standing[fallen].tolist(), found[fallen], strict=True))
                    standing = standing[~fallen]
            robust[k, e, standing] = True
            if k == 0:
                for row, where in there.items():
                    worst[e, row] = where
                label[e] = say(worst[e])
    some = sample(len(x), plan.checked)
    told = checks(plan, f, views.lane(0), x[some], y[some], jax.random.fold_in(key, 1)) if plan.checked else []
    told += [Check("what attacks find is in ball and bounds", not outside, "; ".join(outside) or "all of it")]
    worse = corruptions(f, views, x, y, jax.random.fold_in(key, 2), size) if plan.corruptions else None
    proved = None
    if plan.bound != "none":
        proved = proofs(plan, f, views, x, y)
        both = int((proved & ~robust & clean[:, None]).sum())
        told += [Check("no row falls that is proved", not both, f"{both} of {int(proved.sum()):,} proofs")]
        proved &= robust
    smoothed: tuple[Smoothed, ...] = ()
    if plan.sigma:
        at = jax.random.fold_in(key, 3)
        how: dict[str, Any] = {"sigma": plan.sigma, "samples": plan.draws, "size": size}
        smoothed = tuple(certify(f, views.lane(k), x, at, **how) for k in range(seeds))
    return Bench(plan, clean, robust, first, x, y, worst, label, told, worse, proved, smoothed)


def proofs(plan: Plan, f: Logits, views: View, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """bool[K, E, N]: whether the plan's bound says that all of the box around a row is classified rightly."""
    seeds, size = jax.tree.leaves(views)[0].shape[0], min(plan.batch_size, len(x))
    sure = jax.jit(partial(_proved, plan.bound, f))
    out = np.zeros((seeds, len(plan.eps), len(x)), bool)
    for k in range(seeds):
        view = views.lane(k)
        for e, eps in enumerate(plan.eps):
            for i in range(0, len(x), size):
                fill = (i + np.arange(size)) % len(x)
                n = min(size, len(x) - i)
                out[k, e, i : i + n] = np.asarray(sure(view, x[fill], y[fill], np.float32(eps)))[:n]
    return out


def check_bound(plan: Plan, f: Logits, view: View, row: jax.ShapeDtypeStruct) -> None:
    """That the plan's bound knows all that the network does; nothing is computed.

    Args:
      view: of arrays or of their shapes.
      row: the shape and dtype of x f32[1, ...].

    Raises:
      SettingsError: it uses an operation without a rule.
    """
    if plan.bound == "none":
        return
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    try:
        jax.eval_shape(partial(_proved, plan.bound, f), view, row, label, jax.ShapeDtypeStruct((), jnp.float32))
    except bounds.UnknownOperation as error:
        raise SettingsError(f"config.robustness.bound: {plan.bound!r} of this model: {error}") from None


def _proved(how: str, f: Logits, view: View, x: Array, y: Array, eps: Array) -> Array:
    return bounds.proved(partial(f, view), jnp.clip(x - eps, 0, 1), jnp.clip(x + eps, 0, 1), y, how=how)


def _predicted(f: Logits, view: View, x: Array) -> Array:
    """i32[B], the class of the largest logit; -1 where they are not all finite."""
    z = f(view, x)
    return jnp.where(jnp.isfinite(z).all(-1), z.argmax(-1), -1)


def _wrong(f: Logits, view: View, x: Array, y: Array) -> Array:
    """bool[B], to rounding: an attack ends at the first point where its own program says so."""
    with jax.default_matmul_precision("highest"):
        z = f(view, x)
    size = jnp.where(jnp.isfinite(z), jnp.abs(z), 0).max(-1)
    return attacks.margin(z, y) >= -ROUNDING * (1 + size)


def corruptions(f: Logits, views: View, x: np.ndarray, y: np.ndarray, key: Array, size: int) -> np.ndarray:
    """f64[K, kinds, 5]: the accuracy of every seed on the rows under every corruption, at severities 1 to 5.

    Source: Hendrycks and Dietterich 2019.
    """
    seeds = jax.tree.leaves(views)[0].shape[0]
    predict = jax.jit(partial(_predicted, f))
    out = np.zeros((seeds, len(KINDS), SEVERITIES))
    for i, kind in enumerate(KINDS):
        for severity in range(1, SEVERITIES + 1):
            worse = jax.jit(partial(corrupted, kind=cast(Any, kind), severity=severity))
            parts = [np.asarray(worse(x[j : j + size], jax.random.fold_in(key, j))) for j in range(0, len(x), size)]
            for k in range(seeds):
                said = by_batch(partial(predict, views.lane(k)), np.concatenate(parts), size=size)
                out[k, i, severity - 1] = np.mean(said == y)
    return out


def _family(searches: tuple[Search, ...], f: Logits, size: int) -> list[Driven]:
    """Searches that differ in their target alone, compiled once."""
    first = Driven(searches[0], f, size)
    return [first, *(Driven(s, f, size, first) for s in searches[1:])]


def hash_of(name: str) -> int:
    """A small number for a name, the same in every process."""
    return sum((i + 1) * ord(c) for i, c in enumerate(name)) * 16


def by_batch(fn: Callable[..., Any], *columns: np.ndarray, size: int) -> np.ndarray:
    """fn of columns [N, ...], `size` rows at a time, the last filled up with the first ones. [N, ...]."""
    n, out = len(columns[0]), []
    for i in range(0, n, size):
        fill = (i + np.arange(size)) % n
        out.append(np.asarray(fn(*(c[fill] for c in columns)))[: n - i])
    return np.concatenate(out)


def _inside(norm: Norm, eps: float, x: np.ndarray, found: np.ndarray) -> np.ndarray:
    """bool[N]: whether what was found is in the ball and in [0, 1], to rounding."""
    length = np.asarray(attacks.ball(norm).size(jnp.asarray(found - x)))
    edge = found.reshape(len(x), -1)
    return (length <= eps * (1 + 1e-4) + 1e-5) & (edge.min(1) >= -1e-6) & (edge.max(1) <= 1 + 1e-6)


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
    noise = left(attacks.noise(tries=50, norm=norm), eps)[0]
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
    if norm != "l1" and x.ndim == 4:
        black = left(attacks.square(steps=500, norm=norm), eps)[0]
        out.append(
            Check(
                "a search without gradients is not stronger than PGD",
                black >= white - slack,
                f"Square, 500 queries, {black:.3f}, PGD-50 {white:.3f}",
            )
        )
    grid = [eps * share for share in (0.25, 0.5, 1.0, 2.0)]
    climbed = [left(attacks.pgd(steps=20, norm=norm, loss="margin", first=False), e)[1] for e in grid]
    out.append(
        Check(
            "the margin rises with the radius",
            all(b >= a - 0.01 * abs(a) for a, b in zip(climbed, climbed[1:], strict=False)),
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


def _flat(name: Any, f: Logits, view: View, x: np.ndarray, y: np.ndarray, size: int) -> float:
    """The share of rows where the gradient of what is climbed leads nowhere: zero everywhere, or not finite."""
    up = attacks.climb(name)

    @jax.jit
    def zero(x: Array, y: Array) -> Array:
        g = jax.grad(lambda v: up(f(view, v), y, y).sum())(x)
        return ((g == 0) | ~jnp.isfinite(g)).reshape(g.shape[0], -1).all(1)

    both = [np.asarray(zero(x[i : i + size], y[i : i + size])) for i in range(0, len(x), size)]
    return float(np.concatenate(both).mean())
