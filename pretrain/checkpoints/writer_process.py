"""Write a file that another process has filled in memory, force it to the disk, and print checksums of its parts.

    python writer_process.py MEMORY FILE < [[begin, end], ...]

`tensor_file.py` starts it with the descriptors of both and the ranges of the parts in bytes, in order; the CRC-32 of each is
printed as JSON. It starts within milliseconds, as it imports only the standard library.
"""

import errno
import fcntl
import json
import mmap
import os
import stat
import sys
import zlib

NICE = 10
"""Training has ten times the weight where no core is free; where one is, this changes nothing."""
CHUNK_BYTES = 1 << 24
"""Of one write: a multiple of the sizes of pages and of blocks of disks."""


def write(memory: int, file: int, parts: list[list[int]]) -> list[int]:
    """Copy all of the memory into the file, and return the checksums of the parts."""
    view = memoryview(mmap.mmap(memory, 0, access=mmap.ACCESS_READ))
    done = _write_directly(file, view)
    while done < len(view):
        done += os.write(file, view[done : done + CHUNK_BYTES])
    checksums = [zlib.crc32(view[begin:end]) for begin, end in parts]
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # training data and the next step need the memory more
    return checksums


def _write_directly(file: int, view: memoryview) -> int:
    """Write whole pages from the start without the system's cache, and return how many bytes that were.

    This takes about half the processor time, which training misses where no core is free. Some file systems cannot do it, and a
    write that ended early cannot be continued so.
    """
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return 0  # a pipe would lose bytes
    flags, done, whole = fcntl.fcntl(file, fcntl.F_GETFL), 0, len(view) - len(view) % mmap.PAGESIZE
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
        while done < whole:
            done += os.write(file, view[done : min(done + CHUNK_BYTES, whole)])
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        fcntl.fcntl(file, fcntl.F_SETFL, flags)
    return done


if __name__ == "__main__":
    os.nice(NICE)
    try:
        print(json.dumps(write(int(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin))))
    except OSError as error:
        sys.exit(str(error))
