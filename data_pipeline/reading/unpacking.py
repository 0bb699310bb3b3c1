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

from data_pipeline.reading.spans import SKIPPED_BYTES

DAMAGED_STREAM = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """A file's content; of `.gz .zst .xz .bz2`, what is inside.

    Raises (while it is read):
        DAMAGED_STREAM, or an OSError without a number (bz2, Arrow's zstd): the packed stream is damaged.
    """
    openers = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _open_zstandard}
    with openers.get(path.suffix.lower(), io.open)(path, "rb") as file:
        yield cast(BinaryIO, file)


@contextmanager
def _open_zstandard(path: Path, mode: str) -> Iterator[BinaryIO]:
    import pyarrow

    with path.open(mode) as packed, pyarrow.CompressedInputStream(packed, "zstd") as stream:
        yield io.BufferedReader(stream, SKIPPED_BYTES)
