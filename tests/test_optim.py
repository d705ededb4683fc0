"""Schedules at the steps that matter, one step of each rule by hand, and the rules over parameter paths."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import bits, gap
from umbrella import optim
from umbrella.settings import SettingsError, duration

TOTAL = 100
PARAMS = {
    "model": {"hidden": {"kernel": jnp.asarray([[1.0, -2.0], [0.5, 4.0]]), "bias": jnp.asarray([3.0, -1.0])}},
    "lora": {"a": jnp.asarray([2.0])},
}
GRADS = jax.tree.map(lambda p: jnp.full_like(p, 0.5), PARAMS)


def to_steps(text: str) -> int:
    return duration(text).steps(batch_size=10, n_train=100, total=TOTAL)


def build(**kw: Any) -> optax.GradientTransformation:
    return optim.build(kw, total_steps=TOTAL, to_steps=to_steps)


def go(tx: optax.GradientTransformation, params: Any = PARAMS, grads: Any = GRADS, steps: int = 1) -> Any:
    """The parameters after some steps with the same gradient."""

    @jax.jit
    def run(params: Any, grads: Any) -> Any:
        def one(_: int, at: tuple[Any, Any]) -> tuple[Any, Any]:
            updates, state = tx.update(grads, at[1], at[0])
            return optax.apply_updates(at[0], updates), state

        return jax.lax.fori_loop(0, steps, one, (params, tx.init(params)))[0]

    with jax.numpy_dtype_promotion("standard"):
        return run(params, grads)


# ---- schedules
# Warm-up: 2 (t + 1) / 21.
# Peak 2, from the end of the warm-up (step 20) to the end (step 100); final share 0.1; so half-way is step 60.
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("constant", {20: 2.0, 60: 2.0, 100: 2.0}),
        ("cosine", {20: 2.0, 60: 1.1, 100: 0.2}),  # 2 (.9 (1 + cos(pi / 2)) / 2 + .1) = 2 * .55
        ("linear", {20: 2.0, 40: 1.55, 60: 1.1, 100: 0.2}),  # 2 (1 - .9 t / 80)
        ("exponential", {20: 2.0, 60: 2 * math.sqrt(0.1), 100: 0.2}),  # 2 * .1^(t / 80)
    ],
)
def test_schedules_by_hand(kind: str, values: dict[int, float]) -> None:
    warmed = optim.learning_rate_schedule(TOTAL, 2.0, kind, 20, 0.1)
    with jax.numpy_dtype_promotion("standard"):
        for step, value in {0: 2 / 21, 5: 12 / 21, 10: 22 / 21, 19: 40 / 21, **values, 500: values[100]}.items():
            assert float(warmed(step)) == pytest.approx(value, rel=1e-5), step
        cold = optim.learning_rate_schedule(TOTAL, 2.0, kind, 0, 0.1)
        assert float(cold(0)) == 2.0
        assert float(cold(100)) == pytest.approx(values[100], rel=1e-5)


def test_schedules_that_make_no_sense() -> None:
    with pytest.raises(SettingsError, match=r"config.optimizer.warmup: 100 steps of warm-up in a run of 100"):
        build(warmup="10 epochs")
    with pytest.raises(SettingsError, match=r"config.optimizer.final: an exponential schedule never reaches 0"):
        build(schedule="exponential")


def test_the_warm_up_is_read_as_a_duration() -> None:
    """Two epochs of ten steps, lr 1, a gradient of 1: the first step moves by 1 / 21, that at count 10 by 11 / 21."""
    tx = build(name="sgd", learning_rate=1.0, warmup="2 epochs")
    one = {"w": jnp.asarray([0.0])}
    at = [float(go(tx, one, {"w": jnp.asarray([1.0])}, n)["w"][0]) for n in (1, 10, 11)]
    # Counts 0 to 9 add up to (1 + ... + 10) / 21 = 55 / 21.
    np.testing.assert_allclose(at, [-1 / 21, -55 / 21, -66 / 21], rtol=1e-5)


# ---- one step by hand
def test_sgd_by_hand() -> None:
    """w - lr g: 1 - .1 * .5 = .95. With momentum .9 the second step adds g + .9 g: .95 - .1 * .95 = .855; Nesterov's
    first is g + .9 g as well: 1 - .1 * .95 = .905, its second g + .9 (g + .9 g) = 1.355: .905 - .1355 = .7695."""
    w = {"w": jnp.asarray([1.0])}
    g = {"w": jnp.asarray([0.5])}
    at = lambda steps, **kw: float(go(build(name="sgd", learning_rate=0.1, **kw), w, g, steps)["w"][0])  # noqa: E731
    assert at(1) == pytest.approx(0.95)
    assert at(2, momentum=0.9) == pytest.approx(0.855)
    assert at(1, momentum=0.9, nesterov=True) == pytest.approx(0.905)
    assert at(2, momentum=0.9, nesterov=True) == pytest.approx(0.7695)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_decoupled_weight_decay_by_hand(name: str) -> None:
    """Adam's first step is lr * g / (|g| + eps) = lr, whatever g; decoupled decay takes lr * decay * w besides.

    w = 4, g = .5, lr = .1, decay = .25: 4 - .1 * 1 - .1 * .25 * 4 = 3.8. (Inside the loss it would be 3.9: Adam's step
    has size lr whatever is added to g.)
    """
    w, g = {"w": jnp.asarray([4.0])}, {"w": jnp.asarray([0.5])}
    assert float(go(build(name=name, learning_rate=0.1, weight_decay=0.25), w, g)["w"][0]) == pytest.approx(3.8)
    assert float(go(build(name=name, learning_rate=0.1, weight_decay=0), w, g)["w"][0]) == pytest.approx(3.9)


@pytest.mark.parametrize(
    ("name", "rival"),
    [
        ("adam", optax.adam(0.1)),
        ("adamw", optax.adamw(0.1)),  # which decays; the name alone made adam
        ("lion", optax.lion(0.1, b1=0.9, b2=0.99, weight_decay=0)),
        ("rmsprop", optax.rmsprop(0.1, decay=0.9, eps=1e-8, eps_in_sqrt=True)),
        ("sgd", optax.sgd(0.1)),
    ],
)
def test_an_optimiser_by_its_name_alone_is_optaxs(name: str, rival: optax.GradientTransformation) -> None:
    """Gradients that change sign, for five steps; lion's b2 is the paper's .99."""
    signs = [1.0, -0.5, 2.0, -3.0, 0.1]
    ends = []
    for tx in (build(name=name, learning_rate=0.1), rival):
        params, state = PARAMS, tx.init(PARAMS)
        with jax.numpy_dtype_promotion("standard"):
            for sign in signs:
                updates, state = tx.update(jax.tree.map(lambda g, f=sign: f * g, GRADS), state, params)
                params = optax.apply_updates(params, updates)
        ends.append(params)
    assert gap(*ends) < 1e-6


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "adam", "momentum": 0.9}, "momentum: adam has no such setting"),
        ({"name": "adamw", "nesterov": True}, "nesterov: adamw has no such setting"),
        ({"name": "sgd", "b1": 0.9}, "b1: sgd has no such setting"),
        ({"name": "sgd", "nesterov": True}, "nesterov: it needs a momentum"),
        ({"name": "sgd", "momentun": 0.9}, "momentun: sgd has no such setting (did you mean 'momentum'?)"),
        ({"name": "rmsprop", "momentum": 0.9}, "momentum: rmsprop has no such setting"),
        ({"name": "lion", "epsilon": 1e-6}, "epsilon: lion has no such setting"),
        ({"final": 0.1}, "final: a constant schedule has no end"),
        ({"learning_rat": 0.1}, "learning_rat: adam has no such setting (did you mean 'learning_rate'?)"),
        ({"name": "adm"}, "name: no optimizer 'adm' (did you mean 'adam'?)"),
        ({"b1": 1.0}, "b1: 1.0 must be in [0, 1)"),
        ({"clip": -1.0}, "clip: -1.0 must be > 0"),
    ],
)
def test_what_an_optimiser_does_not_take_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as error:
        build(**settings)
    assert str(error.value).startswith(f"config.optimizer.{says}")


def test_the_resolved_settings_are_those_of_the_optimiser_and_are_taken_again() -> None:
    shared = {"schedule": "constant", "warmup": "never", "final": None, "clip": None, "rules": ()}
    for config, own in (
        ({"name": "lion", "learning_rate": 1}, {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0}),
        ({"name": "adamw", "learning_rate": 1}, {"b1": 0.9, "b2": 0.999, "epsilon": 1e-8, "weight_decay": 1e-4}),
        ({"name": "sgd", "learning_rate": 1}, {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
    ):
        log: dict[str, Any] = {}
        optim.build(config, total_steps=TOTAL, to_steps=to_steps, log=log)
        assert log == {"optimizer": {**config, "learning_rate": 1.0, **own, **shared}}
        optim.build(log["optimizer"], total_steps=TOTAL, to_steps=to_steps)


def test_rmsprop_and_lion_by_hand() -> None:
    """RMSprop: g / sqrt((1 - b2) g^2) = 1 / sqrt(1 - b2) = 2 at b2 = .75. Lion: the sign. At lr .1 from 4: 3.8, 3.9."""
    w, g = {"w": jnp.asarray([4.0])}, {"w": jnp.asarray([0.5])}
    assert float(go(build(name="rmsprop", learning_rate=0.1, b2=0.75), w, g)["w"][0]) == pytest.approx(3.8)
    assert float(go(build(name="lion", learning_rate=0.1), w, g)["w"][0]) == pytest.approx(3.9)


def test_clip_by_hand() -> None:
    """Gradients (3, 4) have the norm 5; clipped to 1 they are (.6, .8). Below the bound they are left alone."""
    w, g = {"a": jnp.zeros(1), "b": jnp.zeros(1)}, {"a": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}
    clipped = go(build(name="sgd", learning_rate=1.0, clip=1.0), w, g)
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [-0.6, -0.8], rtol=1e-5)
    whole = go(build(name="sgd", learning_rate=1.0, clip=6.0), w, g)
    np.testing.assert_allclose([whole["a"][0], whole["b"][0]], [-3.0, -4.0], rtol=1e-6)


@pytest.mark.parametrize("rule", [{"freeze": True}, {"lr": 0.0}])
def test_what_is_not_trained_does_not_count_in_the_norm(rule: dict[str, Any]) -> None:
    """Gradients 3, 4 and, untrained, 1000: the norm is 5 and 1 of it is left, (.6, .8). With the 1000: .003, .004."""
    w = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    g = {"a": jnp.asarray([3.0, 4.0]), "b": jnp.asarray([1000.0])}
    tx = build(name="sgd", learning_rate=1.0, clip=1.0, rules=(("b", rule), (".*", {})))
    after = go(tx, w, g)
    np.testing.assert_allclose(after["a"], [-0.6, -0.8], rtol=1e-5)
    assert float(after["b"][0]) == 0


# ---- rules
def test_rules_scale_the_rate_and_the_decay_and_freeze() -> None:
    """sgd, lr 1, decay .1, g = .5. kernel (lr * .2, decay 0): w - .2 * .5 = w - .1. bias (decay * 2): w - .5 - .2 w.
    lora is frozen: the same bits."""
    rules = (
        (r"model/.*/kernel", {"lr": 0.2, "decay": 0.0}),
        (r".*bias", {"decay": 2.0}),
        (r"lora/.*", {"freeze": True}),
    )
    after = go(build(name="sgd", learning_rate=1.0, weight_decay=0.1, rules=rules))
    before, now = PARAMS["model"]["hidden"], after["model"]["hidden"]
    np.testing.assert_allclose(now["kernel"], before["kernel"] - 0.1, rtol=1e-6)
    np.testing.assert_allclose(now["bias"], 0.8 * before["bias"] - 0.5, rtol=1e-6)
    assert bits(after["lora"], PARAMS["lora"])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop", "lion"])
def test_what_is_frozen_stays_to_the_bit_under_every_optimiser(name: str) -> None:
    rules = ((r"model/.*", {"freeze": True}), (".*", {}))
    after = go(build(name=name, learning_rate=0.1, weight_decay=0.3, clip=1.0, rules=rules), steps=3)
    assert bits(after["model"], PARAMS["model"])
    assert not bits(after["lora"], PARAMS["lora"])


def test_the_first_rule_that_matches_the_whole_path_decides() -> None:
    """'model' alone matches no path, so it would decide for nothing; of two that match, the first does."""
    rules = ((r"model/hidden/bias", {"lr": 0.0}), (r".*", {}), (r"model/.*", {"freeze": True}))
    with pytest.raises(SettingsError, match=r"'model/\.\*' decides for no parameter"):
        go(build(name="sgd", rules=rules))
    after = go(build(name="sgd", learning_rate=1.0, rules=rules[:2]))
    assert bits(after["model"]["hidden"]["bias"], PARAMS["model"]["hidden"]["bias"])
    assert not bits(after["model"]["hidden"]["kernel"], PARAMS["model"]["hidden"]["kernel"])


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ((("model/.*", {}),), "no rule covers 'lora/a'; end the rules with ('.*', dict())"),
        ((("model", {}), (".*", {})), "'model' decides for no parameter"),
        ((("model/hiden/kernel", {}), (".*", {})), "(did you mean 'model/hidden/kernel'?)"),
    ],
)
def test_every_parameter_is_covered_and_every_pattern_at_work(rules: tuple, says: str) -> None:
    with pytest.raises(SettingsError) as error:
        go(build(rules=rules))
    assert str(error.value).startswith("config.optimizer.rules: ")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ((".*",), "is no pair of a pattern and a dict"),
        (((".*", 0.1),), "is no pair of a pattern and a dict"),
        (((".*", {"lrr": 0.1}),), "no such key 'lrr' (did you mean 'lr'?)"),
        (((".*", {"lr": -0.1}),), "'.*'.lr: -0.1 must be >= 0"),
        (((".*", {"freeze": 1}),), "'.*'.freeze: 1 is int, wanted bool"),
        ((("(", {}),), "'(' is no regular expression"),
        (((3, {}),), "3 is no regular expression"),
    ],
)
def test_rules_of_the_wrong_form_are_refused_at_once(rules: tuple, says: str) -> None:
    with pytest.raises(SettingsError) as error:
        build(rules=rules)
    assert says in str(error.value)


def test_muon_is_orthogonal_on_matrices_and_adam_elsewhere() -> None:
    """Five Newton-Schulz steps bring every singular value to about 1 (within .7 and 1.25, Jordan et al. 2024); times
    rms sqrt(max(6, 4)) and the learning rate. A head and a bias move as Adam's first step does, by the learning rate.
    """
    g = jax.random.normal(jax.random.key(0), (6, 4))
    params = {"model": {"a": {"kernel": g, "bias": g[0]}, "head": {"kernel": g}}}
    tx = build(name="muon", learning_rate=0.1, rms=0.2)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(params, tx.init(params), params)
    values = jnp.linalg.svd(updates["model"]["a"]["kernel"], compute_uv=False) / (0.1 * 0.2 * 6**0.5)
    assert 0.65 < float(values.min()) <= float(values.max()) < 1.3
    for u, of in ((updates["model"]["a"]["bias"], g[0]), (updates["model"]["head"]["kernel"], g)):
        np.testing.assert_allclose(u, -0.1 * jnp.sign(of), rtol=1e-4)
