"""A variational autoencoder with dense layers. Floor 1."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.choices import one_of
from umbrella.models.layers import ACTIVATIONS, Activation
from umbrella.settings import Count


class VAE(nn.Module):
    """x f32[B, *shape] -> {"logits" f32[B, *shape], "mean", "log_var", "noise", "z" f32[B, latent]}.

    q(z|x) = N(mean, exp(log_var)), diagonal; z = mean + exp(log_var / 2) noise is one draw of it, the noise from the
    stream "latent", in training and in evaluation. "log_scale" f32[C] is there when `scale` is: the width of a logistic
    around each of the last axis's channels.

    Attributes:
      shape: of one example.
      latent: number of latent variables.
      hidden: widths of the encoder's hidden layers; the decoder mirrors them.
      scale: whether the likelihood needs a width.

    Raises:
      ValueError: no such activation.

    Source: Kingma and Welling 2014; the sizes 200-200-50 with tanh are Burda et al. 2016, appendix.
    """

    shape: tuple[int, ...]
    latent: Count = 50
    hidden: tuple[Count, ...] = (200, 200)
    activation: Activation = "tanh"
    scale: bool = False

    def __post_init__(self) -> None:
        one_of("VAE: activation", self.activation, Activation)
        super().__post_init__()

    def setup(self) -> None:
        self.encoder = [nn.Dense(w) for w in self.hidden]
        self.to_latent = nn.Dense(2 * self.latent)
        self.decoder = [nn.Dense(w) for w in reversed(self.hidden)]
        self.to_pixels = nn.Dense(math.prod(self.shape))
        if self.scale:
            self.log_scale = self.param("log_scale", nn.initializers.constant(-2.0), (self.shape[-1],))

    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        mean, log_var = self.encode(x)
        noise = jax.random.normal(self.make_rng("latent"), mean.shape, mean.dtype)
        z = mean + jnp.exp(0.5 * log_var) * noise
        out = {"logits": self.decode(z), "mean": mean, "log_var": log_var, "noise": noise, "z": z}
        return {**out, "log_scale": self.log_scale} if self.scale else out

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """f32[B, *shape] -> (mean, log_var), f32[B, latent] each."""
        h = x.reshape((x.shape[0], -1))
        for layer in self.encoder:
            h = ACTIVATIONS[self.activation](layer(h))
        mean, log_var = jnp.split(self.to_latent(h), 2, axis=-1)
        return mean, log_var

    def decode(self, z: jax.Array) -> jax.Array:
        """f32[B, latent] -> logits f32[B, *shape]."""
        h = z
        for layer in self.decoder:
            h = ACTIVATIONS[self.activation](layer(h))
        return self.to_pixels(h).reshape((z.shape[0], *self.shape))
