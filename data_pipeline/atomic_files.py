"""Signals that stop a run, and files and folders that are written whole or not at all."""

import errno
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from data_pipeline.errors import DataError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the process to end; unwinds like KeyboardInterrupt, so that `finally` blocks clean up."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Stopped`, once; a second one does not disturb the cleaning up.

    Signals that are ignored (as under nohup) stay so. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    active = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in active:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    for number in active:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in active:
            signal.signal(number, previous[number])


@contextmanager
def stop_signals_wait() -> Iterator[None]:
    """A stop signal that arrives inside acts when the block ends, as after the start of a process, which it would spoil."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    held = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]
    for number in held:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, previous[number])
        for number in arrived[:1]:
            signal.raise_signal(number)


def settle(partial: Path, final: Path) -> None:
    """Move a written file, or a folder of files, to its final name by way of the disk.

    After a power cut either nothing is at `final` or the whole. A folder that is there already must be empty.
    """
    for path in (*partial.iterdir(), partial) if partial.is_dir() else (partial,):
        _sync(path)
    partial.rename(final)
    _sync(final.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_bytes(content)
    settle(partial, path)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[int]:
    """Hold an advisory lock on a folder, or a file that is made, and give its descriptor; it ends with the process at the latest.

    On a file system without locks there is none: two processes then do the same work twice.

    Raises:
        DataError: another process holds it; `busy` is what to say.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(busy) from error
        yield descriptor
    finally:
        os.close(descriptor)


def lock_rows(folder: Path) -> AbstractContextManager[int]:
    """Hold a prepared folder while its rows, or all of it, are replaced. Raises DataError when another process does."""
    return locked(folder, f"another process packs or replaces {folder}; wait for its end")


def replace_folder(partial: Path, output: Path) -> None:
    """Move a finished folder to `output`; what was there is removed once the new one is in place.

    Raises:
        DataError: it cannot be moved, or another process packs what is there.
    """
    replaced = output.with_name(f"{output.name}.replaced-{os.getpid()}")
    had_content = output.is_dir() and any(output.iterdir())
    with lock_rows(output) if had_content else nullcontext():
        try:
            if had_content:
                output.rename(replaced)
            settle(partial, output)
        except OSError as error:
            if replaced.exists() and not output.exists():
                replaced.rename(output)
            raise DataError(f"cannot move the finished folder to {output}: {error.strerror}") from error
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(folder: Path, needed: int) -> None:
    """Compare an estimate in bytes with the free space of the disk that holds `folder`.

    Raises:
        DataError: there is less.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"about {needed / 1e6:,.1f} MB are needed, the disk of {folder.parent} has {free / 1e6:,.1f} MB free; "
            "free some space or choose another --output"
        )
