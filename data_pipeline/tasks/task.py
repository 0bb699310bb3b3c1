"""The corpus cut into tasks, independently of the number of processes and machines.

A task is a part of one input: a range of bytes of a file of JSON lines, some row groups of a Parquet file, rows of a
dataset, or whole files. Each task writes its own output and a record that it is done, so that a rerun does only what is
missing.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from data_pipeline.errors import ReadError
from data_pipeline.readers.file_ranges import FileRange, file_kind, is_compressed
from data_pipeline.readers.inputs import Input
from data_pipeline.readers.rows import row_group_bytes

# Enough tasks that the last ones do not leave workers idle for long, and few enough for the file system.
AIMED_TASKS = 256
SMALLEST_TASK = 2 << 20
LARGEST_TASK = 512 << 20


@dataclass(frozen=True)
class Task:
    """A part of the corpus that is read and written by itself.

    Attributes:
        number: its position in the corpus, from 0.
        input: index of the `--input` value that it belongs to.
        ranges: what it reads, in order.
        identity: digest of the names, ranges, sizes and modification times of what it reads.
    """

    number: int
    input: int
    ranges: tuple[FileRange, ...]
    identity: str

    @property
    def num_bytes(self) -> int:
        """Approximate size on disk."""
        return sum(each.num_bytes for each in self.ranges)

    def address(self, settings: object) -> str:
        """Content address of the task's output under `settings`, any JSON value."""
        described = json.dumps([self.number, self.identity, settings], sort_keys=True)
        return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def cut_into_tasks(inputs: Sequence[Input]) -> list[Task]:
    """Cut all inputs into tasks, in their order. Depends on the inputs only.

    Raises:
        ReadError: the footer of a Parquet file cannot be read now.
    """
    size = _task_size(sum(_num_bytes(found) for found in inputs))
    tasks: list[Task] = []
    for i, found in enumerate(inputs):
        for ranges in _grouped(_file_ranges(found, size), size):
            tasks.append(Task(len(tasks), i, tuple(ranges), _identity(found, ranges)))
    return tasks


def _num_bytes(found: Input) -> int:
    # The files of a dataset from the hub are not known; assume 1 KB of text per row.
    return found.num_bytes or found.rows * 1024


def _task_size(total_bytes: int) -> int:
    """A power of two, so that most tasks stay the same when the corpus grows."""
    aimed = total_bytes // AIMED_TASKS
    return min(max(1 << aimed.bit_length(), SMALLEST_TASK), LARGEST_TASK)


def _grouped(ranges: Iterable[FileRange], size: int) -> Iterator[list[FileRange]]:
    """Put small ranges together until they reach the size of a task."""
    group: list[FileRange] = []
    num_bytes = 0
    for each in ranges:
        if group and num_bytes + each.num_bytes > size:
            yield group
            group, num_bytes = [], 0
        group.append(each)
        num_bytes += each.num_bytes
    if group:
        yield group


def _file_ranges(found: Input, size: int) -> Iterator[FileRange]:
    if found.kind == "datasets":
        yield from _dataset_ranges(found, size)
        return
    for path in found.files:
        kind, num_bytes = file_kind(path), path.stat().st_size
        whole = FileRange(kind, str(path), found.shown(path), num_bytes)
        if num_bytes <= size or is_compressed(path) or kind == "text":
            yield whole
        elif kind == "lines":
            for start in range(0, num_bytes, size):
                stop = min(start + size, num_bytes)
                # The last range is open-ended: a file that has changed in the meantime is noticed by its size.
                yield FileRange(
                    kind, whole.source, whole.shown, stop - start, start, stop if stop < num_bytes else None
                )
        else:
            yield from _parquet_ranges(whole, size)


def _dataset_ranges(found: Input, size: int) -> Iterator[FileRange]:
    parts = max(1, min(found.rows, -(-_num_bytes(found) // size)))
    edges = [found.rows * i // parts for i in range(parts + 1)]
    for start, stop in pairwise(edges):
        yield FileRange("dataset", found.value, found.value, _num_bytes(found) // parts, start, stop)


def _parquet_ranges(whole: FileRange, size: int) -> Iterator[FileRange]:
    """Put row groups of a large file together up to the size of a task."""
    try:
        sizes = row_group_bytes(whole.source)
    except (OSError, MemoryError) as error:
        raise ReadError.of(error, whole.source, "at its footer") from error
    if sizes is None:
        yield whole  # the reader will report what is wrong
        return
    start = 0
    for stop in range(1, len(sizes) + 1):
        num_bytes = sum(sizes[start:stop])
        if stop == len(sizes) or num_bytes + sizes[stop] > size:
            yield FileRange(whole.kind, whole.source, whole.shown, num_bytes, start, stop)
            start = stop


def _identity(found: Input, ranges: list[FileRange]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for each in ranges:
        files = found.files if each.kind == "dataset" else [Path(each.source)]
        stats = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in (path.stat() for path in files)]
        digest.update(json.dumps([found.fingerprint, each.source, each.start, each.stop, stats]).encode())
    return digest.hexdigest()
