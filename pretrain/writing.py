"""Files that are either the old or the new one, never half of either, and folders that one run owns at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import UserError


@contextmanager
def owned_folder(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder; the system frees it however the process ends.

    Raises:
        UserError: another process holds it.
    """
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is training here; wait for it or set another run.name"
            ) from None
        yield


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
