"""A Transformer that reads an image as patches. Floor 1."""

import flax.linen as nn
import jax

from umbrella.models.layers import Activation, Dense
from umbrella.models.transformer import Precision, Remat, Transformer
from umbrella.settings import Count, Fraction, SettingsError

Array = jax.Array


class ViT(nn.Module):
    """f32[B, H, W, C] -> logits f32[B, out].

    Attributes:
      out: classes.
      patch: side of the squares that are the positions; it divides height and width.
      width, layers, heads, activation, remat, scan, precision: see `umbrella.models.transformer.Transformer`.
      dropout: as there.

    Patches get learned positions, and what the last block makes of them is averaged (Beyer et al. 2022), where the
    paper has a position of its own for the class.

    Raises (while tracing):
      SettingsError: the patches do not divide the image.

    Source: Dosovitskiy et al. 2021, section 3.1.
    """

    out: Count
    patch: Count = 4
    width: Count = 192
    layers: Count = 6
    heads: Count = 3
    dropout: Fraction = 0.0
    activation: Activation = "gelu"
    remat: Remat = False
    scan: bool = False
    precision: Precision = "f32"

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        rows, p = x.shape[0], self.patch
        if x.shape[1] % p or x.shape[2] % p:
            raise SettingsError(
                f"config.model.patch: squares of {p} do not divide an image of {x.shape[1]} x {x.shape[2]}; say another"
            )
        h, w = x.shape[1] // p, x.shape[2] // p
        patches = x.reshape(rows, h, p, w, p, -1).swapaxes(2, 3).reshape(rows, h * w, -1)
        blocks = Transformer(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            length=h * w,
            dropout=self.dropout,
            activation=self.activation,
            remat=self.remat,
            scan=self.scan,
            precision=self.precision,
            name="transformer",
        )
        seen = blocks(Dense(self.width, name="patches")(patches), train=train)
        return nn.Dense(self.out, kernel_init=nn.initializers.zeros_init(), name="head")(seen.mean(1))
