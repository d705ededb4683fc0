"""One pipeline per problem, never per technique. The file system is the registry: `build` finds a module by its
name."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from umbrella import settings
from umbrella.experiment import Experiment


def names() -> tuple[str, ...]:
    """The pipelines there are."""
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment, by the pipeline that config["pipeline"] names.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    name = config.get("pipeline")
    if name is None:
        raise settings.SettingsError(f"config.pipeline: missing (one of: {', '.join(names())})")
    if name not in names():
        raise settings.SettingsError(f"config.pipeline: no pipeline {name!r}{settings.near(str(name), names())}")
    return importlib.import_module(f"umbrella.pipelines.{name}").build(config)
