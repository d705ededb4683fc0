"""Schedules and optimisers from settings. Floor 3."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax

from umbrella.objective import PyTree
from umbrella.settings import Cadence, Fraction, NonNegative, Positive, SettingsError, fits, near

Schedule = Callable[[Any], Any]
RULE_KEYS = {"lr": NonNegative, "decay": NonNegative, "freeze": bool}


def build(
    total_steps: int,
    to_steps: Callable[[str], int],
    *,
    name: Literal["adam", "adamw", "sgd", "rmsprop", "lion"] = "adam",
    learning_rate: Positive = 1e-3,
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "constant",
    warmup: Cadence = "never",
    final: NonNegative = 0.0,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    epsilon: Positive = 1e-8,
    momentum: Fraction = 0.0,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
    clip: Positive | None = None,
    rules: tuple = (),
) -> optax.GradientTransformation:
    """An optax optimiser: clip, then the named rule, then decoupled weight decay, then the learning rate.

    Args:
      total_steps: the length of the run, which the schedules end at.
      to_steps: reads a duration such as "2 epochs".
      learning_rate: the peak.
      schedule: how it goes from the peak, after the warm-up, to `final` times the peak.
      warmup: how long the learning rate rises, linearly, from zero.
      final: the end of the schedule as a share of the peak; exponential needs it to be positive.
      weight_decay: decoupled, times the learning rate (Loshchilov and Hutter 2019); on every parameter but those whose
        rule says otherwise.
      clip: the largest global norm of a gradient; None for none.
      rules: (pattern, {"lr": factor, "decay": factor, "freeze": bool}) pairs over parameter paths such as
        "model/hidden_0/kernel". The first pattern that matches a whole path decides. Every parameter must be covered
        and every pattern must be the first match of some parameter, so that a typo is an error.

    Raises:
      SettingsError: a rule of the wrong form; while tracing: a path that no rule covers, a rule that covers nothing.
    """
    rate = learning_rate_schedule(total_steps, learning_rate, schedule, to_steps(warmup), final)
    kind = {
        "adam": lambda: optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon),
        "adamw": lambda: optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon),
        "sgd": lambda: optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity(),
        "rmsprop": lambda: optax.scale_by_rms(decay=b2, eps=epsilon),
        "lion": lambda: optax.scale_by_lion(b1=b1, b2=b2),
    }[name]()
    checked = _checked(rules)
    parts = [optax.clip_by_global_norm(clip)] if clip is not None else []
    parts.append(kind)
    if weight_decay:
        parts.append(_decay(weight_decay, checked))
    parts.append(optax.scale_by_learning_rate(rate))
    if checked:
        parts.append(_scale(checked))
    return optax.chain(*parts)


def learning_rate_schedule(
    total_steps: int, peak: float, kind: str, warmup_steps: int = 0, final: float = 0.0
) -> Schedule:
    """count i32[] -> learning rate f32[]: a linear warm-up, then `kind` down to final * peak at total_steps.

    Raises:
      SettingsError: the warm-up is as long as the run, or an exponential decay to zero.
    """
    if warmup_steps >= total_steps:
        raise SettingsError(
            f"config.optimizer.warmup: {warmup_steps} steps of warm-up in a run of {total_steps}; shorten it"
        )
    rest = total_steps - warmup_steps
    if kind == "exponential" and final <= 0:
        raise SettingsError("config.optimizer.final: an exponential schedule never reaches 0; give a positive share")
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=final),
        "linear": lambda: optax.linear_schedule(peak, final * peak, rest),
        "exponential": lambda: optax.exponential_decay(peak, rest, final, end_value=final * peak),
    }[kind]()
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


Rules = tuple[tuple[re.Pattern[str], Mapping[str, Any]], ...]


def _checked(rules: tuple) -> Rules:
    at, out = "config.optimizer.rules", []
    for rule in rules:
        if not (isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[1], Mapping)):
            raise SettingsError(
                f"{at}: {rule!r} is no pair of a pattern and a dict such as ('.*/bias', dict(decay=0.0))"
            )
        for k, v in rule[1].items():
            if k not in RULE_KEYS:
                raise SettingsError(f"{at}: {rule[0]!r}: no such key {k!r}{near(k, RULE_KEYS)}")
            try:
                fits(v, RULE_KEYS[k])
            except TypeError as e:
                raise SettingsError(f"{at}: {rule[0]!r}.{k}: {e}") from None
        try:
            out.append((re.compile(rule[0]), rule[1]))
        except (re.error, TypeError) as e:
            raise SettingsError(f"{at}: {rule[0]!r} is no regular expression: {e}") from None
    return tuple(out)


def match(rules: Rules, tree: PyTree) -> PyTree:
    """The rule's dict for every leaf of `tree`, by the first pattern that matches its whole path.

    Raises:
      SettingsError: a leaf that no pattern covers, or a pattern that is the first match of no leaf.
    """
    used = set()

    def one(path: tuple, leaf: Any) -> Mapping[str, Any]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for i, (pattern, rule) in enumerate(rules):
            if pattern.fullmatch(name):
                used.add(i)
                return rule
        raise SettingsError(f"config.optimizer.rules: no rule covers {name!r}; end the rules with ('.*', dict())")

    found = jax.tree_util.tree_map_with_path(one, tree)
    if idle := [rules[i][0].pattern for i in range(len(rules)) if i not in used]:
        paths = [
            jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(tree)
        ]
        raise SettingsError(f"config.optimizer.rules: {idle[0]!r} decides for no parameter{near(idle[0], paths)}")
    return found


def _decay(weight_decay: float, rules: Rules) -> optax.GradientTransformation:
    def update(updates: PyTree, params: PyTree) -> PyTree:
        if not rules:
            return jax.tree.map(lambda u, p: u + weight_decay * p, updates, params)
        told = match(rules, params)
        return jax.tree.map(lambda u, p, r: u + weight_decay * r.get("decay", 1.0) * p, updates, params, told)

    return optax.stateless(update)


def _scale(rules: Rules) -> optax.GradientTransformation:
    def factor(rule: Mapping[str, Any]) -> float:
        return 0.0 if rule.get("freeze", False) else rule.get("lr", 1.0)

    def update(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda u, r: u * factor(r), updates, match(rules, updates))

    return optax.stateless(update)
