"""A deterministic autoencoder: an example, a code, the example again. Floor 1."""

from typing import Literal

import flax.linen as nn
import jax

from umbrella.choices import one_of
from umbrella.models.coders import Decoder, Encoder
from umbrella.models.layers import Activation
from umbrella.settings import Count, NonNegative

Output = Literal["linear", "sigmoid"]
CodeActivation = Literal["linear", "relu", "sigmoid"]


class Autoencoder(nn.Module):
    """x f32[B, *shape] -> {"output" f32[B, *shape], "code" f32[B, code]}.

    Without hidden layers, convolutions and activations it is linear: trained on squared errors it spans the space of
    the first principal components (Bourlard and Kamp 1988; Baldi and Hornik 1989).

    Attributes:
      shape: of one example.
      code: how many numbers an example is coded by.
      hidden: widths of the encoder's dense layers; the decoder mirrors them.
      widths: channels of its convolutions before them, of images f32[B, H, W, C]; none when empty. See
        `umbrella.models.coders`.
      activation: after every layer but the code and the output.
      code_activation: of the code; "relu" has codes that are exactly zero, "sigmoid" codes in (0, 1).
      code_noise: standard deviation of what is added to the code in training, from the stream "latent", so that codes
        must lie apart to be told apart (Poole et al. 2014, section 2). A code without bounds escapes it by its size, so
        it goes with "sigmoid".
      output: "linear", or "sigmoid" for targets in [0, 1].

    Raises:
      ValueError: no such activation or output; convolutions of what is no image.

    Source: Hinton and Salakhutdinov 2006, whose layers 1000-500-250-30 were trained one by one first; here at once.
    """

    shape: tuple[int, ...]
    code: Count = 32
    hidden: tuple[Count, ...] = (256, 128)
    widths: tuple[Count, ...] = ()
    activation: Activation = "relu"
    code_activation: CodeActivation = "linear"
    code_noise: NonNegative = 0.0
    output: Output = "linear"

    def __post_init__(self) -> None:
        one_of("Autoencoder: activation", self.activation, Activation)
        one_of("Autoencoder: code_activation", self.code_activation, CodeActivation)
        one_of("Autoencoder: output", self.output, Output)
        if self.widths and len(self.shape) != 3:
            raise ValueError(f"Autoencoder: widths are of convolutions, and examples of shape {self.shape} no images")
        super().__post_init__()

    def setup(self) -> None:
        self.encoder = Encoder(self.hidden, self.widths, self.activation)
        self.to_code = nn.Dense(self.code)
        self.decoder = Decoder(self.shape, self.hidden, self.widths, self.activation)

    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        code = self.encode(x)
        read = code
        if train and self.code_noise:
            read = code + self.code_noise * jax.random.normal(self.make_rng("latent"), code.shape, code.dtype)
        return {"output": self.decode(read), "code": code}

    def encode(self, x: jax.Array) -> jax.Array:
        """f32[B, *shape] -> code f32[B, code]."""
        code: jax.Array = self.to_code(self.encoder(x))
        return {"linear": code, "relu": nn.relu(code), "sigmoid": nn.sigmoid(code)}[self.code_activation]

    def decode(self, code: jax.Array) -> jax.Array:
        """Code f32[B, code] -> f32[B, *shape]."""
        out: jax.Array = self.decoder(code)
        return nn.sigmoid(out) if self.output == "sigmoid" else out
