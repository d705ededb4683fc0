"""Networks of convolutions: our loop against PyTorch's, and several seeds in one program against one after another."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rivals
from benchmarks.loops import common, umbrella_loop

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def noise_config(folder: str, shape: str, **more: Any) -> dict[str, Any]:
    """A classifier of noise of a set's size: the time is that of the set, and nothing needs to be there."""
    path, rng = Path(folder) / "noise.npz", np.random.default_rng(0)
    np.savez(path, x=rng.integers(0, 256, (10_000, *SHAPES[shape]), np.uint8), y=np.arange(10_000) % 10)
    return common(
        "noise",
        pipeline="vision",
        data={"name": "noise", "path": str(path)},
        optimizer={"name": "sgd", "learning_rate": 0.01, "momentum": 0.9},
        log_every="100 steps",
        checkpoint_every="5000 steps",
        ema=0.0,
        **more,
    )


def lenet(stack: contextlib.ExitStack) -> dict[str, rivals.Segment | None]:
    """LeNet-5 on images of 28 x 28, batch 64."""
    return _against_torch(stack, "mnist", {"name": "lenet"}, 64)


def resnet20(stack: contextlib.ExitStack) -> dict[str, rivals.Segment | None]:
    """ResNet-20 on images of 32 x 32 x 3, batch 128."""
    return _against_torch(stack, "cifar10", {"name": "resnet", "depth": 20}, 128)


def _against_torch(
    stack: contextlib.ExitStack, shape: str, model: dict[str, Any], batch: int
) -> dict[str, rivals.Segment | None]:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    ours, session = umbrella_loop(noise_config(folder, shape, model=model, batch_size=batch), stack)
    arrays = {k: np.asarray(session.experiment.train_data.resident[k]) for k in ("x", "y")}
    return {"umbrella": ours, "PyTorch": rivals.torch_images(arrays, batch, model["name"])}


def seeds(stack: contextlib.ExitStack) -> dict[str, rivals.Segment | None]:
    """Five LeNets, batch 64."""
    return _seeds(stack, "mnist", {"name": "lenet"}, 64)


def seeds_mlp(stack: contextlib.ExitStack) -> dict[str, rivals.Segment | None]:
    """Five perceptrons 784-128-10, batch 64."""
    return _seeds(stack, "mnist", {"name": "mlp", "hidden": (128,)}, 64)


def _seeds(
    stack: contextlib.ExitStack, shape: str, model: dict[str, Any], batch: int, many: int = 5
) -> dict[str, rivals.Segment | None]:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    config = noise_config(folder, shape, model=model, batch_size=batch)
    together, _ = umbrella_loop({**config, "seeds": many}, stack)
    one, _ = umbrella_loop(config, stack)

    def in_turn(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(many):
            one(steps)
        return (time.perf_counter() - began) / steps

    return {"umbrella": together, "one after another": in_turn}
