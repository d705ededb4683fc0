"""A multilayer perceptron. Floor 1."""

import flax.linen as nn
import jax

from umbrella.choices import one_of
from umbrella.models.layers import ACTIVATIONS, Activation, Init, Norm, has_bias, initializer, normalise
from umbrella.settings import Count, Fraction


class MLP(nn.Module):
    """f32[B, ...] -> logits f32[B, out]; everything behind the batch axis is flattened.

    Attributes:
      out: size of the output.
      hidden: width of each hidden layer.
      dropout: probability of dropping a hidden unit, after the activation (Srivastava et al. 2014).
      input_dropout: of dropping a number of the input; 1/5 in that paper, where a hidden unit's is 1/2.
      norm: what stands between a hidden layer and its activation; all but "instance".
      kernel_init: of the hidden layers; the head has flax's own, which is lecun_normal.

    Raises:
      ValueError: no such activation, norm or initialiser.
    """

    out: Count
    hidden: tuple[Count, ...] = (128,)
    activation: Activation = "relu"
    dropout: Fraction = 0.0
    input_dropout: Fraction = 0.0
    norm: Norm = "none"
    kernel_init: Init = "lecun_normal"

    def __post_init__(self) -> None:
        one_of("MLP: activation", self.activation, Activation)
        one_of("MLP: norm", self.norm, Norm)
        one_of("MLP: kernel_init", self.kernel_init, Init)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = x.reshape((x.shape[0], -1))
        if self.input_dropout:
            x = nn.Dropout(self.input_dropout, deterministic=not train, name="input_dropout")(x)
        for i, width in enumerate(self.hidden):
            start = initializer(self.kernel_init)
            x = nn.Dense(width, use_bias=has_bias(self.norm), kernel_init=start, name=f"hidden_{i}")(x)
            x = normalise(x, self.norm, train=train, name=f"norm_{i}")
            x = ACTIVATIONS[self.activation](x)
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.out, name="head")(x)
