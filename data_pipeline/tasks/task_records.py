"""The record that a finished task leaves: its counts, what was left out, and the files it wrote."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.manifest import FileInfo
from data_pipeline.provenance import PLACES_SUFFIX
from data_pipeline.readers.file_ranges import FileRange
from data_pipeline.rejects import MAX_EXAMPLES, MAX_KEYS, BrokenFile, Example, RecordCounter
from data_pipeline.tasks.task import Task

RECORD_NAME = "mark.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)


class RecordCounts(_Record):
    """The final state of a task's `RecordCounter`, which describes the fields."""

    accepted: int
    rejected: dict[str, int]
    examples: list[Example]
    broken: list[BrokenFile]
    lines: list[int]
    other_keys: dict[str, int]

    @classmethod
    def of(cls, counter: RecordCounter) -> Self:
        """The counts of a counter."""
        return cls(
            accepted=counter.accepted,
            rejected={str(cause): count for cause, count in counter.rejected.items()},
            examples=counter.examples,
            broken=counter.broken,
            lines=counter.lines,
            other_keys=dict(counter.other_keys.most_common(MAX_KEYS)),
        )


class ShardInfo(_Record):
    """A task's part of one split, with its files by suffix; tokens include the end-of-document ids.

    `places` describes the file with the file range and the place of each document.
    """

    documents: int
    tokens: int
    bytes: int
    files: dict[str, FileInfo]
    places: FileInfo


class TaskRecord(_Record):
    """What a finished task did.

    Attributes:
        address: content address of the task and the options that it was done with.
        digest: hash over the documents that it read.
        shards: by split.
    """

    address: str
    digest: str
    counts: RecordCounts = Field(alias="account")
    shards: dict[str, ShardInfo]


def read_task_record(folder: Path, address: str, digest: str | None = None) -> TaskRecord | None:
    """The record in a task's folder; None when the task is not finished or has another address or, if given, digest."""
    try:
        record = TaskRecord.model_validate_json((folder / RECORD_NAME).read_bytes())
    except (OSError, ValidationError):
        return None
    is_wanted = record.address == address and digest in (None, record.digest)
    return record if is_wanted and _is_complete(folder, record) else None


def _is_complete(folder: Path, record: TaskRecord) -> bool:
    files = (
        (folder / f"{split}{suffix}", info)
        for split, shard in record.shards.items()
        for suffix, info in (*shard.files.items(), (PLACES_SUFFIX, shard.places))
    )
    return all(path.is_file() and path.stat().st_size == info.bytes for path, info in files)


class CorpusCounts:
    """The counts of all tasks together, in the order of the corpus.

    Args:
        why: says why an example was left out.

    Attributes:
        accepted: documents.
        rejected: records left out, by cause.
        examples: the first few of each cause, each with its file and line.
        broken: the files that could not be read to their ends.
        other_keys: keys of the records that lack the text key.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        counts: Iterable[RecordCounts],
        why: Callable[[Task, Example], str] = lambda task, example: example.why,
    ) -> None:
        self._why = why
        self.accepted = 0
        self.rejected: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.broken: list[tuple[FileRange, BrokenFile]] = []
        self.other_keys: Counter[str] = Counter()
        lines: Counter[str] = Counter()  # of each file, so far
        for task, of_task in zip(tasks, counts, strict=True):
            self.accepted += of_task.accepted
            self.rejected.update(of_task.rejected)
            self.other_keys.update(of_task.other_keys)
            self.broken += [(task.ranges[each.file_range], each) for each in of_task.broken]
            before = []
            # A task that is read for a sample may stop before its last files.
            for file_range, count in zip(task.ranges, of_task.lines, strict=False):
                before.append(lines[file_range.source] if file_range.start else 0)
                lines[file_range.source] = before[-1] + count
            for example in of_task.examples:
                self._add(task, example, before[example.file_range])

    def _add(self, task: Task, example: Example, lines_before: int) -> None:
        shown = self.examples.setdefault(example.cause, [])
        if len(shown) < MAX_EXAMPLES:
            number = None if example.number is None else example.number + lines_before
            shown.append(f"{task.ranges[example.file_range].place(number)}: {self._why(task, example)}")
