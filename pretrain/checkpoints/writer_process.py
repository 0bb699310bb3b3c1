"""Write a file that another process has filled in memory, force it to the disk, and print checksums of its parts.

    python writer_process.py MEMORY FILE < [[begin, end], ...]

`tensor_file.py` starts it with the descriptors of both and the ranges of the parts in bytes, in order; the CRC-32 of each is
printed as JSON. It starts within milliseconds, as it imports only the standard library.
"""

import json
import mmap
import os
import sys
import zlib

NICE = 10
"""Training has ten times the weight where no core is free; where one is, this changes nothing."""
CHUNK_BYTES = 1_000_000
"""Written while a processor's cache still has it from the checksum."""


def write(memory: int, file: int, parts: list[list[int]]) -> list[int]:
    """Copy all of the memory into the file, whose part before the first range has no checksum; returns those of the ranges."""
    checksums, view = [], memoryview(mmap.mmap(memory, 0, access=mmap.ACCESS_READ))
    _write_all(file, view[: parts[0][0] if parts else len(view)])
    for begin, end in parts:
        checksum = 0
        for start in range(begin, end, CHUNK_BYTES):
            chunk = view[start : min(start + CHUNK_BYTES, end)]
            checksum = zlib.crc32(chunk, checksum)
            _write_all(file, chunk)
        checksums.append(checksum)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # training data and the next step need the memory more
    return checksums


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


if __name__ == "__main__":
    os.nice(NICE)
    try:
        print(json.dumps(write(int(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin))))
    except OSError as error:
        sys.exit(str(error))
