"""The examples in the docstrings are run."""

import doctest
import importlib
import pkgutil

import pytest

import umbrella

HEAVY = ("umbrella.pipelines", "umbrella.data", "umbrella.runs")  # they import the readers of data; examples need files


def names() -> list[str]:
    found = (m.name for m in pkgutil.walk_packages(umbrella.__path__, "umbrella."))
    return sorted(n for n in found if not n.startswith(HEAVY) and not n.endswith("__main__"))


@pytest.mark.parametrize("name", names())
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    told = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert told.failed == 0


def test_there_are_examples() -> None:
    """So that a collector that finds nothing is no success."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = {
        name for name in names() if any(t.examples for t in finder.find(importlib.import_module(name), name))
    }
    assert {"umbrella.settings", "umbrella.losses", "umbrella.workdir", "umbrella.train_state"} <= with_examples
