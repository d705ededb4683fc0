"""What the documentation says is true: its Python runs, its links lead somewhere, its tables are complete.

A block marked ```python is run, the blocks of one page in order and in one namespace; a signature or a fragment that
cannot be run is marked ```py.
"""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.conftest import ROOT
from umbrella import models, transforms
from umbrella.cli import MODES, Given
from umbrella.experiment import RunSettings
from umbrella.pipelines import generative, vision
from umbrella.pipelines._standard import Common
from umbrella.settings import accepts

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str) -> list[tuple[int, str]]:
    """(line of the page, source) of every block that is to be run."""
    return [(text[: m.start(1)].count("\n"), m[1]) for m in BLOCK.finditer(text)]


@pytest.fixture
def _quick_compilation() -> Any:
    """What the examples print does not matter here, and they compile in half the time."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


FIRST = ("README.md", "resume_and_extend.md", "your_own_data.md")  # the others are for `make test-slow`


@pytest.fixture
def _tables() -> Any:
    """A page may add a row to a table, which the next test must not find."""
    before = [(table, dict(table)) for table in (models.TABLE, transforms.TABLE)]
    yield
    for table, rows_before in before:
        table.clear()
        table.update(rows_before)


@pytest.mark.usefixtures("_quick_compilation", "_tables")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=name_of(p), marks=() if p.name in FIRST else pytest.mark.slow)
        for p in PAGES
        if blocks(p.read_text())
    ],
)
def test_its_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "docs"}
    for line, source in blocks(page.read_text()):
        exec(compile("\n" * line + source, str(page), "exec"), namespace)  # the line numbers are the page's


def test_the_readme_has_python_to_run() -> None:
    assert len(blocks(README)) >= 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name_of(page)}: {target}"
        assert found.is_relative_to(ROOT)
        if anchor:
            assert anchor in {_anchor(h) for h in re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)}, target


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_files_it_names_exist(page: Path) -> None:
    """`umbrella/step.py`, `tests/...`, `configs/...` in running text."""
    for path in re.findall(r"`((?:umbrella|tests|configs|docs|notebooks|benchmarks)/[\w./]+\.\w+)`", page.read_text()):
        assert (ROOT / path).exists(), f"{name_of(page)}: {path}"


def rows(after: str) -> list[list[str]]:
    """The cells of the first table behind the text `after` in the README, without its head."""
    table = re.search(r"(?:^\|.*\n)+", README[README.index(after) :], re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in table[0].splitlines()[2:]]


def test_the_table_of_keys_is_complete_and_right() -> None:
    fields = {f.name: f for c in (RunSettings, Common) for f in dataclasses.fields(c)}
    told = {row[0].strip("| `"): row[1].strip("| `") for row in rows("These are the keys that every config has")}
    assert told.keys() == fields.keys() | {"model"}
    for name, field in fields.items():
        default = "" if field.default is dataclasses.MISSING else repr(field.default).replace("'", '"')
        assert told[name] == default, name
    assert all("model" in accepts(p.problem) for p in (generative, vision))


def test_the_table_of_flags_is_complete() -> None:
    told = {flag for row in rows("## Command line") for flag in re.findall(r"--([\w.]+)", row[0])}
    assert told == {"config.KEY", *Given._fields} - {"runs"}  # which are the words that are no flags
    assert all(f"`{mode}`" in README for mode in MODES)


def test_the_reference_has_every_module() -> None:
    """Its wording may lag behind; python docs/generate_reference.py brings it up to date."""
    script = [sys.executable, "-c", "from docs import generate_reference as g; print(g.page())"]
    made = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "reference.md").read_text()
    heading = re.compile(r"^## `(.*)`$", re.MULTILINE)
    assert heading.findall(page) == heading.findall(made)


def test_the_pages_have_the_places_that_scripts_fill() -> None:
    for page, name in (("results.md", "results"), ("benchmarks.md", "benchmarks")):
        text = (ROOT / "docs" / page).read_text()
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1


def test_the_page_about_scale_is_what_its_script_writes() -> None:
    """From the formulas and from what was compiled before; what compiles now is tests/test_scale.py's business."""
    script = [sys.executable, "docs/generate_scale.py", "--check"]
    told = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_site_lists_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r": ([\w/]+\.md)$", text, re.MULTILINE)) == pages


def test_the_version_is_one() -> None:
    import umbrella

    version = umbrella.__version__
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"Version {version}" in README
