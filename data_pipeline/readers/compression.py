"""Open files, decompressed where their suffix says so."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from data_pipeline.readers.file_ranges import SKIPPED_BYTES, is_compressed

FORMAT_NAMES = {".gz": "gzip", ".xz": "xz", ".bz2": "bz2", ".zst": "zst"}


class DamagedFileError(Exception):
    """A compressed file ends early or is damaged; what was read before is good."""


@contextmanager
def open_decompressed(path: Path, start: int = 0) -> Iterator[BinaryIO]:
    """The content of a file from byte `start` on; for `.gz .zst .xz .bz2`, of what is inside.

    Raises:
        DamagedFileError: while it is read.
    """
    openers = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _open_zstandard}
    try:
        with openers.get(path.suffix.lower(), io.open)(path, "rb") as file:
            if file.seekable():
                file.seek(start)
            else:
                _skip(file, start)
            yield cast(BinaryIO, file)
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        # bz2 and Arrow's zstd report damage as an OSError without a number; all others come from the system.
        if error.errno is not None or not is_compressed(path):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"the {FORMAT_NAMES[path.suffix.lower()]} stream ends early or is damaged ({error})")


def _skip(file: BinaryIO, num_bytes: int) -> None:
    while num_bytes and (skipped := file.read(min(num_bytes, SKIPPED_BYTES))):
        num_bytes -= len(skipped)


@contextmanager
def _open_zstandard(path: Path, mode: str) -> Iterator[BinaryIO]:
    import pyarrow

    with path.open(mode) as packed, pyarrow.CompressedInputStream(packed, "zstd") as stream:
        yield io.BufferedReader(stream, SKIPPED_BYTES)
