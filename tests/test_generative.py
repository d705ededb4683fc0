"""What the pipelines give to techniques, and what they refuse: no run, only the experiment that a config makes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import context, gap
from tests.test_objective import filled
from umbrella import pipelines, transforms
from umbrella.settings import SettingsError


def config(pipeline: str, **kw: Any) -> dict[str, Any]:
    models = {"generative": {"name": "vae", "latent": 2, "hidden": (4,)}, "vision": {"name": "mlp", "hidden": (4,)}}
    return {
        "pipeline": pipeline,
        "data": {"name": "digits"},
        "model": models[pipeline],
        "optimizer": {"learning_rate": 1e-3},
        "batch_size": 16,
        "train_for": "2 steps",
        "evals": {"test": ()},
        **kw,
    }


@pytest.mark.parametrize("name", ["importance_weighted", "iwae"])
def test_a_weight_of_the_kl_that_importance_weighting_would_drop_is_refused(name: str) -> None:
    """In training; as an evaluation the bound is one, whatever the model was trained on."""
    section = {name: {"technique": "importance_weighted", "samples": 2}, "four": {"technique": "kl", "beta": 4.0}}
    with pytest.raises(SettingsError, match=rf"config.techniques: '{name}' has no KL term that 'four' could weigh"):
        pipelines.build(config("generative", techniques=("four", name), **section))
    made = pipelines.build(config("generative", techniques=("four",), evals={"nll": (name,)}, **section))
    assert made.settings["four"]["beta"] == 4


def test_sam_perturbs_what_the_pipeline_trains() -> None:
    """With trainable=("lora",) the loss is that of sam(only=("lora",)), and not that of sam on all scopes."""
    both = {"lora": {"rank": 2}, "sam": {"rho": 0.5}}
    made = pipelines.build(config("vision", techniques=("sam", "lora"), trainable=("lora",), **both))
    plain = pipelines.build(config("vision", techniques=("lora",), trainable=("lora",), **both)).objective
    batch = {
        "x": jnp.asarray(np.random.default_rng(0).integers(0, 17, (8, 8, 8, 1)), jnp.uint8),
        "y": jnp.arange(8, dtype=jnp.int32),
    }
    params, state = filled(plain, batch)
    wanted, other = (transforms.sam(rho=0.5, only=only)(plain) for only in (("lora",), ()))
    loss = jax.jit(lambda p: [o.apply(p, state, batch, context())[0] for o in (made.objective, wanted, other)])(params)
    assert gap(loss[0], loss[1]) < 1e-6
    assert gap(loss[0], loss[2]) > 1e-3
