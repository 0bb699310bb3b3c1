"""`logs/rank_N.log`: what each rank prints, and the traceback of a rank that failed."""

import io
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO


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
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def flush(self) -> None:
        """Flush the stream; the file is always flushed."""
        self._stream.flush()


@contextmanager
def logged(run_folder: Path, rank: int) -> Iterator[Path]:
    """Copy what this rank prints in the block to its log, and the traceback of an error. Yields the path of the log."""
    folder = run_folder / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"rank_{rank}.log"
    tee = Tee(sys.stdout, log)
    with redirect_stdout(tee):
        try:
            yield log
        except BaseException:
            tee.keep(traceback.format_exc())
            raise
