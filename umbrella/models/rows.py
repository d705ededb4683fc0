"""Images read as sequences, by a recurrent network. Floor 1."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from umbrella.models.layers import Conv, Dropout, initializer
from umbrella.models.recurrent import Cell, Recurrent, ends, last
from umbrella.settings import Count, Fraction, Natural

Array = jax.Array


class Rows(nn.Module):
    """f32[B, H, W, C] -> logits f32[B, out]: one row of the image, or one pixel, after the other.

    Attributes:
      out: size of the output.
      reads: "rows" are H steps of W C numbers, "pixels" H W steps of C numbers (Le et al. 2015, section 4.2), from the
        upper left, row by row.
      cell, width, layers, bidirectional: of the recurrent network, see `umbrella.models.recurrent.Recurrent`.
      permutation: the seed of an order of the pixels in which all images are read, the same for all of them (Le et al.
        2015; every publication has an order of its own); the order of the image when None.
      front: channels of convolutions of 3 x 3 in front of it, each followed by a ReLU and the largest of 2 x 2; what is
        read is then the last map.
      readout: what the head sees: the state that has read everything, or the mean of all states.
      dropout: between the layers, and before the head.
    """

    out: Count
    reads: Literal["rows", "pixels"] = "rows"
    cell: Cell = "lstm"
    width: Count = 128
    layers: Count = 1
    bidirectional: bool = False
    permutation: Natural | None = None
    front: tuple[Count, ...] = ()
    readout: Literal["last", "mean"] = "last"
    dropout: Fraction = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for i, maps in enumerate(self.front):
            x = nn.relu(Conv(maps, (3, 3), kernel_init=initializer("he_normal"), name=f"conv_{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
        net = Recurrent(self.width, self.cell, self.layers, self.bidirectional, self.dropout, name="recurrent")
        h = net(self.steps(x), train=train)
        end = ends if self.bidirectional else last
        h = h.mean(1) if self.readout == "mean" else end(h)
        if self.dropout:
            h = Dropout(self.dropout, deterministic=not train)(h)
        return nn.Dense(self.out, name="head")(h)

    def steps(self, x: Array) -> Array:
        """f32[B, H, W, C] -> f32[B, T, D], in the order that they are read in."""
        b, h, w, c = x.shape
        if self.permutation is not None:
            order = np.random.default_rng(self.permutation).permutation(h * w)
            x = jnp.take(x.reshape((b, h * w, c)), order, 1)
        return x.reshape((b, h, w * c) if self.reads == "rows" else (b, h * w, c))
