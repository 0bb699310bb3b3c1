"""Decompress .zst files of any number of frames, and notice what follows the last one.

pyarrow's stream raises an error there and loses what it has read. So it is given whole frames only (RFC 8878, section 3.1).
"""

import io
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from data_pipeline.readers.members import ZSTANDARD

READ_BYTES = 256 << 10
ZSTANDARD_FIRST = 0x28
"""First byte of a frame that has content."""
RUN = 1
"""Type of a block that is one byte, repeated."""


class Frames(io.RawIOBase):
    """The frames of a file as they are stored, without what follows them.

    Attributes:
        end: position in the file where the last frame ended and something else follows; None while there is nothing such.
    """

    def __init__(self, stored: BinaryIO) -> None:
        self._stored, self._taken, self._left = stored, 0, b""
        self._pieces = self._all_frames()
        self.end: int | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See io.RawIOBase."""
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    def _all_frames(self) -> Iterator[bytes]:
        end = 0
        while magic := self._take(4):
            if not ZSTANDARD.match(magic):
                if end:
                    self.end = end
                    return
                yield magic  # the decompressor refuses it
                yield from iter(partial(self._stored.read, READ_BYTES), b"")
                return
            yield magic
            yield from self._frame() if magic[0] == ZSTANDARD_FIRST else self._skippable_frame()
            end = self._taken

    def _frame(self) -> Iterator[bytes]:
        descriptor = self._take(1)
        yield descriptor
        flags = descriptor[0] if descriptor else 0
        is_single = flags >> 5 & 1
        yield self._take((1 - is_single) + (0, 1, 2, 4)[flags & 3] + (is_single, 2, 4, 8)[flags >> 6])
        is_last = False
        while not is_last:
            header = self._take(3)
            yield header
            if len(header) < 3:
                return
            number = int.from_bytes(header, "little")
            is_last, size = bool(number & 1), 1 if number >> 1 & 3 == RUN else number >> 3
            yield from self._through(size)
        if flags & 4:
            yield self._take(4)

    def _skippable_frame(self) -> Iterator[bytes]:
        size = self._take(4)
        yield size
        yield from self._through(int.from_bytes(size, "little"))

    def _through(self, num_bytes: int) -> Iterator[bytes]:
        while num_bytes and (piece := self._take(min(num_bytes, READ_BYTES))):
            num_bytes -= len(piece)
            yield piece

    def _take(self, num_bytes: int) -> bytes:
        taken = self._stored.read(num_bytes)
        self._taken += len(taken)
        return taken


class ZstandardContent(io.RawIOBase):
    """The content of all frames of a file."""

    def __init__(self, stored: BinaryIO) -> None:
        import pyarrow

        self._frames = Frames(stored)
        self._stream = pyarrow.CompressedInputStream(io.BufferedReader(self._frames, READ_BYTES), "zstd")

    @property
    def end(self) -> int | None:
        """See `Frames`."""
        return self._frames.end

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See io.RawIOBase."""
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
