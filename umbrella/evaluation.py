"""The only evaluation pass. A robust metric is a transformed objective, not another pass. Floor 4."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from umbrella import distributed
from umbrella.metrics import Collect, merge
from umbrella.objective import Array, Batch, Ctx, Objective, PyTree, State, View

FLUSH = 64  # batches between moves of the sums to the host: f32 counters stop counting at 2^24


def evaluate(
    objective: Objective,
    view: View,
    batches: Iterable[Batch],
    key: Array,
    *,
    frozen: PyTree | None = None,
    lanes: int | None = None,
    put: Callable[[Batch], Batch] | None = None,
) -> dict[str, Any]:
    """The metrics of an objective over all batches, in evaluation mode.

    Args:
      view: parameters and state, with a leading axis [K] on every leaf when lanes is K.
      batches: dicts of arrays, all of one shape; the last is padded, with mask 0 on the padding. One compilation.
      key: batch i draws from fold_in(key, i), the same for every lane. Noise therefore depends on the size of a batch.
      put: places a batch, such as `umbrella.placement.Placement.rows`: without it each of several devices computes all
        rows, with it each computes its share. The view must then lie on the same devices, replicated or by lanes.

    Returns:
      name -> float (or what the metric's compute gives); a list of K of them with lanes. Sums are kept in float64.

    Raises:
      ValueError: there is no batch.
    """
    frozen = {} if frozen is None else frozen
    total: dict[str, Any] = {}
    rows: dict[str, list[Any]] = {}
    sums = carry = where = None
    for i, batch in enumerate(batches):
        at = jax.random.fold_in(key, i)
        batch = dict(batch) if put is None else dict(put(batch))
        if sums is None:
            where = None if put is None else _places(batch, view, lanes)
            sums, carry = _placed(_zeros(objective, batch, view, frozen, at, lanes), where)
        sums, carry, kept = _pass(objective, sums, carry, view, frozen, batch, at, lanes is not None, where)
        for name, state in kept.items():
            rows.setdefault(name, []).append(distributed.fetch(state))
        if (i + 1) % FLUSH == 0:
            total, (sums, _) = _flush(total, sums), _placed((jax.tree.map(jnp.zeros_like, sums), {}), where)
    if sums is None:
        raise ValueError("nothing to evaluate: there is no batch")
    total = _flush(total, sums)
    axis = 0 if lanes is None else 1
    told = total | {n: jax.tree.map(lambda *x: np.concatenate(x, axis=axis), *states) for n, states in rows.items()}
    if lanes is None:
        return {name: state.compute() for name, state in told.items()}
    return {
        name: [jax.tree.map(lambda x, k=k: x[k], state).compute() for k in range(lanes)] for name, state in told.items()
    }


Places = tuple[NamedSharding, NamedSharding]  # of the sums, replicated; of the carry, sharded by rows


def _places(batch: Batch, view: View, lanes: int | None) -> Places | None:
    """Where sums and carry lie when the batch is spread over a mesh; None when it lies on one device."""
    on, lying = (next(iter(jax.tree.leaves(tree))).sharding for tree in (batch, view))
    if not isinstance(on, NamedSharding):
        return None
    if lanes is not None and isinstance(lying, NamedSharding) and any(lying.spec[:1]):  # each device has its own lanes
        own, rows = (NamedSharding(on.mesh, PartitionSpec(lying.spec[0], *more)) for more in ((), on.spec[:1]))
        return own, rows
    lead = () if lanes is None else (None,)
    return NamedSharding(on.mesh, PartitionSpec()), NamedSharding(on.mesh, PartitionSpec(*lead, *on.spec[:1]))


def _placed(trees: tuple[Any, Any], where: Places | None) -> tuple[Any, Any]:
    """(sums, carry) there; inside of a program a constraint, so that what comes out can go in again as it is."""
    return trees if where is None else (jax.device_put(trees[0], where[0]), jax.device_put(trees[1], where[1]))


@partial(jax.jit, static_argnames=("objective", "lanes", "where"), donate_argnames=("sums", "carry"))
def _pass(
    objective: Objective,
    sums: Any,
    carry: State,
    view: View,
    frozen: PyTree,
    batch: Batch,
    key: Array,
    lanes: bool,
    where: Places | None = None,
) -> tuple[Any, State, dict[str, Any]]:
    def one(sums: Any, carry: State, view: View) -> tuple[Any, State, dict[str, Any]]:
        told, state = _metrics(objective, view, carry, frozen, batch, key)
        add = {k: v for k, v in told.items() if not isinstance(v, Collect)}
        keep = {k: v for k, v in told.items() if isinstance(v, Collect)}
        return merge(sums, add), {k: v for k, v in state.items() if k == "carry"}, keep

    new_sums, new_carry, kept = (jax.vmap(one) if lanes else one)(sums, carry, view)
    return *_placed((new_sums, new_carry), where), kept


def _metrics(
    objective: Objective, view: View, carry: State, frozen: PyTree, batch: Batch, key: Array
) -> tuple[dict[str, Any], State]:
    ctx = Ctx(key, jnp.int32(0), frozen, train=False)
    _, aux = objective.apply(view.params, {**view.state, **carry}, batch, ctx)
    return aux.metrics, aux.state


def _zeros(
    objective: Objective, batch: Batch, view: View, frozen: PyTree, key: Array, lanes: int | None
) -> tuple[Any, State]:
    """Empty sums, and the per-example scope "carry" from zero: an evaluation starts without a past."""
    one = view if lanes is None else jax.eval_shape(lambda v: v.lane(0), view)
    if "carry" in view.state:
        ctx = Ctx(key, jnp.int32(0), frozen, train=False)
        fresh = jax.eval_shape(lambda: objective.init(batch, ctx))[1]
        carry = {"carry": fresh["carry"]}
    else:
        carry = {}
    told, _ = jax.eval_shape(lambda v, c: _metrics(objective, v, c, frozen, dict(batch), key), one, carry)
    sums = {k: v for k, v in told.items() if not isinstance(v, Collect)}
    lead = () if lanes is None else (lanes,)
    return jax.tree.map(lambda s: jnp.zeros(lead + s.shape, s.dtype), (sums, carry))


def _flush(total: dict[str, Any], sums: dict[str, Any]) -> dict[str, Any]:
    now = jax.tree.map(lambda x: np.asarray(x, np.float64), distributed.fetch(sums))
    return jax.tree.map(np.add, total, now) if total else now
