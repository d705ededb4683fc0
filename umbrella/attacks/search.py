"""A search for a worse input, a step at a time. Floor 2.

A search is three pure functions, so that it can run inside a program (`found`) or be driven from outside of one, step
after step, which is faster on a CPU, where a loop inside a program loses its threads, and can stop when every row has
been fooled (`Driven`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from umbrella.attacks.balls import Array
from umbrella.attacks.climbs import margin as margin_of
from umbrella.unroll import unroll

Logits = Callable[[Array], Array]  # x f32[B, ...] -> f32[B, C]; a row's depend on that row alone
Carry = Mapping[str, Any]  # of a search between two steps; every leaf but scalars leads with B


class Found(NamedTuple):
    """What a search found."""

    x: Array  # f32[B, ...], in the ball and in the bounds: of the rows that are fooled what fools them
    fooled: Array  # bool[B]: the prediction at x is wrong
    margin: Array  # f32[B]: max_{j != y} z_j - z_y at x


class Search(NamedTuple):
    """How a worse input is looked for.

    `start` (f, x, y, eps, key) -> carry; `step` (f, carry, i, key) -> carry; `best` (f, carry) -> Found; `done` (carry)
    -> bool[B], rows where going on is of no use. x f32[B, ...], y i32[B], eps f32[] or f32[B], i i32[], the step from
    0.
    """

    steps: int
    start: Callable[[Logits, Array, Array, Any, Array], Carry]
    step: Callable[[Logits, Carry, Any, Array], Carry]
    best: Callable[[Logits, Carry], Found]
    done: Callable[[Carry], Array] = lambda carry: carry["margin"] >= 0


def found(search: Search, f: Logits, x: Array, y: Array, eps: Any, key: Array) -> Found:
    """The whole search as part of a program; short ones unrolled on a CPU."""
    checked(x)
    carry = search.start(f, x, y, eps, jax.random.fold_in(key, 0))

    def turn(i: Any, carry: Carry) -> Carry:
        return search.step(f, carry, i, jax.random.fold_in(key, i + 1))

    carry = jax.lax.fori_loop(0, search.steps, turn, carry, unroll=unroll(search.steps))
    return search.best(f, carry)


class Driven:
    """A search driven from outside of its programs, over any number of rows, in batches of one size.

    On a CPU a program makes a few steps, and a batch ends when all of its rows are fooled; elsewhere it is one program.

    Args:
      f: (view, x f32[B, ...]) -> logits f32[B, C]; `view` is an argument of the programs, so that one compilation does
        for many networks of a shape.
      size: rows of a batch; the last is filled up with copies.
      like: another of the same f and size whose search differs in its start alone, such as in its target: what is
        compiled for its steps is used again.
    """

    def __init__(self, search: Search, f: Callable[[Any, Array], Array], size: int, like: "Driven | None" = None):
        chunk = max(n for n in range(1, 6) if search.steps % n == 0) if jax.default_backend() == "cpu" else search.steps

        def some(view: Any, carry: Carry, first: Array, key: Array) -> tuple[Carry, Array]:
            def turn(i: Any, carry: Carry) -> Carry:
                return search.step(partial(f, view), carry, first + i, jax.random.fold_in(key, first + i + 1))

            carry = jax.lax.fori_loop(0, chunk, turn, carry, unroll=unroll(chunk))
            return carry, search.done(carry)

        def start(view: Any, x: Array, y: Array, eps: Array, key: Array) -> tuple[Carry, Array]:
            carry = search.start(partial(f, view), x, y, eps, jax.random.fold_in(key, 0))
            return carry, search.done(carry)

        self._search, self._size, self._chunk = search, size, chunk
        self._start = jax.jit(start)
        self._some: Callable[..., tuple[Carry, Array]] = jax.jit(some, donate_argnums=1)
        self._best: Callable[..., Found] = jax.jit(lambda view, carry: search.best(partial(f, view), carry))
        if like is not None:
            self._some, self._best = like._some, like._best

    def __call__(self, view: Any, x: np.ndarray, y: np.ndarray, eps: float, key: Array) -> Found:
        """x f32[N, ...], y i32[N] -> Found of NumPy arrays."""
        checked(x)
        parts = [
            self._batch(view, x[i : i + self._size], y[i : i + self._size], eps, jax.random.fold_in(key, i))
            for i in range(0, len(x), self._size)
        ]
        return Found(*(cast(Any, np.concatenate([np.asarray(p[k]) for p in parts])) for k in range(3)))

    def _batch(self, view: Any, x: np.ndarray, y: np.ndarray, eps: float, key: Array) -> Found:
        n = len(x)
        fill = np.zeros(self._size, int)
        fill[:n] = np.arange(n)
        radius = np.where(np.arange(self._size) < n, eps, 0).astype(x.dtype)
        carry, done = self._start(view, x[fill], y[fill], radius, key)
        for i in range(0, self._search.steps, self._chunk):
            if np.asarray(done)[:n].all():
                break
            carry, done = self._some(view, carry, np.int32(i), key)
        return Found(*(cast(Any, np.asarray(v)[:n]) for v in self._best(view, carry)))


def restarted(search: Search, times: int) -> Search:
    """The best of several starts side by side: memory for all of them at once.

    Raises:
      ValueError: fewer than one.
    """
    if times < 1:
        raise ValueError(f"restarts: {times} are none")
    if times == 1:
        return search

    def start(f: Logits, x: Array, y: Array, eps: Any, key: Array) -> Carry:
        return jax.vmap(lambda k: search.start(f, x, y, eps, k))(jax.random.split(key, times))

    def step(f: Logits, carry: Carry, i: Any, key: Array) -> Carry:
        return jax.vmap(lambda c, k: search.step(f, c, i, k))(carry, jax.random.split(key, times))

    def best(f: Logits, carry: Carry) -> Found:
        return worst(jax.vmap(lambda c: search.best(f, c))(carry))

    return Search(search.steps, start, step, best, lambda carry: jax.vmap(search.done)(carry).any(0))


def transferred(search: Search, surrogate: Logits) -> Search:
    """The search made on another network: what an attacker does who does not have the one that is attacked (Papernot et
    al. 2017). Every point where it comes by is judged by the latter, and the best of them is kept: the other network is
    climbed to the end, however early it is fooled. What is wrong as it is stays as it is."""

    def seen(f: Logits, carry: dict[str, Any]) -> dict[str, Any]:
        x, delta = carry["x"], carry["inner"]["delta"]
        for one in delta.reshape((-1, *x.shape)):  # several when it is restarted
            here = told(f, x + one, carry["y"])
            take = (carry["margin"] < 0) & (here.margin > carry["margin"])
            carry["best"] = kept(one, carry["best"], take)
            carry["margin"] = jnp.where(take, here.margin, carry["margin"])
        return carry

    def start(f: Logits, x: Array, y: Array, eps: Any, key: Array) -> Carry:
        inner = search.start(surrogate, x, y, eps, key)
        carry = {"inner": inner, "x": x, "y": y, "best": jnp.zeros_like(x), "margin": told(f, x, y).margin}
        return seen(f, carry)

    def step(f: Logits, carry: Carry, i: Any, key: Array) -> Carry:
        inner = dict(carry["inner"])
        # It is not to know that it is done.
        if "margin" in inner:
            inner["margin"] = jnp.full_like(inner["margin"], -jnp.inf)
        if "fooled" in inner:
            inner["fooled"] = jnp.zeros_like(inner["fooled"])
        return seen(f, dict(carry) | {"inner": search.step(surrogate, inner, i, key)})

    def best(f: Logits, carry: Carry) -> Found:
        return told(f, carry["x"] + carry["best"], carry["y"])

    return Search(search.steps, start, step, best)


def expected(f: Callable[[Array, Array], Array], key: Array, draws: int) -> Logits:
    """The log of the mean probabilities of a network that draws, over fixed draws: the expectation over transformations
    that an attack on a randomised defence has to climb (Athalye et al. 2018b, eq. 2).

    Args:
      f: (x f32[B, ...], key) -> logits f32[B, C].

    Raises:
      ValueError: fewer than one draw.
    """
    if draws < 1:
        raise ValueError(f"expected: {draws} draws are none")
    keys = jax.random.split(key, draws)

    def mean(x: Array) -> Array:
        p = jax.vmap(lambda k: jax.nn.log_softmax(f(x, k)))(keys)
        out: Array = jax.nn.logsumexp(p, axis=0) - jnp.log(float(draws))
        return out

    return mean


def worst(several: Found) -> Found:
    """Of leaves with a leading axis the one with the largest margin, row by row."""
    at = several.margin.argmax(0)
    return jax.tree.map(lambda v: v[at, jnp.arange(v.shape[1])], several)


def told(f: Logits, x: Array, y: Array) -> Found:
    """An input as it is, with its margin."""
    margin = margin_of(f(x), y)
    return Found(x, margin >= 0, margin)


def checked(x: Any) -> None:
    """Raises TypeError for an input without a gradient."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"an attack on an input of {x.dtype}, which has no gradient: attack the embedding of it, by a model that "
            "takes embeddings"
        )


def never(carry: Carry) -> Array:
    """The `done` of a search that goes to the end: bool[B], False."""
    out: Array = jnp.zeros(carry["y"].shape, bool)
    return out


def finite(v: Array) -> Array:
    """0 where it is not: a gradient that is not a number leads nowhere, and one such number would spoil the row."""
    out: Array = jnp.where(jnp.isfinite(v), v, 0)
    return out


def kept(new: Any, old: Any, where: Array) -> Any:
    """new where `where` bool[B], old elsewhere; leaf by leaf."""

    def one(a: Array, b: Array) -> Array:
        return jnp.where(where.reshape(where.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(one, new, old)
