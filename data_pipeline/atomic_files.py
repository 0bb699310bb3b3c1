"""Files and folders that appear complete or not at all, and locks on them."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from data_pipeline.errors import DataError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, content: str | bytes, modified_ns: int | None = None) -> None:
    """Write a file through a temporary file beside it; missing parent folders are created.

    Args:
        content: text is written as UTF-8.
        modified_ns: modification time to set, in ns since 1970; None for the present.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        if modified_ns is not None:
            os.utime(partial, ns=(modified_ns, modified_ns))
        move_into_place(partial, path)
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)  # the system names none when a write fails, as on a full disk
        raise
    finally:
        partial.unlink(missing_ok=True)


STREAMS = (Path("/dev/stdout"), Path("/dev/stderr"))


def write_output(option: str, path: Path, content: str | bytes) -> None:
    """Write a file that an option of the command line names.

    A device or a pipe, such as /dev/null, is appended to: a file that is renamed to its name would replace it for all programs.
    So are /dev/stdout and /dev/stderr where they are files, which others have open. Of any other link, the file behind it is
    replaced.

    Raises:
        DataError: it cannot be written.
    """
    try:
        if path.exists() and (not path.is_file() or path in STREAMS):
            with path.open("ab") as output:
                output.write(content.encode("utf-8") if isinstance(content, str) else content)
        else:
            write_atomic(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise DataError(f"{option} {path}: cannot be written ({error.strerror}); choose another file") from error


def move_into_place(partial: Path, final: Path) -> None:
    """Flush a file, or a folder of files, to the disk and rename it to `final`.

    After a power cut `final` is either complete or absent. An existing file is replaced; an existing folder must be empty.
    """
    for path in (*partial.iterdir(), partial) if partial.is_dir() else (partial,):
        sync(path)
    partial.rename(final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, busy: Exception, unguarded: Callable[[str], None] = lambda _: None) -> Iterator[int]:
    """Hold an advisory lock on a folder, or on a file that is created, and yield its descriptor.

    The system releases the lock however the process ends.

    Args:
        busy: raised when another process holds the lock.
        unguarded: on a file system without locks, called with the system's reason.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise busy from error
            unguarded(error.strerror)
        yield descriptor
    finally:
        os.close(descriptor)


def lock_prepared_folder(folder: Path) -> AbstractContextManager[int]:
    """Hold a prepared folder while its rows, or all of it, are replaced.

    Raises:
        DataError: another process holds it.
    """
    return locked(folder, DataError(f"another process is repacking or replacing {folder}; wait until it has finished"))
