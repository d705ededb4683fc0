"""One linear filter: a convolution and nothing else. Floor 1."""

import flax.linen as nn
import jax

from umbrella.settings import Count


class Filter(nn.Module):
    """f32[B, H, W, C] -> f32[B, H - h + 1, W - w + 1, out]: a valid cross-correlation without a bias.

    Attributes:
      out: number of output channels.
      size: (h, w) of the kernel.
    """

    out: Count = 1
    size: tuple[Count, Count] = (3, 3)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Conv(self.out, self.size, padding="VALID", use_bias=False, name="kernel")(x)
