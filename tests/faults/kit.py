"""What the faults are put into: a small state and its checkpoints, a small run, and ways to break them."""

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import umbrella as um
from tests.conftest import ROOT
from umbrella.checkpoint import Checkpoints
from umbrella.objective import Aux, Batch, Ctx, Objective, Params, State, Transform


# ---------------------------------------------------------------------------------------------------------- checkpoints
class View(NamedTuple):
    params: Any
    state: Any


class TrainState(struct.PyTreeNode):
    step: jax.Array
    key: jax.Array
    params: dict
    state: dict
    opt_state: dict
    ema: View | None = None


class Net(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(3)(x)


def make(step: int = 0, *, seed: int = 0, width: int = 8, tx: optax.GradientTransformation | None = None) -> TrainState:
    key = jax.random.key(seed)
    variables = Net(width).init(key, jnp.ones((4, 5)))
    params, state = {"model": variables["params"]}, {"model": {"batch_stats": variables["batch_stats"]}, "none": {}}
    params = jax.tree.map(lambda x: x + step, params)
    opt_state = {"all": (tx or optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))).init(params)}
    ts = TrainState(jnp.int32(step), key, params, state, opt_state, View(params, state))
    return jax.tree.map(jnp.copy, ts)


def bits(tree: Any) -> dict[str, tuple]:
    def one(x):
        data = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return str(x.dtype), x.shape, np.asarray(data).tobytes()

    return {jax.tree_util.keystr(path): one(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def same(a: Any, b: Any) -> bool:
    return (jax.tree.structure(a), bits(a)) == (jax.tree.structure(b), bits(b))


def struct_of(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


def restored(directory: Path, template: Any = None) -> int:
    """The step restored, after checking that every bit of it is right."""
    with Checkpoints(directory) as checkpoints:
        found = checkpoints.restore(struct_of(make()) if template is None else template)
    assert found is not None
    ts, meta = found
    assert same(ts, make(meta["position"]))
    return int(meta["position"])


def three_steps(directory: Path) -> Path:
    """Steps 1, 2 and 3."""
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2, 3):
            assert checkpoints.save(step, make(step), {"position": step, "config": {"lr": 0.1, "sizes": (1, 2)}})
    return directory


def flip(path: Path, rng: random.Random) -> None:
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, part: float) -> None:
    """A file to its first `part`."""
    os.truncate(path, int(part * path.stat().st_size))


def damage(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, a piece removed, doubled or put in, or all but the beginning lost."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(5)
        if kind <= 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.randint(1, 9)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 5))
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)


# ----------------------------------------------------------------------------------------------------------------- runs
def config(**more: Any) -> dict[str, Any]:
    """A small classifier of digits with dropout, BatchNorm, averages, mixup and label smoothing."""
    base = dict(
        pipeline="vision",
        data=dict(name="digits"),
        model=dict(name="mlp", hidden=(32,), dropout=0.2, norm="batch"),
        optimizer=dict(name="adam", learning_rate=3e-3),
        batch_size=64,
        train_for="40 steps",
        log_every="5 steps",
        eval_every="20 steps",
        checkpoint_every="10 steps",
        ema=0.9,
        techniques=("mixup", "label_smoothing"),
        mixup=dict(alpha=0.2),
        label_smoothing=dict(eps=0.1),
        evals=dict(test=()),
        baselines=False,
    )
    return {**base, **more}


def lines(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the seconds."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def summary(workdir: Path) -> dict[str, Any]:
    return dict(json.loads((workdir / "summary.json").read_text()))


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def poison(*, at: tuple[int, ...], rows: slice = slice(None), where: str = "x") -> Transform:
    """A technique that spoils some steps: NaN in some rows of the batch, or a gradient that is infinite."""

    def wrap(o: Objective) -> Objective:
        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[jax.Array, Aux]:
            bad = jnp.isin(ctx.step, jnp.asarray(at, jnp.int32))
            if where == "x":
                x = batch["x"].astype(jnp.float32)
                batch = {**batch, "x": x.at[rows].set(jnp.where(bad, jnp.nan, x[rows]))}
                return o.apply(params, state, batch, ctx)
            loss, aux = o.apply(params, state, batch, ctx)
            # sqrt(s) at s = 0 is 0, and its slope is infinite; at s = 1 the slope is 1/2, and the weight takes it to 0.
            zero = sum(jnp.sum(w - jax.lax.stop_gradient(w)) for w in jax.tree.leaves(params))
            return loss + jnp.where(bad, 1.0, 0.0) * jnp.sqrt(jnp.where(bad, 0.0, 1.0) + zero), aux

        return o._replace(apply=apply)

    return wrap


def during(monkeypatch: Any, hook: str, act: Callable[[int], None]) -> None:
    """Lets `act` see every step at which a run logs, evaluates or saves; hook "on_log", "on_evaluate" or "on_save"."""
    before = getattr(um.runs.Session, hook)

    def called(self: Any, step: int, what: Any) -> None:
        act(step)
        before(self, step, what)

    monkeypatch.setattr(um.runs.Session, hook, called)


def python(code: str, *args: str, env: Mapping[str, str] | None = None, timeout: float = 120) -> Any:
    """Runs `code` in a process of its own, on as many devices as the tests have."""
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class limited:
    """No file may grow beyond `size` bytes while it lasts: what a full disk looks like from inside."""

    def __init__(self, size: int):
        self.size, self.before = size, resource.getrlimit(resource.RLIMIT_FSIZE)

    def __enter__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *exc: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
