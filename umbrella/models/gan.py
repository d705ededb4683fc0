"""The two players of a generative adversarial network of images. Floor 1."""

from typing import Any, Literal

import flax.linen as nn
import jax

from umbrella.models.coders import doubled
from umbrella.models.layers import Conv, Init, Norm, has_bias, initializer, normalise
from umbrella.settings import Count, Fraction


class Generator(nn.Module):
    """Codes f32[B, latent] -> images f32[B, *shape] in (0, 1), of any height and width.

    A dense layer to a few positions, then convolutions that double the side, each but the last followed by a norm and
    a ReLU; what sticks out of `shape` is cut off.

    Deviations from the paper: a convolution of 3 x 3 to four times the channels, laid out as 2 x 2 positions (Shi et
    al. 2016), instead of a transposed one of 4 x 4, since zeros in between are slow on a CPU; (1 + tanh(x / 2)) / 2
    at the end instead of tanh, for pixels in (0, 1).

    Attributes:
      shape: of one image, (H, W, C).
      latent: numbers in a code.
      widths: channels from the image's side inwards; each halves the side at which the dense layer ends.
      norm: after the dense layer and every convolution but the last.
      kernel_init: of all layers. The paper has a normal of .02, which is "truncated_normal" but for its tails.

    Source: Radford et al. 2016, section 3.
    """

    shape: tuple[int, ...]
    latent: Count = 64
    widths: tuple[Count, ...] = (64, 128)
    norm: Norm = "batch"
    kernel_init: Init = "he_normal"

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        init, biased = initializer(self.kernel_init), has_bias(self.norm)
        height, width = (-(-side // 2 ** len(self.widths)) for side in self.shape[:2])
        inner = self.widths[-1] if self.widths else self.shape[-1]
        h = nn.Dense(height * width * inner, use_bias=biased, kernel_init=init, name="start")(z)
        h = h.reshape((z.shape[0], height, width, inner))
        to = (*reversed(self.widths[:-1]), self.shape[-1]) if self.widths else ()
        for i, channels in enumerate(to):
            h = nn.relu(normalise(h, self.norm, train=train, name=f"norm_{i}"))
            last = i == len(to) - 1
            how: dict[str, Any] = {"use_bias": last or biased, "kernel_init": init, "name": f"conv_{i}"}
            h = doubled(Conv(4 * channels, (3, 3), padding="SAME", **how)(h))
        return nn.sigmoid(h[:, : self.shape[0], : self.shape[1]])


class Discriminator(nn.Module):
    """Images f32[B, H, W, C] in [0, 1] -> scores f32[B]; a high one says that the image is real.

    Convolutions of 4 x 4 by strides of 2 with leaky ReLUs, and one dense layer over what is left of the positions.
    No row meets another one in it: so real and generated rows go through it together, in one pass, and a penalty on the
    gradient of a row means what it says (Gulrajani et al. 2017, section 4).

    Deviations from the paper: other norms instead of BatchNorm, for that reason. "spectral" divides every kernel by its
    largest singular value, estimated by one step of power iteration in each training pass (Miyato et al. 2018,
    algorithm 1); the vectors of the iteration are state, under "spectral". A convolution's kernel is taken as the
    matrix [4 * 4 * in, out].

    Attributes:
      widths: channels of the convolutions.
      norm: after every convolution but the first, as in the paper; "spectral" is of every layer.
      slope: of the leaky ReLUs where they leak.
      kernel_init: of all layers.

    Source: Radford et al. 2016, section 3.
    """

    widths: tuple[Count, ...] = (64, 128)
    norm: Literal["none", "spectral", "layer", "group", "instance"] = "spectral"
    slope: Fraction = 0.2
    kernel_init: Init = "he_normal"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        init, between = initializer(self.kernel_init), "none" if self.norm == "spectral" else self.norm

        def layer(made: nn.Module, x: jax.Array) -> jax.Array:
            if self.norm != "spectral":
                return made(x)
            name = f"spectral_{made.name}"
            return nn.SpectralNorm(made, collection_name="spectral", name=name)(x, update_stats=train)

        h = 2 * x - 1
        for i, width in enumerate(self.widths):
            biased = i == 0 or has_bias(between)
            how: dict[str, Any] = {"use_bias": biased, "kernel_init": init, "name": f"conv_{i}"}
            h = layer(Conv(width, (4, 4), strides=2, padding="SAME", **how), h)
            h = normalise(h, between, train=train, name=f"norm_{i}") if i else h
            h = nn.leaky_relu(h, self.slope)
        return layer(nn.Dense(1, kernel_init=init, name="head"), h.reshape((x.shape[0], -1)))[:, 0]
