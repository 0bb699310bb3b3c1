"""`logs/rank_N.log`: what each rank prints, and the traceback of the one that failed."""

import io
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO


class Tee(io.TextIOBase):
    """A stream that also appends to a file, which is made by the first text written to it."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self._stream, self._path = stream, path

    def write(self, text: str) -> int:
        """Write to both; the file is opened for each write, so that a killed rank leaves whole lines."""
        self.keep(text)
        return self._stream.write(text)

    def keep(self, text: str) -> None:
        """Write to the file alone; a full disk costs the log, not the run or the error that it should tell."""
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def flush(self) -> None:
        """Flush the stream; the file needs none."""
        self._stream.flush()


@contextmanager
def logged(run_folder: Path, rank: int) -> Iterator[Path]:
    """Inside, what this rank prints also goes to its log, and an error that leaves with its traceback. Gives the log's path."""
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
