"""The folder of a run, for those that only read it."""

import errno
import fcntl
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.json_text import lines_of
from pretrain.errors import UserError

LOCK = ".lock"
"""A file that the process holds which trains in the folder; it contains the name of its machine and its process id."""

STATUS = "status.json"
"""What the run is doing, for `loopmdm status` and for studies."""


def check_run_folder(folder: Path) -> None:
    """Raise UserError for what is not the folder of a run."""
    if (folder / "config.yaml").is_file():
        return
    why = "is a file" if folder.exists() else "no such folder"
    if folder.is_dir():
        why = "not a run folder (it has no config.yaml)"
    raise UserError(f"{folder}: {why}; give the folder of a run, such as runs/quickstart")


def is_locked(folder: Path) -> bool | None:
    """Whether a process trains in the folder now; None if that cannot be known."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError as error:
        return True if error.errno == errno.EWOULDBLOCK else None


def read_status(folder: Path) -> dict[str, Any]:
    """What training has written last in `status.json`; empty for a run of an older version, and if it cannot be read."""
    try:
        status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def whole_records(folder: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`. A line that is being written, or that a crash has spoilt, is left out."""
    path = folder / "metrics.jsonl"
    lines = lines_of(path.read_text(encoding="utf-8", errors="replace")) if path.exists() else []
    return [record for line in lines if (record := record_of(line))]


def record_of(line: str) -> dict[str, Any] | None:
    """The record that a line of `metrics.jsonl` is; None if it is not a whole one."""
    with suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            return record
    return None


def has_record(folder: Path, kind: str, step: int) -> bool:
    """Whether `metrics.jsonl` has a record of a step with this key: `validation` or `texts`."""
    return any(kind in record and record["step"] == step for record in whole_records(folder))
