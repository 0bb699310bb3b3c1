"""Decompress .gz, .xz and .bz2 files of any number of members, and notice what follows the last one.

The readers of Python's own modules raise an error there and lose what they have read (gzip), or say nothing (bz2, lzma).
"""

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

READ_BYTES = 256 << 10


class Decompressor(Protocol):
    """What the decompressors of bz2 and lzma have in common."""

    eof: bool
    unused_data: bytes
    needs_input: bool

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most `max_length` bytes of what follows."""
        ...


class _Gunzip:
    """`zlib.decompressobj` for gzip, in the form of the other two."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail


FORMATS: dict[str, tuple[Callable[[], Decompressor], bytes]] = {
    ".gz": (_Gunzip, b"\x1f\x8b"),
    ".xz": (lzma.LZMADecompressor, b"\xfd7zXZ\x00"),
    ".bz2": (bz2.BZ2Decompressor, b"BZh"),
}
"""Suffix -> its decompressor, and how each member begins."""
ZSTANDARD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")


def begins_well(beginning: bytes, suffix: str) -> bool:
    """Whether a file of a compressed format begins like one."""
    return bool(ZSTANDARD.match(beginning)) if suffix == ".zst" else beginning.startswith(FORMATS[suffix][1])


class Members(io.RawIOBase):
    """The content of all members of a compressed file, one after the other. Zeros between them are padding.

    Attributes:
        end: position in the file where the last member ended and something else follows; None while there is nothing such.

    Raises (while it is read):
        EOFError: the file ends inside a member. zlib.error, lzma.LZMAError, OSError without a number: damaged content.
    """

    def __init__(self, stored: BinaryIO, suffix: str) -> None:
        self._stored = stored
        self._new, self._magic = FORMATS[suffix]
        self._member = self._new()
        self._read = 0
        self.end: int | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See io.RawIOBase."""
        while self.end is None:
            if self._member.eof:
                begins = self._next_beginning()
                if begins is None:
                    break
                self._member = self._new()
            else:
                begins = self._more() if self._member.needs_input else b""
            if content := self._member.decompress(begins, len(buffer)):
                buffer[: len(content)] = content
                return len(content)
            if not begins and not self._member.eof and self._member.needs_input:
                raise EOFError("the file ends inside the compressed content")
        return 0

    def _more(self) -> bytes:
        block = self._stored.read(READ_BYTES)
        self._read += len(block)
        return block

    def _next_beginning(self) -> bytes | None:
        """The bytes from the next member on; None at the end of the file, or of the members."""
        left = self._member.unused_data.lstrip(b"\0")
        while len(left) < len(self._magic) and (block := self._more()):
            left = (left + block).lstrip(b"\0")
        if not left:
            return None
        if not left.startswith(self._magic):
            self.end = self._read - len(left)
            return None
        return left
