"""Gradient functions and what wraps them: grad_of, microbatch, in_order. Floor 3."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from umbrella.metrics import Collect
from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State
from umbrella.unroll import unroll

tmap = jax.tree.map


class GradFn(Protocol):
    """(free, fixed, state, batch, ctx) -> (gradients like free, loss, aux)."""

    def __call__(
        self, free: Params, fixed: Params, state: State, batch: Batch, ctx: Ctx, /
    ) -> tuple[Params, Array, Aux]: ...


GradTransform = Callable[[GradFn], GradFn]


def grad_of(objective: Objective, *, over: str | None = None) -> GradFn:
    """The gradient of an objective's loss with respect to the free scopes.

    Metrics that collect rows are left out: what follows adds up over slices, shards and steps, and rows are no sums.

    With a scale in the context the loss is multiplied by it before it is differentiated, and the gradients are divided
    by it afterwards, in their own dtype, that of the parameters (Micikevicius et al. 2018, section 3.2). The loss that
    is returned is the plain one. The objective does not see the scale, so attacks, SAM and whatever else differentiates
    inside of it do so without one. See `umbrella.loss_scale`.

    Args:
      over: the axis name of a shard_map or pmap that the call runs under. Each shard's loss is weighted by its share of
        the count *before* it is differentiated: weighting the gradients afterwards is wrong as soon as the shards are
        coupled (BatchNorm with an axis_name).
    """

    def grads(free: Params, fixed: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Params, Array, Aux]:
        scale, ctx = ctx.scale, ctx.replace(scale=None)
        if over is not None:
            ctx = ctx.fork("shard", jax.lax.axis_index(over))
            # Told apart by shard, so that a shard_map that checks replication does not add the gradients up by itself.
            free = tmap(lambda v: jax.lax.pcast(v, over, to="varying"), free)

        def loss_of(free: Params) -> tuple[Array, tuple[Array, Aux]]:
            loss, aux = objective.apply({**fixed, **free}, state, batch, ctx)
            if over is not None:
                loss = loss * aux.count / jnp.maximum(jax.lax.psum(aux.count, over), 1)
            return (loss if scale is None else loss * scale.astype(loss.dtype)), (loss, aux)

        (_, (loss, aux)), g = jax.value_and_grad(loss_of, has_aux=True)(free)
        if scale is not None:
            g = tmap(lambda v: v * (1 / scale).astype(v.dtype), g)
        aux = aux.replace(metrics={k: v for k, v in aux.metrics.items() if not isinstance(v, Collect)})
        if over is not None:
            g, loss, told, count = jax.lax.psum((g, loss, aux.metrics, aux.count), over)
            shared = {k: v if k == "carry" else tmap(lambda x: _agreed(x, over), v) for k, v in aux.state.items()}
            aux = aux.replace(metrics=told, count=count, state=shared)
        return g, loss, aux

    return grads


def _agreed(x: Array, over: str) -> Array:
    """One state for all shards: the mean of what is real, the largest of what counts."""
    return (jax.lax.pmean if jnp.issubdtype(x.dtype, jnp.inexact) else jax.lax.pmax)(x, over)


def microbatch(k: int) -> GradTransform:
    """The gradient of a batch by k slices in turn, at 1/k of the memory: count-weighted sums, so masks stay exact.

    Slice i holds the rows i, i + k, i + 2k, ...: so every slice lies on all the devices that the batch lies on, each of
    which computes its share. State is threaded through the slices in order (an average would wipe BatchNorm's
    statistics on an empty slice, and means nothing for spectral norms or codebooks); the per-example scope "carry" is
    sliced with the batch. Outputs and features are dropped. Not exact, by nature: BatchNorm (ghost batches), SAM,
    mixup, attacks with random starts, terms with a denominator of their own.

    Raises (while tracing):
      ValueError: k does not divide the batch.
    """

    def wrap(grad_fn: GradFn) -> GradFn:
        return grad_fn if k == 1 else _sliced(grad_fn, k)

    return wrap


def _sliced(grad_fn: GradFn, k: int) -> GradFn:
    def grads(free: Params, fixed: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Params, Array, Aux]:
        def part(shared: State, x: tuple[Array, Batch, State]) -> tuple[Any, Any]:
            i, rows, carry = x
            g, loss, aux = grad_fn(free, fixed, {**state, **shared, **carry}, rows, ctx.fork("microbatch", i))
            new, new_carry = _split_carry(aux.state)
            sums = tmap(lambda v: v * aux.count.astype(v.dtype), (g, loss))
            return (sums, aux.count, aux.metrics), (new, aux.per_example, new_carry)

        shared, carry = _split_carry(state)
        slices = (jnp.arange(k), tmap(lambda v: _cut(v, k), dict(batch)), tmap(lambda v: _cut(v, k), carry))
        like, (changed, *_) = jax.eval_shape(part, shared, tmap(lambda v: v[0], slices))
        zeros = tmap(lambda s: jnp.zeros(s.shape, s.dtype), like)

        def body(acc: tuple[Any, State], x: Any) -> tuple[Any, Any]:
            sums, (new, per_example, new_carry) = part(acc[1], x)
            return (tmap(jnp.add, acc[0], sums), new), (per_example, new_carry)

        (total, new), (per_example, new_carry) = jax.lax.scan(
            body, (zeros, {s: state[s] for s in changed}), slices, unroll=unroll(k)
        )
        (g, loss), count, told = total
        g, loss = tmap(lambda v: v / jnp.maximum(count, 1).astype(v.dtype), (g, loss))
        new = {**new, **tmap(_join, new_carry)}
        return g, loss, Aux(new, None, _join(per_example), count, told)

    return grads


def in_order(parts: int, over: str) -> GradTransform:
    """The gradient of a batch by `parts` slices, added up one after the other whatever devices they are computed on.

    A sum that devices make together depends on how many they are, since rounding does. Here every device computes its
    slices, all of them give theirs to all, and each adds up the same numbers in the same order. Slice j holds the rows
    j B / parts to (j + 1) B / parts - 1, and draws its own noise. It costs the room of `parts` gradients, what it takes
    to send them, and products of smaller matrices. As with `microbatch`, what couples the rows of a batch sees those of
    its slice.

    Args:
      parts: a multiple of the number of devices.
      over: the axis name of the shard_map that the call runs under.

    Raises (while tracing):
      ValueError: the devices do not divide the parts, or the parts the batch; or the pass changes state, such as the
        statistics of BatchNorm, which would be those of a slice.
    """

    def wrap(grad_fn: GradFn) -> GradFn:
        def grads(free: Params, fixed: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Params, Array, Aux]:
            devices = jax.lax.axis_size(over)
            each, rest = divmod(parts, devices)
            rows = {len(v) for v in jax.tree.leaves(dict(batch))}
            if rest or any(n % each for n in rows):
                raise ValueError(f"{parts} parts: {devices} devices of {sorted(rows)} rows cannot share them")
            slices = tmap(lambda v: v.reshape((each, -1, *v.shape[1:])), dict(batch))
            first = jax.lax.axis_index(over) * each

            def part(i: Array) -> Any:
                of = tmap(lambda v: v[i], slices)
                g, loss, aux = grad_fn(free, fixed, state, of, ctx.fork("part", first + i))
                if jax.tree.leaves(aux.state):
                    raise ValueError(f"the pass changes the state {', '.join(sorted(aux.state))}")
                return (
                    *tmap(lambda v: v * aux.count.astype(v.dtype), (g, loss)),
                    aux.count,
                    aux.metrics,
                ), aux.per_example

            like = jax.eval_shape(part, jnp.int32(0))
            room = tmap(lambda s: jnp.zeros((each, *s.shape), s.dtype), like)
            # Loops, since the compiler fuses nothing across their ends, and since it cannot know how often these go
            # round (a step is never below 0). What it knows to go round once it takes out of its loop, and what is in
            # none it fuses with what follows or not, by the number of devices. Either would round otherwise.
            none = jnp.minimum(ctx.step, 0)
            made = jax.lax.fori_loop(none, each, lambda i, out: tmap(lambda o, v: o.at[i].set(v), out, part(i)), room)
            every, rows_of = jax.lax.all_gather(made, over, tiled=True)
            g, loss, count, told = jax.lax.fori_loop(
                none + 1, parts, lambda j, acc: tmap(lambda a, v: a + v[j], acc, every), tmap(lambda v: v[0], every)
            )
            share = 1 / jnp.maximum(count, 1)
            g, loss = jax.lax.fori_loop(none, 1, lambda _, x: tmap(lambda v: v * share.astype(v.dtype), x), (g, loss))
            return g, loss, Aux({}, None, rows_of.reshape((-1, *rows_of.shape[2:])), count, told)

        return grads

    return wrap


def _split_carry(state: State) -> tuple[State, State]:
    return {n: v for n, v in state.items() if n != "carry"}, {n: v for n, v in state.items() if n == "carry"}


def _cut(x: Array, k: int) -> Array:
    if x.shape[0] % k:
        raise ValueError(f"{k} microbatches do not divide a batch of {x.shape[0]}")
    return interleaved(x, k)


def _join(x: Array) -> Array:
    return x.swapaxes(0, 1).reshape((-1, *x.shape[2:]))


def interleaved(x: Array, k: int) -> Array:
    """[B, ...] -> [k, B / k, ...]: slice i holds the rows i, i + k, i + 2k, ...

    Rows lie on devices in blocks. A slice of neighbours would lie on some of the devices, and the compiler would then
    have all of them compute the whole of it.
    """
    return x.reshape((x.shape[0] // k, k, *x.shape[1:])).swapaxes(0, 1)
