"""`logs/rank_N.log`: what each rank prints, the messages of its libraries, and the traceback of a rank that failed."""

import io
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

from pretrain.machine.console import ERRORS


class Tee(io.TextIOBase):
    """A stream that also appends to a file, which the first write creates."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self._stream, self._path = stream, path

    def write(self, text: str) -> int:
        """Write to both. The file is opened for each write, so that a rank that is killed leaves complete lines."""
        self.keep(text)
        return self._stream.write(text)

    def keep(self, text: str) -> None:
        """Write to the file only. A full disk loses the log, but stops neither the run nor the report of an error."""
        with suppress(OSError), self._path.open("a", encoding="utf-8", errors=ERRORS) as file:
            file.write(text)

    def flush(self) -> None:
        """Flush the stream; the file is always flushed."""
        self._stream.flush()


class LibraryMessages(logging.Handler):
    """Passes the messages of libraries to the log of this rank."""

    def __init__(self, tee: Tee) -> None:
        super().__init__()
        self._tee = tee
        self.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Append one message."""
        self._tee.keep(self.format(record) + "\n")


@contextmanager
def logged(run_folder: Path, rank: int) -> Iterator[Path]:
    """Copy what this rank prints in the block to its log, and the traceback of an error. Yields the path of the log."""
    folder = run_folder / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"rank_{rank}.log"
    tee = Tee(sys.stdout, log)
    with library_messages(tee), redirect_stdout(tee):
        try:
            yield log
        except BaseException:
            tee.keep(traceback.format_exc())
            raise


@contextmanager
def library_messages(tee: Tee) -> Iterator[None]:
    """In the block, messages of `logging` and of `warnings` go to the log; only errors also reach the console.

    Loggers that have a console handler of their own, such as DeepSpeed's, keep it for errors.
    """
    to_log, to_console = LibraryMessages(tee), logging.StreamHandler()
    to_console.setLevel(logging.ERROR)
    others = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    console = [
        handler for logger in (logging.root, *others) for handler in logger.handlers if _writes_to_console(handler)
    ]
    levels = [handler.level for handler in console]
    takers = [logging.root, *(logger for logger in others if logger.handlers and not logger.propagate)]
    for handler, level in zip(console, levels, strict=True):
        handler.setLevel(max(level, logging.ERROR))
    for logger in takers:
        logger.addHandler(to_log)
    if not any(map(_writes_to_console, logging.root.handlers)):
        logging.root.addHandler(to_console)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.root.removeHandler(to_console)
        for logger in takers:
            logger.removeHandler(to_log)
        for handler, level in zip(console, levels, strict=True):
            handler.setLevel(level)


def _writes_to_console(handler: logging.Handler) -> bool:
    console = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return any(getattr(handler, "stream", None) is stream for stream in console)
