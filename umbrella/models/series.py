"""Forecasters of series: recurrent, convolutional, attending and linear ones, with one head. Floor 1.

Each maps a window f32[B, W, F] to a distribution of every step ahead: {"mean", "scale", "df"}, f32[B, H] each, with
"df" where the tails are Student's.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.models.layers import Conv, Dense, Dropout
from umbrella.models.recurrent import Cell, Recurrent
from umbrella.models.transformer import Transformer
from umbrella.settings import Count, Fraction

Array = jax.Array
Tails = Literal["student", "normal"]
LEAST_SCALE = 1e-3  # in standard deviations of what is forecast


class Head(nn.Module):
    """What is known at the end of a window, as a distribution: location and scale (and Student's degrees of freedom,
    one for each step ahead, above 2 so that there is a variance).

    It starts as the mean and spread of training, which is what is to be beaten. With `skip`, a linear map of the last
    step's features is added to the mean (the autoregressive part of Lai et al. 2018, LSTNet, section 3.6), so that the
    network has to learn only what a regression does not know.
    """

    horizon: int
    tails: Tails
    skip: bool

    @nn.compact
    def __call__(self, h: Array, last: Array) -> dict[str, Array]:
        zero, one = nn.initializers.zeros, nn.initializers.constant(0.5413)  # softplus(.5413) is 1
        mean = nn.Dense(self.horizon, kernel_init=zero, name="mean")(h)
        if self.skip:
            mean = mean + nn.Dense(self.horizon, use_bias=False, kernel_init=zero, name="skip")(last)
        raw = nn.Dense(self.horizon, kernel_init=zero, bias_init=one, name="scale")(h)
        out = {"mean": mean, "scale": LEAST_SCALE + nn.softplus(raw)}
        if self.tails == "student":
            df = 2 + nn.softplus(self.param("df", nn.initializers.constant(3.0), (self.horizon,)))
            out["df"] = jnp.broadcast_to(df[None], mean.shape)
        return out


class SeriesLinear(nn.Module):
    """A linear map of the whole window, with a scale of its own: least squares with intervals.

    Attributes:
      horizon: H, decided by the data.
      tails: of the distribution.
      dropout: of the window's numbers.
    """

    horizon: Count
    tails: Tails = "student"
    dropout: Fraction = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        h = Dropout(self.dropout, deterministic=not train)(x.reshape((x.shape[0], -1)))
        return Head(self.horizon, self.tails, False, name="head")(h, x[:, -1])


class SeriesRNN(nn.Module):
    """Recurrent layers over the steps of the window, read at its last one.

    Attributes:
      horizon: H, decided by the data.
      cell, width, layers: of `Recurrent`.
      dropout: between layers, and of the last state.
      tails, skip: see Head.
    """

    horizon: Count
    cell: Cell = "lstm"
    width: Count = 32
    layers: Count = 1
    dropout: Fraction = 0.1
    tails: Tails = "student"
    skip: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        states = Recurrent(self.width, self.cell, self.layers, dropout=self.dropout, name="recurrent")(x, train=train)
        h = Dropout(self.dropout, deterministic=not train)(states[:, -1])
        return Head(self.horizon, self.tails, self.skip, name="head")(h, x[:, -1])


class SeriesTCN(nn.Module):
    """A temporal convolutional network: residual blocks of two causal convolutions, dilated by 1, 2, 4, ...

    Attributes:
      horizon: H, decided by the data.
      width: channels.
      blocks: how many; the last output sees 1 + 2 (kernel - 1) (2^blocks - 1) steps.
      kernel: steps of a convolution.
      dropout: of whole channels, after every convolution.
      tails, skip: see Head.

    Source: Bai et al. 2018, section 3 and figure 1, without their weight normalisation (a norm of every kernel, which
    changes nothing that such a network can say).
    """

    horizon: Count
    width: Count = 32
    blocks: Count = 4
    kernel: Count = 3
    dropout: Fraction = 0.1
    tails: Tails = "student"
    skip: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        h = x
        for i in range(self.blocks):
            h = TemporalBlock(self.width, self.kernel, 2**i, self.dropout, name=f"block_{i}")(h, train=train)
        return Head(self.horizon, self.tails, self.skip, name="head")(h[:, -1], x[:, -1])


class TemporalBlock(nn.Module):
    """f32[B, T, D] -> f32[B, T, width]: relu(x + F(x)), F twice a causal convolution, ReLU and dropout of channels; x
    through a 1 x 1 convolution where its width is another."""

    width: int
    kernel: int
    dilation: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        h = x
        for i in range(2):
            h = Conv(
                self.width,
                (self.kernel,),
                kernel_dilation=(self.dilation,),
                padding="CAUSAL",
                kernel_init=nn.initializers.he_normal(),
                name=f"conv_{i}",
            )(h)
            h = Dropout(self.dropout, broadcast_dims=(1,), deterministic=not train)(nn.relu(h))
        if x.shape[-1] != self.width:
            x = Dense(self.width, name="same")(x)
        return nn.relu(x + h)


class SeriesTransformer(nn.Module):
    """A causal Transformer over the steps of the window, read at its last one.

    Attributes:
      horizon: H, decided by the data.
      width, layers, heads, dropout: of the Transformer.
      positions: "learned" or "rotary".
      tails, skip: see Head.
    """

    horizon: Count
    width: Count = 32
    layers: Count = 2
    heads: Count = 4
    dropout: Fraction = 0.1
    positions: Literal["learned", "rotary"] = "learned"
    tails: Tails = "student"
    skip: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        h = Dense(self.width, name="in")(x)
        h = Transformer(
            self.width,
            self.layers,
            self.heads,
            positions=self.positions,
            length=x.shape[1],
            causal=True,
            dropout=self.dropout,
            name="transformer",
        )(h, train=train)
        return Head(self.horizon, self.tails, self.skip, name="head")(h[:, -1], x[:, -1])
