"""A recurrence without a nonlinearity between steps, which needs no loop over them. Floor 1."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from umbrella.choices import one_of
from umbrella.models.carry import carried
from umbrella.models.layers import Dense
from umbrella.settings import SettingsError

Array = jax.Array
Complex = tuple[Array, Array]  # real and imaginary part: XLA's CPU backend is slower on complex64
How = Literal["auto", "loop", "scan"]


def linear_scan(
    a: Complex, b: Complex, start: Complex, *, real: Array | None = None, back: bool = False, how: How = "auto"
) -> Complex:
    """h_t = a h_{t-1} + b_t for all t at once, f32[T, B, N] each.

    Args:
      a: f32[N] each, the same at all steps.
      b: f32[T, B, N] each.
      start: f32[B, N] each, what stands before the first step.
      real: bool[T, B, 1]; where it is not, h_t = h_{t-1}. All steps when None.
      back: whether time runs from the last step to the first.
      how: "scan" is associative, with log2 T turns (Blelloch 1990); "loop" has T; "auto" is the loop on CPU and the
        scan elsewhere. On two CPU cores, T = 784, forwards and backwards of 100 rows of 64 complex numbers: loop 75 ms
        and .4 s to compile, scan 260 ms and 11 s (complex64: 253 ms and 5 s); unrolled by 4 or 16 the loop is no
        faster.
    """
    one_of("how", how, How)
    a, b, start = jax.tree.map(jnp.asarray, (a, b, start))
    if how == "loop" or (how == "auto" and jax.default_backend() == "cpu"):
        return _loop(a, b, start, real, back)
    return _associative(a, b, start, real, back)


def _times(x: Complex, y: Complex) -> Complex:
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def _plus(x: Complex, y: Complex) -> Complex:
    return x[0] + y[0], x[1] + y[1]


def _loop(a: Complex, b: Complex, start: Complex, real: Array | None, back: bool) -> Complex:
    factor = a[0][None], a[1][None]

    def step(h: Complex, now: tuple[Complex, Array | None]) -> tuple[Complex, Complex]:
        b, real = now
        new = _plus(_times(factor, h), b)
        if real is not None:
            new = jnp.where(real, new[0], h[0]), jnp.where(real, new[1], h[1])
        return new, new

    return jax.lax.scan(step, start, (b, real), reverse=back)[1]


def _associative(a: Complex, b: Complex, start: Complex, real: Array | None, back: bool) -> Complex:
    t = b[0].shape[0]
    factor = tuple(jnp.broadcast_to(v, (t, 1, v.shape[0])) for v in a)  # shared by the rows unless some are padded
    if real is not None:
        factor = jnp.where(real, factor[0], 1), jnp.where(real, factor[1], 0)
        b = jnp.where(real, b[0], 0), jnp.where(real, b[1], 0)
    first = t - 1 if back else 0
    gone = _times((factor[0][first], factor[1][first]), start)
    b = b[0].at[first].add(gone[0]), b[1].at[first].add(gone[1])

    def after(x: tuple[Complex, Complex], y: tuple[Complex, Complex]) -> tuple[Complex, Complex]:
        return _times(y[0], x[0]), _plus(_times(y[0], x[1]), y[1])

    h: Complex = jax.lax.associative_scan(after, (factor, b), reverse=back)[1]
    return h


class LinearLayer(nn.Module):
    """f32[T, B, D], bool[T, B, 1] or None, f32[B] or None -> f32[T, B, W]: a residual block around a linear recurrence.

        h_t = lambda h_{t-1} + gamma (B u_t),  y_t = Re(C h_t) + d u_t,  u = norm(x)
        x + a sigmoid(g),  (a, g) = gelu(y) M

    with a diagonal complex lambda = exp(-exp(nu) + i exp(theta)) inside of the unit circle, W / 2 numbers of it, and
    gamma = sqrt(1 - |lambda|^2). Source: Orvieto et al. 2023, LRU, section 3 and appendix A. What is nonlinear acts
    within a step, so steps far apart are as easily reached as near ones.

    Deviations: gamma follows lambda instead of being trained by itself; layer norm where the paper has batch norm; a
    dense layer in front when D is not W.

    Attributes:
      width: W, even: the state is W / 2 complex numbers.
      back: whether it reads from the last step to the first.
      stateful: see `umbrella.models.recurrent.Recurrent`.
      radius: the range that |lambda| starts in, uniform on the ring: 1 / (1 - |lambda|) is the memory in steps.
      phase: the largest angle that lambda starts with.
    """

    width: int
    back: bool = False
    stateful: bool = False
    radius: tuple[float, float] = (0.9, 0.999)
    phase: float = math.pi / 10

    @nn.compact
    def __call__(self, x: Array, real: Array | None, fresh: Array | None) -> Array:
        w, n = self.width, self.width // 2
        if w % 2:
            raise SettingsError(
                f"config.model: a width of {w}: the linear recurrence needs an even one, two for a complex number"
            )
        if x.shape[-1] != w:
            x = Dense(w, name="encode")(x)
        u = nn.LayerNorm(name="norm")(x)
        drive = self.param("drive", nn.initializers.normal(1 / math.sqrt(2 * w)), (w, w))
        size = jnp.exp(-jnp.exp(self.param("nu", self._nu, (n,))))
        angle = jnp.exp(self.param("theta", self._theta, (n,)))
        gamma = jnp.sqrt(jnp.maximum(1 - jnp.square(size), 1e-8))
        b = u @ (drive * jnp.tile(gamma, 2)[None])
        zero = {"h": jnp.zeros((x.shape[1], w))}
        start, keep = carried(self, zero, fresh) if self.stateful else (zero, lambda states: None)
        a = size * jnp.cos(angle), size * jnp.sin(angle)
        parts = linear_scan(a, _parts(b), _parts(start["h"]), real=real, back=self.back)
        h = jnp.concatenate(parts, -1)
        keep({"h": h[-1]})
        read = self.param("read", nn.initializers.normal(1 / math.sqrt(n)), (w, w))
        skip = self.param("skip", nn.initializers.normal(1.0), (w,))
        y = nn.gelu(h @ read + skip[None, None] * u)
        out, gate = jnp.split(Dense(2 * w, name="mix")(y), 2, -1)
        return x + out * jax.nn.sigmoid(gate)

    def _nu(self, key: Array, shape: tuple[int, ...]) -> Array:
        low, high = self.radius
        square = jax.random.uniform(key, shape) * (high**2 - low**2) + low**2
        return jnp.log(-0.5 * jnp.log(square))

    def _theta(self, key: Array, shape: tuple[int, ...]) -> Array:
        return jnp.log(self.phase * jax.random.uniform(key, shape, minval=1e-4))


def _parts(h: Array) -> Complex:
    re, im = jnp.split(h, 2, -1)
    return re, im
