"""The house keeps its floors: who may import whom, and what no file may do. By reading the source alone."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = {
    0: (
        "_report choices decoding distributed forecasts lock losses manifest metrics naive ngrams scores settings "
        "unroll"
    ),
    1: "models",
    2: "attacks bounds objective transforms",
    3: "gradients loss_scale optim phases step train_state",
    4: (
        "answers artifacts baselines blame checkpoint cleaning compare data environment evaluation experiment "
        "frechet loop memory parallel placement profiling report robustness smoothing starting summary "
        "text_baselines workdir writers"
    ),
    5: "pipelines runs",
    6: "cli diagnose preflight table verify",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
ONLY = {"attacks": {0, 2}, "models": {0, 1}, "transforms": {0, 2}}  # these import from fewer floors than all below

SOURCES = sorted((ROOT / "umbrella").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in SOURCES}


def nodes(tree: ast.AST, *, typing: bool) -> Iterator[ast.AST]:
    """All nodes; without what stands under `if TYPE_CHECKING:` unless `typing`."""
    for node in ast.iter_child_nodes(tree):
        if not typing and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from nodes(node, typing=typing)


def imports(source: str, *, typing: bool = True) -> list[str]:
    """The modules that are imported anywhere in it: "from umbrella import x" is "umbrella.x"."""
    found = []
    for node in nodes(ast.parse(source), typing=typing):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found += [f"{node.module}.{a.name}" for a in node.names]
    return found


def too_high(module: str, source: str) -> list[str]:
    """The imports of `module` ("umbrella.transforms.sam") that its floor does not allow."""
    home = module.split(".")[1]
    allowed = ONLY.get(home, set(range(FLOOR[home] + 1)))
    ours = [name for name in imports(source) if name.split(".")[0] == "umbrella"]
    return [name for name in ours if name == "umbrella" or FLOOR[name.split(".")[1]] not in allowed]


def within(source: str) -> set[str]:
    """The modules of ours that it imports when it runs: "umbrella.a.b" if that is a module, else "umbrella.a"."""
    names = (name for name in imports(source, typing=False) if name.startswith("umbrella."))
    return {n if n in MODULES else n.rpartition(".")[0] for n in names} & MODULES.keys()


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """A way round, if there is one."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        done.add(node)
        return next((way for n in sorted(graph.get(node, ())) if (way := walk(n, [*path, node]))), None)

    return next((way for node in sorted(graph) if (way := walk(node, []))), None)


BANNED = ("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib")
CONFIG_LIKE = ("config", "settings", "cfg")


def unsafe(source: str) -> list[str]:
    """Evaluated text, pickles, and defaults hidden in the middle of the code."""
    found = [f"imports {name}" for name in imports(source) if name.split(".")[0] in BANNED]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        told = ast.unparse(node)
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile", "__import__"):
            found.append(told)
        if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
            found.append(told)
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and len(node.args) + len(node.keywords) > 1
            and ast.unparse(node.func.value).split(".")[-1] in CONFIG_LIKE
        ):
            found.append(told)
    return found


# ---- the house
def test_every_file_has_a_floor() -> None:
    homes = {p.relative_to(ROOT / "umbrella").parts[0].removesuffix(".py") for p in SOURCES} - {"__init__"}
    assert homes == FLOOR.keys()


@pytest.mark.parametrize("module", [m for m in MODULES if m != "umbrella"])
def test_a_file_imports_from_its_own_floor_or_below(module: str) -> None:
    assert too_high(module, MODULES[module].read_text()) == []


def test_no_file_imports_itself_by_a_detour() -> None:
    graph = {m: within(p.read_text()) - {m} for m, p in MODULES.items()}
    # A package's __init__ is run before any of its files, but says nothing about who depends on whom.
    packages = {m for m, p in MODULES.items() if p.name == "__init__.py"}
    inner = {m: {n for n in seen if not (n in packages and m.startswith(n + "."))} for m, seen in graph.items()}
    assert cycle(inner) is None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_imports_ml_collections_only(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path.read_text())} == {"ml_collections"}


def test_the_launcher_knows_the_command_line_only() -> None:
    assert imports((ROOT / "launch.py").read_text())[-1] == "umbrella.cli.main"
    assert [n for n in imports((ROOT / "launch.py").read_text()) if n.startswith("umbrella")] == ["umbrella.cli.main"]


@pytest.mark.parametrize("path", [*SOURCES, *CONFIGS, ROOT / "launch.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_evaluates_text_unpickles_or_hides_a_default(path: Path) -> None:
    assert unsafe(path.read_text()) == []


# ---- the readers above do find what they look for
@pytest.mark.parametrize(
    ("module", "source", "wanted"),
    [
        ("umbrella.losses", "from umbrella.models import MLP", ["umbrella.models.MLP"]),
        ("umbrella.models.mlp", "from umbrella import objective", ["umbrella.objective"]),
        ("umbrella.transforms.sam", "import umbrella.models.mlp", ["umbrella.models.mlp"]),
        ("umbrella.transforms.sam", "def f():\n    from umbrella.step import ema", ["umbrella.step.ema"]),
        ("umbrella.step", "if TYPE_CHECKING:\n    from umbrella.loop import fit", ["umbrella.loop.fit"]),
        ("umbrella.loop", "import umbrella", ["umbrella"]),
        ("umbrella.loop", "from umbrella.step import ema\nimport numpy, umbrella.writers", []),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, wanted: list[str]) -> None:
    assert too_high(module, source) == wanted


def test_a_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
    lazy = "if TYPE_CHECKING:\n    from umbrella.step import Step\nfrom umbrella.metrics import Mean"
    assert within(lazy) == {"umbrella.metrics"}


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from pickle import load",
        "def f():\n    import joblib",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "config.get('x', 1)",
        "self.config.get('x', None)",
        "settings.get('x', default=3)",
    ],
)
def test_what_no_file_may_do_is_found(source: str) -> None:
    assert len(unsafe(source)) == 1


def test_what_is_harmless_is_not_found() -> None:
    source = """
        ctx.eval(); ast.literal_eval(text); re.compile("a"); model.eval()
        np.load(path, allow_pickle=False); config["x"]; config.get("x"); rule.get("lr", 1.0)
    """
    assert unsafe(textwrap.dedent(source)) == []
