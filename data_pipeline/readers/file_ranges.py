"""Parts of the inputs that one reader reads from beginning to end."""

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.readers.input_files import InputFile
from data_pipeline.readers.kinds import Kind
from data_pipeline.readers.remote import RemotePath

# Block size for reading past what lies before a range.
SKIPPED_BYTES = 1 << 20

# They are not read from bytes of a file: a range is a range of rows.
WITHOUT_BYTES = ("dataset", "generated")


@dataclass(frozen=True)
class FileRange:
    """A whole file, a part of one, or a part of a dataset.

    Attributes:
        kind: "lines" (JSON lines), "text" (the whole file is one document), "parquet", "dataset" or "generated" (instances of
            a generator).
        source: the file, or the `--input` value of a dataset or a generator.
        shown: its name in messages.
        num_bytes: approximate size on disk.
        start, stop: bytes of a file of lines (a line belongs to the range in which it begins), row groups of a Parquet
            file, rows of a dataset or numbers of instances; a stop of None is the end.
        remote: the file, if it is remote; `source` is its URL.
    """

    kind: Kind
    source: str
    shown: str
    num_bytes: int
    start: int = 0
    stop: int | None = None
    remote: RemotePath | None = None

    @property
    def file(self) -> InputFile:
        """The file that the range belongs to."""
        return self.remote or Path(self.source)

    def place(self, number: int | None) -> str:
        """Where a record is, for messages; `number` is its line in the file, or its row."""
        if number is None or self.kind == "text":
            return self.shown
        return f"{self.shown}:{number}" if self.kind == "lines" else f"{self.shown}, row {number}"

    def lines_before(self) -> int:
        """Lines of the file that begin before the range. Reads them all, so only for an error that ends the run."""
        if self.kind != "lines" or not self.start:
            return 0
        count, left = 1, self.start - 1
        with self.file.open("rb") as file:
            while left and (block := file.read(min(left, SKIPPED_BYTES))):
                count += block.count(b"\n")
                left -= len(block)
        return count
