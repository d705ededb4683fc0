"""Attacks: ours against another library's on the same network, and what training against one costs."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import rivals
from benchmarks.images import noise_config
from benchmarks.loops import umbrella_loop

ROWS, STEPS = 250, 40
# So small that hardly a row is fooled: with an early end ours would do less work than its rivals.
EPS = 1e-4


def pgd(stack: contextlib.ExitStack) -> dict[str, rivals.Segment | None]:
    """40 steps of PGD on 250 images of 28 x 28 by LeNet-5, with random starts, from raw pixels to the worst ones."""
    from umbrella import attacks
    from umbrella.models import LeNet

    x = np.random.default_rng(0).random((ROWS, 28, 28, 1), np.float32)
    net = LeNet(out=10)
    variables = net.init(jax.random.key(0), x[:1], train=False)
    y = np.asarray(net.apply(variables, x, train=False)).argmax(-1).astype(np.int32)
    search = attacks.pgd(steps=STEPS, step_size=EPS / 10)

    def logits(view: Any, x: jax.Array) -> Any:
        return net.apply(view, x, train=False)

    ours = attacks.Driven(search, logits, ROWS)

    def run(key: int) -> None:
        ours(variables, x, y, EPS, jax.random.key(key))

    return {"umbrella": _segment(run), "foolbox, PyTorch": _foolbox(x), "ART, PyTorch": _art(x)}


def training(stack: contextlib.ExitStack) -> dict[str, rivals.Segment | None]:
    """Seven steps of PGD in every step of training of a small network of convolutions, batch 128."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    model = {"name": "cnn", "widths": (16, 32), "depth": 1, "head": "flat", "norm": "none"}
    config = noise_config(folder, "mnist", model=model, batch_size=128)
    attacked = {**config, "techniques": ("adversarial",), "adversarial": {"eps": 0.3, "steps": 7}}
    return {"umbrella": umbrella_loop(attacked, stack)[0], "plain training": umbrella_loop(config, stack)[0]}


def _segment(run: Callable[[int], None]) -> rivals.Segment:
    def segment(batches: int) -> float:
        began = time.perf_counter()
        for i in range(batches):
            run(i)
        return (time.perf_counter() - began) / batches

    return segment


def _foolbox(x: np.ndarray) -> rivals.Segment | None:
    try:
        import foolbox
        import torch
    except ImportError:
        return None
    images, labels, net = _torch(torch, x)
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=EPS / 10)
    return _segment(lambda _: attack(model, images, labels, epsilons=[EPS]))


def _art(x: np.ndarray) -> rivals.Segment | None:
    try:
        import torch
        from art.attacks.evasion import ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier
    except ImportError:
        return None
    images, labels, net = _torch(torch, x)
    loss = torch.nn.CrossEntropyLoss()
    model = PyTorchClassifier(net, loss, input_shape=(1, 28, 28), nb_classes=10, clip_values=(0, 1), device_type="cpu")
    attack = ProjectedGradientDescent(
        model, eps=EPS, eps_step=EPS / 10, max_iter=STEPS, num_random_init=1, batch_size=ROWS, verbose=False
    )
    rows, told = images.numpy(), labels.numpy()
    return _segment(lambda _: attack.generate(rows, told))


def _torch(torch: Any, x: np.ndarray) -> tuple[Any, Any, Any]:
    """(images, what an untrained LeNet-5 says of them, the network), on as many threads as there are cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    net = rivals.torch_lenet(torch).eval()
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        labels = net(images).argmax(-1)
    return images, labels, net
