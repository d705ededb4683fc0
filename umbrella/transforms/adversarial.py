"""Attacks on the input, and training or measuring under them. Floor 2."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol, cast

import jax
import jax.numpy as jnp

from umbrella.attacks.balls import Norm, ball
from umbrella.attacks.gradient import apgd
from umbrella.attacks.search import Search, found
from umbrella.choices import one_of
from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, stop_gradient
from umbrella.settings import Cadence, Count, Fraction, NonNegative, Positive
from umbrella.unroll import unroll

Start = Literal["input", "ball", "beyond"]
Noise = Literal["linf", "l2", "l1", "normal"]


class Attack(Protocol):
    """A worse input for the objective: (objective, params, state, batch, ctx, "x") -> x, same shape and dtype.

    One that is ramped up has a keyword `share`, f32[] in (0, 1]: of its radius.
    """

    def __call__(
        self, objective: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, on: str, /
    ) -> Array: ...


def adversarial(
    attack: Attack,
    *,
    probe: Objective | None = None,
    train_mode: bool = False,
    on: str = "x",
    ramp: int = 0,
    clean: float = 0.0,
) -> Transform:
    """Replaces the input by what `attack` makes of it, in training and in evaluation.

    So `adversarial(pgd(...))(base)` is adversarial training when it is stepped on, and robust accuracy when it is
    evaluated. Probes see the batch without its "weight": a row that weighs nothing in the loss is attacked all the
    same, since metrics count it.

    Args:
      probe: the objective that the attack climbs; what is wrapped when None. It is given the effective parameters (what
        the wrapped objective resolves to), so a reparametrisation that is wrapped must not be in it once more. What
        stands to the left has changed the batch already: to attack the true labels under label smoothing, put the
        attack to the left of it.
      train_mode: whether probes run in training mode. By default they run in evaluation mode (no dropout, BatchNorm by
        its running averages), which switches off every train-only transform inside, too. Their state is thrown away:
        one pass counts.
      on: "x", or "x/image" for one entry of a dict.
      ramp: over so many steps of training the radius grows linearly to what it is; 0 for at once. Evaluations have the
        whole radius always.
      clean: the share of the loss that is that of the input as it was, in training: 1/2 in Goodfellow et al. 2015,
        eq. 6, and in Miyato et al. 2017, whose sum is twice that. State and metrics are those of the attacked input.

    Source: Madry et al. 2018, eq. 2.1.
    """

    def wrap(o: Objective) -> Objective:
        target = o if probe is None else probe

        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            with jax.named_scope("adversarial"):
                looking = ctx if train_mode else ctx.eval()
                at = stop_gradient(params if probe is None else o.resolve(params, state))
                seen = {k: v for k, v in batch.items() if k != "weight"}
                share = {"share": jnp.minimum((ctx.step + 1) / ramp, 1.0)} if ramp and ctx.train else {}
                x = cast(Callable[..., Array], attack)(target, at, state, seen, looking, on, **share)
            loss, aux = o.apply(params, state, put(batch, on, stop_gradient(x)), ctx)
            if not (clean and ctx.train):
                return loss, aux
            plain, other = o.apply(params, state, batch, ctx)
            rows = clean * other.per_example + (1 - clean) * aux.per_example
            return clean * plain + (1 - clean) * loss, dataclasses.replace(aux, per_example=rows)

        return o._replace(apply=apply)

    return wrap


def pgd(
    *,
    eps: float,
    steps: int = 7,
    step_size: float | None = None,
    norm: Norm = "linf",
    random_start: bool = True,
    bounds: tuple[float, float] | None = None,
    where: str | None = None,
) -> Attack:
    """Projected gradient ascent on the loss within a ball around the input.

    Against cross-entropy it overstates the robustness of a model with large logits: where the probability of the label
    rounds to 1 the gradient is exactly zero, and the row stays where it is. Scaling the logits of a model up, or
    training it for long, is enough for that (Carlini and Wagner 2017, section 8; Croce and Hein 2020, section 4). A
    `probe` whose loss is a margin of logits does not saturate.

    Args:
      eps: the radius, in units of the input. 0 returns the input.
      steps: gradient steps, at least 1.
      step_size: in units of the input; 2.5 eps / steps when None, so that the attack can cross the ball (Madry et al.).
      norm: "linf", "l2" or "l1", over all axes of an example.
      random_start: uniform in the linf ball, uniform on the l2 sphere's directions with a uniform radius.
      bounds: the valid range of an input; the result is clipped into it.
      where: the name of an entry i32[B, T] of the batch, such as "x/tokens": where it is 0 nothing is drawn at random.

    Raises:
      ValueError: no such norm, or less than one step.

    Source: Madry et al. 2018, section 2.1.
    """
    around = ball(one_of("pgd: norm", norm, Norm))
    if steps < 1:
        raise ValueError(f"pgd: {steps} steps are no attack; the input itself is eps=0")
    size = 2.5 * eps / steps if step_size is None else step_size

    def attack(
        objective: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, on: str, share: Any = 1.0
    ) -> Array:
        x0 = take(batch, on)
        radius = eps * share

        unbounded = jnp.full((), jnp.inf, x0.dtype)  # without x0 in it, so that XLA sees that it bounds nothing
        low, high = (-unbounded, unbounded) if bounds is None else (bounds[0] - x0, bounds[1] - x0)

        def inside(delta: Array) -> Array:
            return around.project(delta, radius, low, high)

        def climb(_: int, delta: Array) -> Array:
            g = jax.grad(lambda d: objective.apply(params, state, put(batch, on, x0 + d), ctx)[0])(delta)
            return inside(delta + size * share * around.steepest(g))

        start = around.sample(ctx.rng("pgd"), x0, radius) if random_start else jnp.zeros_like(x0)
        if random_start and where is not None:
            start = start * _besides(batch, where, x0)
        return x0 + jax.lax.fori_loop(0, steps, climb, inside(start), unroll=unroll(steps))

    return attack


def fgsm(*, eps: float, bounds: tuple[float, float] | None = None, start: Start = "input") -> Attack:
    """One signed gradient step.

    Args:
      start: "input": of size eps from the input itself (Goodfellow et al. 2015, section 4), which overfits
        catastrophically when it is trained on; "ball": of size 1.25 eps from a random point of the ball, and back into
        it (Wong et al. 2020, algorithm 3); "beyond": of size eps from a random point within twice eps, and not back
        (N-FGSM: de Jorge et al. 2022, algorithm 1), so that it is up to three times eps away: for training alone.
        The random point may lie outside of the bounds, the result does not. It matters: a black pixel whose start is
        clipped to black steps to eps or stays, nothing between, and a network learns to mislead that.

    Raises:
      ValueError: no such start.
    """
    one_of("fgsm: start", start, Start)
    if start == "input":
        return pgd(eps=eps, steps=1, step_size=eps, random_start=False, bounds=bounds)
    within = start == "ball"

    def attack(
        objective: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, on: str, share: Any = 1.0
    ) -> Array:
        x0, radius = take(batch, on), eps * share
        delta = ball("linf").sample(ctx.rng("pgd"), x0, radius if within else 2 * radius)
        g = jax.grad(lambda d: objective.apply(params, state, put(batch, on, x0 + d), ctx)[0])(delta)
        delta += (1.25 if within else 1.0) * radius * jnp.sign(g)
        worse = x0 + (jnp.clip(delta, -radius, radius) if within else delta)
        return worse if bounds is None else jnp.clip(worse, *bounds)

    return attack


def searched(search: Search, *, eps: float) -> Attack:
    """A search of `umbrella.attacks` as an attack on an objective whose outputs are logits f32[B, C] and whose y are
    labels i32[B].

    Raises (while tracing):
      ValueError: y are no labels.
    """

    def attack(
        objective: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, on: str, share: Any = 1.0
    ) -> Array:
        y = labels_of(batch, "this attack")

        def logits(x: Array) -> Array:
            out: Array = objective.apply(params, state, put(batch, on, x), ctx)[1].outputs
            return out

        return found(search, logits, take(batch, on), y, eps * share, ctx.rng("search")).x

    return attack


def random_noise(
    *, eps: float, norm: Noise = "linf", bounds: tuple[float, float] | None = None, where: str | None = None
) -> Attack:
    """The control that an attack must beat: noise without a direction.

    Uniform in the ball for "linf". For "l2" and "l1" uniform on its edge, as long as a step along the gradient is.
    "normal" is no ball: Gaussian, eps being its standard deviation, and not kept in the bounds, as randomised smoothing
    asks a network for what it says there (Cohen et al. 2019, section 3.3).

    Args:
      where: the name of an entry i32[B, T] of the batch, such as "x/tokens": where it is 0 there is no noise, as there
        is no gradient either.

    Raises:
      ValueError: no such norm.
    """
    one_of("random_noise: norm", norm, Noise)

    def attack(
        objective: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, on: str, share: Any = 1.0
    ) -> Array:
        x = take(batch, on)
        radius, kept = eps * share, 1.0 if where is None else _besides(batch, where, x)
        if norm == "normal":
            return x + radius * jax.random.normal(ctx.rng("noise"), x.shape, x.dtype) * kept
        if norm == "linf":
            delta = ball(norm).sample(ctx.rng("noise"), x, radius) * kept
        else:
            way = ball(norm).sample(ctx.rng("noise"), x, 1.0) * kept
            length = jnp.maximum(ball(norm).size(way), 1e-12)
            delta = way * (radius / length).reshape((-1,) + (1,) * (x.ndim - 1))
        return x + delta if bounds is None else jnp.clip(x + delta, *bounds)

    return attack


def _besides(batch: Batch, where: str, like: Array) -> Array:
    """f[B, T, 1...]: 1 where the entry is not 0."""
    node: Any = batch
    for k in where.split("/"):
        node = node[k]
    return (node != 0).astype(like.dtype).reshape(node.shape + (1,) * (like.ndim - node.ndim))


# ------------------------------------------------------------------------------------------- the table's entries
def pgd_adversarial(
    base: Objective,
    bounds: tuple[float, float] | None,
    on: str,
    where: str | None,
    to_steps: Callable[[str], int],
    *,
    eps: NonNegative,
    steps: Count = 7,
    step_size: Positive | None = None,
    norm: Norm = "linf",
    random_start: bool = True,
    probe: Literal["wrapped", "base"] = "wrapped",
    train_mode: bool = False,
    ramp: Cadence = "never",
    clean: Fraction = 0.0,
) -> Transform:
    """`adversarial(pgd(...))` from settings; probe "base" attacks the plain loss whatever is wrapped, and eps grows
    linearly over `ramp`."""
    how: dict[str, Any] = {"norm": norm, "random_start": random_start, "bounds": bounds, "where": where}
    attack = pgd(eps=eps, steps=steps, step_size=step_size, **how)
    probed = base if probe == "base" else None
    return adversarial(attack, probe=probed, train_mode=train_mode, on=on, ramp=to_steps(ramp), clean=clean)


def apgd_adversarial(
    bounds: tuple[float, float] | None,
    on: str,
    *,
    eps: NonNegative,
    steps: Count = 100,
    norm: Norm = "linf",
    loss: Literal["ce", "margin", "dlr"] = "ce",
) -> Transform:
    """`adversarial(searched(apgd(...)))` from settings: for evaluations, as it is no cheap way to train."""
    edges = (-jnp.inf, jnp.inf) if bounds is None else bounds
    return adversarial(searched(apgd(steps=steps, norm=norm, loss=loss, bounds=edges), eps=eps), on=on)


def noise_adversarial(
    bounds: tuple[float, float] | None,
    on: str,
    where: str | None,
    *,
    eps: NonNegative,
    norm: Noise = "linf",
    clean: Fraction = 0.0,
) -> Transform:
    """`adversarial(random_noise(...))` from settings: the control of an attack, in training and in evaluation."""
    return adversarial(random_noise(eps=eps, norm=norm, bounds=bounds, where=where), on=on, clean=clean)


def fgsm_adversarial(
    base: Objective,
    bounds: tuple[float, float] | None,
    on: str,
    to_steps: Callable[[str], int],
    *,
    eps: NonNegative,
    start: Start = "input",
    probe: Literal["wrapped", "base"] = "wrapped",
    train_mode: bool = False,
    ramp: Cadence = "never",
    clean: Fraction = 0.0,
) -> Transform:
    """`adversarial(fgsm(...))` from settings; eps grows linearly over `ramp`."""
    attack = fgsm(eps=eps, bounds=bounds, start=start)
    probed = base if probe == "base" else None
    return adversarial(attack, probe=probed, train_mode=train_mode, on=on, ramp=to_steps(ramp), clean=clean)


# -------------------------------------------------------------------------------------------------------------- helpers
def take(batch: Batch, on: str) -> Array:
    """The array at "x" or "x/image"."""
    node: Any = batch
    for k in on.split("/"):
        node = node[k]
    if not hasattr(node, "dtype"):
        raise TypeError(f"an attack on {on!r}: that is a {type(node).__name__}; name one entry, such as on='x/image'")
    if not jnp.issubdtype(node.dtype, jnp.floating):
        raise TypeError(
            f"an attack on {on!r}: its dtype is {node.dtype}, which has no gradient; attack what it is embedded as, "
            "on='x/delta' to the right of at_embedding"
        )
    return node


def labels_of(batch: Batch, who: str) -> Array:
    """The batch's y, i32[B].

    Raises (while tracing):
      ValueError: they are no labels.
    """
    y: Array = batch["y"]
    if y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        told = f"{y.dtype}{list(y.shape)}"
        raise ValueError(f"{who} needs labels i32[B], y is {told}: put it to the left of what mixes or smooths them")
    return y


def put(batch: Batch, on: str, value: Array) -> Batch:
    """A batch with `value` at "x" or "x/image"; the given one is left as it was."""
    first, *rest = on.split("/")
    return {**batch, first: put(batch[first], "/".join(rest), value) if rest else value}
