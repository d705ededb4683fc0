"""Where arrays lie on a mesh, and how programs over it are compiled. Floor 4."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from umbrella import distributed
from umbrella.data import Share
from umbrella.objective import PyTree
from umbrella.parallel import HOST, ROWS, SMALL, TENSOR, Compiler, Cuts, Rules, cut, paths_of
from umbrella.train_state import TrainState

_PINNED = (nn.Dense, nn.Embed, nn.LayerNorm)  # whose inputs and outputs have their rows in front


class Placement:
    """Where the state, the resident data, slots and evaluation batches lie. On one device it is `device_put` alone.

    Slots, evaluation batches and the state's scope "carry" are cut by rows. Parameters, their averages and what the
    optimiser keeps of them are cut by `rules` and along "fsdp"; seeds are dealt out along "seed". All else is whole on
    every device.

    Args:
      on: a mesh of `mesh`.
      lanes: as in `umbrella.step.program`. State and carry have an axis of lanes unless None, a slot only under "own".
      rules: see `cut`.
      compiler: programs are compiled by this one; but for jit over rows alone.
      offload: large arrays of what the optimiser keeps lie in memory of the host, from where each step takes them and
        whereto it gives them back.
    """

    def __init__(
        self,
        on: Mesh,
        *,
        lanes: Literal["own", "shared"] | None = None,
        rules: Rules = TENSOR,
        compiler: Compiler = "jit",
        offload: bool = False,
    ):
        self.mesh = on
        self.offload = offload
        self._lanes = lanes is not None
        self.alone = on.size == 1 and compiler == "jit" and not offload
        self.compiler = compiler
        self.apart = on.shape["seed"] > 1  # lanes lie on devices of their own
        self.cutting = on.shape["fsdp"] * on.shape["model"] > 1  # a device has parts of arrays
        self.rules = rules
        dealt = "seed" if self.apart else None
        self._lead: Cuts = (dealt,) if lanes else ()
        own: Cuts = (dealt,) if lanes == "own" else ()
        self._slot, self._slots, self._carry, self._rows, self._state, self._all = (
            NamedSharding(on, PartitionSpec(*spec))
            for spec in ((*own, ROWS), (*own, None, ROWS), (*self._lead, ROWS), (ROWS,), self._lead, ())
        )
        self._device = on.devices.flat[0]

    def state_shardings(self, ts: TrainState) -> Any:
        """A tree like ts of shardings."""

        params = paths_of(ts.params)

        def of(keys: Any, leaf: Any) -> NamedSharding:
            parts = jax.tree_util.keystr(keys, simple=True, separator="/").split("/")
            # What is kept of a parameter has its path at the end of its own: rules are about that.
            ends = ("/".join(parts[i:]) for i in range(len(parts)))
            path = next((end for end in ends if end in params), "/".join(parts))
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return self._state
            where = self._state
            if self.cutting and any(cuts := cut(path, leaf.shape[len(self._lead) :], self.rules, self.mesh.shape)):
                where = NamedSharding(self.mesh, PartitionSpec(*self._lead, *cuts))
            return where.with_memory_kind(HOST) if self._is_off(parts[0], leaf.size) else where

        tree = jax.tree_util.tree_map_with_path(of, ts)
        carry = {k: jax.tree.map(lambda _: self._carry, v) for k, v in ts.state.items() if k == "carry"}
        return tree.replace(state={**tree.state, **carry})

    def _is_off(self, part: str, size: int) -> bool:
        return self.offload and part == "opt_state" and size >= SMALL

    @property
    def pinning(self) -> bool:
        """Whether rows of layers' inputs and outputs are told to stay where they are: parameters that lie in parts are
        to come to the rows. Left to itself the compiler may send activations instead, of all rows, to where the parts
        are, and the more rows there are the more that is. Where seeds lie side by side it is left to itself."""
        return self.mesh.shape["fsdp"] > 1 and self.compiler == "jit" and not self._lanes

    def near(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a state and more as it is compiled: what lies in the host's memory goes to the devices first,
        and rows stay where they are."""
        if not self.offload and not self.pinning:
            return fn

        def call(ts: TrainState, *more: Any) -> Any:
            if self.offload:
                ts = ts.replace(opt_state=jax.device_put(ts.opt_state, jax.memory.Space.Device))
            with nn.intercept_methods(self._pinned) if self.pinning else contextlib.nullcontext():
                return fn(ts, *more)

        return call

    def _pinned(self, layer: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """A call of a layer whose inputs and outputs have their rows along "data" and "fsdp"."""
        if context.method_name != "__call__" or not isinstance(context.module, _PINNED):
            return layer(*args, **kwargs)
        n = math.prod(self.mesh.shape[axis] for axis in ROWS)

        def pin(x: Any) -> Any:
            if not isinstance(x, jax.Array) or x.ndim < 2 or x.shape[0] % n:
                return x
            spec = PartitionSpec(ROWS, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

        return jax.tree.map(pin, layer(*jax.tree.map(pin, args), **kwargs))

    def state(self, ts: TrainState) -> TrainState:
        return ts if self.alone else jax.device_put(ts, self.state_shardings(ts))

    def replicated(self, tree: PyTree) -> PyTree:
        return _put(tree, self._device if self.alone else self._all)

    def sums(self, tree: PyTree) -> PyTree:
        """Sums of metrics, one for each lane or for all of a run."""
        return _put(tree, self._device if self.alone else self._state)

    def share(self, rows: int) -> Share:
        """Which of the rows of a batch lie on devices of this process: from the first of them to the last."""
        here = self._rows.addressable_devices_indices_map((rows,)).values()
        found = [index[0].indices(rows) for index in here if index is not None]
        return Share(min(start for start, _, _ in found), max(stop for _, stop, _ in found), rows)

    def slot(self, slot: PyTree, share: Share | None = None, *, steps: int = 1) -> PyTree:
        """A slot there, of which this process has all rows, or those of `share` alone. Of several steps it has an axis
        of them, after that of the lanes."""
        if self.compiler == "pmap":  # it takes a device's rows by an axis of devices
            by_device = jax.tree.map(lambda x: x.reshape(self.mesh.size, -1, *x.shape[1:]), slot)
            return jax.device_put(by_device, NamedSharding(self.mesh, PartitionSpec("data")))
        where = self._slot if steps == 1 else self._slots
        return _put(slot, self._device if self.alone else where, share, len(where.spec) - 1)

    def rows(self, batch: PyTree, share: Share | None = None) -> PyTree:
        """A batch of rows, which the devices must divide: the `put=` of `umbrella.evaluation.evaluate`. `share` as in
        `slot`."""
        return _put(batch, self._device if self.alone else self._rows, share)

    def jit(self, ts: TrainState, *, sums: bool = False, steps: int = 1) -> Callable[..., Any]:
        """The `jit=` of `umbrella.step.train_step` for a state like ts; of `umbrella.loop.compile_step` with sums.

        Only jit makes calls of several steps.
        """
        if self.alone:
            return jax.jit
        if self.compiler == "shard_map":
            ins = (*(PartitionSpec(),) * (4 if sums else 3), PartitionSpec("data"))
            specs: dict[str, Any] = {"in_specs": ins, "out_specs": PartitionSpec()}
            # The check of what varies cannot see that every device adds up the same. And the algebraic simplifier makes
            # products with reciprocals of some quotients, a softmax's say, for one device and not for several.
            how: dict[str, Any] = {"compiler_options": {"xla_disable_hlo_passes": "algsimp"}}
            return lambda fn, **kw: jax.jit(jax.shard_map(fn, mesh=self.mesh, check_vma=False, **specs), **how, **kw)
        if self.compiler == "pmap":
            whole = (None,) * (4 if sums else 3)
            return lambda fn, donate_argnums=(): jax.pmap(
                fn, axis_name="data", in_axes=(*whole, 0), out_axes=None, donate_argnums=donate_argnums
            )
        state = self.state_shardings(ts)
        carried = (state, self._state) if sums else (state,)
        slot = self._slot if steps == 1 else self._slots
        return lambda fn, **kw: jax.jit(
            self.near(fn), in_shardings=(*carried, self._all, self._all, slot), out_shardings=(state, self._state), **kw
        )

    def create(self, make: Callable[[PyTree], TrainState], resident: PyTree) -> TrainState:
        """make(resident), compiled, each device making its part."""
        if self.alone:
            return jax.jit(make)(resident)
        return jax.jit(make, out_shardings=self.state_shardings(jax.eval_shape(make, resident)))(resident)

    def template(self, ts: TrainState) -> TrainState:
        """The shapes of a state like ts, with where they lie, for `umbrella.checkpoint.Checkpoints.restore`."""
        if self.alone:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), ts)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), ts, self.state_shardings(ts)
        )

    def bytes_of(self, ts: TrainState) -> int:
        """What the state takes of the memory of one device."""
        shapes = jax.eval_shape(lambda t: jax.tree.map(_data, t), ts)
        if self.alone:
            return sum(int(x.size) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
        where = jax.tree.leaves(self.state_shardings(ts), is_leaf=lambda x: isinstance(x, NamedSharding))
        return sum(
            math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
            if x.ndim and s.spec
            else int(np.prod(x.shape)) * x.dtype.itemsize
            for x, s in zip(jax.tree.leaves(shapes), where, strict=True)
            if s.memory_kind != HOST
        )


def _put(tree: PyTree, where: Any, share: Share | None = None, axis: int = 0) -> PyTree:
    """The arrays of the host there. Where several processes share the devices, each puts what its own are to hold; it
    may have only the rows of `share`, along `axis`."""
    if not distributed.several():
        return jax.device_put(tree, where)

    def of(x: Any) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, where)
        x, shape = np.asarray(x), list(np.shape(x))
        if share is not None:
            shape[axis] = share.of

        def part(index: Any) -> np.ndarray:
            if share is not None:
                start, stop, _ = index[axis].indices(shape[axis])
                index = (*index[:axis], slice(start - share.start, stop - share.start), *index[axis + 1 :])
            return x[index]

        return jax.make_array_from_callback(tuple(shape), where, part)

    with jax.transfer_guard_host_to_device("allow"):  # it is on purpose, and make_array_from_callback does not say so
        return jax.tree.map(of, tree)


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
