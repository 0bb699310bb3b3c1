"""A file of figures that outlives a full disk."""

from pathlib import Path
from typing import Literal


class PatientFile:
    """Appends at once. What cannot be written is kept, and written before what comes next; training goes on meanwhile.

    Of a record that was cut short only the rest is written, so the file has no torn record in its middle.
    """

    def __init__(self, path: Path, mode: Literal["ab", "xb"]) -> None:
        self._path, self._file, self._waiting = path, path.open(mode, buffering=0), b""

    def write(self, data: bytes) -> None:
        """Append, after what is waiting. Of errors in a row, the first is told."""
        first = not self._waiting
        self._waiting += data
        try:
            self._append()
        except OSError as error:
            if first:
                self._warn(error, "These figures will be written with later ones; training goes on")

    def close(self) -> None:
        """Try a last time to write what is waiting, and close the file."""
        try:
            with self._file:
                self._append()
        except OSError as error:
            self._warn(error, f"Figures are lost: {len(self._waiting):,} bytes")

    def _append(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def _warn(self, error: OSError, consequence: str) -> None:
        print(f"warning: {self._path} could not be written: {error}. {consequence}", flush=True)
