"""What local and remote files have in common: how long they are, whether they have changed, reading a part again."""

import io
import os
import re
from pathlib import Path
from typing import NamedTuple

from data_pipeline.readers.remote import RemotePath, RemoteReader, current
from data_pipeline.typed_words import is_remote

InputFile = Path | RemotePath
IN_COMMIT = re.compile(r"hf://[^@]+@[0-9a-f]{40}/")


class Status(NamedTuple):
    """A file at some time.

    Attributes:
        size: in bytes.
        version: of a local file, its modification time in ns since 1970; else see `RemotePath`.
    """

    size: int
    version: int | str


def status_of(file: InputFile) -> Status:
    """A local file as it is now, a remote one as it was listed."""
    if isinstance(file, RemotePath):
        return Status(file.size or 0, file.version)
    found = file.stat()
    return Status(found.st_size, found.st_mtime_ns)


def has_changed(source: str, status: Status) -> bool:
    """Whether a file has another size or version now. What belongs to a commit of the hub cannot change."""
    if IN_COMMIT.match(source):
        return False
    return status_of(current(source) if is_remote(source) else Path(source)) != status


def stored_size(stored: io.BufferedReader) -> int:
    """Bytes of an open file."""
    return stored.size if isinstance(stored, RemoteReader) else os.fstat(stored.fileno()).st_size


def read_again(stored: io.BufferedReader, size: int, start: int) -> bytes:
    """Bytes of an open file from `start` on, not from its buffer; its position stays."""
    if isinstance(stored, RemoteReader):
        return stored.read_again(size, start)
    return os.pread(stored.fileno(), size, start)
