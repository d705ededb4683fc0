"""Steps: what turns one TrainState and one batch into the next TrainState. Floor 3.

A Step is a pair (init, apply): init adds the slots that it will use to the state, apply runs it. Steps compose:
`alternate`, `repeat`, `then`, `guard`. `program` makes the function that is compiled; it alone touches `step` and
`key`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from umbrella.choices import one_of
from umbrella.gradients import GradFn, interleaved
from umbrella.metrics import Mean, merge
from umbrella.objective import Array, Batch, Ctx, Params, PyTree, View
from umbrella.train_state import TrainState

tmap = jax.tree.map
Metrics = dict[str, Any]
Policy = Literal["skip", "halt"]
Lanes = Literal["own", "shared"]
Side = Literal["vmap", "unroll"]
WATCHED = ("objective", "grad_norm")  # what update reports and guard reads
RESERVED = (
    "ema",
    "guard",
    "loss_scale",
)  # slots (that of an average is called "ema" whatever the average) of opt_state that no update may have


class Step(NamedTuple):
    init: Callable[[TrainState], TrainState]  # adds its slots; a clash is an error
    apply: Callable[[TrainState, Batch, Ctx], tuple[TrainState, Metrics]]  # never touches step or key


class After(NamedTuple):
    init: Callable[[TrainState], TrainState]
    apply: Callable[[TrainState, TrainState, Ctx], TrainState]  # (old, new, ctx)


# ------------------------------------------------------------------------------------------------------ making updates
def update(
    grad_fn: GradFn, tx: optax.GradientTransformation, *, wrt: tuple[str, ...] = (), name: str | None = None
) -> Step:
    """One optax update of the scopes in `wrt` (of all when empty).

    Its optimiser state lives in ts.opt_state[slot], slot = name or "+".join(wrt) or "all". Reports "objective" (the
    loss that was differentiated) and "grad_norm" (global, before the optimiser); prefixes its metrics with its name
    when it has one, as every player of a game should.

    Raises:
      ValueError: the slot is that of `ema`, `guard` or `loss_scaled`; at init: it is taken, or `wrt` names a scope that
        is not there.
    """
    slot = name or "+".join(wrt) or "all"
    if slot in RESERVED:
        raise ValueError(f"an update called {slot!r}: that slot of opt_state is {slot}'s own; give it another name")
    prefix = f"{name}/" if name else ""

    def free_of(params: Params) -> Params:
        return {k: v for k, v in params.items() if not wrt or k in wrt}

    def init(ts: TrainState) -> TrainState:
        if slot in ts.opt_state:
            raise ValueError(f"two updates share the slot {slot!r}: give one of them a name")
        if missing := sorted(set(wrt) - set(ts.params)):
            raise ValueError(f"wrt names {missing}, the parameters have the scopes {sorted(ts.params)}")
        return ts.replace(opt_state={**ts.opt_state, slot: tx.init(free_of(ts.params))})

    def apply(ts: TrainState, batch: Batch, ctx: Ctx) -> tuple[TrainState, Metrics]:
        free = free_of(ts.params)
        fixed = {k: v for k, v in ts.params.items() if k not in free}
        g, loss, aux = grad_fn(free, fixed, ts.state, batch, ctx.replace(ema=ts.ema))
        # The barrier: left to itself XLA's CPU backend computes the bias gradients again inside the norm's reduction,
        # which costs a step of an MLP or VAE 6 %.
        norm = optax.tree.norm(jax.lax.optimization_barrier(g))
        with jax.numpy_dtype_promotion("standard"), jax.named_scope("optimizer"):  # optax computes decay ** count
            updates, opt = tx.update(g, ts.opt_state[slot], free)
            free = optax.apply_updates(free, updates)
        one = jnp.ones((), norm.dtype)
        told = {**aux.metrics, "objective": Mean(loss * aux.count, aux.count), "grad_norm": Mean(norm, one)}
        new = ts.replace(
            params={**ts.params, **free},
            state={**ts.state, **aux.state},
            opt_state={**ts.opt_state, slot: opt},
        )
        return new, {prefix + k: v for k, v in told.items()}

    return Step(init, apply)


def alternate(*steps: Step, split: bool = False) -> Step:
    """The steps in order, each on the state that the last one left: GAN, DARTS.

    Args:
      split: each turn i of n gets its own slice of the batch, rows i, i + n, i + 2n, ..., instead of the whole. The
        same Step may appear many times, also inside of `repeat`; it owns one slot.

    Raises (while tracing):
      ValueError: two steps report a metric of one name; with split, the turns do not divide the batch, or there is a
        per-example scope "carry".
    """
    turns = len(steps)

    def init(ts: TrainState) -> TrainState:
        for make in dict.fromkeys(s.init for s in steps):  # repeat(step, k) has the step's own init
            ts = make(ts)
        return ts

    def apply(ts: TrainState, batch: Batch, ctx: Ctx) -> tuple[TrainState, Metrics]:
        if split:
            _refuse_carry(ts)
        told: Metrics = {}
        owner: dict[str, Callable[[TrainState], TrainState]] = {}
        for i, s in enumerate(steps):
            part = tmap(lambda x, i=i: _turns(x, turns)[i], dict(batch)) if split else batch
            ts, m = s.apply(ts, part, ctx.fork("turn", i))
            if clash := sorted(k for k in m if owner.setdefault(k, s.init) is not s.init):
                raise ValueError(f"two steps report {clash[0]!r}: give their updates names")
            told |= {k: merge(told[k], v) if k in told else v for k, v in m.items()}
        return ts, told

    return Step(init, apply)


def repeat(step: Step, k: int, *, split: bool = False) -> Step:
    """The step k times in one scan, a program of constant size: alternate(repeat(disc, 5), gen).

    Args:
      split: as in `alternate`.

    Raises:
      ValueError: k < 1; while tracing, with split: the turns do not divide the batch, or there is a per-example scope.
    """
    if k < 1:
        raise ValueError(f"repeat: {k} times is no step")

    def apply(ts: TrainState, batch: Batch, ctx: Ctx) -> tuple[TrainState, Metrics]:
        if split:
            _refuse_carry(ts)
        parts = tmap(lambda x: _turns(x, k), dict(batch)) if split else None

        def body(ts: TrainState, x: tuple[Array, Batch | None]) -> tuple[TrainState, Metrics]:
            i, part = x
            return step.apply(ts, batch if part is None else part, ctx.fork("repeat", i))

        ts, told = jax.lax.scan(body, ts, (jnp.arange(k), parts), length=k)
        return ts, tmap(lambda x: x.sum(0), told)

    return Step(step.init, apply)


def _turns(x: Array, n: int) -> Array:
    if x.shape[0] % n:
        raise ValueError(f"{n} turns do not divide a batch of {x.shape[0]}")
    return interleaved(x, n)


def _refuse_carry(ts: TrainState) -> None:
    if "carry" in ts.state:
        raise ValueError("split=True does not slice the per-example scope 'carry': give every turn the whole batch")


# ----------------------------------------------------------------------------------------------------- after the update
def then(step: Step, *after: After) -> Step:
    """The step, then each After in order: then(step, ema(0.999))."""

    def init(ts: TrainState) -> TrainState:
        ts = step.init(ts)
        for a in after:
            ts = a.init(ts)
        return ts

    def apply(ts: TrainState, batch: Batch, ctx: Ctx) -> tuple[TrainState, Metrics]:
        new, told = step.apply(ts, batch, ctx)
        for a in after:
            new = a.apply(ts, new, ctx)
        return new, told

    return Step(init, apply)


def ema(decay: float, *, only: tuple[str, ...] = ()) -> After:
    """Exponential moving averages of parameters and of float state (BatchNorm's statistics), debiased at every step.

    After t updates the average is sum_i decay^(t-i) x_i / sum_i decay^(t-i): the initial value has no weight at all.
    It is kept in that form by ema += (1 - decay) / (1 - decay^t) * (x - ema). Integers are copied; "carry" is never
    averaged.

    Args:
      decay: in [0, 1); 0 copies.
      only: the scopes to average; all when empty. Scopes that a later wrapper adds are not seen.

    Raises (at init):
      ValueError: there is an average already, its slot is taken, or `only` names a scope that does not exist.

    Source: Polyak and Juditsky 1992; the debiasing is Kingma and Ba 2015, section 3, applied to weights.
    """

    def seen(scopes: dict[str, PyTree]) -> dict[str, PyTree]:
        return {k: v for k, v in scopes.items() if k != "carry" and (not only or k in only)}

    log_decay = math.log(decay) if decay > 0 else -math.inf

    def init(ts: TrainState) -> TrainState:
        if ts.ema is not None:
            raise ValueError("the state already keeps an average: one ema is enough")
        if "ema" in ts.opt_state:
            raise ValueError("ema: the slot 'ema' of opt_state is taken")
        if missing := sorted(set(only) - set(ts.params) - set(ts.state)):
            raise ValueError(f"ema of {missing}: the parameters have the scopes {sorted(ts.params)}")
        count = {**ts.opt_state, "ema": {"count": jnp.int32(0)}}
        return ts.replace(opt_state=count, ema=tmap(jnp.copy, View(seen(ts.params), seen(ts.state))))

    def apply(old: TrainState, new: TrainState, ctx: Ctx) -> TrainState:
        assert old.ema is not None
        count = old.opt_state["ema"]["count"] + 1
        # 1 - decay^t by expm1: in f32 the difference itself would lose most of its digits while t is small.
        gain = jnp.where(count == 1, 1.0, (1 - decay) / -jnp.expm1(count.astype(jnp.float32) * log_decay))

        def average(a: Array, x: Array) -> Array:
            return a + gain.astype(x.dtype) * (x - a) if jnp.issubdtype(x.dtype, jnp.floating) else x

        now = View({k: new.params[k] for k in old.ema.params}, {k: new.state[k] for k in old.ema.state})
        with jax.named_scope("ema"):
            averaged = tmap(average, old.ema, now)
        return new.replace(opt_state={**new.opt_state, "ema": {"count": count}}, ema=averaged)

    return After(init, apply)


def swa(start: int, every: int) -> After:
    """The plain average of parameters and float state after the steps start, start + every, start + 2 every, ...

    Until the first of them the average is the last state itself. Integers are copied; "carry" is never averaged.

    Deviation from the paper: the statistics of BatchNorm are averaged as well, instead of being computed anew in a pass
    over the training data: every step then has a view that can be evaluated.

    Raises:
      ValueError: every < 1; at init: there is an average already, or its slot is taken.

    Source: Izmailov et al. 2018, algorithm 1.
    """
    if every < 1:
        raise ValueError(f"swa: every {every} steps is never")

    def init(ts: TrainState) -> TrainState:
        if ts.ema is not None or "ema" in ts.opt_state:
            raise ValueError("the state already keeps an average: one is enough")
        seen = View(ts.params, {k: v for k, v in ts.state.items() if k != "carry"})
        return ts.replace(opt_state={**ts.opt_state, "ema": {"count": jnp.int32(0)}}, ema=tmap(jnp.copy, seen))

    def apply(old: TrainState, new: TrainState, ctx: Ctx) -> TrainState:
        assert old.ema is not None
        done = ctx.step + 1  # of `new`
        due = (done >= start) & ((done - start) % every == 0)
        count = old.opt_state["ema"]["count"]
        share = 1 / (count + 1).astype(jnp.float32)
        gain = jnp.where(due, share, (count == 0).astype(jnp.float32))

        def average(a: Array, x: Array) -> Array:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            return jnp.where(gain == 1, x, a + gain.astype(x.dtype) * (x - a))

        now = View({k: new.params[k] for k in old.ema.params}, {k: new.state[k] for k in old.ema.state})
        with jax.named_scope("swa"):
            averaged = tmap(average, old.ema, now)
        return new.replace(opt_state={**new.opt_state, "ema": {"count": count + due.astype(jnp.int32)}}, ema=averaged)

    return After(init, apply)


def guard(step: Step, policy: Policy = "skip") -> Step:
    """Watches what `update` reports, on the device: "objective" and "grad_norm" must be finite. Outermost.

    skip: a bad update is undone, all or nothing, lane by lane: everything but the counter stays as it was, to the bit,
      and opt_state["guard"]["skipped"] counts it. It reads the whole state once more, a tenth of a small step's time on
      CPU. Its presence changes how XLA fuses: on finite data a run with it equals a run without it to rounding, not to
      the bit.
    halt: nothing is undone, which costs nothing; the first bad step of each lane is kept in
      opt_state["guard"]["bad_step"] (-1: none). The host, which reads late, then throws the state away: the one before
      the bad step can be made again from any earlier one.

    Both report "skipped", 1 for a bad step (under halt also for all steps after it), whose other metrics are left out.

    Raises:
      ValueError: no such policy; while tracing: the step reports nothing that could be watched.
    """
    one_of("guard: policy", policy, Policy)

    def init(ts: TrainState) -> TrainState:
        ts = step.init(ts)
        slot = {"skipped": jnp.int32(0)} if policy == "skip" else {"bad_step": jnp.int32(-1)}
        return ts.replace(opt_state={**ts.opt_state, "guard": slot})

    def apply(ts: TrainState, batch: Batch, ctx: Ctx) -> tuple[TrainState, Metrics]:
        new, told = step.apply(ts, batch, ctx)
        watched = [m.total for k, m in told.items() if k.split("/")[-1] in WATCHED]
        if not watched:
            raise ValueError(f"guard: the step reports none of {WATCHED}, so there is nothing to watch")
        was = ts.opt_state["guard"]
        with jax.named_scope("guard"):
            stop = ~jnp.all(jnp.isfinite(jnp.stack(watched)))
            if policy == "skip":
                new = unless(stop, ts, new)
                now = {"skipped": was["skipped"] + stop.astype(jnp.int32)}
            else:
                first = was["bad_step"]
                now = {"bad_step": jnp.where(first >= 0, first, jnp.where(stop, ctx.step, -1))}
                stop = now["bad_step"] >= 0
            told = tmap(lambda x: jnp.where(stop, jnp.zeros_like(x), x), told)
        new = new.replace(opt_state={**new.opt_state, "guard": now})
        return new, {**told, "skipped": Mean(stop.astype(jnp.float32), jnp.ones((), jnp.float32))}

    return Step(init, apply)


def unless(stop: Array, old: TrainState, new: TrainState) -> TrainState:
    """The old state, to the bit, where `stop` bool[] is true, else the new one."""

    def one(a: Array, b: Array) -> Array:
        return b if a is b or jnp.issubdtype(b.dtype, jax.dtypes.prng_key) else jnp.where(stop, a, b)

    return tmap(one, old, new)


# ---------------------------------------------------------------------------------------------------- the compiled step
def stream(resident: PyTree, slot: Batch) -> Batch:
    """A fetch for data read on the host: the slot is the batch."""
    return slot


def gather(resident: dict[str, Array], slot: Batch) -> Batch:
    """A fetch for data on the device: the rows slot["idx"] i32[B] of every column, and the slot's other entries."""
    rows = {k: v[slot["idx"]] for k, v in resident.items()}
    return {**rows, **{k: v for k, v in slot.items() if k != "idx"}}


Program = Callable[[TrainState, PyTree, PyTree, PyTree], tuple[TrainState, Metrics]]


def program(
    step: Step,
    *,
    fetch: Callable[[PyTree, Any], Batch] = stream,
    steps: int = 1,
    lanes: Lanes | None = None,
    side: Side = "vmap",
    apart: Mesh | None = None,
) -> Program:
    """(ts, frozen, resident, slot) -> (ts, metrics), not yet compiled: builds the context, fetches, steps, counts.

    Args:
      fetch: (resident, slot) -> batch, inside the program.
      steps: how many steps a call makes; the slot then has a leading axis of that size (after the lanes' axis), and the
        metrics are summed. Equal to as many calls to the bit.
      lanes: None for one run; K runs as one program when the state has a leading axis [K]: "own", every lane has its
        own slot, as its solo run would; "shared", all see the same (paired comparisons).
      side: how lanes share a device: "vmap", side by side, every operation on all of them at once; "unroll", one
        after the other, written out. The second is for what does not batch well: on CPU a convolution with a kernel for
        each lane becomes a grouped one, for which XLA has nothing fast there, and a loop over the lanes would be
        slower still, since XLA runs what is in a loop on one core. It takes as long to compile as there are lanes.
      apart: a mesh with the axis "seed", over which the lanes are dealt out: each of its devices has its own, and none
        speaks to another.

    Raises:
      ValueError: no such lanes or side.
    """
    if lanes is not None:
        one_of("program: lanes", lanes, Lanes)
        one_of("program: side", side, Side)

    def one(ts: TrainState, frozen: PyTree, resident: PyTree, slot: PyTree) -> tuple[TrainState, Metrics]:
        ctx = Ctx(jax.random.fold_in(ts.key, ts.step), ts.step, frozen)
        with jax.named_scope("fetch"):
            batch = fetch(resident, slot)
        new, told = step.apply(ts, batch, ctx)
        return new.replace(step=ts.step + 1), told

    def many(ts: TrainState, frozen: PyTree, resident: PyTree, slots: PyTree) -> tuple[TrainState, Metrics]:
        ts, told = jax.lax.scan(lambda t, s: one(t, frozen, resident, s), ts, slots, length=steps)
        return ts, tmap(lambda x: x.sum(0), told)

    run = one if steps == 1 else many
    if lanes is None:
        return run

    def in_turn(ts: TrainState, frozen: PyTree, resident: PyTree, slot: PyTree) -> tuple[TrainState, Metrics]:
        def lane(k: int) -> tuple[TrainState, Metrics]:
            own = tmap(lambda x: x[k], ts)
            return run(own, frozen, resident, tmap(lambda x: x[k], slot) if lanes == "own" else slot)

        return tmap(lambda *x: jnp.stack(x), *[lane(k) for k in range(ts.step.shape[0])])

    dealt = 0 if lanes == "own" else None
    all_lanes = jax.vmap(run, in_axes=(0, None, None, dealt)) if side == "vmap" else in_turn
    if apart is None:
        return all_lanes
    cut, whole = PartitionSpec("seed"), PartitionSpec()
    places = (cut, whole, whole, cut if lanes == "own" else whole)
    # The other axes stay the compiler's where there are more devices along them.
    manual = {"seed"} if apart.size > apart.shape["seed"] else set(apart.axis_names)
    # Without the check of what varies over the mesh: it would have every carry of every scan inside say so.
    return jax.shard_map(all_lanes, mesh=apart, in_specs=places, out_specs=cut, axis_names=manual, check_vma=False)


def train_step(step: Step, *, jit: Callable[..., Any] = jax.jit, **program_args: Any) -> Any:
    """The compiled program. It donates the state and nothing else."""
    return jit(program(step, **program_args), donate_argnums=0)
