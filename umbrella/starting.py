"""What a run starts from: seeds, or the parameters of another run. Floor 4."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from umbrella.checkpoint import Mismatch, NothingVerified, read_meta, restore_params, saved_paths
from umbrella.experiment import Experiment, RunSettings
from umbrella.objective import View
from umbrella.settings import SettingsError, near
from umbrella.train_state import TrainState, create


def seeds_of(run: RunSettings) -> tuple[int, ...]:
    """One for each training that runs side by side."""
    return tuple(run.seed + k for k in range(run.seeds))


def scratch(ex: Experiment, resident: Any) -> TrainState:
    """The state before any step; where there are several seeds, of all, with an axis of seeds in front."""
    seeds = seeds_of(ex.run)

    def one(key: jax.Array, slot: Any) -> TrainState:
        return create(ex.init, ex.step, key, ex.train_data.fetch(resident, slot), ex.frozen)

    slot = ex.train_data.slot(seeds[0], 0)
    if len(seeds) == 1:
        return one(jax.random.key(seeds[0]), slot)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    if ex.run.order == "shared":
        return jax.vmap(one, (0, None))(keys, slot)
    # What is measured at initialisation, a whitening say, is measured on the batch that the run alone would see.
    slots = [slot, *(ex.train_data.slot(seed, 0) for seed in seeds[1:])]
    return jax.vmap(one)(keys, jax.tree.map(lambda *rows: np.stack(rows), *slots))


def graft(ex: Experiment, ts: TrainState, other: Path, say: Callable[[str], None]) -> TrainState:
    """ts with the parameters and the model's state of the run in the folder `other`; what config.fresh names, and what
    that run has not, stays as it is.

    Raises:
      SettingsError: its arrays are others, none of its checkpoints can be read, or its words are others.
    """
    try:
        saved = saved_paths(other / "checkpoints")
        scopes = [f"{part}/{k}" for part in ("params", "state") for k in getattr(ts, part)]
        added = [s for s in scopes if not any(path.startswith(s + "/") for path in saved)]  # by LoRA, say
        fresh = [*added, *fresh_paths(ex.run.fresh, ts)]
        found, _ = restore_params(other / "checkpoints", View(ts.params, ts.state), fresh=fresh)
        _check_words(ex, other)
        if added:
            say(f"Not in {other}, so made anew: {', '.join(added)}.")
    except Mismatch as error:
        hint = "is it a run of this model? What is not to be taken over config.fresh names: --config.fresh=model/head"
        raise SettingsError(f"--init_from={other}: {brief(error)}; {hint}") from None
    except NothingVerified as error:
        raise SettingsError(f"--init_from={other}: {error}") from None
    ts = ts.replace(params=found.params, state=found.state)
    if ts.ema is not None:
        ema = View({k: ts.params[k] for k in ts.ema.params}, {k: ts.state[k] for k in ts.ema.state})
        ts = ts.replace(ema=ema)
    return jax.tree.map(jax.numpy.copy, ts)


def brief(error: Mismatch) -> str:
    """The first differences, in one line."""
    first, *lines = (line.strip() for line in str(error).splitlines())
    return f"{first} {'; '.join(lines[:3])}" + "; and others" * (len(lines) > 3)


def fresh_paths(fresh: tuple[str, ...], ts: TrainState) -> list[str]:
    """config.fresh as paths of params and state.

    Raises:
      SettingsError: one of them names nothing.
    """
    out = []
    leaves = jax.tree_util.tree_leaves_with_path({"params": ts.params, "state": ts.state})
    paths = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in leaves]
    for prefix in fresh:
        named = [f"{part}/{prefix}" for part in ("params", "state")]
        named = [p for p in named if any(f"{path}/".startswith(f"{p}/") for path in paths)]
        if not named:
            inside = {path.partition("/")[2].rpartition("/")[0] for path in paths}
            raise SettingsError(f"config.fresh: there is no {prefix!r}{near(prefix, sorted(inside))}")
        out += named
    return out


def check_kept(now: Mapping[str, Any], kept: Mapping[str, Any], workdir: Path) -> None:
    """That what a checkpoint keeps beside arrays is what is used now: numbers mean no words without it.

    Raises:
      SettingsError: it is not.
    """
    now = json.loads(json.dumps(now))
    if lost := sorted(k for k in {*now, *kept} if now.get(k) != kept.get(k)):
        raise SettingsError(
            f"--workdir={workdir}: its checkpoint was made with another {lost[0]}, so the data have changed; "
            "use another workdir"
        )


def _check_words(ex: Experiment, other: Path) -> None:
    """That embeddings that are taken over are of the same words."""
    kept = (read_meta(other / "checkpoints") or {}).get("kept", {})
    now = json.loads(json.dumps(ex.kept))
    if any("embedding" in path for path in ex.run.fresh):
        return
    if lost := sorted(k for k in {*now} & {*kept} if now[k] != kept[k]):
        raise SettingsError(
            f"--init_from={other}: its {lost[0]} is another, so its embeddings are of other words; take it over by "
            "config.tokenizer, or leave config.fresh=model/embedding and the head out of what is taken"
        )
