"""What models are put together from: norms, activations and initialisers by name, stochastic depth. Floor 1."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.choices import one_of

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "relu2": lambda x: jnp.square(nn.relu(x)),  # So et al. 2021 (Primer), section 3
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": nn.tanh,
}
Activation = Literal["relu", "relu2", "gelu", "silu", "tanh"]

Norm = Literal["none", "batch", "layer", "group", "instance", "rms"]


def _interval(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(key, shape, dtype) * (math.sqrt(2 * math.pi) / math.prod(shape[:-1]))


def rotation(rows: int, columns: int, key: jax.Array) -> jax.Array:
    """f32[N, K], K <= N: orthonormal columns, uniformly distributed; a product of K reflections, each of which takes an
    axis to a random direction (Stewart 1980, theorem 3.3). By hand: several batched QR decompositions in one program,
    of the layers of several seeds, block each other for ever in the thread pool of XLA's CPU backend (jaxlib 0.10.2).
    """
    x = jnp.triu(jax.random.normal(key, (columns, rows)))
    diagonal = jnp.diagonal(x)
    sign = jnp.where(diagonal < 0, -1.0, 1.0)
    v = x + jnp.eye(columns, rows) * (sign * jnp.linalg.norm(x, axis=1))[:, None]
    v = v / jnp.linalg.norm(v, axis=1, keepdims=True)

    def reflected(i: jax.Array, q: jax.Array) -> jax.Array:
        k = columns - 1 - i
        return q - 2 * jnp.outer(v[k], v[k] @ q)

    q = jax.lax.fori_loop(0, columns, reflected, jnp.eye(rows, columns))
    return -q * sign[None]


def orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Weights [..., C] whose columns are orthonormal, or, where those are more than the rows, whose rows are."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    made = rotation(max(rows, columns), min(rows, columns), key)
    return (made if rows >= columns else made.T).reshape(shape).astype(dtype)


_INITS: dict[str, Callable[..., Any]] = {
    "lecun_normal": nn.initializers.lecun_normal,  # variance 1 / in: keeps a linear layer's signal
    "xavier_normal": nn.initializers.xavier_normal,  # 2 / (in + out) (Glorot and Bengio 2010, eq. 12)
    "xavier_uniform": nn.initializers.xavier_uniform,  # the same variance (eq. 16)
    "he_normal": nn.initializers.he_normal,  # 2 / in: keeps the signal through ReLUs (He et al. 2015, eq. 10)
    "he_uniform": nn.initializers.he_uniform,
    "orthogonal": lambda: orthogonal,  # rows or columns orthonormal (Saxe et al. 2014)
    "truncated_normal": lambda: nn.initializers.truncated_normal(0.02),  # cut at two sd, of the uncut normal
    # 2 pi / in^2: keeps the width of a box through interval bounds, which he_normal makes sqrt(in / pi) times as wide
    # in every layer (Shi et al. 2021, section 4.1).
    "interval": lambda: _interval,
}
Init = Literal[
    "lecun_normal",
    "xavier_normal",
    "xavier_uniform",
    "he_normal",
    "he_uniform",
    "orthogonal",
    "truncated_normal",
    "interval",
]


def initializer(name: Init) -> Callable[..., jax.Array]:
    """(key, shape, dtype) -> weights; the last two axes of a shape are in and out, those before them add to in."""
    made: Callable[..., jax.Array] = _INITS[name]()
    return made


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """f32[..., D] @ f32[D, W] -> f32[..., W], as a product of two matrices.

    Of more than one leading axis XLA's CPU backend makes the gradient of w from a transposed copy of what flows back,
    and computes that a second time for it: forward and backward of two layers, 160 to 640 and back with a GELU between,
    on 32 rows of 128 positions take 74 ms so, and 48 ms as matrices.
    """
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1])


def _dense_product(lhs: jax.Array, rhs: jax.Array, dims: Any, **how: Any) -> jax.Array:
    rows = lhs.reshape(-1, lhs.shape[-1])
    return jax.lax.dot_general(rows, rhs, (((1,), (0,)), ((), ())), **how).reshape(*lhs.shape[:-1], rhs.shape[-1])


class Dense(nn.Dense):
    """flax's Dense, for inputs f32[..., D] of more than one leading axis, as `product` computes them."""

    dot_general: Callable[..., jax.Array] | None = _dense_product


def drop(key: jax.Array, x: jax.Array, rate: float, shape: tuple[int, ...] | None = None) -> jax.Array:
    """x, of which a share is zero and the rest is larger, so that the mean stays.

    Args:
      key: what decides.
      x: f32[...].
      rate: the share, at most 1, to the nearest of 1/256 to 255/256: a number is kept by one random byte, where a
        uniform float takes four times as many bits and, of 2.6 million, 15 to 25 ms on two cores (a byte each: 1.4 ms).
      shape: of what is decided, if some axes are decided together; x's own when None.

    Source: Srivastava et al. 2014, scaled while training.
    """
    shape = shape or x.shape
    if rate <= 0:
        return x
    if rate >= 1:
        return jnp.zeros_like(x)
    kept = min(255, max(1, round(256 * (1 - rate))))
    words = jax.random.bits(key, (*shape[:-1], -(-shape[-1] // 4)))
    some = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*shape[:-1], -1)[..., : shape[-1]]
    return jnp.where(some < kept, x * jnp.asarray(256 / kept, x.dtype), jnp.zeros((), x.dtype))


class Dropout(nn.Module):
    """flax's Dropout, by `drop`. f32[...] -> the same shape; unchanged when deterministic.

    Attributes:
      rate: the share that is zero.
      broadcast_dims: axes along which all share one fate.
      deterministic: said here or in the call.
    """

    rate: float
    broadcast_dims: tuple[int, ...] = ()
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        off = nn.merge_param("deterministic", self.deterministic, deterministic)
        if off or not self.rate:
            return x
        shape = tuple(1 if i in self.broadcast_dims else n for i, n in enumerate(x.shape))
        return drop(self.make_rng("dropout"), x, self.rate, shape)


def has_bias(norm: Norm) -> bool:
    """Whether a layer before this norm has a bias: not where the norm takes a mean away, and the bias with it. Its
    gradient would be zero but for rounding, on which it would walk."""
    return norm in ("none", "rms")


def normalise(
    x: jax.Array,
    kind: Norm,
    *,
    train: bool,
    name: str,
    momentum: float = 0.9,
    zero: bool = False,
    scaled: bool = True,
) -> jax.Array:
    """f32[B, ..., C] -> the same shape, scaled and shifted per channel but for "none"; inside of a compact method.

    Args:
      kind: over what it normalises. "batch": all but the channels, with averaged statistics in evaluation (Ioffe and
        Szegedy 2015), which count padded rows, too, and under a map over an axis "data" the rows of all its devices;
        "layer": the channels of each position (Ba et al. 2016; over the
        last axis alone, as Transformers and ConvNeXt have it); "group": positions and the channels of a group, in 32
        groups (Wu and He 2018), or as many as divide C and leave two channels to each, of rows without positions
        sixteen; "instance": the positions of each channel (Ulyanov et al.
        2016); "rms": as "layer" without the mean and without a shift (Zhang and Sennrich 2019).
      name: of the module that holds scale and shift.
      momentum: of the averaged statistics, "batch" only.
      zero: the scale starts at 0 instead of 1, so that a residual branch starts as nothing (Goyal et al. 2017).
      scaled: whether there is a scale.

    Raises:
      ValueError: no such norm; one that would take the mean of a single number, and so make all of them zero.
    """
    one_of("norm", kind, Norm)
    channels, positions = x.shape[-1], math.prod(x.shape[1:-1])
    groups = _groups(channels, 2 if positions > 1 else 16)
    together = {"layer": channels, "group": positions * channels // groups, "instance": positions}
    if together.get(kind) == 1:
        raise ValueError(
            f"norm {kind!r} has nothing to take a mean over at {name!r}, where x is {list(x.shape)}, and would make it "
            "all zeros; choose another norm"
        )
    start = nn.initializers.zeros if zero else nn.initializers.ones
    how: dict[str, Any] = {"scale_init": start, "use_scale": scaled, "name": name}
    if kind == "batch":
        how["axis_name"] = "data" if train and mapped("data") else None
        return nn.BatchNorm(use_running_average=not train, momentum=momentum, epsilon=1e-5, **how)(x)
    if kind == "layer":
        return nn.LayerNorm(epsilon=1e-6, **how)(x)
    if kind == "group":
        return nn.GroupNorm(num_groups=groups, **how)(x)
    if kind == "instance":
        return nn.InstanceNorm(**how)(x)
    return nn.RMSNorm(**how)(x) if kind == "rms" else x


def mapped(axis: str) -> bool:
    """Whether what is traced here runs under a pmap or shard_map over an axis of this name."""
    try:
        jax.lax.axis_index(axis)
    except NameError:
        return False
    return True


def _groups(channels: int, least: int) -> int:
    """The most groups, 32 or fewer, that divide the channels and have at least so many each; or one.

    >>> _groups(64, 2), _groups(16, 2), _groups(48, 16), _groups(7, 2)
    (32, 8, 3, 1)
    """
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels >= g * least))


class DropPath(nn.Module):
    """Stochastic depth: a whole residual branch of an example is dropped in training (Huang et al. 2016).

    f32[B, ...] -> the same shape; a branch that stays is divided by its probability of staying, so that evaluation
    needs no factor (the paper multiplies in evaluation instead).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or not self.rate:
            return x
        stay = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(stay, x / (1 - self.rate), 0)


def _conv_general_dilated(lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    if jax.default_backend() == "cpu" and jnp.issubdtype(lhs.dtype, jnp.floating):
        lhs = lhs / jax.lax.optimization_barrier(jnp.ones((), lhs.dtype))
    return jax.lax.conv_general_dilated(lhs, rhs, *args, **kwargs)


class Conv(nn.Conv):
    """flax's convolution, with the same parameters and the same numbers, whose gradient is faster on a CPU.

    For the gradient of the kernel XLA's CPU backend transposes the input, and fuses what is cheap, a ReLU or a sum,
    into the transposition to compute it a second time, which makes a copy of 1 ms one of 12. It does not compute twice
    what it takes for expensive, such as a division: by a one that it cannot know to be one. (A barrier does not help:
    it is gone before fusion.)
    Measured on a step of ResNet-20, two cores: 373 ms without, 304 ms with it.
    """

    conv_general_dilated: Callable[..., jax.Array] | None = _conv_general_dilated


class Sequential(nn.Module):
    """Layers one after the other, f32[B, ...] -> what the last one gives: modules and plain functions, mixed freely.

        Sequential((Conv(16, (3, 3)), nn.relu, Flatten(), nn.Dropout(0.5), nn.Dense(10)))

    `train` goes to whatever takes it; what takes `deterministic` or `use_running_average` gets its opposite, when it
    was not made with one.
    """

    layers: tuple[Callable[..., Any], ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for layer in self.layers:
            x = layer(x, **_told(layer, train))
        return x


def _told(layer: Callable[..., Any], train: bool) -> dict[str, bool]:
    if not isinstance(layer, nn.Module):
        return {}
    takes = inspect.signature(type(layer).__call__).parameters
    said = {"train": train, "deterministic": not train, "use_running_average": not train}
    return {k: v for k, v in said.items() if k in takes and getattr(layer, k, None) is None}


class Flatten(nn.Module):
    """f32[B, ...] -> f32[B, N]."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.reshape((x.shape[0], -1))
