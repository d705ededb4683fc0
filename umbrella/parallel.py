"""The mesh, and where arrays lie on it. Floor 4."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from umbrella.objective import PyTree
from umbrella.settings import SettingsError
from umbrella.train_state import TrainState


def mesh(devices: int | None = None) -> Mesh:
    """One axis, "data", over all devices, or the first few."""
    found = jax.devices() if devices is None else jax.devices()[:devices]
    return jax.make_mesh((len(found),), ("data",), devices=found, axis_types=(jax.sharding.AxisType.Auto,))


def lanes_apart(seeds: int, on: Mesh) -> bool:
    """Whether several seeds are dealt out to the devices, each whole on one, rather than every batch cut for all."""
    return seeds > 1 and on.size > 1 and seeds % on.size == 0


def check_divides(batch_size: int, on: Mesh) -> None:
    """Raises SettingsError when a batch cannot be cut evenly."""
    n = on.shape["data"]
    if batch_size % n:
        near = max(n, batch_size // n * n)
        raise SettingsError(
            f"config.batch_size: {batch_size} does not divide over {n} devices; try {near} or {near + n}"
        )


def rounded(rows: int, devices: int | None = None) -> int:
    """The smallest number of rows, at least `rows`, that the devices can share evenly; for batches that are padded.

    >>> rounded(500, 8), rounded(512, 8), rounded(3, 1)
    (504, 512, 3)
    """
    n = jax.device_count() if devices is None else devices
    return -(-rows // n) * n


class Placement:
    """Where the state, the resident data, slots and evaluation batches lie. On one device it is `device_put` alone.

    Everything is replicated but what is per example: slots, evaluation batches, and the state's scope "carry" are
    sharded over "data".

    Args:
      on: a mesh with the axis "data".
      lanes: as in `umbrella.step.program`. The carry has an axis of lanes unless None, a slot only under "own".
      steps: how many steps a slot is for; they are its axis after that of the lanes when there are several.
      apart: deals out lanes instead of rows: every device has some of the lanes and all of their rows, so that no
        device waits for another. Their number must be a multiple of that of the devices.
    """

    def __init__(
        self,
        on: Mesh,
        *,
        lanes: Literal["own", "shared"] | None = None,
        steps: int = 1,
        apart: bool = False,
    ):
        self.mesh = on
        self.alone = on.size == 1
        self.apart = apart and not self.alone
        lead = (None,) * (int(lanes == "own") + int(steps > 1))
        cut, whole = PartitionSpec("data"), PartitionSpec()
        slot, carry, rows, state = (
            PartitionSpec(*lead, "data"),
            PartitionSpec(*(None,) * bool(lanes), "data"),
            cut,
            whole,
        )
        if self.apart:
            slot, carry, rows, state = cut if lanes == "own" else whole, cut, whole, cut
        self._slot, self._carry, self._rows, self._state, self._all = (
            NamedSharding(on, spec) for spec in (slot, carry, rows, state, whole)
        )
        self._device = on.devices.flat[0]

    def state_shardings(self, ts: TrainState) -> Any:
        """A tree like ts of shardings."""
        tree = jax.tree.map(lambda _: self._state, ts)
        carry = {k: jax.tree.map(lambda _: self._carry, v) for k, v in ts.state.items() if k == "carry"}
        return tree.replace(state={**tree.state, **carry})

    def state(self, ts: TrainState) -> TrainState:
        return ts if self.alone else jax.device_put(ts, self.state_shardings(ts))

    def replicated(self, tree: PyTree) -> PyTree:
        return jax.device_put(tree, self._device if self.alone else self._all)

    def sums(self, tree: PyTree) -> PyTree:
        """Sums of metrics, one for each lane or for all of a run."""
        return jax.device_put(tree, self._device if self.alone else self._state)

    def slot(self, slot: PyTree) -> PyTree:
        return jax.device_put(slot, self._device if self.alone else self._slot)

    def rows(self, batch: PyTree) -> PyTree:
        """A batch of rows, which the devices must divide: the `put=` of `umbrella.evaluation.evaluate`."""
        return jax.device_put(batch, self._device if self.alone else self._rows)

    def jit(self, ts: TrainState, *, sums: bool = False) -> Callable[..., Any]:
        """The `jit=` of `umbrella.step.train_step` for a state like ts; of `umbrella.loop.compile_step` with sums."""
        if self.alone:
            return jax.jit
        state = self.state_shardings(ts)
        carried = (state, self._state) if sums else (state,)
        return lambda fn, **kw: jax.jit(
            fn, in_shardings=(*carried, self._all, self._all, self._slot), out_shardings=(state, self._state), **kw
        )
