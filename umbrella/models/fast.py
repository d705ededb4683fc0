"""A network that is quick to train on small images (Jordan 2024). Floor 1."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.models.layers import ACTIVATIONS, Activation, Conv, Norm, normalise
from umbrella.settings import Count, Fraction, Positive

SIDE = 2  # of the patches that are whitened


class CifarFast(nn.Module):
    """f32[B, H, W, C] -> logits f32[B, out]: airbench94 of Jordan 2024, 1,971,352 numbers on 32 x 32 x 3.

    A 2 x 2 convolution that whitens patches and is not trained but for its bias; blocks of two 3 x 3 convolutions that
    start as the identity, the first followed by a pooling by two; norms without a scale; the maximum over positions.

    What whitens is measured at initialisation on the batch that the parameters are made from, and kept as state, in the
    collection "whitening": means and standard deviations of the channels, and the kernel. A batch of equal pixels
    gives one of noise directions.

    Deviations from the source: it is measured on one batch, as augmented, instead of on 5,000 images; its bias is
    trained to the end; GELU is the tanh approximation; epsilon of the norms is 1e-5; f32 instead of f16. The optimiser
    (lookahead, the triangular schedule) is the config's business.

    Attributes:
      out: size of the output.
      widths: channels of each block.
      scale: of the logits.
      momentum: of BatchNorm's averaged statistics.
      mirror: in evaluation the mean of the logits of an image and of its mirror image.
    """

    out: Count
    widths: tuple[Count, ...] = (64, 256, 256)
    activation: Activation = "gelu"
    norm: Norm = "batch"
    momentum: Fraction = 0.6
    scale: Positive = 1 / 9
    mirror: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if min(x.shape[1:3]) < 4:
            raise ValueError(f"images of {x.shape[1]} x {x.shape[2]}: cifar_fast needs sides of at least 4")
        act = ACTIVATIONS[self.activation]
        both = self.mirror and not train and not self.is_initializing()  # which measures what whitens
        if both:
            x = jnp.concatenate([x, x[:, :, ::-1]])
        x = act(Whitening(name="whitening")(x))
        for i, width in enumerate(self.widths):
            for j in range(2):
                name = f"{i}_{j}"
                x = Conv(width, (3, 3), use_bias=False, kernel_init=as_identity, name=f"conv_{name}")(x)
                if not j:
                    window = (min(2, x.shape[1]), min(2, x.shape[2]))
                    x = nn.max_pool(x, window, window)
                kind, momentum = self.norm, self.momentum
                x = act(normalise(x, kind, train=train, name=f"norm_{name}", momentum=momentum, scaled=False))
        head = nn.Dense(self.out, use_bias=False, kernel_init=torch_uniform, name="head")
        logits = self.scale * head(x.max((1, 2)))
        return (logits[: len(logits) // 2] + logits[len(logits) // 2 :]) / 2 if both else logits


class Whitening(nn.Module):
    """f32[B, H, W, C] -> f32[B, H - 1, W - 1, 8 C]: whitened patches plus a trained bias; see `whitening`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        made = whitening(x) if self.is_initializing() else {}
        kept = (self.variable("whitening", k, lambda k: made[k], k) for k in ("mean", "std", "kernel"))
        mean, std, kernel = (v.value for v in kept)
        bias = self.param("bias", nn.initializers.zeros, (kernel.shape[-1],))
        x = (x - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)
        numbers = ("NHWC", "HWIO", "NHWC")
        out: jax.Array = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)
        return out + bias.reshape(1, 1, 1, -1)


def whitening(x: jax.Array, epsilon: float = 5e-4) -> dict[str, jax.Array]:
    """What whitens the 2 x 2 patches of images f32[B, H, W, C]: mean f32[C], std f32[C], kernel f32[2, 2, C, 8 C].

    The kernel's first half are the eigenvectors of the patches' second moments, each over the root of its eigenvalue
    plus epsilon, largest eigenvalue first; its second half is minus the first, so that an activation loses nothing.

    Source: Jordan 2024, section 3.2.
    """
    mean, std = x.mean((0, 1, 2)), jnp.maximum(x.std((0, 1, 2)), 1e-3)
    x = (x - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)
    h, w, channels = x.shape[1] - SIDE + 1, x.shape[2] - SIDE + 1, x.shape[3]
    patches = jnp.stack([x[:, i : i + h, j : j + w] for i in range(SIDE) for j in range(SIDE)], 3)
    patches = patches.reshape(-1, SIDE * SIDE * channels)
    moments = jnp.matmul(patches.T, patches, precision="highest") / patches.shape[0]
    values, vectors = jnp.linalg.eigh(moments)
    vectors = (vectors / jnp.sqrt(jnp.maximum(values, 0) + epsilon).reshape(1, -1))[:, ::-1]
    kernel = jnp.concatenate([vectors, -vectors], 1).reshape(SIDE, SIDE, channels, -1)
    return {"mean": mean, "std": std, "kernel": kernel}


def as_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The kernel [h, w, in, out] of a convolution that hands its input channels on, as many as fit; the output channels
    beyond are random (Jordan 2024, section 3.3)."""
    kernel = torch_uniform(key, shape, dtype)
    same = min(shape[-2:])
    kernel = kernel.at[..., :same].set(0)
    return kernel.at[shape[0] // 2, shape[1] // 2, :same, :same].set(jnp.eye(same, dtype=dtype))


torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(+- 1 / sqrt(fan in)), PyTorch's
