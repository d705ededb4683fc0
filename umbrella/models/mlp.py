"""A multilayer perceptron. Floor 1."""

from typing import Literal

import flax.linen as nn
import jax

from umbrella.choices import one_of
from umbrella.settings import Count, Fraction

ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "silu": nn.silu, "tanh": nn.tanh}
Activation = Literal["relu", "gelu", "silu", "tanh"]
Norm = Literal["none", "layer", "batch"]


class MLP(nn.Module):
    """f32[B, ...] -> logits f32[B, out]; everything behind the batch axis is flattened.

    Attributes:
      out: size of the output.
      hidden: width of each hidden layer.
      dropout: probability of dropping a hidden unit, after the activation (Srivastava et al. 2014).
      norm: what stands between a hidden layer and its activation. A layer before a norm has no bias: its gradient
        would be zero but for rounding, on which it would walk. The statistics of "batch" count padded rows, too.

    Raises:
      ValueError: no such activation or norm.
    """

    out: Count
    hidden: tuple[Count, ...] = (128,)
    activation: Activation = "relu"
    dropout: Fraction = 0.0
    norm: Norm = "none"

    def __post_init__(self) -> None:
        one_of("MLP: activation", self.activation, Activation)
        one_of("MLP: norm", self.norm, Norm)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = x.reshape((x.shape[0], -1))
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, use_bias=self.norm == "none", name=f"hidden_{i}")(x)
            if self.norm == "layer":
                x = nn.LayerNorm(name=f"norm_{i}")(x)
            elif self.norm == "batch":
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm_{i}")(x)
            x = ACTIVATIONS[self.activation](x)
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.out, name="head")(x)
