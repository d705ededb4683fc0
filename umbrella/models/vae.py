"""Variational autoencoders: dense or convolutional, conditional, with one layer of latent variables or two. Floor 1."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.choices import one_of
from umbrella.models.coders import Decoder, Encoder
from umbrella.models.layers import Activation
from umbrella.settings import Count, Natural

Likelihood = Literal["bernoulli", "logistic", "gaussian"]


class VAE(nn.Module):
    """x f32[B, *shape] -> {"logits" f32[B, *shape], "mean", "log_var", "noise", "z" f32[B, L]}.

    q(z|x) = N(mean, exp(log_var)), diagonal; z = mean + exp(log_var / 2) noise is one draw of it, the noise from the
    stream "latent", in training and in evaluation. p(z) is N(0, 1).

    With `above`, there are that many latent variables z2 over the `latent` ones z1: p(z2) = N(0, 1), and p(z1|z2), a
    Gaussian by a hidden layer; q(z2|x) comes first and q(z1|x, z2) sees what it drew (top-down: Soenderby et al. 2016,
    section 2.2, without their precision-weighted average). L is latent + above then, z1 first, and "prior_mean" and
    "prior_log_var" f32[B, L] are there too: given the draws above, every KL is one of two Gaussians.

    With `classes`, x is {"image" f32[B, *shape], "label" i32[B]}, and encoder and decoder are told the label (Sohn et
    al. 2015, CVAE; the prior is not).

    Of the other likelihoods than Bernoulli's, "logits" hold the location, and there is one more output: "log_scale"
    f32[C] the width of a logistic around each of the last axis's channels (the location is then sigmoid(logits)), or
    "log_sd" f32[C] the standard deviation of a Gaussian around the logits themselves.

    Attributes:
      shape: of one example.
      latent: number of latent variables, of those nearest to the data.
      hidden: widths of the encoder's dense layers; the decoder mirrors them.
      likelihood: what the outputs are for.
      widths: channels of convolutions before them, each of which halves the side; none when empty.
      above: number of latent variables of the second layer; 0 for none.
      classes: number of labels; 0 when it is not conditional.

    Raises:
      ValueError: no such activation or likelihood.

    Source: Kingma and Welling 2014; the sizes 200-200-50 with tanh are Burda et al. 2016, appendix.
    """

    shape: tuple[int, ...]
    latent: Count = 50
    hidden: tuple[Count, ...] = (200, 200)
    activation: Activation = "tanh"
    likelihood: Likelihood = "bernoulli"
    widths: tuple[Count, ...] = ()
    above: Natural = 0
    classes: Natural = 0

    POSTERIOR = ("encoder", "to_latent", "to_above")  # the parameters of q; the rest are p's

    def __post_init__(self) -> None:
        one_of("VAE: activation", self.activation, Activation)
        one_of("VAE: likelihood", self.likelihood, Likelihood)
        super().__post_init__()

    def setup(self) -> None:
        self.encoder = Encoder(self.hidden, self.widths, self.activation)
        self.to_latent = nn.Dense(2 * self.latent)
        self.decoder = Decoder(self.shape, self.hidden, self.widths, self.activation)
        if self.above:
            self.to_above = nn.Dense(2 * self.above)
            self.prior_hidden = Encoder((max(self.hidden, default=self.latent),), (), self.activation)
            self.to_prior = nn.Dense(2 * self.latent)
        if self.likelihood != "bernoulli":
            start = -2.0 if self.likelihood == "logistic" else 0.0
            name = "log_scale" if self.likelihood == "logistic" else "log_sd"
            self.spread = self.param(name, nn.initializers.constant(start), (self.shape[-1],))

    def __call__(self, x: Any, *, train: bool) -> dict[str, jax.Array]:
        image, label = (x["image"], x["label"]) if self.classes else (x, None)
        size = (image.shape[0], self.latent + self.above)
        noise = jax.random.normal(self.make_rng("latent"), size, image.dtype)
        told = self.posterior(image, noise, label)
        out = {"logits": self.decode(told["z"], label), "noise": noise, **told}
        if self.likelihood == "bernoulli":
            return out
        return {**out, "log_scale" if self.likelihood == "logistic" else "log_sd": self.spread}

    def posterior(self, x: jax.Array, noise: jax.Array, label: jax.Array | None = None) -> dict[str, jax.Array]:
        """f32[B, *shape], f32[B, L] -> "mean", "log_var" and "z" f32[B, L] at this noise, and what else says of z."""
        h = self.encoder(x, self._told(label))
        if not self.above:
            mean, log_var = jnp.split(self.to_latent(h), 2, axis=-1)
            return {"mean": mean, "log_var": log_var, "z": mean + jnp.exp(0.5 * log_var) * noise}
        near, far = noise[:, : self.latent], noise[:, self.latent :]
        mean2, log_var2 = jnp.split(self.to_above(h), 2, axis=-1)
        z2 = mean2 + jnp.exp(0.5 * log_var2) * far
        mean1, log_var1 = jnp.split(self.to_latent(jnp.concatenate([h, z2], -1)), 2, axis=-1)
        z1 = mean1 + jnp.exp(0.5 * log_var1) * near
        prior_mean, prior_log_var = self._given(z2)
        nothing = jnp.zeros_like(mean2)
        pairs = {
            "mean": (mean1, mean2),
            "log_var": (log_var1, log_var2),
            "z": (z1, z2),
            "prior_mean": (prior_mean, nothing),
            "prior_log_var": (prior_log_var, nothing),
        }
        return {k: jnp.concatenate(v, -1) for k, v in pairs.items()}

    def encode(self, x: jax.Array, label: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """f32[B, *shape] -> (mean, log_var), f32[B, L] each; of a second layer at its mean."""
        told = self.posterior(x, jnp.zeros((x.shape[0], self.latent + self.above), x.dtype), label)
        return told["mean"], told["log_var"]

    def draw(self, noise: jax.Array) -> jax.Array:
        """Standard normal f32[B, L] -> z f32[B, L] of the prior."""
        if not self.above:
            return noise
        near, far = noise[:, : self.latent], noise[:, self.latent :]
        mean, log_var = self._given(far)
        return jnp.concatenate([mean + jnp.exp(0.5 * log_var) * near, far], -1)

    def decode(self, z: jax.Array, label: jax.Array | None = None) -> jax.Array:
        """f32[B, L], or f32[B, latent] -> logits f32[B, *shape]."""
        z = z[:, : self.latent]
        beside = self._told(label)
        logits: jax.Array = self.decoder(z if beside is None else jnp.concatenate([z, beside], -1))
        return logits

    def _given(self, z2: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, log_var = jnp.split(self.to_prior(self.prior_hidden(z2)), 2, axis=-1)
        return mean, log_var

    def _told(self, label: jax.Array | None) -> jax.Array | None:
        return None if label is None else jax.nn.one_hot(label, self.classes)
