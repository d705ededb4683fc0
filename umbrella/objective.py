"""View, Ctx, Aux, Objective and the lifts that make techniques. Floor 2.

The one idea: a technique is a function from objective to objective. An objective knows how to make its parameters
(`init`), how to turn them and a batch into a loss (`apply`), and how the parameters that are trained become those that
the model is applied with (`resolve`).
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from umbrella.metrics import Mean, widened

Array = jax.Array
PyTree = Any
Params = dict[str, PyTree]  # by scope: {"model": ...} | {"gen": ..., "disc": ...}
State = dict[str, PyTree]  # what a pass may change, by owner: {"model": {"batch_stats": ...}}; "carry" is reserved
Batch = Mapping[str, Any]  # x (seen by the model), y (compared by the loss), mask, weight, + extras

stop_gradient = jax.lax.stop_gradient


class View(NamedTuple):
    """What a pass runs on: parameters and the state that goes with them, raw or averaged."""

    params: Params
    state: State

    def lane(self, k: int) -> "View":
        """The view of seed k, from one whose leaves all have a leading seed axis."""
        return jax.tree.map(lambda x: x[k], self)


class Ctx(struct.PyTreeNode):
    """What a pass may read and never returns; what it may change is `State`."""

    key: Array  # typed PRNG key. train: fold_in(ts.key, ts.step); eval: fold_in(eval key, batch index)
    step: Array  # i32[], traced
    # Teachers, embeddings: {"teacher": View}; one copy for all lanes.
    frozen: PyTree = struct.field(default_factory=dict)
    ema: View | None = None  # the averaged view, when the step keeps one
    scale: Array | None = None  # f32[], what `grad_of` multiplies the loss by to differentiate it; no pass sees it
    train: bool = struct.field(pytree_node=False, default=True)
    want: tuple[str, ...] = struct.field(pytree_node=False, default=())  # "scope/module/path" of features asked for

    def rng(self, name: str, i: Array | int | None = None) -> Array:
        """The key named `name` (and index i, which may be traced). By name: adding a technique leaves the others' noise
        untouched."""
        key = jax.random.fold_in(self.key, zlib.crc32(name.encode()))
        return key if i is None else jax.random.fold_in(key, i)

    def fork(self, name: str, i: Array | int | None = None) -> "Ctx":
        """A context whose every stream differs from this one's: for slices, turns, shards, samples."""
        return self.replace(key=self.rng(name, i))

    def eval(self) -> "Ctx":
        """The same with train=False: for probes. Switches off the train-only transforms inside, too."""
        return self.replace(train=False)

    def asking(self, *paths: str) -> "Ctx":
        """The same, asking the models for the outputs of the submodules at "scope/module/path" in Aux.features.

        A pass whose parameters lack the scope, whose model lacks the module or calls it more than once, raises
        ValueError. A context that goes to other parameters as well, a teacher's, goes there as ctx.replace(want=()).
        """
        return self.replace(want=tuple(sorted({*self.want, *paths})))


class Aux(struct.PyTreeNode):
    """What a pass returns beside its loss."""

    state: State  # only the scopes that changed, each whole
    outputs: PyTree  # what the model returned; None after microbatch
    per_example: Array  # f32[B], unreduced; rows of a token loss are their masked means
    count: Array  # f32[], the denominator of the loss: what microbatches and shards are weighted by
    metrics: dict[str, Any]  # name -> metric state
    features: dict[str, Array] = struct.field(default_factory=dict)  # what ctx.want asked for


class Init(Protocol):
    def __call__(self, batch: Batch, ctx: Ctx, /) -> tuple[Params, State]: ...


class Apply(Protocol):
    def __call__(self, params: Params, state: State, batch: Batch, ctx: Ctx, /) -> tuple[Array, Aux]: ...


def _as_they_are(params: Params, state: State) -> Params:
    return params


class Objective(NamedTuple):
    """A loss that knows how to start. A transform returns `o._replace(...)`, never `Objective(...)`."""

    init: Init
    apply: Apply
    resolve: Callable[[Params, State], Params] = _as_they_are  # trained -> effective: for predict, sample, export


Transform = Callable[[Objective], Objective]


def chain(*transforms: Transform) -> Transform:
    """Composes transforms; the leftmost touches the batch first."""

    def wrap(objective: Objective) -> Objective:
        for t in reversed(transforms):
            objective = t(objective)
        return objective

    return wrap


def map_batch(fn: Callable[[Batch, Array], Batch], *, name: str, eval: bool = False) -> Transform:
    """A technique that rewrites the batch: `fn(batch, key) -> batch`, a new one.

    Args:
      name: of the stream that its key comes from. Two of one name draw the same numbers.
      eval: whether it also acts in evaluation (it makes the task: hiding tokens, binarising) or only in training.
    """

    def wrap(o: Objective) -> Objective:
        def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
            return o.init(fn(batch, ctx.rng(name)), ctx)  # at init too: it may be what makes y or mask

        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            if ctx.train or eval:
                with jax.named_scope(name):
                    batch = fn(batch, ctx.rng(name))
            return o.apply(params, state, batch, ctx)

        return o._replace(init=init, apply=apply)

    return wrap


def map_params(fn: Callable[[Params, State], Params], *, name: str) -> Transform:
    """A technique that rewrites the parameters the model is applied with: low-rank updates, masks, quantisation."""

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            with jax.named_scope(name):
                effective = fn(params, state)
            return o.apply(effective, state, batch, ctx)

        return o._replace(apply=apply, resolve=lambda params, state: o.resolve(fn(params, state), state))

    return wrap


def add_term(fn: Callable[..., Array], *, weight: float, name: str) -> Transform:
    """Adds `weight * fn(objective, params, state, batch, ctx, aux)`, f32[], to the training loss.

    A term that has a denominator of its own is not exact under microbatch. Inert in evaluation, where the loss is the
    wrapped objective's. Reported under `name`, before its weight.

    Raises (while tracing):
      ValueError: something inside reports a metric of this name.
    """

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            loss, aux = o.apply(params, state, batch, ctx)
            if not ctx.train:
                return loss, aux
            if name in aux.metrics:
                raise ValueError(f"two terms or metrics are called {name!r}: one would hide the other")
            with jax.named_scope(name):
                term = fn(o, params, state, batch, ctx, aux)
            told = Mean(stop_gradient(term) * aux.count, aux.count)
            return loss + weight * term, aux.replace(metrics={**aux.metrics, name: told})

        return o._replace(apply=apply)

    return wrap


def measure(**fns: Callable[[Any, Batch], Any]) -> Transform:
    """Attaches metrics `fn(outputs, batch) -> state`. Innermost by rule: a metric then sees what the loss sees."""

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            loss, aux = o.apply(params, state, batch, ctx)
            told = {name: fn(stop_gradient(aux.outputs), batch) for name, fn in fns.items()}
            return loss, aux.replace(metrics={**aux.metrics, **told})

        return o._replace(apply=apply)

    return wrap


def supervised(
    model: Any,
    criterion: Callable[[Any, Any], Array],
    *,
    scope: str = "model",
    streams: tuple[str, ...] = ("dropout", "latent"),
) -> Objective:
    """The base of most objectives: a Linen model and a loss per example.

    loss = sum(mask * weight * l) / max(sum(mask), 1), with l = criterion(model(x), y) where mask > 0 and 0 elsewhere.

    Padding may hold NaN: neither the loss nor its gradient knows of it, unless the loss has an infinite slope at a
    finite row of padding. What couples the rows does know: BatchNorm's statistics count padding, too.

    Args:
      model: a Linen module with `__call__(x, *, train)`.
      criterion: (outputs, y) -> f32[B] or f32[B, T]; the mask has the shape of its result. Added up in f32 at least.
      scope: the key of its parameters and of its state.
      streams: the names of the random streams that the model may ask for.

    Raises (while tracing):
      ValueError: the mask has another shape than the criterion's result.
    """

    def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
        rngs = {n: ctx.rng(f"{scope}/{n}") for n in ("params", *streams)}
        variables = dict(model.init(rngs, batch["x"], train=False))
        params, carry = variables.pop("params"), variables.pop("carry", None)
        state = {scope: variables} if variables else {}
        return {scope: params}, state if carry is None else {**state, "carry": {scope: carry}}

    def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        batch = harmless(batch)
        with jax.named_scope(scope):
            outputs, changed, features = _forward(model, scope, streams, params, state, batch["x"], ctx)
        losses = criterion(outputs, batch.get("y"))
        total, count, per_example = _reduce(losses, batch)
        told = {"loss": Mean(stop_gradient(total), count)}
        return total / jnp.maximum(count, 1), Aux(changed, outputs, per_example, count, told, features)

    return Objective(init, apply)


def harmless(batch: Batch) -> Batch:
    """The batch with zeros for what is not finite in padding: in the x of rows that are all padding, in the y of
    whatever is padding. As it is when it has no mask.

    Masking the losses alone is not enough: in the backward pass the zeros of the mask meet slopes of NaN. What is
    finite stays, since a row with mask 0 may be one without a label, whose outputs a technique looks at.
    """
    if "mask" not in batch or batch["mask"].ndim == 0:
        return batch
    real = batch["mask"] > 0
    rows = jnp.any(real, tuple(range(1, real.ndim))) if real.ndim > 1 else real

    def clean(v: Array, real: Array) -> Array:
        real = real if v.shape[: real.ndim] == real.shape else rows
        if not jnp.issubdtype(v.dtype, jnp.floating) or v.shape[:1] != rows.shape:
            return v
        real = real.reshape(real.shape + (1,) * (v.ndim - real.ndim))
        return jnp.where(real | jnp.isfinite(v), v, 0)

    parts = {"x": rows, "y": real}
    return {**batch, **{k: jax.tree.map(lambda v, m=m: clean(v, m), batch[k]) for k, m in parts.items() if k in batch}}


def _forward(
    model: Any, scope: str, streams: tuple[str, ...], params: Params, state: State, x: PyTree, ctx: Ctx
) -> tuple[Any, State, dict[str, Array]]:
    """One pass of the model: its outputs, the state that it changed, the features that ctx.want asked for."""
    own, carry = state.get(scope, {}), state.get("carry", {}).get(scope)
    variables = {"params": params[scope], **own, **({} if carry is None else {"carry": carry})}
    paths = tuple(w for w in ctx.want if w.split("/")[0] == scope)
    if lost := sorted(w for w in ctx.want if w.split("/")[0] not in params):
        raise ValueError(f"no feature {lost[0]!r}: the parameters have the scopes {sorted(params)}")
    mutable = [*(own if ctx.train else ()), *(("carry",) if carry is not None else ())]
    rngs = {n: ctx.rng(f"{scope}/{n}") for n in streams}
    if not mutable and not paths:
        return model.apply(variables, x, train=ctx.train, rngs=rngs), {}, {}
    outputs, new = model.apply(
        variables,
        x,
        train=ctx.train,
        rngs=rngs,
        mutable=[*mutable, *(("intermediates",) if paths else ())],
        capture_intermediates=(lambda m, _: "/".join((scope, *m.path)) in paths) if paths else False,
    )
    new = dict(new)
    features = _pick(new.pop("intermediates", {}), paths)
    new_carry = new.pop("carry", None)
    changed = {scope: new} if new else {}
    if new_carry is not None:
        changed["carry"] = {**state["carry"], scope: new_carry}
    return outputs, changed, features


def _pick(tree: Any, paths: tuple[str, ...]) -> dict[str, Array]:
    found = {}
    for path in paths:
        node = tree
        for k in path.split("/")[1:]:
            if k not in node:
                raise ValueError(f"no feature {path!r}: the model has no submodule {k!r} there")
            node = node[k]
        if len(calls := node.get("__call__", ())) != 1:
            raise ValueError(f"no feature {path!r}: that submodule is called {len(calls)} times, not once")
        found[path] = calls[0]
    return found


def _reduce(losses: Array, batch: Batch) -> tuple[Array, Array, Array]:
    """(sum, count, per example) of losses f32[B] or f32[B, T] under the batch's mask and weight."""
    losses = widened(losses)  # bf16 counts to 256 and no further
    mask = batch["mask"] if "mask" in batch else jnp.ones(losses.shape, losses.dtype)
    if mask.shape != losses.shape:
        raise ValueError(f"the criterion gives {losses.shape}, the mask is {mask.shape}: they must be equal")
    real = mask > 0
    losses = jnp.where(real, losses, 0)  # 0 * nan is nan: a padded row must not poison the loss
    counted, tail = mask * losses, tuple(range(1, losses.ndim))
    rows = jnp.sum(counted, tail) / jnp.maximum(jnp.sum(mask, tail), 1) if tail else losses
    if "weight" in batch:
        weight = batch["weight"].reshape((-1,) + (1,) * (losses.ndim - 1))
        counted = jnp.where(real, counted * weight, 0)
    return jnp.sum(counted), jnp.sum(mask), rows
