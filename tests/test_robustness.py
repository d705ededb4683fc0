"""The bench: the worst of all attacks on a model whose robustness is known, checks that hold and checks that do not."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import umbrella as um
from tests.test_pipelines import vision
from umbrella import attacks, robustness
from umbrella.artifacts import Table
from umbrella.objective import View
from umbrella.pipelines import _attacked
from umbrella.settings import SettingsError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.uniform(0.2, 0.8, (40, 4, 4, 1)).astype(np.float32)
W = RNG.normal(size=(16, 3)).astype(np.float32)


def linear(view: View, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1) @ view.params["w"]


def views(*weights: np.ndarray) -> View:
    return View({"w": jnp.stack([jnp.asarray(w) for w in weights])}, {})


Y = (X.reshape(40, -1) @ W).argmax(1).astype(np.int32)
PLAN = robustness.plan(eps=(0.1, 0.03), rows=40, batch_size=16, checked=40)


def distances() -> np.ndarray:
    """f64[40], how far each row is from another class in l-infinity, when no bound of pixels is in the way."""
    z = X.reshape(40, -1) @ W
    return np.asarray(
        [
            min((z[i, y] - z[i, j]) / np.abs(W[:, y] - W[:, j]).sum() for j in range(3) if j != y)
            for i, y in enumerate(Y)
        ]
    )


@pytest.mark.slow
def test_of_a_linear_model_the_robust_rows_are_those_that_are_far_enough() -> None:
    made = robustness.bench(PLAN, linear, views(W, -W), X, Y, KEY)
    assert made.plan.eps == (0.03, 0.1) and made.clean[0].all() and made.clean[1].mean() < 0.5
    far = distances()
    clear = np.abs(far - np.asarray([[0.03], [0.1]])) > 1e-4
    for e, eps in enumerate(made.plan.eps):  # no pixel is within .1 of its bounds, so they are in nobody's way
        np.testing.assert_array_equal(made.robust[0, e][clear[e]], (far > eps)[clear[e]])
    assert (made.robust[:, 1] <= made.robust[:, 0]).all() and (made.robust <= made.clean[:, None]).all()
    total = sum(v[0] for v in made.first.values())
    np.testing.assert_array_equal(total, [(~made.robust[0, 0]).sum(), (made.robust[0, 0] & ~made.robust[0, 1]).sum()])
    assert [c.what for c in made.checks if not c.holds] == []
    told = _attacked.numbers(made)
    np.testing.assert_allclose(told["linf_0.1"]["accuracy"], made.robust[:, 1].mean(-1))
    fooled = ~made.robust[0, 1]
    said = np.asarray(linear(views(W).lane(0), jnp.asarray(made.worst[1]))).argmax(-1)
    assert (said[fooled] != Y[fooled]).all() and (said[~fooled] == Y[~fooled]).all()


@pytest.mark.slow
def test_a_masked_gradient_is_shown() -> None:
    """Logits in steps: PGD cannot move, the squares can, and the gradients are all zero."""

    def masked(view: View, x: jax.Array) -> jax.Array:
        return jnp.round(linear(view, x) * 5) / 5

    rows = [i for i in range(40) if distances()[i] > 0.01]
    y = np.asarray(masked(views(W).lane(0), jnp.asarray(X))).argmax(-1).astype(np.int32)
    found = {c.what: c for c in robustness.checks(PLAN, masked, views(W).lane(0), X[rows], y[rows], KEY)}
    assert not found["gradients are not zero"].holds
    assert not found["a search without gradients is not stronger than PGD"].holds
    assert not found["nothing is left when the ball holds everything"].holds
    made = robustness.Bench(
        PLAN,
        np.zeros((1, 40), bool),
        np.zeros((1, 2, 40), bool),
        {name: np.zeros((1, 2), np.int64) for name in PLAN.attacks},
        X,
        y,
        X[None],
        y[None],
        list(found.values()),
        None,
    )
    table = dict(_attacked.figures(made, masked, views(W), ("a", "b", "c")))["checks"]
    assert isinstance(table, Table) and sum(row[1] == "VIOLATED" for row in table.rows) >= 3


def boasting(delta: float) -> Any:
    """An attack that goes somewhere, whatever is there, and says that it fooled every row."""
    honest = attacks.pgd(steps=1, step_size=0.0, random_start=False)

    def best(f: Any, carry: Any) -> Any:
        return attacks.Found(carry["x"] + delta, jnp.ones(len(carry["y"]), bool), carry["margin"])

    return lambda norm, classes: (honest._replace(best=best),)


@pytest.mark.parametrize(("delta", "holds"), [(0.0, True), (0.2, False), (0.9, False)])
def test_what_an_attack_says_is_looked_at_again(delta: float, holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boast of what is right as it was, of what is out of the ball and of what is out of the bounds: nothing falls,
    and the report says of the last two that a bug was there."""
    monkeypatch.setitem(robustness.ATTACKS, "boast", boasting(delta))
    plan = robustness.plan(eps=(0.1 if delta < 0.9 else 1.0,), attacks=("boast",), checked=0)
    made = robustness.bench(plan, linear, views(W), X, Y, KEY)
    assert made.robust.all()
    (check,) = made.checks
    assert check.what == "what attacks find is in ball and bounds" and check.holds == holds


def test_a_tie_is_no_right_answer() -> None:
    """Logits in steps of .1 beside a 0, so argmax says class 0 of a tie: rows that are one as they are stand no attack,
    and neither do those from which one can be reached."""

    def stepped(view: View, x: jax.Array) -> jax.Array:
        z = jnp.round(10 * (x.mean((1, 2, 3)) - 0.5)) / 10
        return jnp.stack([z, jnp.zeros_like(z)], 1)

    x = np.full((3, 4, 4, 1), 0.5, np.float32) + np.asarray([0.02, 0.1, 0.3], np.float32).reshape(3, 1, 1, 1)
    plan = robustness.plan(eps=(0.1,), attacks=("square_1000",), checked=0)
    made = robustness.bench(plan, stepped, views(W), x, np.zeros(3, np.int32), KEY)
    assert made.clean[0].tolist() == [True, True, True]
    assert made.robust[0, 0].tolist() == [False, False, True]


def test_logits_that_are_not_finite_are_never_right() -> None:
    """Of a network that says nothing finite at half of the rows; class 0 would be what argmax makes of it."""
    x = np.concatenate([X, X])
    x[40:, 0, 0, 0] = 1.0

    def broken(view: View, x: jax.Array) -> jax.Array:
        return jnp.where(x[:, 0, 0] >= 1.0, jnp.nan, linear(view, x))

    y = np.concatenate([Y, np.zeros(40, np.int32)])
    plan = robustness.plan(eps=(0.001,), attacks=("pgd",), checked=0, sigma=0.01, draws=100)
    made = robustness.bench(plan, broken, views(W), x, y, KEY)
    assert made.clean[0, :40].all() and not made.clean[0, 40:].any() and not made.robust[0, 0, 40:].any()
    # Noise moves the pixel to either side of the edge, so a half of the votes is for nothing.
    assert (made.smoothed[0].votes[40:] < 80).all() and (made.smoothed[0].votes[:40] > 80).mean() > 0.8


@pytest.mark.parametrize("how", ["interval", "crown"])
def test_of_a_linear_model_the_bounds_are_exact(how: Any) -> None:
    """What is proved is what is far enough, so no attack is needed to know the truth."""
    plan = robustness.plan(eps=(0.03, 0.1), batch_size=16, checked=0, attacks=("pgd",), bound=how)
    made = robustness.bench(plan, linear, views(W, -W), X, Y, KEY)
    far = distances()
    clear = np.abs(far - np.asarray([[0.03], [0.1]])) > 1e-3
    assert made.proved is not None
    for e, eps in enumerate(plan.eps):
        np.testing.assert_array_equal(made.proved[0, e][clear[e]], (far > eps)[clear[e]])
    told = _attacked.numbers(made)["linf_0.1"]
    assert (told["verified"] <= told["accuracy"]).all()
    curves = dict(_attacked.figures(made, linear, views(W, -W), ("a", "b", "c")))["robust_accuracy"]
    assert list(curves.series) == ["worst of all attacks", f"proved ({how})"]


def test_a_proof_of_what_is_fooled_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in red, and does not count."""
    monkeypatch.setattr(robustness, "_proved", lambda how, f, view, x, y, eps: jnp.ones(len(x), bool))
    plan = robustness.plan(eps=(0.1,), batch_size=16, checked=0, attacks=("pgd",), bound="crown")
    made = robustness.bench(plan, linear, views(W), X, Y, KEY)
    check = next(c for c in made.checks if c.what == "no row falls that is proved")
    assert not check.holds and check.told == f"{int((~made.robust).sum())} of 40 proofs" and not made.robust.all()
    assert made.proved is not None and (made.proved == made.robust).all()


def test_a_bound_that_does_not_know_the_network_is_refused_before_it_trains() -> None:
    section = dict(eps=(0.1,), bound="crown")
    model = dict(name="mlp", hidden=(8,), activation="gelu")
    with pytest.raises(SettingsError, match="config.robustness.bound: 'crown' of this model: "):
        um.pipelines.build(vision(robustness=section, model=model))
    um.pipelines.build(vision(robustness=section))


def test_a_linear_classifier_smoothed_is_as_far_as_it_was() -> None:
    """Of two classes: the plane is as far from a row with noise as without it, so the certified radius is at most that
    distance in l2, and comes near to it as the draws grow (Cohen et al. 2019, section 3.2.2)."""
    w = np.stack([W[:, 0], -W[:, 0]], 1)
    z = X.reshape(40, -1) @ w[:, 0]
    y, far = (z < 0).astype(np.int32), np.abs(z) / np.linalg.norm(w[:, 0])
    plan = robustness.plan(eps=(0.1,), checked=0, attacks=("pgd",), sigma=0.5, draws=2000)
    made = robustness.bench(plan, linear, views(w), X, y, KEY)
    (told,) = made.smoothed
    assert (told.radius <= far + 1e-6).mean() > 0.95  # each is wrong with probability .001
    near = far < 1.0  # beyond two sigmas the draws are too few
    assert (told.radius[near] > 0.7 * far[near] - 0.1).all()
    numbers = _attacked.numbers(made)["smoothed_0.5"]
    assert numbers["accuracy"] + numbers["abstained"] <= 1 and 0 < numbers["radius"] < far.mean()
    curve = dict(_attacked.figures(made, linear, views(w), ("a", "b")))["certified_radius"]
    ((at, share),) = curve.series.values()
    assert share[0] == pytest.approx(numbers["accuracy"]) and (np.diff(share) <= 0).all() and share[-1] == 0
    # The mean radius is the area under the curve, by the trapezoid rule.
    assert np.trapezoid(share, at) == pytest.approx(numbers["radius"], rel=0.02)


def test_driven_from_outside_it_is_the_same_search() -> None:
    f = lambda view, x: linear(view, x)  # noqa: E731
    view = views(W).lane(0)
    search = attacks.pgd(steps=7, random_start=False)
    one = attacks.Driven(search, f, 16)(view, X, Y, 0.05, KEY)
    other = attacks.found(search, lambda x: f(view, x), jnp.asarray(X), jnp.asarray(Y), 0.05, KEY)
    assert one.x.shape == X.shape
    np.testing.assert_array_equal(one.fooled, other.fooled)
    np.testing.assert_allclose(one.margin[~one.fooled], np.asarray(other.margin)[~one.fooled], atol=1e-5)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (dict(eps=()), "config.robustness.eps: no radius"),
        (dict(eps=(0.1,), attacks=("pgdd",)), "no attack 'pgdd' .did you mean 'pgd'"),
        (dict(eps=(0.1,), norm="l1", attacks=("square",)), "config.robustness.attacks: square: norm: 'l1'"),
        (dict(eps=(0.1,), draws=5), "config.robustness.draws: asked under which noise"),
        (dict(eps=(0.1,), norm="l2", bound="crown"), "config.robustness.bound: 'crown' is about boxes"),
        (dict(eps=(0.1,), norm="l3"), "config.robustness.norm"),
        (dict(eps=(-0.1,)), "config.robustness.eps"),
        (dict(epsilon=(0.1,)), "config.robustness.epsilon: no such setting"),
    ],
)
def test_bad_plans_are_one_line(section: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        um.pipelines.build(vision(robustness=section))


def test_families_leave_squares_out_where_there_are_none() -> None:
    assert robustness.plan(eps=(1.0,), norm="l1").attacks == ("apgd_ce", "apgd_dlr")
    assert robustness.plan(eps=(1.0,), norm="l1", attacks=("standard",)).attacks == ("apgd_ce", "apgd_t", "fab_t")
    assert robustness.plan(eps=(1.0,), norm="l2").attacks == robustness.QUICK


def test_attacks_need_a_test_split_to_look_at() -> None:
    with pytest.raises(SettingsError, match="config.robustness: looks at the test split, which no evaluation does"):
        um.pipelines.build(vision(robustness=dict(eps=(0.1,)), evals={}))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_standard_attacks_on_two_classes(norm: Any) -> None:
    """Of a plane: what is nearer than eps falls, what is farther stands, in l2 by its slope's length, in l1 by its
    largest entry."""
    w = np.stack([W[:, 0], -W[:, 0]], 1)
    z = X.reshape(40, -1) @ w[:, 0]
    y = (z < 0).astype(np.int32)
    far = np.abs(z) / {"l2": np.linalg.norm(w[:, 0]), "l1": np.abs(w[:, 0]).max()}[norm]
    eps = float(np.median(far))
    inside = far < 0.19 if norm == "l1" else np.ones(40, bool)  # a single pixel can go .2 until its bounds
    plan = robustness.plan(eps=(eps,), norm=norm, attacks=("standard",), checked=0, batch_size=40)
    made = robustness.bench(plan, linear, views(w), X, y, KEY)
    clear = (np.abs(far - eps) > 0.02 * eps) & (inside | (far > eps))
    np.testing.assert_array_equal(made.robust[0, 0][clear], (far > eps)[clear])


@pytest.mark.slow
def test_a_run_tells_of_it(tmp_path: Path) -> None:
    section = dict(eps=(0.02, 0.1), rows=30, batch_size=30, checked=30, attacks=("pgd", "apgd_dlr"), corruptions=True)
    config = vision(robustness=section, train_for="200 steps", seeds=2)
    result = um.run(config, workdir=tmp_path / "w", quiet=True)
    told = result.summary["metrics"]
    clean, near, far = (np.asarray(told[f"linf_{e}"]["accuracy"]["values"]) for e in ("0", "0.02", "0.1"))
    assert (clean >= near).all() and (near >= far).all() and clean.min() > 0.4 > far.max()
    assert 0.1 < told["corrupted"]["accuracy"]["mean"] < clean.mean()
    page = (tmp_path / "w" / "report.html").read_text()
    for word in ("robust_accuracy", "checks", "adversarial", "loss_surface", "corruptions", "what must be so"):
        assert word in page
    curve = json.loads((tmp_path / "w" / "artifacts" / "robust_accuracy.json").read_text())["series"]
    np.testing.assert_allclose(next(iter(curve.values()))[1], [clean.mean(), near.mean(), far.mean()])


def test_targets_share_what_is_compiled() -> None:
    """And find what they would alone."""
    traced = []

    def counted(view: View, x: jax.Array) -> jax.Array:
        traced.append(1)
        return linear(view, x)

    view = views(W).lane(0)
    searches = robustness.ATTACKS["apgd_t"]("linf", 3)
    assert len(searches) == 2
    family = robustness._family(searches, counted, 40)
    first = family[0](view, X, Y, 0.1, KEY)
    once = len(traced)
    second = family[1](view, X, Y, 0.1, KEY)
    assert len(traced) - once <= 3  # its start alone
    alone = attacks.Driven(searches[1], linear, 40)(view, X, Y, 0.1, KEY)
    np.testing.assert_allclose(second.margin, alone.margin, atol=1e-5)
    assert (first.fooled | second.fooled).sum() >= first.fooled.sum()
