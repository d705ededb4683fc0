"""Bounds on what a network can say of every input in a box: intervals forward, linear functions backward. Floor 2.

Both walk over the jaxpr of any function of one array, so they hold for whatever is made of the operations below: dense
layers and convolutions, norms in evaluation mode, ReLUs and other rising activations, poolings, sums, reshapes. An
operation that is not known raises, and nothing is guessed. Rounding is not counted: bounds are those of exact
arithmetic, to about 1e-6 of the numbers in between, or 1e-3 on a device that multiplies in fewer bits unless it is told
otherwise. `proved` tells it, and asks for more than rounding could have made.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

Array = jax.Array
SURE = 1e-5  # of the largest difference: what a proof's margin must exceed
Fn = Callable[[Array], Array]


class Box(NamedTuple):
    """low <= v <= high, entry by entry."""

    low: Array
    high: Array


class UnknownOperation(NotImplementedError):
    """A network uses what there is no bound for here."""


class Unknown(NamedTuple):
    """A value without bounds. It is no mistake until something that is asked for depends on it."""

    why: str


def interval(f: Fn, low: Array, high: Array) -> Box:
    """Bounds of f(x) for every x with low <= x <= high, by interval arithmetic (Gowal et al. 2018).

    Raises:
      UnknownOperation: f uses an operation that has no rule here.
    """
    closed = jax.make_jaxpr(f)(low)
    (out,) = _forward(closed.jaxpr, closed.consts, [Box(low, high)])[0]
    return _box(out)


def linear(f: Fn, low: Array, high: Array, spec: Array) -> Array:
    """Lower bounds f32[B, S] of sum_c spec[b, s, c] f(x)[b, c] over the box, by CROWN backward from the outputs.

    Every ReLU is put between two lines that its interval allows: above by the chord, below by the steeper of 0 and 1
    (Zhang et al. 2018, section 3.3); the intervals are those of `interval`, which makes it CROWN-IBP (Zhang et al.
    2020). Of a maximum over a window: at least the entry whose low end is largest, at most the largest high end. Other
    bent operations it does not know.

    Args:
      f: x f32[B, ...] -> f32[B, C], rows apart.
      spec: f32[B, S, C], such as e_y - e_j for every other class j.

    Raises:
      UnknownOperation: f uses an operation that has no rule here.
    """
    closed = jax.make_jaxpr(f)(low)
    _, known = _forward(closed.jaxpr, closed.consts, [Box(low, high)])
    return _backward(closed.jaxpr, known, Box(low, high), spec)


def differences(f: Fn, low: Array, high: Array, y: Array, *, how: str = "crown") -> Array:
    """Lower bounds f32[B, C] of z_y - z_j for every class j over the box; 0 for y itself.

    Args:
      how: "interval" (the last linear layers put together with the differences: Gowal et al. 2018, section 3) or
        "crown".

    Raises:
      ValueError: no such way.
      UnknownOperation: f uses an operation that has no rule here.
    """
    if how not in ("interval", "crown"):
        raise ValueError(f"bounds: how={how!r} is neither 'interval' nor 'crown'")
    classes = jax.eval_shape(f, low).shape[-1]
    eye = jnp.eye(classes, dtype=low.dtype)
    spec = eye[y][:, None] - eye.reshape(1, classes, classes)  # e_y - e_j
    closed = jax.make_jaxpr(f)(low)
    _, known = _forward(closed.jaxpr, closed.consts, [Box(low, high)])
    return _backward(closed.jaxpr, known, Box(low, high), spec, stop=how == "interval")


def margins(f: Fn, low: Array, high: Array, y: Array, *, how: str = "crown") -> Array:
    """Lower bounds f32[B] of z_y - max_{j != y} z_j over the box: positive where all of it is classified as y.

    Args and raises: as `differences`.
    """
    told = differences(f, low, high, y, how=how)
    return jnp.where(jax.nn.one_hot(y, told.shape[1], dtype=bool), jnp.inf, told).min(-1)


def proved(f: Fn, low: Array, high: Array, y: Array, *, how: str = "crown") -> Array:
    """bool[B]: whether all of the box is classified as y, by a margin beyond rounding.

    Args and raises: as `differences`.
    """
    with jax.default_matmul_precision("highest"):
        told = differences(f, low, high, y, how=how)
    least = SURE * (1 + jnp.abs(told).max(-1, keepdims=True))
    out: Array = jnp.where(jax.nn.one_hot(y, told.shape[1], dtype=bool), True, told > least).all(-1)
    return out


# -------------------------------------------------------------------------------------------------------------- forward
def _both(op: Callable[..., Any], args: Sequence[Any]) -> Box:
    """A rising operation: of the lows, and of the highs."""
    low = op(*(a.low if isinstance(a, Box) else a for a in args))
    high = op(*(a.high if isinstance(a, Box) else a for a in args))
    return Box(low, high)


def _contracted(op: Callable[..., Any], args: Sequence[Any]) -> Box:
    """Linear in the box: the middle as it is, the half width under absolute weights."""
    if all(isinstance(a, Box) for a in args):
        raise UnknownOperation("a product of two quantities that both depend on the input")
    middle = op(*((a.low + a.high) / 2 if isinstance(a, Box) else a for a in args))
    half = op(*((a.high - a.low) / 2 if isinstance(a, Box) else jnp.abs(a) for a in args))
    return Box(middle - half, middle + half)


def _box(a: Any) -> Box:
    if isinstance(a, Unknown):
        raise UnknownOperation(a.why)
    return a if isinstance(a, Box) else Box(a, a)


def _add(op: Any, args: Sequence[Any]) -> Box:
    return _both(op, args)


def _sub(op: Any, args: Sequence[Any]) -> Box:
    a, b = map(_box, args)
    return Box(op(a.low, b.high), op(a.high, b.low))


def _neg(op: Any, args: Sequence[Any]) -> Box:
    (a,) = args
    return Box(op(a.high), op(a.low))


def _corners(op: Any, args: Sequence[Any]) -> Box:
    a, b = map(_box, args)
    four = [op(p, q) for p in a for q in b]
    return Box(
        jnp.minimum(jnp.minimum(four[0], four[1]), jnp.minimum(four[2], four[3])),
        jnp.maximum(jnp.maximum(four[0], four[1]), jnp.maximum(four[2], four[3])),
    )


def _div(op: Any, args: Sequence[Any]) -> Box:
    if isinstance(args[1], Box):
        raise UnknownOperation("a division by what depends on the input")
    return _corners(op, args)


def _integer_pow(op: Any, args: Sequence[Any]) -> Box:
    (a,) = args
    ends = Box(op(a.low), op(a.high))
    low, high = jnp.minimum(*ends), jnp.maximum(*ends)
    over = (a.low < 0) & (a.high > 0)
    at_zero = op(jnp.zeros_like(a.low))
    return Box(jnp.where(over, jnp.minimum(low, at_zero), low), high)


def _select(op: Any, args: Sequence[Any]) -> Box:
    if isinstance(args[0], Box):
        raise UnknownOperation("a choice that depends on the input")
    return _both(op, args)


def _picked(op: Any, args: Sequence[Any]) -> Box:
    if any(isinstance(a, Box) for a in args[1:]):
        raise UnknownOperation("an index that depends on the input")
    return _both(op, args)


def _finite(op: Any, args: Sequence[Any]) -> Array:
    """Between finite ends everything is."""
    (a,) = args
    out: Array = op(a.low) & op(a.high)
    return out


MOVING = (  # places and sums: rising, and linear
    *("reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims", "slice", "concatenate", "pad", "rev"),
    *("convert_element_type", "copy", "reduce_sum", "reduce_window_sum", "cumsum", "optimization_barrier"),
    "reduce_precision",
)
RISING = (
    *MOVING,
    *("reduce_max", "reduce_min", "reduce_window_max", "max", "min", "exp", "log", "log1p", "expm1", "tanh"),
    *("logistic", "sqrt", "sign", "floor", "ceil", "round", "erf", "stop_gradient"),
)
FORWARD: dict[str, Callable[[Any, Sequence[Any]], Any]] = {
    **dict.fromkeys(RISING, _both),
    "is_finite": _finite,
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "neg": _neg,
    "mul": _corners,
    "div": _div,
    "integer_pow": _integer_pow,
    "square": _integer_pow,
    "dot_general": _contracted,
    "conv_general_dilated": _contracted,
    "select_n": _select,
    "gather": _picked,
    "dynamic_slice": _picked,
}
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
CALLS |= {"custom_vjp_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}


class Step(NamedTuple):
    """An operation of the network, with calls opened up."""

    eqn: Any
    args: tuple[Any, ...]  # of the inputs: Box or Array
    into: tuple[int, ...]  # which value each input is
    out: int


def _forward(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> tuple[list[Any], list[Step]]:
    """(outputs, every operation on boxes in its order). Values are numbered; the input is 0."""
    steps: list[Step] = []
    count = [0]

    def fresh() -> int:
        count[0] += 1
        return count[0]

    def run(jaxpr: Any, consts: Sequence[Any], args: Sequence[tuple[Any, int]]) -> list[tuple[Any, int]]:
        env: dict[Any, tuple[Any, int]] = {}

        def read(v: Any) -> tuple[Any, int]:
            return (v.val, -1) if isinstance(v, core.Literal) else env[v]

        env.update(zip(jaxpr.constvars, ((c, -1) for c in consts), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            given = [read(v) for v in eqn.invars]
            name = eqn.primitive.name
            if name in CALLS:
                inner = eqn.params[CALLS[name]]
                inner_jaxpr, inner_consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
                env.update(zip(eqn.outvars, run(inner_jaxpr, inner_consts, given), strict=True))
                continue
            op = partial(_bound, eqn)
            values = [v for v, _ in given]
            if not any(isinstance(v, Box | Unknown) for v in values):
                made = op(*values)
                made = made if eqn.primitive.multiple_results else [made]
                env.update(zip(eqn.outvars, ((m, -1) for m in made), strict=True))
                continue
            if lost := next((v for v in values if isinstance(v, Unknown)), None):
                env.update(zip(eqn.outvars, ((lost, -1) for _ in eqn.outvars), strict=True))
                continue
            if name not in FORWARD or (name == "integer_pow" and eqn.params["y"] < 0):  # 1 / x has a pole
                unknown = Unknown(f"there is no bound for the operation {name!r}")
                env.update(zip(eqn.outvars, ((unknown, -1) for _ in eqn.outvars), strict=True))
                continue
            single = (lambda *a, op=op: op(*a)[0]) if eqn.primitive.multiple_results else op
            number = fresh()
            try:
                made = FORWARD[name](single, values)
            except UnknownOperation as error:
                made = Unknown(str(error))
            if isinstance(made, Box):
                steps.append(Step(eqn, tuple(values), tuple(n for _, n in given), number))
            env[eqn.outvars[0]] = (made, number if isinstance(made, Box) else -1)
        return [read(v) for v in jaxpr.outvars]

    out = run(jaxpr, consts, [(a, 0) for a in args])
    _box(out[0][0])  # raises where it is not known
    return [v for v, _ in out], [*steps, Step(None, (), (out[0][1],), -1)]


def _bound(eqn: Any, *args: Any) -> Any:
    return eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))


# ------------------------------------------------------------------------------------------------------------- backward
LINEAR = (*MOVING, "add", "add_any", "sub", "neg", "mul", "div", "dot_general", "conv_general_dilated", "select_n")


def _is_linear(step: Step, boxes: list[int]) -> bool:
    """In its boxes together. A product of two of them is not, nor is a number that loses its fraction."""
    whole = jnp.issubdtype(step.eqn.outvars[0].aval.dtype, jnp.floating)
    return step.eqn.primitive.name in LINEAR and whole and not (step.eqn.primitive.name == "mul" and len(boxes) > 1)


def _backward(jaxpr: Any, steps: list[Step], box: Box, spec: Array, *, stop: bool = False) -> Array:
    """The lower bound of spec . output, f32[B, S]; with `stop`, in intervals from the last bent operation on."""
    *known, end = steps
    weight: dict[int, Array] = {end.into[0]: jnp.moveaxis(spec, 1, 0)}  # value -> [S, B, ...]
    constant = jnp.zeros(spec.shape[:2], spec.dtype).T  # [S, B]
    where: dict[int, Box] = {0: box}
    for step in known:
        where |= {n: v for n, v in zip(step.into, step.args, strict=True) if isinstance(v, Box)}
    for step in reversed(known):
        if step.out not in weight:
            continue
        a, name = weight[step.out], step.eqn.primitive.name
        boxes = [i for i, v in enumerate(step.args) if isinstance(v, Box)]
        if _is_linear(step, boxes):
            del weight[step.out]
            zero = [jnp.zeros_like(v.low) if isinstance(v, Box) else v for v in step.args]

            def op(*moved: Array, step: Step = step, boxes: list[int] = boxes, zero: list[Any] = zero) -> Array:
                full = list(zero)
                for i, m in zip(boxes, moved, strict=True):
                    full[i] = m
                made = _bound(step.eqn, *full)
                return made[0] if step.eqn.primitive.multiple_results else made

            offset, pull = jax.vjp(op, *(zero[i] for i in boxes))
            constant = constant + _dot(a, offset)
            for i, back in zip(boxes, jax.vmap(pull)(a), strict=True):
                weight[step.into[i]] = weight.get(step.into[i], 0) + back
        elif name == "max" and len(boxes) == 1 and not stop:
            del weight[step.out]
            x, level = step.args[boxes[0]], step.args[1 - boxes[0]]
            back, offset = _relu(a, x, level)
            constant = constant + offset
            weight[step.into[boxes[0]]] = weight.get(step.into[boxes[0]], 0) + back
        elif name == "reduce_window_max" and not stop:
            # At least what was the largest low end is; at most the largest high end, which is a number.
            del weight[step.out]
            (x,) = (step.args[i] for i in boxes)
            _, pull = jax.vjp(partial(_bound, step.eqn), x.low)
            top = _bound(step.eqn, x.high)
            constant = constant + _dot(jnp.minimum(a, 0), top)
            back = jax.vmap(pull)(jnp.maximum(a, 0))[0]
            weight[step.into[boxes[0]]] = weight.get(step.into[boxes[0]], 0) + back
        elif not stop:
            raise UnknownOperation(f"there is no linear bound for the operation {name!r}")
    for number, a in weight.items():
        at = where[number] if number in where else _output_box(known, number)
        middle, half = (at.low + at.high) / 2, (at.high - at.low) / 2
        constant = constant + _dot(a, middle) - _dot(jnp.abs(a), half)
    return constant.T


def _output_box(known: list[Step], number: int) -> Box:
    """Of a value that no later operation took: the output itself."""
    step = next(s for s in known if s.out == number)
    single = (lambda *a: _bound(step.eqn, *a)[0]) if step.eqn.primitive.multiple_results else partial(_bound, step.eqn)
    return FORWARD[step.eqn.primitive.name](single, step.args)


def _dot(a: Array, v: Array) -> Array:
    """a f32[S, B, ...] . v f32[B, ...] -> f32[S, B]."""
    v = jnp.broadcast_to(v, a.shape[1:])
    return (a * v[None]).sum(tuple(range(2, a.ndim)))


def _relu(a: Array, x: Box, level: Array) -> tuple[Array, Array]:
    """max(x, level) under weights a: (weights on x, what is added)."""
    low, high = x.low - level, x.high - level
    over = (low < 0) & (high > 0)
    chord = jnp.where(over, high / jnp.where(over, high - low, 1), (low >= 0).astype(low.dtype))
    below = jnp.where(over, (high > -low).astype(low.dtype), chord)
    up, down = jnp.maximum(a, 0), jnp.minimum(a, 0)  # a lower bound takes the line below where the weight is positive
    slope = up * below[None] + down * chord[None]
    lift = jnp.where(over, -chord * low, 0)
    # max(x, level) = level + relu(x - level), and a line through it is slope (x - level) + lift + level.
    offset = (
        _dot(down, lift) + _dot(a, jnp.broadcast_to(level, low.shape)) - _dot(slope, jnp.broadcast_to(level, low.shape))
    )
    return slope, offset
