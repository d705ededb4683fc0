"""Bounds hold for a hundred thousand random points, are exact where they can be, and order themselves as they must."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from tests.helpers import slow_but
from umbrella import attacks, bounds
from umbrella.models import CNN, MLP, LeNet, ResNet

RNG = np.random.default_rng(0)
NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mlp": (MLP(out=4, hidden=(16, 12)), (3, 3, 1)),
    "mlp, batch norm": (MLP(out=4, hidden=(16,), norm="batch"), (3, 3, 1)),
    "cnn": (CNN(out=4, widths=(4, 6), depth=1, head="flat", norm="none"), (6, 6, 2)),
    "cnn, means and norms": (CNN(out=4, widths=(4, 6), depth=1), (6, 6, 2)),
    "resnet": (ResNet(out=4, depth=20), (8, 8, 1)),
    "tanh": (LeNet(out=4), (12, 12, 1)),
    "gelu": (MLP(out=4, hidden=(8,), activation="gelu"), (3, 3, 1)),
}
BENT_BY_MORE = ("tanh", "gelu")  # than ReLUs and poolings: CROWN does not know these


def made(name: str, n: int = 3, eps: float = 0.02) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    net, shape = NETS[name]
    x = jnp.asarray(RNG.uniform(0, 1, (n, *shape)), jnp.float32)
    v = net.init(jax.random.key(1), x, train=False)
    return (lambda x: net.apply(v, x, train=False)), x, x - eps, x + eps


@pytest.mark.parametrize("name", slow_but(NETS, [n for n in NETS if n != "resnet"]))
def test_a_hundred_thousand_points_stay_within(name: str) -> None:
    """Corners, where a linear function is largest, and points in between."""
    f, x, low, high = made(name)
    box = jax.jit(lambda low, high: bounds.interval(f, low, high))(low, high)
    run, slack = jax.jit(f), 1e-4 * (1 + np.abs(np.asarray(box.high)))
    rounds = 100_000 // (len(x) * 50)
    for i in range(rounds if name in ("mlp", "cnn") else 20):
        u = RNG.uniform(0, 1, (50, *x.shape)).astype(np.float32)
        u = np.round(u) if i % 2 else u
        z = np.asarray(run(jnp.asarray((np.asarray(low) + u * np.asarray(high - low)).reshape(-1, *x.shape[1:]))))
        z = z.reshape(50, len(x), 4)
        assert (z >= np.asarray(box.low) - slack).all() and (z <= np.asarray(box.high) + slack).all()
    assert (box.low < box.high).all()


def test_intervals_of_one_layer_by_hand() -> None:
    """z = W x: the middle plus and minus |W| eps, exactly reached; ReLU clips both ends."""
    w = jnp.asarray([[1.0, -2.0], [3.0, 0.5]])
    low, high = jnp.asarray([[0.0, 1.0]]), jnp.asarray([[2.0, 3.0]])
    box = bounds.interval(lambda x: nn.relu(x @ w), low, high)
    # First column: from 0 + 3 to 2 + 9; second: from -4 + .5 to 0 + 1.5.
    np.testing.assert_allclose(box.low, [[3.0, 0.0]])
    np.testing.assert_allclose(box.high, [[11.0, 1.5]])


@pytest.mark.parametrize(
    "name", slow_but([n for n in NETS if n not in BENT_BY_MORE], ["mlp", "mlp, batch norm", "cnn"])
)
def test_margins_that_are_told_are_kept(name: str) -> None:
    """Interval <= CROWN is no law, but both lie below what an attack finds, and CROWN is the tighter on average."""
    f, x, low, high = made(name, n=8)
    y = f(x).argmax(-1)
    told = {
        how: np.asarray(jax.jit(lambda a, b, how=how: bounds.margins(f, a, b, y, how=how))(low, high))
        for how in ("interval", "crown")
    }
    found = attacks.found(attacks.pgd(steps=20, loss="margin", bounds=(-9.0, 9.0)), f, x, y, 0.02, jax.random.key(0))
    for how, low_margin in told.items():
        assert (low_margin <= -np.asarray(found.margin) + 1e-4).all(), how
    if "cnn" not in name:  # a pooling's high end is a number to CROWN, so there it may be the looser
        assert told["crown"].mean() > told["interval"].mean()


def test_crown_by_linear_programming() -> None:
    """One hidden layer, h_j between two lines of w x that hold for a ReLU: CROWN's bound is the least of the linear
    program with the lines that it chose, to rounding; with both lines below it is at most the least of that."""
    w, v = RNG.normal(size=(3, 5)), RNG.normal(size=(5, 2))
    f = lambda x: nn.relu(x @ jnp.asarray(w, jnp.float32)) @ jnp.asarray(v, jnp.float32)  # noqa: E731
    x, eps = RNG.normal(size=3), 0.3
    low, high = jnp.asarray(x - eps, jnp.float32)[None], jnp.asarray(x + eps, jnp.float32)[None]
    spec = jnp.asarray([[[1.0, -1.0]]])
    got = float(bounds.linear(f, low, high, spec)[0, 0])
    c = v @ np.asarray([1.0, -1.0])
    lo, hi = x @ w - eps * np.abs(w).sum(0), x @ w + eps * np.abs(w).sum(0)
    assert ((lo < 0) & (hi > 0)).any()

    def least(below: list[list[float]]) -> float:
        """Variables x (3), h (5): h >= slope w x for every slope of below[j], h <= chord."""
        a, b = [], []
        for j in range(5):
            e = np.zeros(5)
            e[j] = 1
            a += [np.r_[slope * w[:, j], -e] for slope in below[j]]
            b += [0.0] * len(below[j])
            chord = 0.0 if hi[j] <= 0 else 1.0 if lo[j] >= 0 else hi[j] / (hi[j] - lo[j])
            a.append(np.r_[-chord * w[:, j], e])
            b.append(-chord * lo[j] if lo[j] < 0 < hi[j] else 0.0)
        box = [(p - eps, p + eps) for p in x]
        return float(optimize.linprog(np.r_[np.zeros(3), c], np.asarray(a), b, bounds=box + [(None, None)] * 5).fun)

    chosen = [[0.0 if high <= -low else 1.0] for low, high in zip(lo, hi, strict=True)]  # the steeper half
    assert got == pytest.approx(least(chosen), abs=1e-5)
    both = least([[0.0, 1.0]] * 5)
    points = x + RNG.uniform(-eps, eps, (20_000, 3))
    assert got <= both + 1e-6 and both <= (np.maximum(points @ w, 0) @ c).min() + 1e-6


def test_without_a_bent_unit_crown_is_exact() -> None:
    """Where every ReLU is surely on or off the network is linear in the box: the bound is reached in a corner."""
    w, v = RNG.normal(size=(3, 6)), RNG.normal(size=(6, 3))
    f = lambda x: nn.relu(x @ jnp.asarray(w, jnp.float32)) @ jnp.asarray(v, jnp.float32)  # noqa: E731
    x = jnp.asarray(RNG.normal(size=(1, 3)), jnp.float32)
    eps = float(np.abs(np.asarray(x) @ w).min() / np.abs(w).sum(0).max() * 0.9)
    y = f(x).argmax(-1)
    corners = np.asarray(x) + eps * np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
    z = np.maximum(corners @ w, 0) @ v
    others = np.delete(z, int(y[0]), 1)
    wanted = (z[:, int(y[0])][:, None] - others).min()
    assert float(bounds.margins(f, x - eps, x + eps, y)[0]) == pytest.approx(wanted, abs=1e-4)


def test_what_is_not_known_is_not_guessed() -> None:
    x = jnp.ones((1, 3))
    with pytest.raises(bounds.UnknownOperation, match="'sin'"):
        bounds.interval(jnp.sin, x, x + 1)
    with pytest.raises(bounds.UnknownOperation, match="no linear bound for the operation 'tanh'"):
        bounds.linear(jnp.tanh, x, x + 1, jnp.ones((1, 1, 3)))
    with pytest.raises(bounds.UnknownOperation, match="division by what depends"):
        bounds.interval(lambda x: 1 / x, x, x + 1)
    for power in (-1, -2):  # through a pole
        with pytest.raises(bounds.UnknownOperation, match="'integer_pow'"):
            bounds.interval(lambda x, power=power: x**power, jnp.asarray([[-1.0]]), jnp.asarray([[2.0]]))
    with pytest.raises(bounds.UnknownOperation, match="both depend"):
        bounds.interval(lambda x: x @ x.T, x, x + 1)


def test_gradients_go_through() -> None:
    """What certified training needs: the bound's gradient in the weights, against differences."""
    x, y = jnp.asarray(RNG.uniform(0, 1, (4, 3)), jnp.float32), jnp.asarray([0, 1, 0, 1])

    def told(w: jax.Array, how: str) -> jax.Array:
        return bounds.margins(
            lambda x: nn.relu(x @ w[:, :4]) @ w[:2, 4:].T.repeat(4, 0)[:4], x - 0.1, x + 0.1, y, how=how
        ).sum()

    w = jnp.asarray(RNG.normal(size=(3, 6)), jnp.float32)
    for how in ("interval", "crown"):
        g = jax.grad(told)(w, how)
        way = jnp.asarray(RNG.normal(size=w.shape), jnp.float32)
        step = (told(w + 1e-3 * way, how) - told(w - 1e-3 * way, how)) / 2e-3
        assert float((g * way).sum()) == pytest.approx(float(step), rel=0.05, abs=0.02)


@pytest.mark.parametrize("how", ["interval", "crown"])
def test_a_product_of_two_boxes_is_not_linear(how: str) -> None:
    """x * x over [-1, 2], as a GELU has it: its slope at 0 is 0, and a bound that took it for linear would say 0."""
    f = lambda x: jnp.concatenate([x * (x + 1.0), 3.0 - 0 * x], 1)  # noqa: E731
    low, high, y = jnp.asarray([[-1.0]]), jnp.asarray([[2.0]]), jnp.asarray([1])
    if how == "crown":
        with pytest.raises(bounds.UnknownOperation, match="'mul'"):
            bounds.margins(f, low, high, y, how=how)
        return
    # 3 - x (x + 1) is least at 2, where it is -3.
    assert float(bounds.margins(f, low, high, y, how=how)[0]) <= -3.0


def test_margins_of_a_gelu_hold() -> None:
    f, x, low, high = made("gelu", n=8, eps=0.1)
    y = f(x).argmax(-1)
    told = np.asarray(bounds.margins(f, low, high, y, how="interval"))
    for _ in range(200):
        z = np.array(f(low + jnp.asarray(RNG.uniform(0, 1, x.shape), jnp.float32) * (high - low)))
        own = z[np.arange(8), np.asarray(y)]
        z[np.arange(8), np.asarray(y)] = -np.inf
        assert (own - z.max(-1) >= told - 1e-4).all()
