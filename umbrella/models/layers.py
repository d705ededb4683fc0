"""What models are put together from: norms, activations and initialisers by name, stochastic depth. Floor 1."""

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.settings import Fraction

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": nn.tanh,
}
Activation = Literal["relu", "gelu", "silu", "tanh"]

Norm = Literal["none", "batch", "layer", "group", "instance", "rms"]

_INITS: dict[str, Callable[..., Any]] = {
    "lecun_normal": nn.initializers.lecun_normal,  # variance 1 / in: keeps a linear layer's signal
    "xavier_normal": nn.initializers.xavier_normal,  # 2 / (in + out) (Glorot and Bengio 2010, eq. 12)
    "xavier_uniform": nn.initializers.xavier_uniform,  # the same variance (eq. 16)
    "he_normal": nn.initializers.he_normal,  # 2 / in: keeps the signal through ReLUs (He et al. 2015, eq. 10)
    "he_uniform": nn.initializers.he_uniform,
    "orthogonal": nn.initializers.orthogonal,  # rows or columns orthonormal (Saxe et al. 2014)
    "truncated_normal": lambda: nn.initializers.truncated_normal(0.02),  # cut at two sd, of the uncut normal
}
Init = Literal[
    "lecun_normal", "xavier_normal", "xavier_uniform", "he_normal", "he_uniform", "orthogonal", "truncated_normal"
]


def initializer(name: Init) -> Callable[..., jax.Array]:
    """(key, shape, dtype) -> weights; the last two axes of a shape are in and out, those before them add to in."""
    made: Callable[..., jax.Array] = _INITS[name]()
    return made


class Normalise(nn.Module):
    """f32[B, ..., C] -> the same shape, with a scale and a shift per channel, but for "none", which has neither.

    Attributes:
      kind: over what it normalises. "batch": all but the channels, with averaged statistics in evaluation (Ioffe and
        Szegedy 2015); "layer": the channels of each position (Ba et al. 2016; over the last axis alone, as
        Transformers and ConvNeXt have it); "group": positions and the channels of a group of at most 32 (Wu and He
        2018); "instance": the positions of each channel (Ulyanov et al. 2016); "rms": as "layer" without the mean and
        without a shift (Zhang and Sennrich 2019).
      momentum: of the averaged statistics, "batch" only.
      zero: the scale starts at 0 instead of 1, so that a residual branch starts as nothing (Goyal et al. 2017).
    """

    kind: Norm
    momentum: Fraction = 0.9
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        scale = nn.initializers.zeros if self.zero else nn.initializers.ones
        if self.kind == "none":
            return x
        if self.kind == "batch":
            norm = nn.BatchNorm(
                use_running_average=not train, momentum=self.momentum, epsilon=1e-5, scale_init=scale, name="norm"
            )
            return norm(x)
        if self.kind == "layer":
            return nn.LayerNorm(epsilon=1e-6, scale_init=scale, name="norm")(x)
        if self.kind == "group":
            return nn.GroupNorm(num_groups=math.gcd(32, x.shape[-1]), scale_init=scale, name="norm")(x)
        if self.kind == "instance":
            return nn.InstanceNorm(scale_init=scale, name="norm")(x)
        if self.kind == "rms":
            return nn.RMSNorm(scale_init=scale, name="norm")(x)
        raise ValueError(f"no norm {self.kind!r}")


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
