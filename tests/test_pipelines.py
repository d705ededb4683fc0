"""Pipelines from config to experiment: what they refuse in one line, and that evaluations are of what was trained."""

from typing import Any

import jax
import numpy as np
import pytest

from umbrella import pipelines
from umbrella.experiment import RunSettings
from umbrella.settings import SettingsError


def vision(**more: Any) -> dict[str, Any]:
    """A small classifier of digits."""
    base = dict(
        pipeline="vision",
        data=dict(name="digits"),
        model=dict(name="mlp", hidden=(8,)),
        optimizer=dict(name="adam"),
        batch_size=64,
        train_for="4 steps",
        evals=dict(test=()),
        baselines=False,
    )
    return {**base, **more}


def refused(config: dict[str, Any]) -> str:
    """The one line that building the experiment of a config ends with."""
    with pytest.raises(SettingsError) as error:
        pipelines.build(config)
    assert "\n" not in str(error.value)
    return str(error.value)


# ----------------------------------------------------------------------------------------------------- bounds of a run
def test_a_seed_is_made_of_32_bits() -> None:
    """A key keeps the low 32 bits: 2^40 + 3 would draw what 3 draws."""
    bits = [np.asarray(jax.random.key_data(jax.random.key(s))) for s in (3, 2**40 + 3)]
    assert (bits[0] == bits[1]).all()
    assert "seeds are below 2^32" in refused(vision(seed=2**40 + 3))
    assert "config.seed: 4294967294 + 2 is too large" in refused(vision(seed=2**32 - 2, seeds=3))
    run = RunSettings(pipeline="vision", batch_size=1, train_for="1 step", seed=2**32 - 2, seeds=2)
    keys = jax.vmap(jax.random.key)(np.asarray([run.seed, run.seed + 1], np.uint32))
    for k in range(2):
        assert (jax.random.key_data(keys[k]) == jax.random.key_data(jax.random.key(run.seed + k))).all()


def test_a_length_beyond_what_a_float_holds_is_one_line() -> None:
    assert "more steps than can be counted" in refused(vision(train_for="1e308 epochs"))


def test_a_number_where_a_tuple_of_numbers_is_wanted() -> None:
    assert refused(vision(model=dict(name="mlp", hidden=8))) == (
        "config.model.hidden: 8 is int, wanted a tuple such as (8,)"
    )
