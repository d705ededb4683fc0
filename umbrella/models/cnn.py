"""Small convolutional networks: LeNet-5 and a plain modern one. Floor 1."""

from typing import Literal

import flax.linen as nn
import jax

from umbrella.models.layers import ACTIVATIONS, Activation, Conv, Init, Norm, has_bias, initializer, normalise
from umbrella.settings import Count, Fraction


class LeNet(nn.Module):
    """f32[B, H, W, C] -> logits f32[B, out]: LeNet-5 (LeCun et al. 1998, section II.B), 61,706 numbers on 28 x 28 x 1.

    Deviations from the paper: the second layer sees all six maps of the first; pooling has no weights; the last layer
    is affine instead of radial basis functions. Sides of at least 12.

    Attributes:
      out: size of the output.
      activation: tanh, as in the paper up to its scale.
    """

    out: Count
    activation: Activation = "tanh"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if min(x.shape[1:3]) < 12:
            raise ValueError(f"images of {x.shape[1]} x {x.shape[2]}: LeNet needs sides of at least 12")
        act = ACTIVATIONS[self.activation]
        x = act(Conv(6, (5, 5), padding="SAME", name="conv_0")(x))
        x = _halved(x)
        x = act(Conv(16, (5, 5), padding="VALID", name="conv_1")(x))
        x = _halved(x).reshape((x.shape[0], -1))
        x = act(nn.Dense(120, name="hidden_0")(x))
        x = act(nn.Dense(84, name="hidden_1")(x))
        return nn.Dense(self.out, name="head")(x)


def _halved(x: jax.Array) -> jax.Array:
    """Means of 2 x 2; an odd last row or column is left out. (flax's avg_pool divides by an integer.)"""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape((b, h // 2, 2, w // 2, 2, c)).mean((2, 4))


class CNN(nn.Module):
    """f32[B, H, W, C] -> logits f32[B, out]: stages of convolutions with half the side from one to the next.

    Attributes:
      out: size of the output.
      widths: channels of each stage.
      depth: convolutions in each stage, each followed by its norm and the activation.
      kernel: their side.
      down: what halves the side: a pooling between two stages, or every stage's first convolution by its stride, the
        first stage's too.
      activation: after each norm.
      norm: a convolution before a norm has no bias: the norm takes it away.
      head: what makes one vector of the last stage: the mean over positions, or all of them.
      hidden: widths of dense layers behind that, each followed by the activation.
      dropout: probability, before the head.
      kernel_init: of the convolutions and hidden layers; the head has flax's own, which is lecun_normal.
    """

    out: Count
    widths: tuple[Count, ...] = (32, 64, 128)
    depth: Count = 2
    kernel: Count = 3
    down: Literal["pool", "stride"] = "pool"
    activation: Activation = "relu"
    norm: Norm = "batch"
    head: Literal["mean", "flat"] = "mean"
    hidden: tuple[Count, ...] = ()
    dropout: Fraction = 0.0
    kernel_init: Init = "he_normal"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i, width in enumerate(self.widths):
            if i and self.down == "pool":
                x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
            for j in range(self.depth):
                x = Conv(
                    width,
                    (self.kernel, self.kernel),
                    strides=2 if j == 0 and self.down == "stride" else 1,
                    use_bias=has_bias(self.norm),
                    kernel_init=initializer(self.kernel_init),
                    name=f"conv_{i}_{j}",
                )(x)
                x = ACTIVATIONS[self.activation](normalise(x, self.norm, train=train, name=f"norm_{i}_{j}"))
        x = x.mean((1, 2)) if self.head == "mean" else x.reshape((x.shape[0], -1))
        for i, width in enumerate(self.hidden):
            dense = nn.Dense(width, kernel_init=initializer(self.kernel_init), name=f"hidden_{i}")
            x = ACTIVATIONS[self.activation](dense(x))
        if self.dropout:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.out, name="head")(x)
