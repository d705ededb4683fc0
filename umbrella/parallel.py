"""The mesh, by which rules arrays are cut on it, and what a config may ask of it. Floor 4."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from umbrella import distributed
from umbrella.experiment import RunSettings
from umbrella.gradients import GradFn, grad_of, in_order, microbatch
from umbrella.objective import Objective, PyTree
from umbrella.settings import Count, Natural, Range, SettingsError
from umbrella.train_state import TrainState

AXES = ("seed", "data", "fsdp", "model")
ROWS = ("data", "fsdp")  # the axes that the rows of a batch are dealt out over
PARTS = 8  # slices of a batch that are added up one after the other under `config.reduction="fixed"`
_LOOP = "/blocks/block/"  # what `umbrella.models.Transformer(scan=True)` calls them
HOST = "pinned_host"  # what JAX calls memory of the host that devices read by themselves
SMALL = 2**12  # numbers of an array that "fsdp" leaves whole: to gather it takes longer than to keep it

Cuts = tuple[str | None, ...]  # an axis of the mesh, or None, for every axis of an array
Rules = tuple[tuple[str, Cuts], ...]  # (a regular expression that is found in a path, how arrays there are cut)
Rest = Annotated[int, Range(lambda v: v >= 1 or v == -1, "must be >= 1, or -1 for all devices that are left")]

# Tensor parallelism as in Shoeybi et al. 2019 (Megatron-LM), section 3: of two matrices in a row the first is cut by
# its outputs and the second by its inputs, so that what is between them never leaves a device.
TENSOR: Rules = (
    (r"/(attention|cross)/(query|key_value|query_key_value)/kernel$", (None, "model")),
    (r"/(attention|cross)/(query|key_value|query_key_value)/bias$", ("model",)),
    (r"/(attention|cross)/out/kernel$", ("model", None)),
    (r"/block(_\d+)?/in/kernel$", (None, "model")),
    (r"/block(_\d+)?/in/bias$", ("model",)),
    (r"/block(_\d+)?/out/kernel$", ("model", None)),
    (r"/embedding/embedding$", ("model", None)),
    (r"/hidden_\d+/kernel$", (None, "model")),
    (r"/hidden_\d+/bias$", ("model",)),
    (r"/head/kernel$", (None, "model")),
    (r"/(conv|stem)[^/]*/kernel$", (None, None, None, "model")),
)


class Shape(NamedTuple):
    """How many devices stand along each axis."""

    seed: int
    data: int
    fsdp: int
    model: int


def shape_of(
    devices: int, seeds: int, *, data: Rest = -1, fsdp: Count = 1, model: Count = 1, seed: Natural = 0
) -> Shape:
    """The shape of the mesh of `devices` devices.

    Args:
      devices: there are.
      seeds: trained side by side.
      data: rows of a batch are dealt out over so many devices, each of which has all parameters. -1: as many as the
        others leave.
      fsdp: the same, but each has a part of the parameters and of what the optimiser keeps of them, and gathers the
        rest when it is needed (Rajbhandari et al. 2020, ZeRO-3).
      model: every matrix is cut in so many, by rules over paths, and its product is computed in parts.
      seed: seeds are dealt out over so many, and none speaks to another. 0: over all that `data` would have, if they
        divide the seeds.

    Raises:
      SettingsError: they do not multiply to the number of devices, or `seed` does not divide the seeds.

    >>> shape_of(8, 1), shape_of(8, 8)
    (Shape(seed=1, data=8, fsdp=1, model=1), Shape(seed=8, data=1, fsdp=1, model=1))
    >>> shape_of(8, 1, fsdp=2, model=2)
    Shape(seed=1, data=2, fsdp=2, model=2)
    """
    left, over = divmod(devices, fsdp * model * max(seed, 1))
    if data == -1 and not over and left:
        if not seed:
            seed = left if seeds > 1 and seeds % left == 0 else 1
            left //= seed
        data = left
    made = Shape(max(seed, 1), data, fsdp, model)
    if math.prod(made) != devices:
        said = " x ".join(f"{n} {axis}" for axis, n in zip(AXES, made, strict=True) if n > 1)
        raise SettingsError(
            f"config.mesh: {said or 'one device'} is not the number of devices, {devices}; say others, or data=-1 for "
            "all that are left"
        )
    if seeds % made.seed:
        raise SettingsError(f"config.mesh.seed: {made.seed} devices cannot share {seeds} seeds; say a divisor of them")
    return made


def mesh(shape: Shape | int | None = None) -> Mesh:
    """The devices with the axes of `AXES`; all of them, or the first few, along "data" when only a number is given."""
    if not isinstance(shape, Shape):
        shape = Shape(1, jax.device_count() if shape is None else shape, 1, 1)
    found = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(tuple(shape), AXES, devices=found, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


Compiler = Literal["jit", "pmap", "shard_map"]


def check_offload(run: RunSettings) -> None:
    """Raises SettingsError where the optimiser's state cannot lie in the host's memory."""
    kinds = [m.kind for m in jax.local_devices()[0].addressable_memories()]
    if run.offload and HOST not in kinds:
        raise SettingsError(f"config.offload: devices here have no memory of the host at hand ({', '.join(kinds)})")
    if run.offload and compiler(run) != "jit":
        raise SettingsError("config.offload: is for compile='jit' and reduction='fast'; leave them out")


def compiler(run: RunSettings) -> Compiler:
    """What makes programs for a mesh: "jit" sees whole batches, the others one device's rows, over the axis "data".

    Raises:
      SettingsError: two are asked for.
    """
    if run.reduction == "fixed" and run.compile != "jit":
        raise SettingsError("config.reduction: 'fixed' is compiled in a way of its own; leave config.compile out")
    return "shard_map" if run.reduction == "fixed" else run.compile


def gradient(objective: Objective, run: RunSettings, microbatches: int = 1) -> GradFn:
    """The gradient function of a config."""
    if run.reduction == "fixed":
        return in_order(PARTS, "data")(grad_of(objective))
    return microbatch(microbatches)(grad_of(objective, over="data" if run.compile == "pmap" else None))


def check_game(run: RunSettings) -> None:
    """Raises SettingsError for what steps of several losses have no way to do."""
    if compiler(run) != "jit":
        how = "config.reduction: 'fixed'" if run.reduction == "fixed" else f"config.compile: {run.compile!r}"
        raise SettingsError(f"{how} does not play games; leave it out")


def check_mapped(ts: TrainState, on: Mesh, run: RunSettings, microbatches: int) -> None:
    """Raises SettingsError for what `config.compile="pmap"` or `config.reduction="fixed"` have no way to do."""
    if run.reduction == "fixed":
        _check_fixed(ts, on, run, microbatches)
        return
    if distributed.several():
        raise SettingsError("config.compile: 'pmap' is for the devices of one process; say compile='jit'")
    if run.batch_size % (on.size * microbatches):
        raise SettingsError(
            f"config.microbatches: {microbatches} slices do not divide the {run.batch_size} rows of a batch over "
            f"{on.size} devices; under compile='pmap' each device cuts its own"
        )
    if run.seeds > 1:
        raise SettingsError("config.compile: 'pmap' trains one seed; say compile='jit', which deals out several")
    if on.size != on.shape["data"]:
        raise SettingsError(
            "config.compile: 'pmap' deals out rows and nothing else, and config.mesh asks for more; say compile='jit'"
        )
    if "carry" in ts.state:
        raise SettingsError(
            "config.compile: 'pmap' does not deal out states that go on from batch to batch; say compile='jit'"
        )


def _check_fixed(ts: TrainState, on: Mesh, run: RunSettings, microbatches: int) -> None:
    said = "config.reduction: 'fixed'"
    if run.seeds > 1:
        raise SettingsError(f"{said} trains one seed; several are equal on any devices that each have whole seeds")
    if run.steps_per_call not in (None, 1):
        raise SettingsError(f"{said} makes calls of one step; leave config.steps_per_call out")
    if on.size != on.shape["data"] or PARTS % on.size:
        raise SettingsError(f"{said} adds up {PARTS} slices, dealt out over 'data' alone: 1, 2, 4 or 8 devices")
    if run.batch_size % PARTS:
        near = max(PARTS, run.batch_size // PARTS * PARTS)
        raise SettingsError(
            f"config.batch_size: {run.batch_size} does not divide into {PARTS} slices, which reduction='fixed' adds "
            f"up; try {near} or {near + PARTS}"
        )
    if microbatches > 1:
        raise SettingsError(f"{said} goes through a batch in {PARTS} slices already; leave config.microbatches out")
    if jax.tree.leaves(ts.state):
        raise SettingsError(
            f"{said} has no place for the state {', '.join(sorted(ts.state))}: statistics of BatchNorm would be those "
            "of a slice; choose another norm, or a model that reads every batch anew"
        )


def check_divides(batch_size: int, on: Mesh) -> None:
    """Raises SettingsError when a batch cannot be cut evenly."""
    n = math.prod(on.shape[axis] for axis in ROWS)
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


# ---------------------------------------------------------------------------------------------------------------- rules
def rules_of(given: Rules, paths: Mapping[str, tuple[int, ...]]) -> Rules:
    """The user's rules, before those of `TENSOR`.

    Args:
      paths: of all parameters -> their shapes.

    Raises:
      SettingsError: no regular expression, one that no parameter's path has, another number of axes than the arrays
        have, an axis that is not the mesh's, or one twice.
    """
    for pattern, cuts in given:
        try:
            found = [p for p in paths if re.search(pattern, p)]
        except re.error as error:
            raise SettingsError(f"config.shard: {pattern!r} is no regular expression: {error}") from None
        if not found:
            some = ", ".join(sorted(paths)[:3])
            raise SettingsError(f"config.shard: {pattern!r} is found in no path of a parameter, such as {some}")
        axes = {p: len(_each(p, paths[p])) for p in found}
        if odd := [p for p in found if axes[p] != len(cuts)]:
            raise SettingsError(f"config.shard: {pattern!r} names {len(cuts)} axes, and {odd[0]} has {axes[odd[0]]}")
        if wrong := [c for c in cuts if c not in (None, "fsdp", "model")]:
            raise SettingsError(f"config.shard: {pattern!r}: no axis {wrong[0]!r} (one of: None, 'fsdp', 'model')")
        if any(cuts.count(c) > 1 for c in ("fsdp", "model")):
            raise SettingsError(f"config.shard: {pattern!r} names an axis of the mesh twice: {cuts}")
    return (*given, *TENSOR)


def cut(path: str, shape: tuple[int, ...], rules: Rules, on: Mapping[str, int]) -> Cuts:
    """How an array is cut: by the first rule whose expression is in its path and whose axes are as many; and along
    "fsdp" by its longest axis that is still whole. An axis that a number of devices does not divide stays whole, and so
    does that of layers, of blocks that are one loop, which rules do not name.

    >>> cut("model/hidden_0/kernel", (64, 128), TENSOR, {"fsdp": 2, "model": 4})
    ('fsdp', 'model')
    """
    if (each := _each(path, shape)) != shape:
        return (None, *cut(path.replace(_LOOP, "/block/"), each, rules, on))
    named = next((c for pattern, c in rules if len(c) == len(shape) and re.search(pattern, path)), (None,) * len(shape))
    fits = [a if a and on[a] > 1 and n % on[a] == 0 else None for a, n in zip(named, shape, strict=True)]
    if on["fsdp"] > 1 and "fsdp" not in fits and math.prod(shape) >= SMALL:
        free = [i for i, n in enumerate(shape) if fits[i] is None and n % on["fsdp"] == 0]
        if free:
            fits[max(free, key=lambda i: shape[i])] = "fsdp"
    return tuple(fits)


def _each(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that rules are about: without that of layers, which a loop goes along."""
    return shape[1:] if _LOOP in path else shape


def paths_of(tree: PyTree) -> dict[str, Any]:
    """ "model/hidden_0/kernel" -> leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}
