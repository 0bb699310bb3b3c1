"""Open files, unpacked where their suffix says that they are packed."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from data_pipeline.readers.file_ranges import SKIPPED_BYTES

DAMAGED_STREAM = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


@contextmanager
def open_unpacked(path: Path, start: int = 0) -> Iterator[BinaryIO]:
    """A file's content from byte `start` on; of `.gz .zst .xz .bz2`, of what is inside.

    Raises (while it is read):
        DAMAGED_STREAM, or an OSError without a number (bz2, Arrow's zstd): the packed stream is damaged.
    """
    openers = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _open_zstandard}
    with openers.get(path.suffix.lower(), io.open)(path, "rb") as file:
        if file.seekable():
            file.seek(start)
        else:
            _skip(file, start)
        yield cast(BinaryIO, file)


def _skip(file: BinaryIO, num_bytes: int) -> None:
    while num_bytes and (skipped := file.read(min(num_bytes, SKIPPED_BYTES))):
        num_bytes -= len(skipped)


@contextmanager
def _open_zstandard(path: Path, mode: str) -> Iterator[BinaryIO]:
    import pyarrow

    with path.open(mode) as packed, pyarrow.CompressedInputStream(packed, "zstd") as stream:
        yield io.BufferedReader(stream, SKIPPED_BYTES)
