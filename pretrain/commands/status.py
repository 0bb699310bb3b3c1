"""`loopmdm status RUN`: what a run is doing, from its folder alone."""

import argparse
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.json_text import json_text
from data_pipeline.paths import user_path
from pretrain.durations import format_duration

RECENT = 600.0
"""Seconds since the last record of a run that may be running on another host."""
WARNINGS = 3
"""How many of the last warnings are shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folder", type=user_path, metavar="RUN", help="run folder, such as runs/quickstart")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(arguments: argparse.Namespace) -> int:
    """Print the state; the exit status is 2 if the run has failed."""
    from pretrain.config.run_folder import check_run_folder

    check_run_folder(arguments.folder)
    status = status_of(arguments.folder)
    print(json_text(status, indent=2) if arguments.json else "\n".join(_lines(status)))
    return 2 if status["state"] in ("failed", "killed") else 0


def status_of(folder: Path) -> dict[str, Any]:
    """Everything that the verb prints; figures that the run has not written are null."""
    from pretrain.checkpoints.folder import list_checkpoints, step_of
    from pretrain.config.run_folder import is_locked, read_status, whole_records

    start = read_status(folder)
    records = whole_records(folder)
    training = next((record for record in reversed(records) if "loss" in record), {})
    validation = next((record for record in reversed(records) if "validation" in record), None)
    checkpoints, age = list_checkpoints(folder), _age(folder / "metrics.jsonl")
    kept = ("loss", "grad_norm", "tokens_per_second", "mfu", "eta", "elapsed", "skipped")
    return {
        "run": str(folder),
        "state": _state(start, is_locked(folder), age),
        **{key: start.get(key) for key in ("since", "why", "host", "process", "ranks", "slurm_job", "starts", "total_steps")},
        "step": training.get("step", step_of(checkpoints[-1]) if checkpoints else None),
        **{key: training.get(key) for key in kept},
        "seconds_since_record": age,
        "validation": validation and {
            "step": validation["step"],
            "nats_per_token": {str(row["loops"]): row["nats_per_token"] for row in validation["validation"]["loops"]},
        },
        "checkpoints": [path.name for path in checkpoints],
        "warnings": _warnings(folder / "logs" / "rank_0.log"),
    }  # fmt: skip


def _state(start: dict[str, Any], locked: bool | None, age: float | None) -> str:
    """running, finished, stopped, failed, imported; killed: ended without saying so; waiting: its SLURM job is in the queue again.

    As recorded if `locked` is None. Some file systems do not tell a host of the locks of another: there, a run with a recent
    record counts as running.
    """
    state = start.get("state", "unknown")
    elsewhere = start.get("host") not in (None, socket.gethostname())
    if state == "running" and locked is False and not (elsewhere and age is not None and age < RECENT):
        state = "killed"
    if state in ("stopped", "killed") and start.get("slurm_job") and _slurm_state(start["slurm_job"]) == "PENDING":
        return "waiting"
    return "running" if locked else state


def _slurm_state(job: str) -> str | None:
    with suppress(OSError, subprocess.TimeoutExpired):
        command = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip() or None
    return None


def _age(path: Path) -> float | None:
    return round(time.time() - path.stat().st_mtime, 1) if path.exists() else None


def _warnings(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [line for line in lines if line.startswith(("warning:", "error:"))][-WARNINGS:]


def _lines(status: dict[str, Any]) -> Iterator[str]:
    yield f"{'run':<12}{status['run']}"
    yield f"{'state':<12}{_state_line(status)}"
    yield f"{'step':<12}{_step_line(status)}"
    if status["elapsed"] is not None:
        yield f"{'loss':<12}{_number(status['loss'])} nats/token, grad_norm {_number(status['grad_norm'])}"
    if status["validation"]:
        figures = ", ".join(
            f"S={loops} {_number(nats)}" for loops, nats in status["validation"]["nats_per_token"].items()
        )
        yield f"{'validation':<12}{figures} nats/token at step {status['validation']['step']}"
    if status["tokens_per_second"] is not None:
        yield f"{'speed':<12}{status['tokens_per_second']:,.0f} tokens/s"
    if status["skipped"]:
        yield f"{'skipped':<12}{status['skipped']} updates"
    yield f"{'checkpoints':<12}{', '.join(status['checkpoints']) or 'none'}"
    if status["state"] in ("killed", "stopped"):
        yield f"{'next':<12}start it again with the same command: it resumes from the newest checkpoint"
    yield from status["warnings"]


def _number(value: float | None) -> str:
    """A figure; one that was not finite is null in the file."""
    return "n/a" if value is None else f"{value:.4f}"


def _state_line(status: dict[str, Any]) -> str:
    where = [f"on {status['host']}, process {status['process']}"] if status["host"] else []
    where += [f"{status['ranks']} rank{'s' if status['ranks'] > 1 else ''}"] if status["ranks"] else []
    where += [f"SLURM job {status['slurm_job']}"] if status["slurm_job"] else []
    where += [f"start {status['starts']}"] if status["starts"] else []
    word = ", started" if status["state"] == "killed" else " since"
    since = f"{word} {status['since']}" if status["since"] else ""
    why = f" ({status['why']})" if status["why"] not in (None, status["state"]) else ""
    return f"{status['state']}{why}{since}" + "".join(f"; {part}" for part in where)


def _step_line(status: dict[str, Any]) -> str:
    if status["step"] is None:
        return "none yet"
    total = f" of {status['total_steps']:,}" if status["total_steps"] else ""
    eta = ""
    if status["state"] == "running" and status["eta"] is not None:
        eta = f", eta {format_duration(status['eta'])}"
    if status["state"] in ("running", "killed") and status["seconds_since_record"] is not None:
        eta += f", last record {format_duration(status['seconds_since_record'])} ago"
    took = f" in {format_duration(status['elapsed'])} of training" if status["elapsed"] is not None else ""
    return f"{status['step']:,}{total}{took}{eta}"
