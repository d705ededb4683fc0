"""Residual networks (He et al. 2016). Floor 1."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.models.layers import ACTIVATIONS, Activation, Conv, DropPath, Norm, has_bias, normalise
from umbrella.models.transformer import DTYPES, Precision
from umbrella.settings import Count, Fraction

# depth -> (bottleneck, blocks of each stage): table 1, and section 4.2, where 6 n + 2 layers are three stages of n
DEPTHS: dict[int, tuple[bool, tuple[int, ...]]] = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
    20: (False, (3, 3, 3)),
    32: (False, (5, 5, 5)),
    44: (False, (7, 7, 7)),
    56: (False, (9, 9, 9)),
    110: (False, (18, 18, 18)),
}


class ResNet(nn.Module):
    """f32[B, H, W, C] -> logits f32[B, out].

    Of 18, 34, 50, 101 and 152 layers for large images, with 64 channels at first, projections where shapes change
    (option B) and, in a bottleneck, the stride in the 3 x 3 convolution (the paper has it in the first 1 x 1; every
    implementation in use has moved it). Of 20, 32, 44, 56 and 110 layers for images of 32 x 32, with 16 channels at
    first and shortcuts without parameters (option A).

    Attributes:
      out: size of the output.
      depth: layers with weights.
      stem: "large": 7 x 7 convolution and pooling, by four in all; "small": 3 x 3; "auto": by the depth.
      stochastic_depth: probability of dropping the last branch; of those before it proportionally less (Huang et al.
        2016).
      zero: the last norm of every branch starts at 0, so every block starts as its shortcut (Goyal et al. 2017).
      residual: False leaves the shortcuts out: the plain network that the paper compares with.
      precision: what convolutions compute in and blocks hand on; parameters, norms and what they average, the mean over
        positions and the output are f32. "fp16" is to be trained with a loss scale (`umbrella.loss_scale`).

    Raises:
      ValueError: zero or stochastic_depth where there is no branch for them, zero where there is no norm.
    """

    out: Count
    depth: Literal[18, 20, 32, 34, 44, 50, 56, 101, 110, 152] = 20
    stem: Literal["auto", "small", "large"] = "auto"
    activation: Activation = "relu"
    norm: Norm = "batch"
    stochastic_depth: Fraction = 0.0
    zero: bool = False
    residual: bool = True
    precision: Precision = "f32"

    def __post_init__(self) -> None:
        if not self.residual and (self.zero or self.stochastic_depth):
            raise ValueError("ResNet: zero and stochastic_depth are for branches beside a shortcut; there is none")
        if self.zero and self.norm == "none":
            raise ValueError("ResNet: zero is about the last norm of a branch, and norm is 'none'")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        bottleneck, stages = DEPTHS[self.depth]
        width = 64 if len(stages) == 4 else 16
        large = self.stem == "large" or (self.stem == "auto" and len(stages) == 4)
        dtype = DTYPES[self.precision]
        x = _conv(width, 7 if large else 3, 2 if large else 1, self.norm, dtype, name="stem")(x)
        x = ACTIVATIONS[self.activation](_normed(x, self.norm, train=train, name="stem_norm"))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        made, total = 0, sum(stages)
        for i, blocks in enumerate(stages):
            for j in range(blocks):
                made += 1
                x = Block(
                    width * 2**i,
                    stride=2 if i and not j else 1,
                    bottleneck=bottleneck,
                    project=len(stages) == 4,
                    activation=self.activation,
                    norm=self.norm,
                    drop=self.stochastic_depth * made / total,
                    zero=self.zero,
                    residual=self.residual,
                    dtype=dtype,
                    name=f"block_{i}_{j}",
                )(x, train=train)
        return nn.Dense(self.out, name="head")(x.astype(jnp.float32).mean((1, 2)))


class Block(nn.Module):
    """[B, H, W, C] -> [B, H / stride, W / stride, width, four times that in a bottleneck], in `dtype`."""

    width: int
    stride: int
    bottleneck: bool
    project: bool  # option B; else option A, the identity with zeros for channels that are new
    activation: Activation
    norm: Norm
    drop: float
    zero: bool
    residual: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        act, out = ACTIVATIONS[self.activation], self.width * (4 if self.bottleneck else 1)
        layers: tuple[tuple[int, int, int], ...]
        if self.bottleneck:
            layers = ((self.width, 1, 1), (self.width, 3, self.stride), (out, 1, 1))
        else:
            layers = ((self.width, 3, self.stride), (out, 3, 1))
        y = x
        for i, (width, size, stride) in enumerate(layers):
            last = i == len(layers) - 1
            y = _conv(width, size, stride, self.norm, self.dtype, name=f"conv_{i}")(y)
            y = _normed(y, self.norm, train=train, name=f"norm_{i}", zero=self.zero and last)
            y = y if last else act(y)
        if not self.residual:
            return act(y)
        if x.shape != y.shape:
            if self.project:
                x = _conv(out, 1, self.stride, self.norm, self.dtype, name="project")(x)
                x = _normed(x, self.norm, train=train, name="project_norm")
            else:
                x = x[:, :: self.stride, :: self.stride]
                x = jnp.pad(x, ((0, 0),) * 3 + ((0, out - x.shape[-1]),))
        return act(x + DropPath(self.drop)(y, train=train))


def _normed(x: jax.Array, norm: Norm, **how: Any) -> jax.Array:
    """In f32, whatever x is in: sixteen bits are too few for sums over a batch, and for averages of such sums."""
    return normalise(x.astype(jnp.float32), norm, **how).astype(x.dtype)


def _conv(width: int, size: int, stride: int, norm: Norm, dtype: Any, *, name: str) -> Conv:
    """With He's initialiser by fan-out, as the paper's own code; padding that does not depend on the stride."""
    pad = (size // 2, size // 2)
    return Conv(
        width,
        (size, size),
        strides=stride,
        padding=(pad, pad),
        use_bias=has_bias(norm),
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        name=name,
    )
