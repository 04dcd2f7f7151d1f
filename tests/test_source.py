"""Rules of the source: every argument of a public function is described ("Args:"; ruff's D417 checks that none is left
out), and a class name stands once.

Not asked for: methods that override a described one, commands (typer shows each option's help) and KFP components.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("cycleqd", "components", "pipelines") for path in (ROOT / room).rglob("*.py"))
DECLARED = {"command", "callback", "component", "pipeline", "property", "setter", "cached_property", "overload"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def bases(node: ast.ClassDef) -> set[str]:
    names = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return {base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in names}


def known(files: list[Path]) -> dict[str, ast.ClassDef]:
    trees = [ast.parse(path.read_text()) for path in files]
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def inherited(node: ast.ClassDef, name: str, classes: dict[str, ast.ClassDef]) -> bool:
    above = [classes[base] for base in bases(node) if base in classes]
    own = [b for b in above if any(isinstance(f, Function) and f.name == name for f in b.body)]
    return bool(own) or any(inherited(base, name, classes) for base in above)


def decorators(node: Function) -> set[str]:
    calls = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return {d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in calls}


def public(tree: ast.Module, classes: dict[str, ast.ClassDef]) -> Iterator[Function]:
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = [f for f in node.body if isinstance(f, Function)]
            yield from (f for f in methods if f.name[0] != "_" and not inherited(node, f.name, classes))


def undescribed(path: Path, classes: dict[str, ast.ClassDef]) -> list[str]:
    found = []
    for function in public(ast.parse(path.read_text()), classes):
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        names = [name for name in names if name not in ("self", "cls") and not name.startswith("_")]
        if names and not decorators(function) & DECLARED and "Args:\n" not in (ast.get_docstring(function) or ""):
            found.append(f"{path.relative_to(ROOT)}:{function.lineno} {function.name}({', '.join(names)})")
    return found


@pytest.mark.parametrize("room", ["cycleqd", "components", "pipelines"])
def test_every_argument_of_a_public_function_is_described(room: str) -> None:
    classes = known(FILES)
    found = [line for path in FILES if (ROOT / room) in (path, *path.parents) for line in undescribed(path, classes)]
    assert not found, "\n" + "\n".join(found)


def test_a_class_name_stands_once() -> None:
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_no_file_of_the_product_is_longer_than_350_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > 350} == {}
