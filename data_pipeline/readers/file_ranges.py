"""Pieces of the inputs that one reader reads in one go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import DataError

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")
PACKED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
UNSUPPORTED_SUFFIXES = (".zip", ".tar", ".tgz", ".7z", ".lz4", ".rar")
# Of lines that began in an earlier span, read at once.
SKIPPED_BYTES = 1 << 20

Kind = Literal["lines", "text", "parquet", "dataset"]


@dataclass(frozen=True)
class Span:
    """What one reader reads in one go.

    Attributes:
        kind: "lines" (JSON lines), "text" (a whole file is one document), "parquet", or "dataset".
        source: the file, or the `--input` word of a dataset.
        shown: its name in messages.
        start, stop: bytes for lines (a line belongs to the span in which it begins), row groups for Parquet, rows for
            datasets; a stop of None is the end.
        num_bytes: size of the span on disk, about.
    """

    kind: Kind
    source: str
    shown: str
    num_bytes: int
    start: int = 0
    stop: int | None = None

    def place(self, number: int | None) -> str:
        """A record's place, for messages: `number` is its line in the file, or its row."""
        if number is None or self.kind == "text":
            return self.shown
        return f"{self.shown}:{number}" if self.kind == "lines" else f"{self.shown}, row {number}"

    def lines_before(self) -> int:
        """Lines of the file that begin before the span. Reads them: for an error that ends the run."""
        if self.kind != "lines" or not self.start:
            return 0
        count, left = 1, self.start - 1
        with Path(self.source).open("rb") as file:
            while left and (block := file.read(min(left, SKIPPED_BYTES))):
                count += block.count(b"\n")
                left -= len(block)
        return count


def span_kind(path: Path) -> Kind:
    """How a file is read, by its name.

    Raises:
        DataError: an archive or compression that is not supported.
    """
    if path.suffix.lower() in UNSUPPORTED_SUFFIXES:
        raise DataError(
            f"{path}: {path.suffix} files are not read; unpack it or pack it as {', '.join(PACKED_SUFFIXES)}"
        )
    suffix = (Path(path.stem) if is_packed(path) else path).suffix.lower()
    if suffix in JSON_SUFFIXES:
        return "lines"
    return "parquet" if suffix in PARQUET_SUFFIXES and not is_packed(path) else "text"


def is_packed(path: Path) -> bool:
    """Whether a file has to be unpacked from its beginning, so that nobody can start in its middle."""
    return path.suffix.lower() in PACKED_SUFFIXES
