"""Work cut into tasks that do not depend on how many processes or machines share it.

A task is a part of one input: a range of bytes of a file of JSON lines, some row groups of a Parquet file, rows of a
dataset, or whole files. Each writes its own output and a completion mark, so that a rerun does only what is missing.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from data_pipeline.readers.file_ranges import Span, is_packed, span_kind
from data_pipeline.readers.inputs import Input

# So many tasks that the last ones leave no worker idle for long, and so few that nobody minds the number of files.
AIMED_TASKS = 256
SMALLEST_TASK = 2 << 20
LARGEST_TASK = 512 << 20


@dataclass(frozen=True)
class Task:
    """A part of the corpus that is read and written by itself.

    Attributes:
        number: its place in the corpus, from 0.
        input: which `--input` word it belongs to.
        spans: what it reads, in order.
        identity: digest of the names, ranges, sizes and times of change of what it reads.
    """

    number: int
    input: int
    spans: tuple[Span, ...]
    identity: str

    @property
    def num_bytes(self) -> int:
        """Bytes on disk, about."""
        return sum(span.num_bytes for span in self.spans)

    def address(self, settings: object) -> str:
        """Content address of what the task yields under `settings`, anything that JSON can carry."""
        described = json.dumps([self.number, self.identity, settings], sort_keys=True)
        return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def cut_into_tasks(inputs: Sequence[Input]) -> list[Task]:
    """Cut all inputs, in their order. A function of the inputs alone."""
    size = _task_size(sum(_num_bytes(found) for found in inputs))
    tasks: list[Task] = []
    for i, found in enumerate(inputs):
        for spans in _grouped(_spans(found, size), size):
            tasks.append(Task(len(tasks), i, tuple(spans), _identity(found, spans)))
    return tasks


def _num_bytes(found: Input) -> int:
    # A dataset by name has no files that we know of; a row is some text.
    return found.num_bytes or found.rows * 1024


def _task_size(total_bytes: int) -> int:
    """A power of two, so that most tasks stay the same when the corpus grows."""
    aimed = total_bytes // AIMED_TASKS
    return min(max(1 << aimed.bit_length(), SMALLEST_TASK), LARGEST_TASK)


def _grouped(spans: Iterable[Span], size: int) -> Iterator[list[Span]]:
    """Small spans together until they reach a task's size."""
    group: list[Span] = []
    num_bytes = 0
    for span in spans:
        if group and num_bytes + span.num_bytes > size:
            yield group
            group, num_bytes = [], 0
        group.append(span)
        num_bytes += span.num_bytes
    if group:
        yield group


def _spans(found: Input, size: int) -> Iterator[Span]:
    if found.kind == "datasets":
        yield from _dataset_spans(found, size)
        return
    for path in found.files:
        kind, num_bytes = span_kind(path), path.stat().st_size
        whole = Span(kind, str(path), found.shown(path), num_bytes)
        if num_bytes <= size or is_packed(path) or kind == "text":
            yield whole
        elif kind == "lines":
            for start in range(0, num_bytes, size):
                stop = min(start + size, num_bytes)
                # The last one reads to the end, whatever that is by then: a change is found by comparing sizes.
                yield Span(kind, whole.source, whole.shown, stop - start, start, stop if stop < num_bytes else None)
        else:
            yield from _parquet_spans(whole, size)


def _dataset_spans(found: Input, size: int) -> Iterator[Span]:
    parts = max(1, min(found.rows, -(-_num_bytes(found) // size)))
    edges = [found.rows * i // parts for i in range(parts + 1)]
    for start, stop in pairwise(edges):
        yield Span("dataset", found.word, found.word, _num_bytes(found) // parts, start, stop)


def _parquet_spans(whole: Span, size: int) -> Iterator[Span]:
    """Row groups of a large file together up to a task's size."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(whole.source) as file:
            sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    except (pyarrow.ArrowException, OSError):
        yield whole  # its reader says what is wrong
        return
    start = 0
    for stop in range(1, len(sizes) + 1):
        num_bytes = sum(sizes[start:stop])
        if stop == len(sizes) or num_bytes + sizes[stop] > size:
            yield Span(whole.kind, whole.source, whole.shown, num_bytes, start, stop)
            start = stop


def _identity(found: Input, spans: list[Span]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for span in spans:
        files = found.files if span.kind == "dataset" else [Path(span.source)]
        stats = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in (path.stat() for path in files)]
        digest.update(json.dumps([found.fingerprint, span.source, span.start, span.stop, stats]).encode())
    return digest.hexdigest()
