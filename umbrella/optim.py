"""Schedules and optimisers from settings. Floor 3."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from umbrella import settings
from umbrella.choices import one_of
from umbrella.objective import PyTree
from umbrella.settings import Cadence, Fraction, NonNegative, Positive, SettingsError, fits, near

Schedule = Callable[[Any], Any]
Kind = Literal["constant", "cosine", "linear", "exponential"]
RULE_KEYS = {"lr": NonNegative, "decay": NonNegative, "freeze": bool}


# ---------------------------------------------------------------------------------------------------- one per optimiser
def adam(*, b1: Fraction = 0.9, b2: Fraction = 0.999, epsilon: Positive = 1e-8) -> optax.GradientTransformation:
    """Source: Kingma and Ba 2015, algorithm 1."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon)


def sgd(*, momentum: Fraction = 0.0, nesterov: bool = False) -> optax.GradientTransformation:
    """Source: Sutskever et al. 2013, on both kinds of momentum.

    Raises:
      SettingsError: nesterov without momentum, which it is a kind of.
    """
    if nesterov and not momentum:
        raise SettingsError("config.optimizer.nesterov: it needs a momentum; give optimizer.momentum, such as 0.9")
    return optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity()


def rmsprop(*, b2: Fraction = 0.9, epsilon: Positive = 1e-8) -> optax.GradientTransformation:
    """Source: Tieleman and Hinton 2012, lecture 6.5; b2 is the decay of the mean square."""
    return optax.scale_by_rms(decay=b2, eps=epsilon)


def lion(*, b1: Fraction = 0.9, b2: Fraction = 0.99) -> optax.GradientTransformation:
    """Source: Chen et al. 2023, algorithm 2, with its defaults."""
    return optax.scale_by_lion(b1=b1, b2=b2)


def muon(
    *,
    momentum: Fraction = 0.95,
    rms: Positive = 0.2,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    epsilon: Positive = 1e-8,
) -> optax.GradientTransformation:
    """Momentum made orthogonal for the matrices of dense layers inside of a network, Adam for all else: vectors,
    embeddings, heads, convolutions, and what a recurrent layer multiplies its state with.

    An orthogonal update of a matrix of m by n is scaled by rms sqrt(max(m, n)), so that its numbers are as large as
    Adam's usually are, and one learning rate is right for both.

    Args:
      momentum: of matrices, with Nesterov's step.
      rms: root mean square of an update of a matrix, before the learning rate.
      b1, b2, epsilon: of Adam.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025, section 2.2, for the scale.
    """

    def scaled(updates: PyTree) -> PyTree:
        return jax.tree.map(lambda u: u * (rms * max(u.shape) ** 0.5), updates)

    def kind(path: Any, leaf: Any) -> str:
        names = [str(getattr(k, "key", k)) for k in path]
        return "matrix" if leaf.ndim == 2 and names[-1] == "kernel" and "head" not in names else "other"

    plain = optax.contrib.MuonDimensionNumbers()
    rule = optax.contrib.scale_by_muon(
        beta=momentum, weight_dimension_numbers=lambda params: jax.tree.map(lambda _: plain, params)
    )
    matrix = optax.chain(rule, optax.stateless(lambda u, _: scaled(u)))
    rules = {"matrix": matrix, "other": optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon)}
    return optax.partition(rules, lambda params: jax.tree_util.tree_map_with_path(kind, params))


TABLE: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adam,
    "lion": lion,
    "muon": muon,
    "rmsprop": rmsprop,
    "sgd": sgd,
}
ADAMW_DECAY = 1e-4  # optax.adamw's default: without any decay the name would say what is not done


# ------------------------------------------------------------------------------------------------------------ the chain
def build(
    config: Mapping[str, Any],
    *,
    total_steps: int,
    to_steps: Callable[[str], int],
    log: dict[str, Any] | None = None,
) -> optax.GradientTransformation:
    """The optax optimiser that config["name"] names (adam when it names none), by its own settings and by `around`'s.

    Args:
      config: "name", the settings of that optimiser, those of `around`.
      total_steps: the length of the run, which the schedules end at.
      to_steps: reads a duration such as "2 epochs".
      log: receives the resolved settings under "optimizer".

    Raises:
      SettingsError: no such optimiser, a setting that it does not take, or one that does not fit.
    """
    config = {"name": "adam", **config}
    factory, rest = settings.choose(TABLE, config, "optimizer")
    name = config["name"]
    own, shared = settings.accepts(factory), settings.accepts(around)
    for key in rest:
        if key not in own and key not in shared:
            raise SettingsError(
                f"config.optimizer.{key}: {name} has no such setting{near(str(key), {**own, **shared})}"
            )
    if name == "adamw":
        rest.setdefault("weight_decay", ADAMW_DECAY)
    parts = [
        settings.check(f, {k: v for k, v in rest.items() if k in t}, "optimizer.")
        for f, t in ((factory, own), (around, shared))
    ]
    if log is not None:
        log["optimizer"] = {"name": name, **parts[0], **parts[1]}
    return around(factory(**parts[0]), total_steps, to_steps, **parts[1])


def around(
    rule: optax.GradientTransformation,
    total_steps: int,
    to_steps: Callable[[str], int],
    *,
    learning_rate: Positive = 1e-3,
    schedule: Kind = "constant",
    warmup: Cadence = "never",
    final: NonNegative | None = None,
    weight_decay: NonNegative = 0.0,
    clip: Positive | None = None,
    rules: tuple = (),
) -> optax.GradientTransformation:
    """What every optimiser has: clip, then its rule, then decoupled weight decay, then the learning rate.

    Args:
      learning_rate: the peak.
      schedule: how it goes from the peak, after the warm-up, to `final` times the peak.
      warmup: how long the learning rate rises, linearly, to the peak; the first step is not from zero.
      final: the end of the schedule as a share of the peak, 0 when None; exponential needs it to be positive, constant
        has none.
      weight_decay: decoupled, times the learning rate (Loshchilov and Hutter 2019); on every parameter but those whose
        rule says otherwise.
      clip: the largest global norm of the gradient of what is trained: frozen parameters do not count. None for none.
      rules: (pattern, {"lr": factor, "decay": factor, "freeze": bool}) pairs over parameter paths such as
        "model/hidden_0/kernel". The first pattern that matches a whole path decides. Every parameter must be covered
        and every pattern must be the first match of some parameter, so that a typo is an error.

    Raises:
      SettingsError: settings that do not go together, a rule of the wrong form; while tracing: a path that no rule
        covers, a rule that covers nothing.
    """
    if schedule == "constant" and final is not None:
        raise SettingsError("config.optimizer.final: a constant schedule has no end; choose another optimizer.schedule")
    rate = learning_rate_schedule(total_steps, learning_rate, schedule, to_steps(warmup), final or 0.0)
    checked = _checked(rules)
    parts = []
    if clip is not None:
        parts += [*([_still(checked)] if checked else []), optax.clip_by_global_norm(clip)]
    parts.append(rule)
    if weight_decay:
        parts.append(_decay(weight_decay, checked))
    parts.append(optax.scale_by_learning_rate(rate))
    if checked:
        parts.append(_scale(checked))
    return optax.chain(*parts)


def learning_rate_schedule(
    total_steps: int, peak: float, kind: Kind, warmup_steps: int = 0, final: float = 0.0
) -> Schedule:
    """count i32[] -> learning rate f32[]: a linear warm-up, then `kind` down to final * peak at total_steps.

    Step c of a warm-up of w steps has the rate peak (c + 1) / (w + 1): the first step moves, and step w has the peak.

    Raises:
      SettingsError: the warm-up is as long as the run, or an exponential decay to zero.
      ValueError: no such kind.
    """
    one_of("schedule", kind, Kind)
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
    return optax.join_schedules(
        [optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps), after], [warmup_steps]
    )


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


def _factor(rule: Mapping[str, Any]) -> float:
    return 0.0 if rule.get("freeze", False) else rule.get("lr", 1.0)


def _still(rules: Rules) -> optax.GradientTransformation:
    """Zero gradients for what is not trained, so that they do not count in a norm."""

    def update(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda u, r: u if _factor(r) else jnp.zeros_like(u), updates, match(rules, updates))

    return optax.stateless(update)


def _scale(rules: Rules) -> optax.GradientTransformation:
    def update(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda u, r: u * _factor(r), updates, match(rules, updates))

    return optax.stateless(update)
