"""The scopes of parameters that a config names are there, by shapes alone and before anything is compiled. Floor 5."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from umbrella.objective import Batch, Ctx, Objective, Transform, chain
from umbrella.settings import SettingsError, near


def of(objective: Objective, rows: Batch) -> tuple[str, ...]:
    """The scopes of an objective's parameters.

    Args:
      rows: a batch of any number of rows.
    """

    def init(batch: Batch) -> Any:
        return objective.init(batch, Ctx(jax.random.key(0), jnp.int32(0), train=False))[0]

    return tuple(jax.eval_shape(init, rows))


def check(
    at: str,
    names: tuple[str, ...],
    techniques: tuple[Transform, ...],
    settings: Mapping[str, Mapping[str, Any]],
    outer: Transform,
    base: Objective,
    rows: Batch,
    known: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """The scopes of chain(outer, *techniques)(base), after all that the techniques say of scopes has been found there.

    Args:
      at: the key that names the techniques, for messages: "techniques" or "evals.robust".
      names, techniques: the leftmost is the outermost.
      settings: those of every technique, by name; one called "scope" names a scope.
      rows: a batch of any number of rows.
      known: scopes that are there besides, when the techniques are an evaluation's: those of training.

    Raises:
      SettingsError: a technique's scope is not there, or the techniques do not go together (the same one twice).
    """
    scopes = of(outer(base), rows)
    for i in reversed(range(len(names))):  # from the inside: a technique finds what stands to its right
        name = names[i]
        try:
            scopes = of(chain(outer, *techniques[i:])(base), rows)
        except (KeyError, ValueError) as error:
            find(f"{name}.scope", settings[name].get("scope"), scopes)
            if isinstance(error, KeyError):
                raise
            raise SettingsError(f"config.{at}: {error}") from None
    for name in names:
        find(f"{name}.scope", settings[name].get("scope"), tuple(dict.fromkeys((*scopes, *known))))
    return scopes


def find(at: str, scope: str | None, scopes: tuple[str, ...]) -> None:
    """Raises SettingsError when a scope, unless it is None, is not among the scopes."""
    if scope is not None and scope not in scopes:
        raise SettingsError(f"config.{at}: the parameters have no scope {scope!r}{near(scope, scopes)}")
