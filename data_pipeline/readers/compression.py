"""Open files, decompressed where their suffix says so."""

import errno
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from data_pipeline.errors import ReadError
from data_pipeline.readers.file_ranges import SKIPPED_BYTES
from data_pipeline.readers.input_files import InputFile, read_again, stored_size
from data_pipeline.readers.kinds import is_compressed
from data_pipeline.readers.members import Members, begins_well
from data_pipeline.readers.zstandard import ZstandardContent

FORMAT_NAMES = {".gz": "gzip", ".xz": "xz", ".bz2": "bz2", ".zst": "zst"}
# Messages of zlib and zstd about memory; the other libraries raise MemoryError.
NO_MEMORY = ("Error -4 ", "Allocation error", "not enough memory")
MAGIC_BYTES = 6
LONG_WINDOW = "Frame requires too much memory"
OTHER_DICTIONARY = "Dictionary mismatch"


class DamagedFileError(Exception):
    """The content of a file is broken from some place on; what was read before is good.

    Attributes:
        missing: what was not read, as far as known.
    """

    def __init__(self, why: str, missing: str) -> None:
        super().__init__(why)
        self.missing = missing


class TrailingBytesError(DamagedFileError):
    """The content is whole, but `num_bytes` bytes follow it that are no content."""

    def __init__(self, why: str, missing: str, num_bytes: int) -> None:
        super().__init__(why, missing)
        self.num_bytes = num_bytes


@dataclass(frozen=True)
class OpenFile:
    """The content of a file, decompressed.

    Attributes:
        content: reads it.
        stored: reads the file as it is on the disk; the same as `content` unless it is compressed.
    """

    path: InputFile
    content: io.BufferedReader
    stored: io.BufferedReader

    def require_end(self, position: int) -> None:
        """Check that the content, which seems to end at `position`, does not go on.

        Raises:
            ReadError: a plain file is longer. TrailingBytesError, DamagedFileError: there are bytes after the end of the
                compressed content.
        """
        size = stored_size(self.stored)
        if not is_compressed(self.path):
            if position < size:
                raise ReadError.differs(str(self.path), f"it ended at byte {position:,} of {size:,}")
            return
        name, read = FORMAT_NAMES[self.path.suffix.lower()], self.stored.tell()
        members = self.content.raw
        if isinstance(members, (Members, ZstandardContent)) and members.end is not None:
            why = (
                f"the {name} content ends at byte {members.end:,} of {size:,}, and what follows is no {name}: repair it, or remove "
                "the rest"
            )
            raise TrailingBytesError(why, _unread(members.end, size), size - members.end)
        if read < size:
            raise DamagedFileError(f"the {name} stream ends at byte {read:,} of {size:,}", _unread(read, size))


@contextmanager
def open_decompressed(path: InputFile, start: int = 0) -> Iterator[OpenFile]:
    """The content of a file from byte `start` on; for `.gz .zst .xz .bz2`, of what is inside.

    Raises:
        DamagedFileError: while it is read. OSError, MemoryError: the system reported a failure.
    """
    with path.open("rb") as stored:
        size = stored_size(stored)
        with _decompressed(path, stored, size) as content:
            try:
                if content.seekable():
                    content.seek(start)
                else:
                    _skip(content, start)
                yield OpenFile(path, content, stored)
            except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
                # What damaged content raises has no error number, failures that the system reported have one.
                if not is_compressed(path) or getattr(error, "errno", None) is not None:
                    raise
                _require_beginning(path, stored, size)
                raise _judged(path, error, stored.tell(), size) from error


def _decompressed(path: InputFile, stored: io.BufferedReader, size: int) -> AbstractContextManager[io.BufferedReader]:
    # An empty file holds nothing, in whatever format; only some of the libraries say so.
    if not is_compressed(path) or not size:
        return nullcontext(stored)
    suffix = path.suffix.lower()
    content = ZstandardContent(stored) if suffix == ".zst" else Members(stored, suffix)
    return io.BufferedReader(content, SKIPPED_BYTES)


def _require_beginning(path: InputFile, stored: io.BufferedReader, size: int) -> None:
    """Raise DamagedFileError when a file does not begin as its suffix says."""
    suffix = path.suffix.lower()
    if not begins_well(read_again(stored, MAGIC_BYTES, 0), suffix):
        why = f"does not begin like {FORMAT_NAMES[suffix]} data: it is damaged, or not compressed and should not be named {suffix}"
        raise DamagedFileError(why, f"all of its {size:,} bytes")


def _judged(path: InputFile, error: Exception, read: int, size: int) -> Exception:
    """What an exception of a decompression library means."""
    name, message = FORMAT_NAMES[path.suffix.lower()], str(error)
    if LONG_WINDOW in message:
        why = "the zst stream has a window of more than 128 MB; pack it again: zstd -dc --long=31 FILE | zstd"
        return DamagedFileError(why, _unread(read, size))
    if OTHER_DICTIONARY in message:
        why = "the zst stream needs the dictionary that it was compressed with; pack it again: zstd -dc -D DICTIONARY FILE | zstd"
        return DamagedFileError(why, _unread(read, size))
    if any(words in message for words in NO_MEMORY):
        return ReadError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))
    return DamagedFileError(f"the {name} stream ends early or is damaged ({error})", _unread(read, size))


def _unread(read: int, size: int) -> str:
    left = size - read
    return f"what the last {left:,} of its {size:,} bytes hold" if left else "what would follow the end of the file"


def _skip(file: io.BufferedReader, num_bytes: int) -> None:
    while num_bytes and (skipped := file.read(min(num_bytes, SKIPPED_BYTES))):
        num_bytes -= len(skipped)
