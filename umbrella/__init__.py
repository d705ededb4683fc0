"""Umbrella: a technique is a function from objective to objective.

    import umbrella as um

    base = um.supervised(um.models.MLP(out=10), um.losses.cross_entropy)
    robust = um.chain(um.adversarial(um.pgd(eps=0.1)), um.label_smoothing(10, eps=0.1))(base)
    step = um.guard(um.then(um.update(um.grad_of(robust), optax.adam(1e-3)), um.ema(0.999)))

or `um.run(config)` for everything at once. Names are loaded when they are first used, so that importing the package
costs nothing and starts no device.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "objective": "Aux Ctx Objective View add_term chain map_batch map_params measure supervised",
    "transforms": (
        "adversarial awp binarise certified corruption fgsm importance_weighted l1 l2 label_smoothing lora mixup pgd "
        "pixels random_noise reconstruct sam sparse trades vat"
    ),
    "gradients": "grad_of microbatch",
    "step": "After Step alternate ema gather guard program repeat stream then train_step update",
    "train_state": "TrainState create parameter_count",
    "evaluation": "evaluate",
    "experiment": "Experiment",
    "loss_scale": "loss_scaled",
    "loop": "Cadence Hooks Window compile_step fit",
    "runs": "Result run",
    "settings": "SettingsError",
}
_NAMES = {name: home for home, names in _HOME.items() for name in names.split()}
_MODULES = [
    "artifacts",
    "attacks",
    "baselines",
    "bounds",
    "checkpoint",
    "data",
    "decoding",
    "environment",
    "evaluation",
    "experiment",
    "forecasts",
    "frechet",
    "gradients",
    "loss_scale",
    "losses",
    "memory",
    "metrics",
    "models",
    "ngrams",
    "naive",
    "objective",
    "optim",
    "parallel",
    "phases",
    "pipelines",
    "placement",
    "report",
    "robustness",
    "runs",
    "settings",
    "smoothing",
    "step",
    "text_baselines",
    "train_state",
    "transforms",
    "verify",
    "workdir",
    "writers",
]

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"umbrella.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"umbrella.{name}")
    else:
        raise AttributeError(f"module 'umbrella' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
