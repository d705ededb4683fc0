"""Attacks: balls against closed forms and SciPy, linear models where the worst input is known, schedules by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from tests.helpers import slow_but
from umbrella import attacks, losses
from umbrella.attacks import balls, boundary, climbs, gradient, squares
from umbrella.models import MLP
from umbrella.objective import Ctx, supervised
from umbrella.transforms import adversarial, searched

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
WIDE = (-100.0, 100.0)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}  # the norm of a slope that says how far a step of length one climbs
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def linear(w: np.ndarray, b: np.ndarray) -> Any:
    """x f32[B, ...] -> logits, W of all its numbers."""
    return lambda x: (
        x.reshape(x.shape[0], -1) @ jnp.asarray(w, jnp.float32) + jnp.asarray(b, jnp.float32).reshape(1, -1)
    )


W, BIAS = RNG.normal(size=(12, 3)), RNG.normal(size=3)
CLASSIFIER = linear(W, BIAS)
X = normal(8, 2, 3, 2)
Y = CLASSIFIER(X).argmax(1)  # right everywhere at first


def bent(x: jax.Array) -> jax.Array:
    """A small network with many local maxima."""
    h = jnp.sin(3 * x.reshape(x.shape[0], -1) @ jnp.asarray(W, jnp.float32) * 0.5)
    return h @ jnp.asarray(W[:3], jnp.float32) + 0.1 * jnp.cos(h).sum(1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------- balls
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_start_and_a_projection_are_inside(norm: Any) -> None:
    around = attacks.ball(norm)
    eps = jnp.asarray(RNG.uniform(0.1, 2, 8), jnp.float32)
    for delta in (around.sample(KEY, X, eps), around.project(3 * X, eps, -abs(X) - 0.2, abs(X) + 0.3)):
        assert (around.size(delta) <= eps * (1 + 1e-5)).all()
    room = around.project(3 * X, eps, jnp.minimum(-X, 0), jnp.full_like(X, 0.05))
    assert (room <= 0.05 + 1e-7).all() and (room >= jnp.minimum(-X, 0) - 1e-7).all()
    small = 1e-3 * X
    np.testing.assert_allclose(around.project(small, eps, -1.0 + 0 * X, 1.0 + 0 * X), small, atol=1e-7)


def test_the_nearest_point_of_an_l1_ball_and_a_box() -> None:
    """Against SciPy's SLSQP on the same problem, with positive and negative parts to make |.| smooth."""
    for row in range(4):
        u, low, high = RNG.normal(size=5), -RNG.uniform(0, 1, 5), RNG.uniform(0, 1, 5)
        args = (jnp.asarray(v[None], jnp.float32) for v in (low, high))
        got = np.asarray(balls.ball("l1").project(jnp.asarray(u[None], jnp.float32), 0.8, *args))[0]
        found = optimize.minimize(
            lambda v, u=u: np.sum((v[:5] - v[5:] - u) ** 2),
            np.zeros(10),
            bounds=[(0, h) for h in high] + [(0, -lo) for lo in low],
            constraints={"type": "ineq", "fun": lambda v: 0.8 - v.sum()},
            options={"ftol": 1e-12},
        )
        np.testing.assert_allclose(got, found.x[:5] - found.x[5:], atol=1e-4, err_msg=str(row))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_steepest_step_of_length_one(norm: Any) -> None:
    """g . s is the dual norm of g. A zero row stays."""
    g = normal(6, 7)
    s = attacks.ball(norm).steepest(g.at[3].set(0))
    climbed = np.asarray((g * s).sum(1))
    wanted = np.linalg.norm(np.asarray(g), DUAL[norm], axis=1)
    keep = np.arange(6) != 3
    np.testing.assert_allclose(climbed[keep], wanted[keep], rtol=1e-5)
    np.testing.assert_array_equal(s[3], 0)
    assert np.allclose(attacks.ball(norm).size(s)[keep], 1, rtol=1e-5)


def test_a_norm_is_spelt_as_it_is() -> None:
    with pytest.raises(ValueError, match="norm: 'l3' is not one of"):
        attacks.ball("l3")


# --------------------------------------------------------------------------------------------------------------- climbs
def test_what_is_climbed_by_hand() -> None:
    """Logits 1, 4, 2, 0 of class 1: margin 2 - 4; dlr that over 4 - 1; towards class 0 (1 - 4) / (4 - (1 + 0) / 2)."""
    z, y, t = jnp.asarray([[1.0, 4.0, 2.0, 0.0]]), jnp.asarray([1]), jnp.asarray([0])
    assert climbs.margin_climbed(z, y, t)[0] == -2
    assert climbs.dlr(z, y, t)[0] == pytest.approx(-2 / 3)
    assert climbs.targeted_dlr(z, y, t)[0] == pytest.approx(-3 / 3.5)
    assert climbs.cross_entropy(z, y, t)[0] == pytest.approx(np.log(np.exp([1, 4, 2, 0]).sum()) - 4, rel=1e-6)
    for name in ("dlr", "targeted"):  # shifted and scaled, it is the same
        f = climbs.climb(name)
        np.testing.assert_allclose(f(1000 * z + 7, y, t), f(z, y, t), rtol=1e-5)
    assert climbs.dlr(z[:, :2], y, t)[0] == -3 and climbs.targeted_dlr(z[:, :3], y, t)[0] == -3


# -------------------------------------------------------------------------------------------------------- linear models
def reachable(norm: str, eps: float) -> np.ndarray:
    """The largest margin within eps of a linear model: max_j (margin to j + eps |w_j - w_y|_dual)."""
    z, out = np.asarray(CLASSIFIER(X)), []
    for row, y in zip(z, np.asarray(Y), strict=True):
        others = [j for j in range(3) if j != y]
        out.append(max(row[j] - row[y] + eps * np.linalg.norm(W[:, j] - W[:, y], DUAL[norm]) for j in others))
    return np.asarray(out)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("make", [attacks.pgd, attacks.apgd])
def test_the_worst_input_of_a_linear_model_is_found(norm: Any, make: Any) -> None:
    """With eps so small that nothing is fooled: the attack then shows its largest margin."""
    eps = 0.05 * {"linf": 1, "l2": 3, "l1": 6}[norm]
    wanted = reachable(norm, eps)
    assert (wanted < 0).sum() >= 5
    got = jax.jit(
        lambda x: attacks.found(make(steps=60, norm=norm, loss="margin", bounds=WIDE), CLASSIFIER, x, Y, eps, KEY)
    )(X)
    low = wanted < 0
    np.testing.assert_allclose(got.margin[low], wanted[low], atol=2e-2 if norm == "l1" else 1e-2)
    np.testing.assert_array_equal(np.asarray(got.fooled)[low], False)
    length = np.linalg.norm(np.asarray(got.x - X).reshape(8, -1), ORDER[norm], axis=1)
    assert (length <= eps * (1 + 1e-5)).all()


@pytest.mark.parametrize("norm", slow_but(["linf", "l2", "l1"], ["linf"]))
def test_fab_finds_the_distance_to_the_boundary(norm: Any) -> None:
    """Of a linear model: min_j -margin_j / |w_j - w_y|_dual. Just above it every row is fooled, just below none."""
    z, y = np.asarray(CLASSIFIER(X)), np.asarray(Y)
    distance = np.asarray(
        [
            min(
                (z[i, y[i]] - z[i, j]) / np.linalg.norm(W[:, j] - W[:, y[i]], DUAL[norm]) for j in range(3) if j != y[i]
            )
            for i in range(8)
        ]
    )
    for factor, fooled in ((1.02, True), (0.98, False)):
        eps = jnp.asarray(factor * distance, jnp.float32)
        got = [
            attacks.found(attacks.fab(steps=30, norm=norm, target=t, bounds=WIDE), CLASSIFIER, X, Y, eps, KEY).fooled
            for t in (1, 2)
        ]
        np.testing.assert_array_equal(np.asarray(got[0] | got[1]), fooled)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_nearest_point_of_a_plane_in_a_box(norm: Any) -> None:
    """l1 and linf against SciPy's linear programs, l2 against SLSQP."""
    for _ in range(4):
        slope, low, high = RNG.normal(size=6), -RNG.uniform(0, 1, 6), RNG.uniform(0, 1, 6)
        need = 0.6 * np.sum(np.where(slope > 0, slope * high, slope * low))
        plane = boundary.Plane(*(jnp.asarray(v[None], jnp.float32) for v in (slope, np.asarray(need), low, high)))
        got = np.asarray(boundary.nearest(norm, plane))[0]
        assert got @ slope == pytest.approx(need, abs=1e-4)
        assert (got >= low - 1e-6).all() and (got <= high + 1e-6).all()
        if norm == "l2":
            found = optimize.minimize(
                lambda d: d @ d,
                np.zeros(6),
                bounds=list(zip(low, high, strict=True)),
                constraints={"type": "eq", "fun": lambda d, s=slope, n=need: s @ d - n},
                options={"ftol": 1e-12},
            )
            assert np.linalg.norm(got) == pytest.approx(np.sqrt(found.fun), rel=1e-4)
        elif norm == "l1":  # delta = p - q
            found = optimize.linprog(
                np.ones(12),
                A_eq=[np.r_[slope, -slope]],
                b_eq=[need],
                bounds=[(0, h) for h in high] + [(0, -v) for v in low],
            )
            assert np.abs(got).sum() == pytest.approx(found.fun, rel=1e-4)
        else:  # min r with -r <= delta <= r
            eye, one = np.eye(6), np.ones((6, 1))
            found = optimize.linprog(
                np.r_[np.zeros(6), 1],
                A_ub=np.block([[eye, -one], [-eye, -one]]),
                b_ub=np.zeros(12),
                A_eq=[np.r_[slope, 0]],
                b_eq=[need],
                bounds=[*zip(low, high, strict=True), (0, None)],
            )
            assert np.abs(got).max() == pytest.approx(found.fun, rel=1e-4)


# ------------------------------------------------------------------------------------------------------------ schedules
def test_the_checkpoints_of_apgd_by_hand() -> None:
    """p: 0, .22, .41 (.22 - .03 later), .57, .70, .80, .87, .93, .99."""
    assert gradient.checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert gradient.checkpoints(10) == (3, 5, 6, 7, 8, 9, 10)[:6]


def test_apgd_is_algorithm_1() -> None:
    """Written again for one row at a time, in NumPy but for the gradient: the same points, all along."""
    eps, steps, x = 0.3, 30, jnp.asarray(RNG.uniform(0.2, 0.8, (5, 12)), jnp.float32)
    y = bent(x).argmax(1)
    search = attacks.apgd(steps=steps, norm="linf", loss="margin")
    carry = search.start(bent, x, y, eps, KEY)
    first = np.asarray(carry["delta"])
    went = []
    step = jax.jit(lambda c, i: search.step(bent, c, i, KEY))
    for i in range(steps):
        went.append(np.asarray(carry["delta"]))
        carry = step(carry, i)
    value = jax.jit(jax.value_and_grad(lambda d, x, y: climbs.margin_climbed(bent(x + d), y, y)[0]))
    for row in range(5):
        at, label = x[row : row + 1], y[row : row + 1]

        def inside(d: np.ndarray, at: Any = at) -> np.ndarray:
            return np.clip(np.clip(d, -eps, eps), -np.asarray(at), 1 - np.asarray(at))

        def look(d: np.ndarray, at: Any = at, label: Any = label) -> tuple[float, np.ndarray]:
            v, g = value(jnp.asarray(d), at, label)
            return float(v), np.asarray(g)

        d = before = first[row : row + 1]
        eta, last, climbed, halved_then = 2 * eps, 0, 0, True
        v, g = look(d)
        top, top_d, top_g, top_then = v, d, g, -np.inf
        for k in range(steps):
            np.testing.assert_allclose(went[k][row : row + 1], d, atol=2e-5, err_msg=f"row {row}, step {k}")
            if k in gradient.checkpoints(steps):
                halve = climbed < 0.75 * (k - last) or (not halved_then and top <= top_then)
                if halve:
                    eta, d, before, g = eta / 2, top_d, top_d, top_g
                last, climbed, halved_then, top_then = k, 0, halve, top
            z = inside(d + eta * np.sign(g))
            new = z if k == 0 else inside(d + 0.75 * (z - d) + 0.25 * (d - before))
            before, d = d, new
            old, (v, g) = v, look(d)
            climbed += v > old
            if v > top:
                top, top_d, top_g = v, d, g


# ----------------------------------------------------------------------------------------------------------- in general
SEARCHES = {
    "pgd": attacks.pgd(steps=5),
    "pgd l2": attacks.pgd(steps=5, norm="l2", loss="dlr"),
    "pgd l1": attacks.pgd(steps=5, norm="l1"),
    "fgsm": attacks.fgsm(),
    "fgsm from a random point": attacks.fgsm(random_start=True),
    "apgd": attacks.apgd(steps=10),
    "apgd l2": attacks.apgd(steps=10, norm="l2", loss="dlr"),
    "apgd l1": attacks.apgd(steps=30, norm="l1"),
    "apgd, targeted": attacks.apgd(steps=10, loss="targeted", target=2),
    "fab": attacks.fab(steps=5),
    "square": attacks.square(steps=20),
    "square l2": attacks.square(steps=20, norm="l2"),
    "restarted": attacks.restarted(attacks.pgd(steps=3), 3),
}
FIRST = ("apgd l1", "fab", "pgd l2", "restarted", "square", "square l2")
NORM = {name: next((n for n in ("l2", "l1") if n in name), "linf") for name in SEARCHES}


@pytest.mark.parametrize("name", slow_but(SEARCHES, FIRST))
def test_what_is_found_is_in_the_ball_and_told_truly(name: str) -> None:
    """Bounds, the norm, the margin that is told, and at eps 0 the input itself."""
    x = jnp.asarray(RNG.uniform(0, 1, (8, 2, 3, 2)), jnp.float32)
    y = bent(x).argmax(1).at[0].add(1) % 3  # the first is wrong from the start
    eps = jnp.asarray([0.1] * 7 + [0.0], jnp.float32)
    run = jax.jit(lambda x, y, eps: attacks.found(SEARCHES[name], bent, x, y, eps, KEY))
    got = run(x, y, eps)
    assert got.x.dtype == x.dtype and (got.x >= 0).all() and (got.x <= 1).all()
    length = np.linalg.norm(np.asarray(got.x - x).reshape(8, -1), ORDER[NORM[name]], axis=1)
    assert (length <= np.asarray(eps) * (1 + 1e-4) + 1e-6).all()
    told = attacks.told(bent, got.x, y)
    np.testing.assert_array_equal(told.fooled, got.fooled)
    np.testing.assert_allclose(told.margin, got.margin, atol=1e-4)
    assert (got.margin >= attacks.told(bent, x, y).margin - 1e-5).all() and got.fooled[0]
    np.testing.assert_array_equal(got.x[0], x[0])  # what is wrong already is left alone
    np.testing.assert_allclose(got.x[7], x[7], atol=1e-7)


@pytest.mark.parametrize("name", slow_but(sorted(set(SEARCHES) - {"square", "square l2"}), ["apgd", "fab"]))
def test_rows_do_not_know_of_one_another(name: str) -> None:
    """With their own random numbers taken away: what stands beside a row changes nothing."""
    x = jnp.asarray(RNG.uniform(0, 1, (6, 12)), jnp.float32)
    y, key = bent(x).argmax(1), KEY
    one = attacks.found(SEARCHES[name], bent, x, y, 0.1, key)
    other = attacks.found(SEARCHES[name], bent, x.at[3:].set(0.5), y, 0.1, key)
    np.testing.assert_allclose(one.x[:3], other.x[:3], atol=1e-5)


def test_a_search_that_asks_for_logits_alone_is_not_deceived() -> None:
    """Logits rounded to steps have no gradient: PGD does not move, squares do."""
    masked = lambda x: jnp.round(CLASSIFIER(x) * 20) / 20  # noqa: E731
    x = jnp.asarray(RNG.uniform(0.3, 0.7, (16, 2, 3, 2)), jnp.float32)
    y = masked(x).argmax(1)
    still = attacks.found(attacks.pgd(steps=10, random_start=False), masked, x, y, 0.25, KEY)
    moved = attacks.found(attacks.square(steps=200), masked, x, y, 0.25, KEY)
    np.testing.assert_array_equal(still.x, x)
    assert moved.fooled.sum() > still.fooled.sum() + 4


def pyramid(x: int, y: int) -> np.ndarray:
    """The source's loop: level k adds 1 / (k + 1)^2 to all that is within k of the middle."""
    out, middle = np.zeros((x, y)), (x // 2, y // 2)
    for k in range(max(middle) + 1):
        out[max(middle[0] - k, 0) : middle[0] + k + 1, max(middle[1] - k, 0) : middle[1] + k + 1] += 1 / (k + 1) ** 2
    return out / np.linalg.norm(out)


@pytest.mark.parametrize("side", [3, 5, 8])
def test_a_bump_is_a_pyramid_up_and_one_down(side: int) -> None:
    """Of a square inside a larger image: the side is a number of the program, not of its shapes."""
    want = np.concatenate([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
    at = np.indices((9, 9), np.int32)
    got = jax.jit(lambda s, t: squares._bump(at[0], at[1], s, t, 9))
    np.testing.assert_allclose(got(np.int32(side), False)[:side, :side], want, atol=1e-6)
    np.testing.assert_allclose(got(np.int32(side), True)[:side, :side], want.T, atol=1e-6)


def test_a_step_of_squares_in_l2_spends_all_of_the_length() -> None:
    """As long as eps; what is outside of the two squares is scaled by one number at most."""
    delta = jnp.asarray(RNG.normal(size=(6, 9, 8, 2)), jnp.float32)
    eps = jnp.linalg.norm(delta.reshape(6, -1), axis=1) * 1.3
    new = squares._bumps(delta, eps, jnp.float32(4.0), KEY)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(new).reshape(6, -1), axis=1), eps, rtol=1e-5)
    ratio = np.asarray(new / delta)
    for row in range(6):
        values, counts = np.unique(np.round(ratio[row], 3), return_counts=True)
        assert counts.max() >= 2 * (9 * 8 - 2 * 3 * 3)  # two squares of side 3: the odd number below 4
        assert 1.0 <= values[counts.argmax()] <= 1.3 + 1e-3 or counts.max() == values.size


@pytest.mark.slow
def test_squares_in_l2_come_near_to_the_distance_of_a_plane() -> None:
    """A linear classifier of 6 x 6 pixels: nothing is fooled within .98 of the distance, most within three times it."""
    w = RNG.normal(size=36).astype(np.float32)
    w = w / np.linalg.norm(w)
    height = lambda x: (x.reshape(-1, 36) - 0.5) @ w  # noqa: E731
    x = jnp.asarray(RNG.uniform(0.45, 0.55, (32, 6, 6, 1)), jnp.float32)
    linear = lambda x: jnp.stack([-height(x), height(x)], 1)  # noqa: E731
    y, far = (height(x) > 0).astype(jnp.int32), jnp.abs(height(x))
    run = jax.jit(lambda eps: attacks.found(attacks.square(steps=300, norm="l2"), linear, x, y, eps, KEY))
    assert not run(0.98 * far).fooled.any()
    assert run(3 * far).fooled.mean() > 0.9


@pytest.mark.slow
def test_more_starts_are_never_worse() -> None:
    x = jnp.asarray(RNG.uniform(0, 1, (32, 12)), jnp.float32)
    y = bent(x).argmax(1)
    margins = [
        attacks.found(attacks.restarted(attacks.pgd(steps=2, loss="margin"), n), bent, x, y, 0.05, KEY).margin.mean()
        for n in (1, 8)
    ]
    assert margins[1] > margins[0]


def test_a_search_on_another_network_is_judged_on_this_one() -> None:
    """From itself it is the search; from one that says the opposite it makes matters better, and the input stays."""
    x = jnp.asarray(RNG.uniform(0, 1, (16, 12)), jnp.float32)
    f, y = linear(W, BIAS), linear(W, BIAS)(x).argmax(1)
    search = attacks.pgd(steps=5, loss="margin", random_start=False)
    own = attacks.found(search, f, x, y, 0.1, KEY)
    same = attacks.found(attacks.transferred(search, f), f, x, y, 0.1, KEY)
    np.testing.assert_allclose(same.margin, own.margin, atol=1e-5)
    other = attacks.transferred(search, linear(W + 0.3 * RNG.normal(size=W.shape), BIAS))
    near = attacks.found(other, f, x, y, 0.1, KEY)
    clean = attacks.told(f, x, y).margin
    assert not (near.fooled & ~own.fooled).any() and near.margin.mean() > clean.mean()
    opposite = attacks.found(attacks.transferred(search, linear(-W, BIAS)), f, x, y, 0.1, KEY)
    assert (opposite.margin >= clean - 1e-6).all()


def test_a_search_on_another_network_goes_on_when_that_one_is_fooled() -> None:
    """A surrogate that is wrong everywhere from the start leads as far as one that is never fooled: to the edge. Its
    slopes are those of the network that is attacked, so all the way is made. Restarts go side by side."""
    x = jnp.asarray(RNG.uniform(0.3, 0.7, (16, 12)), jnp.float32)
    f, y = linear(W, BIAS), linear(W, BIAS)(x).argmax(1)
    search = attacks.pgd(steps=5, loss="margin", random_start=False)
    wrong = lambda x: f(x) - 100 * jax.nn.one_hot(y, 3)  # noqa: E731
    led = attacks.found(attacks.transferred(search, wrong), f, x, y, 0.1, KEY)
    own = attacks.found(attacks.pgd(steps=5, loss="margin", random_start=False, first=False), f, x, y, 0.1, KEY)
    np.testing.assert_array_equal(led.fooled, own.fooled)
    assert own.fooled.any()
    np.testing.assert_allclose(led.margin[~led.fooled], own.margin[~led.fooled], atol=1e-5)
    many = attacks.found(attacks.transferred(attacks.restarted(attacks.pgd(steps=2), 3), f), f, x, y, 0.1, KEY)
    assert many.x.shape == x.shape and (many.margin >= attacks.told(f, x, y).margin).all()


def test_noise_is_the_best_of_its_tries() -> None:
    """In the ball and the bounds, never worse than nothing, and of more tries never worse than of fewer."""
    x = jnp.asarray(RNG.uniform(0, 1, (16, 12)), jnp.float32)
    y = bent(x).argmax(1)
    few, many = (attacks.found(attacks.noise(tries=n), bent, x, y, 0.1, KEY) for n in (5, 40))
    assert (np.abs(many.x - x) <= 0.1 + 1e-6).all() and (many.x >= 0).all() and (many.x <= 1).all()
    assert (few.margin >= attacks.told(bent, x, y).margin).all()
    assert (many.fooled >= few.fooled).all() and many.margin.mean() > few.margin.mean()


def test_a_gradient_that_is_no_number_spoils_nothing() -> None:
    """A square root at 0 has an infinite slope, and 0 times that is no number: the other pixels are climbed all the
    same."""

    def f(x: jax.Array) -> jax.Array:
        return linear(W, BIAS)(x) + 0 * jnp.sqrt(x[:, :1] * 0)

    x = jnp.asarray(RNG.uniform(0.3, 0.7, (16, 12)), jnp.float32)
    y = f(x).argmax(1)
    assert np.isnan(jax.grad(lambda x: f(x).sum())(x)).any()
    for search in (attacks.pgd(steps=5), attacks.apgd(steps=5), attacks.fab(steps=5)):
        found = attacks.found(search, f, x, y, 0.3, KEY)
        assert np.isfinite(found.x).all() and found.fooled.any()


def test_the_expectation_is_over_probabilities() -> None:
    noisy = lambda x, key: CLASSIFIER(x) + jax.random.normal(key, (3,)).reshape(1, 3)  # noqa: E731
    got = attacks.expected(noisy, KEY, 5)(X)
    p = np.mean([jax.nn.softmax(noisy(X, k)) for k in jax.random.split(KEY, 5)], 0)
    np.testing.assert_allclose(np.exp(got), p, rtol=1e-5)
    with pytest.raises(ValueError, match="0 draws are none"):
        attacks.expected(noisy, KEY, 0)


def test_a_search_is_an_attack_on_an_objective() -> None:
    """What reaches the objective is what was found; soft labels are refused."""
    o = supervised(MLP(out=3, hidden=(4,)), losses.cross_entropy)
    batch = {"x": jnp.asarray(RNG.uniform(0, 1, (8, 12)), jnp.float32), "y": Y}
    ctx = Ctx(KEY, jnp.int32(0), {}, train=False)
    params, state = o.init(batch, ctx)
    search = attacks.pgd(steps=3, random_start=False)
    f = lambda x: o.apply(params, state, {**batch, "x": x}, ctx)[1].outputs  # noqa: E731
    wanted = attacks.found(search, f, batch["x"], Y, 0.2, KEY)
    loss, aux = adversarial(searched(search, eps=0.2))(o).apply(params, state, batch, ctx)
    np.testing.assert_allclose(attacks.told(lambda x: aux.outputs, batch["x"], Y).margin, wanted.margin, atol=1e-5)
    soft = {**batch, "y": jax.nn.one_hot(Y, 3)}
    with pytest.raises(ValueError, match="needs labels"):
        adversarial(searched(search, eps=0.2))(o).apply(params, state, soft, ctx)


def test_bad_settings_are_one_line() -> None:
    for make, says in (
        (lambda: attacks.pgd(steps=0), "0 steps are no attack"),
        (lambda: attacks.apgd(loss="targeted"), "target=None and loss='targeted'"),
        (lambda: attacks.pgd(loss="hinge"), "loss of an attack: 'hinge' is not one of"),
        (lambda: attacks.square(norm="l1"), "square: norm: 'l1'"),
        (lambda: attacks.fab(bounds=(-np.inf, np.inf)), "it looks for planes in a box; give it a finite one"),
        (lambda: attacks.restarted(attacks.pgd(), 0), "0 are none"),
        (lambda: attacks.found(attacks.square(), bent, X.reshape(8, -1), Y, 0.1, KEY), "it draws squares on images"),
    ):
        with pytest.raises(ValueError, match=says):
            make()
    with pytest.raises(TypeError, match="int32, which has no gradient: attack the embedding"):
        attacks.found(attacks.pgd(), bent, jnp.zeros((2, 12), jnp.int32), Y[:2], 0.1, KEY)
