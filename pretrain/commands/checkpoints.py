"""`loopmdm checkpoints RUN`: the checkpoints of a run, whether they are whole, and what they hold."""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.json_text import json_text
from data_pipeline.paths import user_path

COLUMNS = ("step", "GiB", "state", "layout", "validation, nats/token")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folder", type=user_path, metavar="RUN", help="run folder, such as runs/quickstart")
    parser.add_argument("--verify", action="store_true", help="read every file and compare it with its checksums")
    parser.add_argument("--prune", type=int, metavar="N", help="then remove all but the newest N whole checkpoints")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each checkpoint; the exit status is 2 if one is damaged."""
    from pretrain.checkpoints.folder import list_checkpoints
    from pretrain.config.run_folder import check_run_folder
    from pretrain.errors import UserError

    check_run_folder(arguments.folder)
    if arguments.prune is not None and arguments.prune < 1:
        raise UserError(f"--prune {arguments.prune}: must be at least 1")
    found = describe_all(arguments.folder, arguments.verify)
    if not found and not arguments.json:
        replaced = ", but training has replaced some while they were read" if list_checkpoints(arguments.folder) else ""
        print(f"{arguments.folder}: no complete checkpoint{replaced}")
    elif arguments.json:
        print(json_text(found, indent=2))
    else:
        print_table(found)
    if arguments.prune is not None:
        _prune(arguments.folder, arguments.prune, found)
    return 2 if any(one["problem"] for one in found) else 0


def describe_all(run_folder: Path, verify: bool) -> list[dict[str, Any]]:
    """The records of all checkpoints, oldest first, without those that training replaces while they are read."""
    from pretrain.checkpoints.folder import list_checkpoints

    found: list[dict[str, Any]] = []
    for path in list_checkpoints(run_folder):
        with suppress(FileNotFoundError):
            record = describe(path, verify)
            if path in list_checkpoints(run_folder):
                found.append(record)
    return found


def describe(checkpoint: Path, verify: bool) -> dict[str, Any]:
    """The record of one checkpoint.

    Args:
        verify: compare everything with its checksums, not only the sizes of the files.
    """
    from pretrain.checkpoints.folder import has_index, read_state, step_of
    from pretrain.checkpoints.retention import validation_figures
    from pretrain.errors import UserError

    figures = validation_figures(checkpoint.parents[1], step_of(checkpoint))
    problem, checksums = problem_of(checkpoint, verify), has_index(checkpoint)
    try:
        layout = read_state(checkpoint).get("layout", {})
    except UserError as error:
        layout, problem = {}, problem or str(error)
    return {
        "step": step_of(checkpoint),
        "bytes": sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()),
        "checksums": checksums,
        "verified": verify and checksums and problem is None,
        "problem": problem,
        "layout": layout,
        "validation": {str(s): nats for s, nats in figures.items()},
    }


def problem_of(checkpoint: Path, verify: bool) -> str | None:
    """What is wrong with the files of a checkpoint; None if nothing is."""
    from pretrain.checkpoints.damage import DamagedCheckpointError
    from pretrain.checkpoints.folder import has_index, read_whole_index
    from pretrain.checkpoints.reader import Reader
    from pretrain.errors import UserError

    if not has_index(checkpoint):
        return None  # the older format has no checksums
    try:
        index = read_whole_index(checkpoint)
        if verify:
            with Reader(checkpoint, index) as reader:
                reader.verify({entry.file for entry in index.entries})
    except DamagedCheckpointError as error:
        return error.problem
    except UserError as error:  # of a later version
        return str(error)
    return None


def print_table(found: list[dict[str, Any]]) -> None:
    """One line for each checkpoint, oldest first."""
    rows = [COLUMNS, *(_cells(one) for one in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    whole = "whole" if one["checksums"] else "whole, without checksums"
    state = one["problem"] or ("every byte as written" if one["verified"] else whole)
    validation = ", ".join(f"S={loops} {nats:.4f}" for loops, nats in one["validation"].items())
    return str(one["step"]), f"{one['bytes'] / 2**30:.3f}", state, _layout(one["layout"]), validation


def _layout(layout: dict[str, Any]) -> str:
    """Such as `4 ranks, tensor 2, pipeline 2, ZeRO-1, bf16`."""
    if "zero_stage" not in layout:
        return ""
    ranks = layout["world_size"]
    parts = [f"{ranks} rank{'s' if ranks > 1 else ''}"]
    parts += [f"{name} {layout[name]}" for name in ("tensor", "pipeline") if layout[name] > 1]
    return ", ".join([*parts, f"ZeRO-{layout['zero_stage']}", layout["precision"]])


def _prune(folder: Path, keep: int, found: list[dict[str, Any]]) -> None:
    """Remove older checkpoints. Damaged ones do not count as kept, and are left for their owner to look at."""
    from pretrain.checkpoints.folder import remove
    from pretrain.training.run_folder import owned_folder

    whole = [one["step"] for one in found if one["problem"] is None]
    with owned_folder(folder, way_out="wait for it; it keeps checkpoint.keep checkpoints itself"):
        for step in whole[:-keep]:
            remove(folder / "checkpoints" / f"step_{step}")
            print(f"removed step_{step}")
