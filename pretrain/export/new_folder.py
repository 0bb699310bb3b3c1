"""A new folder that appears complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from data_pipeline.atomic_files import FULL_DISK, move_into_place, sync
from pretrain.errors import UserError


def require_new(folder: Path, what: str) -> None:
    """Raise UserError if there is something at `folder` already; an empty folder is fine.

    Args:
        what: the argument that names the folder, for the message.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{what} {folder}: is not a folder; choose another name")
    if any(folder.iterdir()):
        raise UserError(f"{what} {folder}: exists and is not empty; name another folder")


@contextmanager
def new_folder(folder: Path, what: str) -> Iterator[Path]:
    """Yield a folder to write into, which is moved to `folder` at the end of the block. After an error nothing is left.

    Raises:
        UserError: there is something at `folder` already, or it cannot be written.
    """
    require_new(folder, what)
    final = folder.resolve()
    partial = final.with_name(f"{final.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            sync(path)
        move_into_place(partial, final)
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        fix = "free some space" if number in FULL_DISK else "choose another folder"
        raise UserError(
            f"{what} {folder}: cannot be written ({getattr(error, 'strerror', None) or error}); {fix}"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
