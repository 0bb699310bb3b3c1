"""The corpus cut into tasks, independently of the number of processes and machines.

A task is a part of one input: a range of bytes of a file of JSON lines, some row groups of a Parquet file, rows of a
dataset, instances of a generator, or whole files. Each task writes its own output and a record that it is done, so that a
rerun does only what is missing. Where a task ends depends on the names and sizes near it: adding or removing an input or a
file leaves most tasks of the others as they are.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from secrets import token_hex

from data_pipeline.errors import ReadError
from data_pipeline.readers.file_ranges import WITHOUT_BYTES, FileRange
from data_pipeline.readers.input_files import InputFile, Status, has_changed, status_of
from data_pipeline.readers.inputs import Input
from data_pipeline.readers.kinds import Kind, is_compressed
from data_pipeline.readers.remote import RemotePath, modified
from data_pipeline.readers.rows import row_group_bytes
from data_pipeline.tasks.addresses import content_address, probe
from data_pipeline.typed_words import is_remote

# Enough tasks per input that the last ones do not leave workers idle for long, and few enough for the file system.
AIMED_TASKS = 256
# Of all inputs together, roughly: only beyond it does the size of an input's tasks depend on the other inputs.
MAX_TASKS = 8192
SMALLEST_TASK = 2 << 20
LARGEST_TASK = 512 << 20
# Threads that read the beginnings and ends of files: on network file systems each takes a while.
PROBE_THREADS = 8


@dataclass(frozen=True)
class Task:
    """A part of the corpus that is read and written by itself.

    Attributes:
        number: its position in the corpus, from 0.
        input: index of the `--input` value that it belongs to.
        ranges: what it reads, in order.
        identity: hash of the format, range, size, beginning and end of what it reads; the same wherever the files lie.
        files: the files that it reads, each as it was then; none for a converted dataset or a generator.
        run: the process that cut it, if nothing tells the version of one of the files; else empty.
        starts_corpus: its first record is the first of the corpus.
    """

    number: int
    input: int
    ranges: tuple[FileRange, ...]
    identity: str
    files: tuple[tuple[str, Status], ...] = ()
    run: str = ""
    starts_corpus: bool = False

    @property
    def num_bytes(self) -> int:
        """Approximate size on disk."""
        return sum(each.num_bytes for each in self.ranges)

    @property
    def versions(self) -> list[int | str]:
        """As long as they are the same, so are the documents."""
        return [status.version for _, status in self.files] + [self.run] * bool(self.run)

    @property
    def shown(self) -> str:
        """What it reads, for messages."""
        first = self.ranges[0]
        if len(self.ranges) > 1:
            return f"{first.shown} to {self.ranges[-1].shown}, {len(self.ranges):,} files"
        if not first.start and first.stop is None:
            return first.shown
        unit = {"parquet": "row groups", "dataset": "rows", "generated": "instances"}.get(first.kind, "bytes")
        return f"{first.shown}, {unit} {first.start:,} to {'the end' if first.stop is None else f'{first.stop:,}'}"


def task_name(number: int) -> str:
    """A task's position in the names of the shards of the output."""
    return f"{number:05}"


def cut_into_tasks(inputs: Sequence[Input]) -> list[Task]:
    """Cut all inputs into tasks, in their order. Depends on the inputs only.

    Raises:
        ReadError: a file cannot be read.
    """
    return _told_apart([_cut(inputs)])[0]


def cut_against(inputs: Sequence[Input], against: Sequence[Input]) -> list[Task]:
    """The tasks of `against`, whose identities differ from those of other files in `inputs` that look the same.

    The tasks of `inputs` are the same with and without `against`. Raises as `cut_into_tasks` does.
    """
    return _told_apart([_cut(inputs), _cut(against)])[1] if against else []


def _cut(inputs: Sequence[Input]) -> list[Task]:
    """The tasks of some inputs, without their numbers; different files that look the same have the same identity."""
    smallest = min(_power_of_two(sum(map(_num_bytes, inputs)) // MAX_TASKS), LARGEST_TASK)
    tasks: list[Task] = []
    for i, found in enumerate(inputs):
        size = max(_task_size(_num_bytes(found)), smallest)
        tasks += (Task(0, i, tuple(group), "") for group in _grouped(found, _file_ranges(found, size), size))
    look, run = cache(_look), _this_run()  # all tasks of a dataset have the same files
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        return list(pool.map(lambda task: _identified(inputs[task.input], task, look, run), tasks))


def require_unmodified(task: Task) -> None:
    """Check that the files of a task have not been modified since it was cut.

    Raises:
        DataError: one has.
    """
    for path, status in task.files:
        if has_changed(path, status):
            raise modified(path)


def _num_bytes(found: Input) -> int:
    # The files of a dataset from the hub are not known, and a generator has none; assume 1 KB of text per row.
    return found.num_bytes or found.rows * 1024


def _task_size(input_bytes: int) -> int:
    """A power of two, so that most tasks stay the same when the input grows."""
    return min(max(_power_of_two(input_bytes // AIMED_TASKS), SMALLEST_TASK), LARGEST_TASK)


def _power_of_two(size: int) -> int:
    return 1 << size.bit_length()


def _grouped(found: Input, ranges: Iterable[FileRange], size: int) -> Iterator[list[FileRange]]:
    """Put whole files together: about `size` bytes on average, at most twice that.

    A group ends after a file whose name has a low hash, at the latest before it becomes too large. So the groups are the same
    again soon after a file that was added or removed (content-defined chunking, by the names instead of the content).
    """
    prefix = os.path.join(_root(found), "")  # noqa: PTH118 (ends with a separator)
    group: list[FileRange] = []
    num_bytes = 0
    for each in ranges:
        is_part = each.start > 0 or each.stop is not None
        if group and (is_part or num_bytes + each.num_bytes > 2 * size):
            yield group
            group, num_bytes = [], 0
        group.append(each)
        num_bytes += each.num_bytes
        if is_part or _hash(each.source.removeprefix(prefix)) < each.num_bytes / size:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _root(found: Input) -> str:
    """The folder that an input's files lie in, so that names relative to it stay the same when it is moved."""
    if found.root:
        return str(found.root)
    parts = found.value.split("/") if is_remote(found.value) else Path(found.value).parts
    fixed = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts) - 1)
    return "/".join(parts[:fixed]) if is_remote(found.value) else str(Path(*parts[:fixed]))


def _hash(name: str) -> float:
    """A number from 0 to below 1."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big") / 2**64


def _file_ranges(found: Input, size: int) -> Iterator[FileRange]:
    if found.kind in ("datasets", "generated"):
        yield from _row_ranges(found, size)
        return
    for path in found.files:
        kind, num_bytes = found.kind_of(path), status_of(path).size
        remote = path if isinstance(path, RemotePath) else None
        whole = FileRange(kind, str(path), found.shown(path), num_bytes, remote=remote)
        if num_bytes <= size or is_compressed(path) or kind == "text":
            yield whole
        elif kind == "lines":
            for start in range(0, num_bytes, size):
                stop = min(start + size, num_bytes)
                # The last range is open-ended: a file that has changed in the meantime is noticed by its size.
                yield replace(whole, num_bytes=stop - start, start=start, stop=stop if stop < num_bytes else None)
        else:
            yield from _parquet_ranges(whole, size)


def _row_ranges(found: Input, size: int) -> Iterator[FileRange]:
    kind: Kind = "generated" if found.kind == "generated" else "dataset"
    parts = max(1, min(found.rows, -(-_num_bytes(found) // size)))
    edges = [found.rows * i // parts for i in range(parts + 1)]
    for start, stop in pairwise(edges):
        yield FileRange(kind, found.value, found.value, _num_bytes(found) // parts, start, stop)


def _parquet_ranges(whole: FileRange, size: int) -> Iterator[FileRange]:
    """Put row groups of a large file together up to the size of a task."""
    try:
        sizes = row_group_bytes(whole.file)
    except (OSError, MemoryError) as error:
        raise ReadError.of(error, whole.source, "at its footer") from error
    if sizes is None:
        yield whole  # the reader will report what is wrong
        return
    start = 0
    for stop in range(1, len(sizes) + 1):
        num_bytes = sum(sizes[start:stop])
        if stop == len(sizes) or num_bytes + sizes[stop] > size:
            yield replace(whole, num_bytes=num_bytes, start=start, stop=stop)
            start = stop


def _identified(
    found: Input, task: Task, look: Callable[[InputFile, int, int | None], tuple[Status, int, str]], run: str
) -> Task:
    """The task with its identity and its files. `look` is `_look`, or remembers what it returned."""
    described: list[object] = [found.fingerprint]
    files = []
    for each in task.ranges:
        sources = found.files if each.kind in WITHOUT_BYTES else (each.file,)
        suffix = sources[0].suffix.lower() if each.kind not in WITHOUT_BYTES and is_compressed(sources[0]) else ""
        described.append([each.kind, suffix, each.start, each.stop])
        for path in sources:
            # Row groups and rows are not bytes: there, the whole file is looked at.
            status, *content = look(path, each.start, each.stop) if each.kind == "lines" else look(path, 0, None)
            described.append(content)
            files.append((str(path), status))
    is_known = all(status.version != "" for _, status in files)
    return replace(task, identity=content_address(described), files=tuple(files), run="" if is_known else run)


@cache
def _this_run() -> str:
    """A name that no other process has, also later."""
    return token_hex(8)


def _look(path: InputFile, start: int, stop: int | None) -> tuple[Status, int, str]:
    """Size and version of a file; number of bytes, and hash of the beginning and end, of a part of it."""
    status = status_of(path)
    stop = status.size if stop is None else stop
    return status, stop - start, probe(path, start, stop, *status)


def _told_apart(corpora: Sequence[Sequence[Task]]) -> list[list[Task]]:
    """The tasks of some corpora that share a work folder, numbered within each.

    Different files that look the same get different identities, the same file given twice does not.
    """
    alike: dict[str, dict[tuple[str, ...], int]] = {}

    def told_apart(number: int, task: Task) -> Task:
        seen = alike.setdefault(task.identity, {})
        which = seen.setdefault(tuple(each.source for each in task.ranges), len(seen))
        identity = content_address(task.identity, which) if which else task.identity
        return replace(task, number=number, identity=identity, starts_corpus=number == 0)

    return [[told_apart(number, task) for number, task in enumerate(tasks)] for tasks in corpora]
