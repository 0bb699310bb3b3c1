"""What a finished task says about itself: its counts, what it left out, and the files it wrote."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline.documents import MAX_EXAMPLES, Cause, Example, RecordLog
from data_pipeline.manifest import FileInfo
from data_pipeline.tasks.tasks import Task

MARK_NAME = "mark.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordCounts(_Record):
    """A task's `RecordLog` once it is over: documents accepted, records rejected. See there for the fields."""

    accepted: int
    rejected: dict[Cause, int]
    examples: list[Example]
    lines: list[int]
    other_keys: dict[str, int]

    @classmethod
    def of(cls, log: RecordLog) -> Self:
        """The account of a log."""
        return cls(
            accepted=log.accepted,
            rejected=dict(log.rejected),
            examples=log.examples,
            lines=log.lines,
            other_keys=dict(log.other_keys.most_common(100)),
        )


class ShardInfo(_Record):
    """One split's part of a task, with its files by suffix; tokens include the end-of-document ids."""

    documents: int
    tokens: int
    bytes: int
    files: dict[str, FileInfo]


class TaskRecord(_Record):
    """Completion mark of a task. `address` is its content address, `digest` that of the documents that it read."""

    address: str
    digest: str
    account: RecordCounts
    shards: dict[str, ShardInfo]


def read_mark(folder: Path, address: str) -> TaskRecord | None:
    """The mark of a task's folder; None when the task is not finished or was another one."""
    try:
        mark = TaskRecord.model_validate_json((folder / MARK_NAME).read_bytes())
    except (OSError, ValidationError):
        return None
    return mark if mark.address == address and _is_whole(folder, mark) else None


def _is_whole(folder: Path, mark: TaskRecord) -> bool:
    files = (
        (folder / f"{split}{suffix}", info)
        for split, shard in mark.shards.items()
        for suffix, info in shard.files.items()
    )
    return all(path.is_file() and path.stat().st_size == info.bytes for path, info in files)


class CorpusCounts:
    """All tasks' accounts together, in the order of the corpus.

    Attributes:
        accepted: documents. rejected: records left out, by cause.
        examples: the first few of each cause, each with its file and line.
    """

    def __init__(self, tasks: Sequence[Task], accounts: Iterable[RecordCounts]) -> None:
        self.accepted = 0
        self.rejected: Counter[Cause] = Counter()
        self.examples: dict[Cause, list[str]] = {}
        self.other_keys: Counter[str] = Counter()
        lines: Counter[str] = Counter()  # of each file, so far
        for task, account in zip(tasks, accounts, strict=True):
            self.accepted += account.accepted
            self.rejected.update(account.rejected)
            self.other_keys.update(account.other_keys)
            before = []
            for span, count in zip(task.spans, account.lines, strict=True):
                before.append(lines[span.source] if span.start else 0)
                lines[span.source] = before[-1] + count
            for example in account.examples:
                self._add(task, example, before[example.span])

    def _add(self, task: Task, example: Example, lines_before: int) -> None:
        shown = self.examples.setdefault(example.cause, [])
        if len(shown) < MAX_EXAMPLES:
            number = None if example.number is None else example.number + lines_before
            shown.append(f"{task.spans[example.span].place(number)}: {example.why}")
