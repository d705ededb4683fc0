"""Writes docs/reference.md from the docstrings: python docs/generate_reference.py

One line per public module and per public name in it. --check writes nothing and fails when the page is out of date.
The source is read, not imported.
"""

import ast
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "umbrella"
PAGE = HERE / "reference.md"
HEAD = """# Reference

Every public module and what is public in it, in a line each, from the docstrings: this page is made by
`docs/generate_reference.py`. `import umbrella as um` gives the most used names directly: {names}.
"""


def main(argv: list[str]) -> int:
    text = page()
    if "--check" in argv:
        if PAGE.exists() and PAGE.read_text() == text:
            return 0
        print(f"{PAGE.relative_to(HERE.parent)} is out of date: run python docs/generate_reference.py")
        return 1
    PAGE.write_text(text)
    return 0


def page() -> str:
    parts = [HEAD.format(names=", ".join(f"`um.{n}`" for n in _shortcuts()))]
    for path in sorted(PACKAGE.rglob("*.py"), key=_module_of):
        module = _module_of(path)
        if any(part.startswith("_") for part in module.split(".")):
            continue
        tree = ast.parse(path.read_text())
        parts.append(f"## `{module}`\n\n{_line(tree)}\n")
        if rows := [f"- `{_signature(node)}`: {_line(node)}" for node in _public(tree)]:
            parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def _public(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes with a docstring whose name does not begin with an underscore."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_") and ast.get_docstring(n)]


def _signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return node.name
    a = node.args
    names = [p.arg for p in (*a.posonlyargs, *a.args)]
    if a.vararg:
        names.append(f"*{a.vararg.arg}")
    elif a.kwonlyargs:
        names.append("*")
    names += [p.arg for p in a.kwonlyargs]
    if a.kwarg:
        names.append(f"**{a.kwarg.arg}")
    return f"{node.name}({', '.join(names)})"


def _line(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
    """The first paragraph of a docstring, on one line, with what Markdown would take for a tag escaped."""
    told = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    return told.replace("<", "&lt;").replace("*", "\\*")


def _shortcuts() -> list[str]:
    """The names in the table `_HOME` of umbrella/__init__.py."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            return sorted(" ".join(ast.literal_eval(node.value).values()).split(), key=str.lower)
    raise SystemExit("umbrella/__init__.py has no table _HOME any more")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
