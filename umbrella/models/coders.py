"""Two halves of models that have a code: from an example to features, and from a code to an example. Floor 1."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.models.layers import ACTIVATIONS, Activation, Conv
from umbrella.settings import Count


class Encoder(nn.Module):
    """x f32[B, ...] -> features f32[B, F]; with `beside` f32[B, D], what else is known, next to what is dense.

    Attributes:
      hidden: widths of the dense layers; F is the last one, or what comes before when there is none.
      widths: channels of convolutions of 4 x 4 by strides of 2 before them, of images f32[B, H, W, C]; none when empty.
      activation: after every layer.
    """

    hidden: tuple[Count, ...]
    widths: tuple[Count, ...] = ()
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, x: jax.Array, beside: jax.Array | None = None) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        for i, width in enumerate(self.widths):
            x = act(Conv(width, (4, 4), strides=2, padding="SAME", name=f"conv_{i}")(x))
        h = x.reshape((x.shape[0], -1))
        h = h if beside is None else jnp.concatenate([h, beside], -1)
        for i, width in enumerate(self.hidden):
            h = act(nn.Dense(width, name=f"hidden_{i}")(h))
        return h


class Decoder(nn.Module):
    """Code f32[B, L] -> f32[B, *shape], the encoder's way back; without a last activation.

    Every convolution doubles the side: 3 x 3 to four times the channels, which are then laid out as 2 x 2 positions
    (Shi et al. 2016, section 3.2): what a transposed convolution computes, in a form without zeros in between. What
    sticks out of `shape` is cut off.

    Attributes:
      shape: of one example.
      hidden, widths, activation: the encoder's; both are gone through from the end.
    """

    shape: tuple[int, ...]
    hidden: tuple[Count, ...]
    widths: tuple[Count, ...] = ()
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        act, h = ACTIVATIONS[self.activation], z
        for i, width in enumerate(reversed(self.hidden)):
            h = act(nn.Dense(width, name=f"hidden_{i}")(h))
        if not self.widths:
            return nn.Dense(math.prod(self.shape), name="out")(h).reshape((z.shape[0], *self.shape))
        height, width = (-(-side // 2 ** len(self.widths)) for side in self.shape[:2])
        h = act(nn.Dense(height * width * self.widths[-1], name="start")(h))
        h = h.reshape((z.shape[0], height, width, self.widths[-1]))
        to = (*reversed(self.widths[:-1]), self.shape[-1])
        for i, channels in enumerate(to):
            h = doubled(Conv(4 * channels, (3, 3), padding="SAME", name=f"conv_{i}")(h))
            h = act(h) if i < len(to) - 1 else h
        return h[:, : self.shape[0], : self.shape[1]]


def doubled(x: jax.Array) -> jax.Array:
    """f32[B, H, W, 4 C] -> f32[B, 2 H, 2 W, C]: four channels of a position become 2 x 2 positions."""
    b, h, w, c = x.shape
    return x.reshape((b, h, w, 2, 2, c // 4)).transpose((0, 1, 3, 2, 4, 5)).reshape((b, 2 * h, 2 * w, c // 4))
