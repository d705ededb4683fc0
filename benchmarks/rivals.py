"""The same training by other means: a hand-written JAX loop, plain PyTorch, Lightning. Each returns seconds per step.

Every rival sees the same arrays in the same shuffled order and makes the same Adam updates of the same network. The
hand-written loop does nothing else: no averages, no metrics but the loss, no log, no checkpoint.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from umbrella import losses

Segment = Callable[[int], float]  # steps -> seconds per step


def indices(n: int, batch: int) -> Iterator[np.ndarray]:
    """Shuffled epochs without the partial batch, forever. i32[batch]."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(n).astype(np.int32)
        for i in range(0, n - batch + 1, batch):
            yield order[i : i + batch]


def hand_written(net: nn.Module, loss_of: "ClassifierLoss", arrays: dict[str, np.ndarray], batch: int) -> Segment:
    """What a person would write: parameters and Adam's state in a jitted, donated step; the data on the device."""
    data = jax.device_put(arrays)
    tx = optax.adam(1e-3)
    params = net.init(
        {"params": jax.random.key(0), "latent": jax.random.key(1)}, loss_of.input(data["x"][:batch]), train=False
    )["params"]
    opt = tx.init(params)

    def step(params: Any, opt: Any, key: Any, idx: Any) -> Any:
        rows = {k: v[idx] for k, v in data.items()}
        loss, grads = jax.value_and_grad(lambda p: loss_of(net, p, rows, key))(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, jax.random.split(key, 1)[0], loss

    run = jax.jit(step, donate_argnums=(0, 1, 2))
    order = indices(len(arrays["x"]), batch)
    held = [params, opt, jax.random.key(2)]

    def segment(steps: int) -> float:
        began = time.perf_counter()
        loss = None
        for _ in range(steps):
            *held[:], loss = run(*held, next(order))
        jax.block_until_ready(loss)
        return (time.perf_counter() - began) / steps

    return segment


class ClassifierLoss:
    """Cross-entropy of u8 images scaled to [0, 1]."""

    def __init__(self, scale: float):
        self.scale = scale

    def input(self, x: Any) -> Any:
        return x.astype(jnp.float32) * (1 / self.scale)

    def __call__(self, net: Any, params: Any, rows: dict[str, Any], key: Any) -> Any:
        logits = net.apply({"params": params}, self.input(rows["x"]), train=True)
        return losses.cross_entropy(logits, rows["y"]).mean()


class VaeLoss(ClassifierLoss):
    """The negative ELBO of dynamically binarised images."""

    def __call__(self, net: Any, params: Any, rows: dict[str, Any], key: Any) -> Any:
        key_x, key_z = jax.random.split(key)
        x = jax.random.bernoulli(key_x, self.input(rows["x"])).astype(jnp.float32)
        out = net.apply({"params": params}, x, train=True, rngs={"latent": key_z})
        return losses.negative_elbo(out, x).mean()


# The sizes that the benchmark's nets have, said once more in PyTorch.
def torch_mlp(arrays: dict[str, np.ndarray], batch: int, scale: float) -> Segment | None:
    """64-128-10 with Adam in plain PyTorch, one thread (two are slower on so small a net); None when it is missing."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    x = torch.from_numpy(arrays["x"].reshape(len(arrays["x"]), -1).astype(np.float32) / scale)
    y = torch.from_numpy(arrays["y"].astype(np.int64))
    net = _torch_net(torch)
    return _torch_segment(torch, net, torch.optim.Adam(net.parameters(), 1e-3), lambda idx: x[idx], y, batch)


def _torch_segment(torch: Any, net: Any, optimiser: Any, rows: Callable[[Any], Any], y: Any, batch: int) -> Segment:
    """Steps of cross-entropy, of rows(indices) and their labels, in a shuffled order."""
    order = indices(len(y), batch)

    def segment(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            idx = torch.from_numpy(next(order)).long()
            loss = torch.nn.functional.cross_entropy(net(rows(idx)), y[idx])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        loss.item()
        return (time.perf_counter() - began) / steps

    return segment


def lightning_mlp(arrays: dict[str, np.ndarray], batch: int, scale: float) -> Segment | None:
    """The same under Lightning's Trainer with its bells off; None when it is missing."""
    try:
        import lightning
        import torch
    except ImportError:
        return None
    import logging
    import warnings

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    x = torch.from_numpy(arrays["x"].reshape(len(arrays["x"]), -1).astype(np.float32) / scale)
    y = torch.from_numpy(arrays["y"].astype(np.int64))

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = _torch_net(torch)

        def training_step(self, batch: Any, _: int) -> Any:
            loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=batch, shuffle=True, drop_last=True
    )
    module = Module()

    def segment(steps: int) -> float:
        trainer = lightning.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        began = time.perf_counter()
        trainer.fit(module, loader)
        return (time.perf_counter() - began) / steps

    return segment


def _torch_net(torch: Any) -> Any:
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))


def torch_images(arrays: dict[str, np.ndarray], batch: int, name: str) -> Segment | None:
    """The same network in plain PyTorch, channels last, on as many threads as there are cores; None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count() or 1)
    net = (torch_lenet if name == "lenet" else _torch_resnet20)(torch).to(memory_format=torch.channels_last)
    x = torch.from_numpy(np.ascontiguousarray(arrays["x"].transpose(0, 3, 1, 2)))  # bytes, as ours
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(arrays["y"].astype(np.int64))

    def rows(idx: Any) -> Any:
        return x[idx].float().mul_(1 / 255).contiguous(memory_format=torch.channels_last)

    return _torch_segment(torch, net, torch.optim.SGD(net.parameters(), 0.01, momentum=0.9), rows, y, batch)


def torch_lenet(torch: Any) -> Any:
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip


def _torch_resnet20(torch: Any) -> Any:
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self, before: int, width: int):
            super().__init__()
            self.stride, self.more = (1 if before == width else 2), width - before
            self.body = nn.Sequential(
                nn.Conv2d(before, width, 3, self.stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
            )  # fmt: skip

        def forward(self, x: Any) -> Any:
            y = self.body(x)
            if self.more:
                x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
            return torch.relu(x + y)

    widths = [16] * 4 + [32] * 3 + [64] * 3
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        *(Block(a, b) for a, b in itertools.pairwise(widths)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
