"""Names that any file imports from this project exist, also in imports inside functions and in scripts that no test runs."""

import ast
from functools import cache
from pathlib import Path

from tests.launching import ROOT

PACKAGES = ("data_pipeline", "model", "pretrain", "tests")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def file_of(module: str) -> Path | None:
    """The file of a module of this project."""
    path = ROOT.joinpath(*module.split("."))
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found else None


@cache
def names_of(file: Path) -> set[str]:
    """Names that a file defines or imports outside of functions and classes."""
    names, nodes = set(), list(ast.parse(file.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        nodes += ast.iter_child_nodes(node)
    return names


def missing(path: Path) -> list[str]:
    """`module.name` of every import of a name that is neither in that module nor a module itself."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            file = file_of(node.module)
            known = names_of(file) if file else set()
            names = [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in known]
            found += [name for name in names if file_of(name) is None]
    return found


def test_imported_names_exist():
    found = {str(path.relative_to(ROOT)): missing(path) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_name_that_is_gone_is_found(tmp_path):
    file = tmp_path / "script.py"
    file.write_text("def run():\n    from model.noise import gone\n    from model import noise, nothing\n")
    assert missing(file) == ["model.noise.gone", "model.nothing"]
