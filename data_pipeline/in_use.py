"""Shared locks by which readers of a prepared folder keep it from being removed.

A process that maps the files of a folder holds a shared lock on its copy of the tokenizer, the one file that stays the same as
long as the folder exists; to remove the folder, or a file that may be mapped, takes an exclusive lock on it. On one machine,
mapped files outlive their names; on a network file system, they are lost when another machine removes them. A lock needs no
permission to write, so data that belongs to somebody else can be held too.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, load_manifest

BUSY = (errno.EWOULDBLOCK, errno.EACCES)
# A reader waits for the seconds in which a folder is exchanged.
ATTEMPTS, PAUSE = 25, 0.2


def hold(folder: Path) -> tuple[Manifest, BinaryIO | None]:
    """Read the manifest of a prepared folder and hold the folder until the returned file is closed.

    The file is None where the folder has no tokenizer that can be read, which `check_files` reports.

    Raises:
        DataError: as `load_manifest`; or the folder is being replaced.
    """
    for _ in range(ATTEMPTS):
        manifest = load_manifest(folder)
        path = folder / manifest.tokenizer.file
        try:
            file = path.open("rb")
        except OSError:
            return manifest, None
        # Once the lock is held, the folder stays; it may have been replaced between the steps above.
        if _lock(file, fcntl.LOCK_SH) and _is_still(path, file) and load_manifest(folder) == manifest:
            return manifest, file
        file.close()
        time.sleep(PAUSE)
    raise DataError(f"{folder} is being replaced or repacked; run the command again when that has finished")


def users(folder: Path, manifest: Manifest) -> str | None:
    """Who holds a prepared folder, in words; None if nobody does or its file system has no locks."""
    with _writable(folder / manifest.tokenizer.file) as file:
        return None if _lock(file, fcntl.LOCK_EX) else _holders(folder / manifest.tokenizer.file)


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Keep readers out while a folder is replaced.

    Raises:
        DataError: a process holds the folder.
    """
    try:
        file = _writable(folder / load_manifest(folder).tokenizer.file)
    except FileNotFoundError:  # damaged, so that nobody can read it
        yield
        return
    with file:
        if not _lock(file, fcntl.LOCK_EX):
            raise DataError(in_use_text(folder, _holders(Path(file.name))))
        yield


def require_unused(folder: Path) -> None:
    """Raise DataError when a process holds a prepared folder that is to be replaced."""
    with held_alone(folder):
        pass


def in_use_text(folder: Path, holders: str) -> str:
    """What to do about a folder that cannot be replaced now."""
    return (
        f"{folder} is in use by {holders}, and a training run could not be resumed on other data; wait until it has ended, or "
        "choose another --output"
    )


def _is_still(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _lock(file: BinaryIO, kind: int) -> bool:
    """Lock a file without waiting; False if another process's lock prevents it. True where there are no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in BUSY
    return True


def _writable(path: Path) -> BinaryIO:
    """Open a file, for writing if that is allowed: NFS grants exclusive locks on no other descriptor."""
    try:
        return path.open("r+b")
    except FileNotFoundError:
        raise
    except OSError:
        return path.open("rb")


def _holders(path: Path) -> str:
    """The processes of this machine that hold a lock on a file, as far as /proc shows them."""
    inode, found = path.stat().st_ino, []
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        lines = []
    for fields in map(str.split, lines):
        # NUMBER: FLOCK ADVISORY READ PID MAJOR:MINOR:INODE START END; a waiting one has an arrow in front.
        if len(fields) == 8 and fields[5].rpartition(":")[2] == str(inode) and int(fields[4]) > 0:
            found.append(fields[4])
    if not found:
        return "a process, perhaps on another machine"
    return f"process {', '.join(sorted(set(found)))} on {socket.gethostname()}"
