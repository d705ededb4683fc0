"""A game of tokens: samples have no slope, so the generator learns from rewards. Floor 2.

A row is i32[B, T], the "y" of a batch; before its first token stands `start`. The discriminator scores every token, the
generator is a policy whose action is the next token (Yu et al. 2017):

    disc = discriminate_rows(net, start=2)(supervised(critic, GAMES["non_saturating"].disc, scope="disc"))
    gen = reinforce(net, critic, start=2, discount=0.9)(supervised(net, policy_loss, scope="gen"))
"""

from typing import Any

import jax
import jax.numpy as jnp

from umbrella import decoding, losses
from umbrella.metrics import Mean
from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, stop_gradient

GEN, DISC = "gen", "disc"  # the scopes of the two networks


def shifted(rows: Array, start: int) -> Array:
    """i32[B, T]: what stands before each token of rows i32[B, T].

    >>> shifted(jnp.array([[7, 8, 9]]), 2)
    Array([[2, 7, 8]], dtype=int32)
    """
    return jnp.pad(rows[:, :-1], ((0, 0), (1, 0)), constant_values=start)


def draw_rows(
    net: Any, params: Any, key: Array, *, start: int, rows: int, length: int, temperature: Array | float = 1.0
) -> Array:
    """i32[rows, length], drawn token by token from softmax(logits / temperature).

    Args:
      net: a model of the next token with a state (`stateful`), such as RecurrentLM.
      params: its own, without a scope.
      temperature: above 0; may be traced, so one program draws at all.
    """
    model = net.clone(stateful=True)
    prompt = jnp.full((rows, 1), start, jnp.int32)

    def step(cache: Any, tokens: Array) -> tuple[Array, Any]:
        told, new = model.apply({"params": params, "carry": cache}, tokens[:, None], train=False, mutable=["carry"])
        return told[:, 0] / temperature, new["carry"]

    def empty() -> Any:
        return model.apply({"params": params}, prompt, train=False, mutable=["carry"])[1]["carry"]

    cache = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(empty))
    return decoding.sample(step, cache, prompt, key, length=length)


# ------------------------------------------------------------------------------------------------------ the two players
def discriminate_rows(net: Any, *, start: int) -> Transform:
    """Which of these are real? B rows "y" become 2B: x = [rows; samples], y bool[2B, T], one for every token.

    Args:
      net: the generator, whose parameters are in the scope "gen"; no slope goes into them.
      start: the token that stands before every row.
    """

    def wrap(o: Objective) -> Objective:
        def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
            return o.init({"x": batch["y"], "y": jnp.ones(batch["y"].shape, bool)}, ctx)

        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            real = batch["y"]
            n, length = real.shape
            key = ctx.rng(f"{GEN}/samples")
            with jax.named_scope("discriminate_rows"):
                fake = stop_gradient(draw_rows(net, params[GEN], key, start=start, rows=n, length=length))
            truth = jnp.broadcast_to((jnp.arange(2 * n) < n)[:, None], (2 * n, length))
            return o.apply(params, state, {"x": jnp.concatenate([real, fake]), "y": truth}, ctx)

        return o._replace(init=init, apply=apply)

    return wrap


def reinforce(net: Any, critic: Any, *, start: int, discount: float) -> Transform:
    """Rewards for samples instead of text to copy: as many rows are drawn as the batch has, and rewarded.

    Wraps `supervised(net, policy_loss, scope="gen")`, whose gradient is then that of `policy_batch`, averaged over
    tokens. The pass is without dropout, as the samples are: a policy is improved by what it did itself. Reports
    "reward", the mean of a token, and "entropy", nats per token of the samples under the generator.

    Args:
      net: the generator.
      critic: the discriminator, tokens i32[B, T] -> f32[B, T], in the scope "disc".
      discount: gamma in [0, 1].

    Source: Williams 1992; for text Yu et al. 2017, without their search for the rewards of beginnings, since every
    token has a reward of its own (d'Autume et al. 2019, eq. 5 to 7).
    """

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            n, length = batch["y"].shape
            key = ctx.rng(f"{GEN}/samples")
            with jax.named_scope("reinforce"):
                rows = stop_gradient(draw_rows(net, params[GEN], key, start=start, rows=n, length=length))
                rewards = rewards_of(critic, params, rows)
                asked = policy_batch(rows, rewards, start=start, discount=discount)
            loss, aux = o.apply(params, state, asked, ctx.eval())
            nats = stop_gradient(losses.cross_entropy(aux.outputs, rows))
            told = {"reward": Mean.of(rewards), "entropy": Mean.of(nats)}
            return loss, aux.replace(metrics={**aux.metrics, **told})

        def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
            asked = policy_batch(batch["y"], jnp.zeros(batch["y"].shape), start=start, discount=discount)
            return o.init(asked, ctx)

        return o._replace(init=init, apply=apply)

    return wrap


def policy_loss(logits: Array, y: Batch) -> Array:
    """f32[B, T]: -advantage * log p(token), whose gradient is REINFORCE's. y: tokens i32[B, T], advantage f32[B, T]."""
    return y["advantage"] * losses.cross_entropy(logits, y["tokens"])


def rewards_of(critic: Any, params: Params, rows: Array) -> Array:
    """f32[B, T] in (-1, 1): 2 D - 1, with D the discriminator's probability that a token is real.

    Source: d'Autume et al. 2019, eq. 5.
    """
    scores = critic.apply({"params": params[DISC]}, rows, train=False)
    return stop_gradient(2 * jax.nn.sigmoid(scores) - 1)


def policy_batch(rows: Array, rewards: Array, *, start: int, discount: float) -> Batch:
    """What a policy is asked of rows i32[B, T] that were rewarded by f32[B, T]."""
    advantage = stop_gradient(advantages(returns(rewards, discount)))
    return {"x": shifted(rows, start), "y": {"tokens": rows, "advantage": advantage}}


def returns(rewards: Array, discount: float) -> Array:
    """f32[B, T]: R_t = r_t + discount R_{t+1}, what is still to come at each token.

    >>> returns(jnp.array([[1.0, 2.0, 4.0]]), 0.5).tolist()
    [[3.0, 4.0, 4.0]]

    Source: d'Autume et al. 2019, eq. 6.
    """

    def back(after: Array, now: Array) -> tuple[Array, Array]:
        total = now + discount * after
        return total, total

    return jax.lax.scan(back, jnp.zeros_like(rewards[:, 0]), rewards.T, reverse=True)[1].T


def advantages(values: Array) -> Array:
    """f32[B, T]: a return less the mean of the other rows' at its place. Of one row, as it is.

    The other rows are independent of this one, so the gradient keeps its mean and loses variance.

    Deviation from d'Autume et al. 2019, whose baseline is a moving average of past returns: this one needs no memory
    (Kool et al. 2019, eq. 8).

    >>> advantages(jnp.array([[3.0], [1.0], [2.0]])).tolist()
    [[1.5], [-1.5], [0.0]]
    """
    n = values.shape[0]
    if n == 1:
        return values
    return (values - jnp.mean(values, 0, keepdims=True)) * (n / (n - 1))
