"""The direction of imports, and names that a start by path would shadow: what the folder listing promises."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.launching import ROOT

PACKAGES = ("data_pipeline", "model", "pretrain")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_IMPORT = {
    "data_pipeline": {"data_pipeline"},
    "model": {"model"},
    "pretrain": {"pretrain", "model", "data_pipeline"},
}
ONLY_IN = {
    "deepspeed": {"pretrain/parallel/engine.py"},
    "megatron": {
        "pretrain/parallel/world.py",
        "pretrain/parallel/pipeline.py",
        "pretrain/parallel/gather.py",
        "model/layers.py",
        "model/denoiser.py",
        "model/objective.py",
        "model/megatron_on_cpu.py",
    },
}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    name = str(path.relative_to(ROOT))
    names = imported(path)
    assert names & set(PACKAGES) <= MAY_IMPORT[name.split("/")[0]]
    for library, files in ONLY_IN.items():
        assert library not in names or name in files
    if name.startswith("data_pipeline/"):
        assert "torch" not in names


DATA_PIPELINE_LEVELS = (
    {"errors", "stop_signals"},
    {"atomic_files", "exit_status", "rejects", "indexed"},
    {"manifest", "readers"},
    {"split_table", "documents", "packing", "tokenizers"},
    {"filters", "dedup", "dataset", "verify", "repack"},
    {"tasks"},
    {"prepare"},
)
"""Rooms and modules of data_pipeline; each imports from lower levels and, a room, from itself."""


def test_rooms_and_modules_of_the_data_pipeline_import_downwards():
    folder = ROOT / "data_pipeline"
    level = {name: i for i, names in enumerate(DATA_PIPELINE_LEVELS) for name in names}
    used_in_room: dict[str, dict[str, set[str]]] = {}
    for path in folder.rglob("*.py"):
        room, name = path.relative_to(folder).with_suffix("").parts[0], path.stem
        for used, module in re.findall(r"from data_pipeline(?:\.(\w+)(?:\.(\w+))?)? import", path.read_text()):
            if used == room:
                used_in_room.setdefault(room, {}).setdefault(name, set()).add(module)
            else:
                assert level[used] < level[room], f"{path.relative_to(ROOT)} imports {used}"
    assert set(level) == {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()} - {
        "__init__"
    }
    for graph in used_in_room.values():
        assert list(TopologicalSorter(graph).static_order())  # raises CycleError for a circle within a room


@pytest.mark.parametrize(
    "module",
    ["model.architecture", "model.loops", "model.noise", "model.flops", "pretrain.config.settings", "pretrain.config.load",
     "pretrain.config.run_plan", "pretrain.config.rules", "pretrain.main", "pretrain.cli", "data_pipeline.manifest",
     "data_pipeline.dataset.shuffle"],
)  # fmt: skip
def test_no_torch_behind(module):
    code = f"import sys, {module}; assert not {{'torch', 'datasets', 'pyarrow'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_no_file_of_pretrain_shadows_another_module():
    """`deepspeed pretrain/main.py` puts pretrain/ first in the module path of whatever imports before main mends it."""
    taken = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    names = {path.stem for path in (ROOT / "pretrain").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not (names - {"__init__", "__pycache__"}) & taken


def test_files_and_functions_stay_small():
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_no_paths_of_one_machine():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    ).stdout
    for name in listed.split():
        path = ROOT / name
        if path.suffix in {".py", ".sh", ".md", ".yaml", ".toml", ".json"} and path.is_file():
            assert not re.search(r"(?<![\w.])/(home|root|work|scratch)/\w", path.read_text()), name
