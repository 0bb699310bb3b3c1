"""Put a finished folder in the place of an older one, so that one of the two is always there or comes back."""

import ctypes
import os
import shutil
from pathlib import Path

from data_pipeline.atomic_files import lock_prepared_folder, move_into_place, sync
from data_pipeline.errors import DataError
from data_pipeline.in_use import held_alone
from data_pipeline.manifest import MANIFEST_NAME, replaced_folders

AT_FDCWD = -100
RENAME_EXCHANGE = 2


def replace_folder(partial: Path, output: Path, replaced: Path) -> None:
    """Move a finished folder to `output`, and remove what was there once the new one is in place.

    Args:
        replaced: where the older folder is kept between two renames, if the file system cannot exchange two folders at once.

    Raises:
        DataError: it cannot be moved, or another process reads or repacks the folder at `output`.
    """
    try:
        if not output.is_dir() or not any(output.iterdir()):
            move_into_place(partial, output)
            return
        with lock_prepared_folder(output), held_alone(output):
            _replace(partial, output, replaced)
    except OSError as error:
        raise DataError(
            f"cannot move the finished folder to {output}: {error.strerror}; it is complete at {partial}"
        ) from error
    for older in (partial, replaced):
        shutil.rmtree(older, ignore_errors=True)


def _replace(partial: Path, output: Path, replaced: Path) -> None:
    for path in (*partial.iterdir(), partial):
        sync(path)
    if _exchange(partial, output):
        sync(output.parent)
        return
    shutil.rmtree(replaced, ignore_errors=True)
    output.rename(replaced)
    try:
        move_into_place(partial, output)
    except OSError:
        replaced.rename(output)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


def restore_interrupted(output: Path) -> None:
    """Move an older folder back to `output` if a run was killed between the two renames of its replacement.

    The run that follows then finds everything as it was before; the finished tasks are in the work folder.

    Raises:
        DataError: another process is replacing the folder at this moment, or it cannot be moved.
    """
    if output.exists():
        return
    for replaced in replaced_folders(output):
        if not (replaced / MANIFEST_NAME).is_file():
            continue
        try:
            with lock_prepared_folder(replaced):
                replaced.rename(output)
        except OSError as error:
            if not output.exists():  # else another process has moved it
                message = f"cannot move {replaced} back to {output}: {error.strerror}; move it yourself"
                raise DataError(message) from error
        return
