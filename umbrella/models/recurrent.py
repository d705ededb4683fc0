"""Recurrent layers: plain, LSTM, GRU, with layer norm, with peepholes, and linear; stacked, both ways, padded. Floor 1.

Inside, time is the first axis: a layer takes and gives f32[T, B, D]. What a cell makes of its inputs is one matrix
product for all steps, outside of the loop; inside of it there is only the product with the state.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.choices import one_of
from umbrella.models.carry import carried
from umbrella.models.layers import Dropout, product, rotation
from umbrella.models.linear import LinearLayer
from umbrella.settings import Count, Fraction

Array = jax.Array
Cell = Literal["rnn", "lstm", "gru", "layernorm_lstm", "peephole_lstm", "linear"]
Weights = dict[str, Array]  # of a cell, beside its matrices
States = tuple[Array, ...]  # f32[B, W] each; the first is the output


class Recurrent(nn.Module):
    """f32[B, T, D] -> f32[B, T, W], the states of the last layer at all steps; f32[B, T, 2 W] when bidirectional.

    There is one bias where torch has two of which only the sum matters. Every matrix of a gate that multiplies the
    state starts orthogonal (Saxe et al. 2014), and the bias of the gate that keeps the state, "forget" or the GRU's
    "update", at 1 (Jozefowicz et al. 2015), neither of which is in the papers of the cells.

    Attributes:
      width: W, of the state of one direction.
      cell: "rnn" h' = tanh(z + U h) (Elman 1990); "lstm" (Hochreiter and Schmidhuber 1997, with the forget gate of Gers
        et al. 2000); "gru" (Cho et al. 2014, but the reset gate acts after the matrix product, as in cuDNN and torch);
        "layernorm_lstm" (Ba et al. 2016, eq. 20 to 22); "peephole_lstm", whose gates see the cell (Gers et al. 2002);
        "linear", blocks of a linear recurrence without a loop, see `umbrella.models.linear.LinearLayer`.
      layers: one on top of the other.
      bidirectional: every layer has a second one that reads backwards, and sees both directions of the layer
        below.
      dropout: of what goes from a layer to the next.
      stateful: keeps the states in the collection "carry", from one batch to the next.
    """

    width: Count
    cell: Cell = "lstm"
    layers: Count = 1
    bidirectional: bool = False
    dropout: Fraction = 0.0
    stateful: bool = False

    @nn.compact
    def __call__(
        self, x: Array, *, there: Array | None = None, fresh: Array | None = None, train: bool = False
    ) -> Array:
        """The states at all steps. A single step is T = 1, with stateful=True and the same parameters.

        Args:
          there: f32[B, T], 1 where there is a step and 0 where there is padding, which leaves the states as they are;
            all steps when None. What comes out at padding means nothing.
          fresh: f32[B], 1 for rows that start from zero; others go on from their carry. Without a carry all start
            there.
          train: whether there is dropout.

        Raises:
          ValueError: no such cell; states are to be carried over, but one direction has no past.
        """
        one_of("cell", self.cell, Cell)
        if self.stateful and self.bidirectional:
            raise ValueError("a bidirectional layer reads the future first: it has no states to carry over")
        x = jnp.swapaxes(x, 0, 1)
        real = None if there is None else there.T[..., None] > 0
        for i in range(self.layers):
            if i and self.dropout:
                x = Dropout(self.dropout, deterministic=not train)(x)
            both = [self._layer(f"layer_{i}", False)(x, real, fresh)]
            if self.bidirectional:
                both.append(self._layer(f"layer_{i}_back", True)(x, real, fresh))
            x = jnp.concatenate(both, -1) if self.bidirectional else both[0]
        if self.cell == "linear":
            x = nn.LayerNorm(name="norm")(x)  # of a stack of residual blocks
        return jnp.swapaxes(x, 0, 1)

    def _layer(self, name: str, back: bool) -> Callable[[Array, Array | None, Array | None], Array]:
        if self.cell == "linear":
            return LinearLayer(self.width, back=back, stateful=self.stateful, name=name)
        return Layer(self.width, self.cell, back=back, stateful=self.stateful, name=name)


def last(h: Array, there: Array | None = None) -> Array:
    """f32[B, T, W] -> f32[B, W]: at the last step that is there; of a row of padding alone, at its first."""
    if there is None:
        return h[:, -1]
    t = h.shape[1]
    at = jnp.max(jnp.where(there > 0, jnp.arange(t)[None], 0), 1)
    return jnp.take_along_axis(h, at[:, None, None], 1)[:, 0]


def ends(h: Array, there: Array | None = None) -> Array:
    """f32[B, T, 2 W] of a bidirectional layer -> f32[B, 2 W]: where each of the directions has read all steps."""
    ahead, back = jnp.split(h, 2, -1)
    flipped = None if there is None else there[:, ::-1]
    return jnp.concatenate([last(ahead, there), last(back[:, ::-1], flipped)], -1)


# ------------------------------------------------------------------------------------------------------------- cells
def _rnn(p: Weights, z: Array, r: Array, s: States) -> States:
    return (jnp.tanh(z + r),)


def _lstm(p: Weights, z: Array, r: Array, s: States) -> States:
    i, f, g, o = jnp.split(z + r, 4, -1)
    c = jax.nn.sigmoid(f) * s[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru(p: Weights, z: Array, r: Array, s: States) -> States:
    zr, zu, zn = jnp.split(z, 3, -1)
    rr, ru, rn = jnp.split(r, 3, -1)
    n = jnp.tanh(zn + jax.nn.sigmoid(zr + rr) * (rn + p["candidate_bias"]))
    return (n + jax.nn.sigmoid(zu + ru) * (s[0] - n),)


def _peephole(p: Weights, z: Array, r: Array, s: States) -> States:
    i, f, g, o = jnp.split(z + r, 4, -1)
    pi, pf, po = jnp.split(p["peephole"], 3, -1)
    c = jax.nn.sigmoid(f + pf * s[1]) * s[1] + jax.nn.sigmoid(i + pi * s[1]) * jnp.tanh(g)
    return jax.nn.sigmoid(o + po * c) * jnp.tanh(c), c


def _layernorm(p: Weights, z: Array, r: Array, s: States) -> States:
    i, f, g, o = jnp.split(z + _normed(r) * p["state_scale"], 4, -1)
    c = jax.nn.sigmoid(f) * s[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(_normed(c) * p["cell_scale"] + p["cell_bias"]), c


def _normed(x: Array) -> Array:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-5)


class Kind(NamedTuple):
    """point(weights, W_x x + b, W_h h, states) -> states; all but the two products."""

    gates: tuple[str, ...]  # in the order of torch
    states: int
    point: Callable[[Weights, Array, Array, States], States]
    weights: dict[str, tuple[int, float]] = {}  # name -> (how many widths long, where it starts)


KINDS = {
    "rnn": Kind(("state",), 1, _rnn),
    "lstm": Kind(("input", "forget", "cell", "output"), 2, _lstm),
    "gru": Kind(("reset", "update", "candidate"), 1, _gru, {"candidate_bias": (1, 0.0)}),
    "peephole_lstm": Kind(("input", "forget", "cell", "output"), 2, _peephole, {"peephole": (3, 0.0)}),
    "layernorm_lstm": Kind(
        ("input", "forget", "cell", "output"),
        2,
        _layernorm,
        {"state_scale": (4, 1.0), "cell_scale": (1, 1.0), "cell_bias": (1, 0.0)},
    ),
}


class Layer(nn.Module):
    """One direction of one layer: f32[T, B, D], bool[T, B, 1] or None, f32[B] or None -> f32[T, B, W].

    Parameters: "input" f32[D, G W] and "bias" f32[G W], "state" f32[W, G W], gates side by side in the order of
      `KINDS`, and what the cell has beside them.
    """

    width: int
    cell: str
    back: bool = False
    stateful: bool = False

    @nn.compact
    def __call__(self, x: Array, real: Array | None, fresh: Array | None) -> Array:
        kind, w = KINDS[self.cell], self.width
        wide = len(kind.gates) * w
        kernel = self.param("input", nn.initializers.lecun_normal(), (x.shape[-1], wide))
        bias = self.param("bias", _keeping, (wide,), kind.gates)
        matrix = self.param("state", _orthogonal, (w, wide))
        own = {
            k: self.param(k, nn.initializers.constant(start), (n * w,))[None] for k, (n, start) in kind.weights.items()
        }
        z = product(x, kernel)
        if self.cell == "layernorm_lstm":
            # The paper's two shifts and the bias add up to one bias.
            z = _normed(z) * self.param("input_scale", nn.initializers.ones, (wide,))[None, None]
        z = z + bias[None, None]
        zero = dict.fromkeys(("h", "c")[: kind.states], jnp.zeros((x.shape[1], w)))
        start, keep = carried(self, zero, fresh) if self.stateful else (zero, lambda states: None)
        end, h = _scan(partial(kind.point, own), matrix, z, real, tuple(start.values()), self.back)
        keep(dict(zip(zero, end, strict=True)))
        return h


def _scan(
    point: Callable[[Array, Array, States], States],
    matrix: Array,
    z: Array,
    real: Array | None,
    start: States,
    back: bool,
) -> tuple[States, Array]:
    """The last states, and the outputs f32[T, B, W] of all steps.

    Not unrolled: on two CPU cores the gradient of an LSTM of T = 28, B = 128, W = 128 takes 10 ms rolled and 11, 15, 37
    ms unrolled by 2, 4, 8 (whole: 20 ms, and 5 s to compile); of T = 100, B = 64, W = 256 it is 65, 72, 83 and 152 ms.
    """

    def step(states: States, now: tuple[Array, Array | None]) -> tuple[States, Array]:
        z, real = now
        new = point(z, states[0] @ matrix, states)
        if real is not None:
            new = tuple(jnp.where(real, n, old) for n, old in zip(new, states, strict=True))
        return new, new[0]

    return jax.lax.scan(step, start, (z, real), reverse=back)


def _orthogonal(key: Array, shape: tuple[int, int]) -> Array:
    """f32[W, G W]: G orthogonal matrices side by side."""
    w, wide = shape
    return jnp.concatenate(list(jax.vmap(partial(rotation, w, w))(jax.random.split(key, wide // w))), 1)


def _keeping(key: Array, shape: tuple[int], gates: tuple[str, ...]) -> Array:
    each = shape[0] // len(gates)
    return jnp.concatenate([jnp.full(each, 1.0 if gate in ("forget", "update") else 0.0) for gate in gates])
