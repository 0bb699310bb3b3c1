"""The direction of imports, the size of files, and names that a start by path would shadow."""

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
        "model/lm_head.py",
        "model/objective.py",
        "model/megatron_on_cpu.py",
    },
}

SETTINGS = {"errors", "config"}
TRAINING = SETTINGS | {"machine", "optimizer", "parallel", "checkpoints", "evaluation", "training"}
ROOMS = {
    "errors": set(),
    "durations": set(),
    "proportions": set(),
    "config": {"errors"},
    "machine": {"errors"},
    "optimizer": SETTINGS | {"machine"},
    "parallel": SETTINGS | {"machine", "optimizer"},
    "checkpoints": SETTINGS | {"machine", "optimizer", "parallel"},
    "evaluation": SETTINGS | {"machine", "optimizer", "parallel", "proportions"},
    "training": TRAINING - {"training"} | {"durations"},
    "export": SETTINGS | {"checkpoints"},
    "commands": TRAINING | {"export", "durations", "proportions"},
    "planning": SETTINGS,
    "inspection": SETTINGS | {"proportions"},
    "studies": SETTINGS | {"evaluation", "planning", "inspection", "durations", "proportions"},
    "command_line": SETTINGS | {"parallel"},
    "main": TRAINING | {"planning", "command_line"},
    "cli": TRAINING | {"planning", "inspection", "commands", "main", "command_line"},
}
"""Folder or file of pretrain/ -> the others that it may import. Lower rooms first: no import points upwards."""

CHEAP = (
    "data_pipeline.dataset.shuffle",
    "data_pipeline.manifest",
    "model.architecture",
    "model.flops",
    "model.loops",
    "model.noise",
    "model.placement",
    "pretrain.checkpoints.folder",
    "pretrain.cli",
    "pretrain.command_line",
    "pretrain.commands.doctor",
    "pretrain.commands.sample",
    "pretrain.config.deepspeed_file",
    "pretrain.config.keys",
    "pretrain.config.layout_names",
    "pretrain.config.load",
    "pretrain.config.optimizer_groups",
    "pretrain.config.overrides",
    "pretrain.config.rules",
    "pretrain.config.run_plan",
    "pretrain.config.settings",
    "pretrain.inspection.command",
    "pretrain.machine.console",
    "pretrain.machine.library_warnings",
    "pretrain.machine.own_packages",
    "pretrain.machine.versions",
    "pretrain.main",
    "pretrain.parallel.attendance",
    "pretrain.parallel.launcher",
    "pretrain.parallel.reporting",
    "pretrain.planning.command",
    "pretrain.studies.command",
)
"""Modules that import neither torch nor another slow library."""


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere in it; of `from a import b`, both `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


IMPORTS = {path: imports(path) for path in FILES}


def room(module: str) -> str:
    """The folder or file of pretrain/ that a module belongs to; empty for other packages."""
    package, *rest = module.split(".")
    return rest[0] if package == "pretrain" and rest else ""


def room_imports() -> dict[str, set[str]]:
    """Every room of pretrain/ -> the other rooms that its files import."""
    graph = {}
    for path, names in IMPORTS.items():
        own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if own not in ("", "__init__"):
            graph.setdefault(own, set()).update({room(name) for name in names} - {"", own})
    return graph


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    name = str(path.relative_to(ROOT))
    names = {module.split(".")[0] for module in IMPORTS[path]}
    assert names & set(PACKAGES) <= MAY_IMPORT[name.split("/")[0]]
    for library, files in ONLY_IN.items():
        assert library not in names or name in files
    if name.startswith("data_pipeline/"):
        assert "torch" not in names


@pytest.mark.parametrize("name", sorted(room_imports()))
def test_a_room_of_pretrain_imports_only_lower_rooms(name):
    assert room_imports()[name] <= ROOMS[name]


def test_pretrain_has_few_rooms_and_levels():
    graph = room_imports()
    assert set(graph) == set(ROOMS)
    level: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():  # raises CycleError
        level[name] = 1 + max((level[below] for below in graph.get(name, ())), default=0)
    assert max(level.values()) <= 7, level
    folders = [path for path in (ROOT / "pretrain").iterdir() if (path / "__init__.py").is_file()]
    assert len(folders) <= 12


def test_no_two_files_import_each_other():
    """No circle of any length, imports inside functions included."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): names for path, names in IMPORTS.items()}
    tuple(TopologicalSorter({name: names & modules.keys() for name, names in modules.items()}).static_order())


DATA_PIPELINE_LEVELS = (
    {"errors", "stop_signals", "json_text"},
    {"atomic_files", "exit_status", "rejects", "indexed", "yaml_files", "typed_words", "generators", "permutation"},
    {"manifest", "readers"},
    {"split_table", "documents", "provenance", "packing", "tokenizers", "paths", "in_use"},
    {"filters", "dedup", "dataset", "verify", "repack", "replace", "copy_folder"},
    {"tasks", "decontamination", "dropped_ids"},
    {"output_checks", "prepare_options"},
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


def test_cheap_modules_import_no_slow_library():
    lines = ["import importlib, sys"]
    slow = {"torch", "datasets", "pyarrow", "deepspeed"}
    lines += [f"importlib.import_module({name!r}); assert not {slow} & set(sys.modules), {name!r}" for name in CHEAP]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=True, timeout=60)


def test_a_missing_run_folder_and_the_status_of_a_run_need_no_slow_library(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    lines = ["import sys", "from pretrain.cli import main"]
    lines += [
        f"assert main([{verb!r}, 'nowhere']) == 2, {verb!r}" for verb in ("evaluate", "sample", "probe", "status")
    ]
    lines.append(f"assert main(['evaluate', {str(tmp_path)!r}, '--compare', 'nowhere']) == 2")
    lines.append(f"assert main(['status', {str(tmp_path)!r}]) == 0")
    lines.append("assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=True, timeout=60)


def test_no_file_of_pretrain_shadows_another_module():
    """`deepspeed pretrain/main.py` puts pretrain/ first in the module path until main.py replaces it."""
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


def test_test_modules_have_different_names():
    """pytest imports them by their file name alone and collects only one of two."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
