"""Errors instead of a signal where a memory-mapped file cannot be read.

Datasets are mapped into memory. Where a page cannot be read, the system kills the process with SIGBUS. Asked before to fill the
pages in, it reports an error instead (Linux 5.14 and later; nothing is checked on others).
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pyarrow import Array, ChunkedArray

MADV_POPULATE_READ = 22


def require_readable(column: "ChunkedArray", inside: Sequence[str] = ()) -> None:
    """Fill in the pages of the file that hold the strings of a column.

    Args:
        inside: names of the fields that lead to the strings, of a column of structs.

    Raises:
        OSError: they cannot be read.
    """
    for whole in column.chunks:
        chunk = whole
        for name in inside:
            _fill_in_validity(chunk)
            chunk = chunk.field(name)
        offsets = _offsets(chunk)
        if offsets is None:
            for buffer in filter(None, chunk.buffers()):
                _fill_in(buffer.address, buffer.size)
            continue
        begin, size = chunk.offset * offsets.itemsize, (len(chunk) + 1) * offsets.itemsize
        _, positions, content = chunk.buffers()
        _fill_in(positions.address + begin, size)
        first, last = (int(np.frombuffer(positions, offsets)[i]) for i in (chunk.offset, chunk.offset + len(chunk)))
        if content is not None:
            _fill_in(content.address + first, last - first)


def _fill_in_validity(chunk: "Array") -> None:
    validity = chunk.buffers()[0]
    if validity is not None:
        _fill_in(validity.address, validity.size)


def _offsets(chunk: "Array") -> np.dtype | None:
    """The type of the offsets of an array of strings; None for other arrays."""
    from pyarrow import types

    if not len(chunk):
        return None
    if types.is_string(chunk.type):
        return np.dtype("<i4")
    return np.dtype("<i8") if types.is_large_string(chunk.type) else None


def _fill_in(address: int, size: int) -> None:
    begin = address - address % mmap.PAGESIZE
    if not size or not _madvise(begin, address + size - begin, MADV_POPULATE_READ):
        return
    number = ctypes.get_errno()
    if number != errno.EINVAL:  # the system does not know the request
        number = errno.EIO if number == errno.EFAULT else number
        raise OSError(number, os.strerror(number))


_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
