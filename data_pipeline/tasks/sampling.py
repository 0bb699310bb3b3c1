"""A bounded sample of documents to train a tokenizer on.

Tasks are read in the order of their identities, which are hashes, and each gives its first documents, up to a limit. Reading
stops when the sample is large enough, so that a large corpus is not read as a whole by the one process that trains. If all tasks
have been read to the limit before, it is raised.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.documents import Document
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.addresses import content_address, software
from data_pipeline.tasks.options import TRAIN, Options
from data_pipeline.tasks.processes import Report
from data_pipeline.tasks.reading import reported, task_documents
from data_pipeline.tasks.task import Task, require_unmodified
from data_pipeline.tasks.task_records import RecordCounts
from data_pipeline.tasks.work import SAMPLES, result_folder

# Of one document, so that a long one does not fill the sample.
MAX_DOCUMENT_CHARS = 100_000
# Tasks that give equal parts of the sample, if the corpus has as many.
TASKS_SAMPLED = 64
# What the limit is multiplied with when it was too low.
GROWTH = 4


@dataclass
class TextSample:
    """Texts to train on, each once, however often the corpus has it.

    Attributes:
        max_bytes: size at which it is large enough.
        texts: by the digest of the whole document; a long document's beginning only.
    """

    max_bytes: int
    texts: dict[bytes, str] = field(default_factory=dict)
    num_bytes: int = 0

    @property
    def is_enough(self) -> bool:
        """Whether it needs no more."""
        return self.num_bytes >= self.max_bytes

    def add(self, digest: bytes, text: str) -> None:
        """Add a text, unless the sample has it or is large enough."""
        if digest not in self.texts and not self.is_enough:
            self.texts[digest] = text
            self.num_bytes += len(text.encode("utf-8"))

    def in_order(self) -> Iterator[str]:
        """The texts in the order of their digests."""
        return (text for _, text in sorted(self.texts.items()))

    @property
    def digest(self) -> str:
        """Hash of what it holds."""
        return hashlib.blake2b(b"".join(sorted(self.texts)), digest_size=16).hexdigest()


@dataclass(frozen=True)
class TaskSample:
    """What a task contributes.

    Attributes:
        counts: of the records that were read.
        was_cut: whether the task may have more documents.
        texts: digests of whole documents, and their beginnings.
    """

    counts: RecordCounts
    was_cut: bool
    texts: list[tuple[bytes, str]]


@dataclass(frozen=True)
class SampleJob:
    """Takes the first documents of a task's training split into a file of JSON lines: a header, then one document per line.

    Attributes:
        work: the work folder.
        limit: size in bytes after which a task is not read further.
    """

    work: Path
    options: Options
    limit: int

    def path(self, task: Task) -> Path:
        """The folder of a task's sample. Files that were touched are read again, which is not much."""
        address = content_address(task.identity, task.versions, self.options.of_documents(), self.limit, software())
        return self.work / SAMPLES / address

    def is_done(self, task: Task) -> bool:
        """Whether the sample is there."""
        return _file(self.path(task)).is_file()

    def __call__(self, task: Task, report: Report) -> None:
        """Write the task's sample, all or nothing."""
        options, counter = self.options, RecordCounter(task.starts_corpus)
        sample = TextSample(self.limit)
        documents = task_documents(task, counter, options.text_key, options.filters, options.strict)
        for document in reported(documents, report):
            if options.split_of(document) == TRAIN:
                sample.add(document.digest, _beginning(document))
            if sample.is_enough:
                break
        require_unmodified(task)
        header = {"was_cut": sample.is_enough, "account": RecordCounts.of(counter).model_dump()}
        lines = [header, *([digest.hex(), text] for digest, text in sample.texts.items())]
        final = self.path(task)
        with (
            result_folder(final, lambda: self.is_done(task)) as folder,
            _file(folder).open("w", encoding="utf-8") as file,
        ):
            file.writelines(f"{json.dumps(line)}\n" for line in lines)

    def result(self, task: Task) -> TaskSample:
        """The sample of a finished task."""
        with _file(self.path(task)).open(encoding="utf-8") as file:
            header = json.loads(file.readline())
            texts = [(bytes.fromhex(digest), text) for digest, text in map(json.loads, file)]
        return TaskSample(RecordCounts(**header["account"]), header["was_cut"], texts)


@dataclass
class _Round:
    """What the tasks give that are read up to one limit.

    Attributes:
        counts: of the tasks read so far, with the tasks.
        was_cut: whether a task may have more.
    """

    sample: TextSample
    counts: list[tuple[Task, RecordCounts]] = field(default_factory=list)
    was_cut: bool = False

    def add(self, task: Task, of_task: TaskSample) -> None:
        self.counts.append((task, of_task.counts))
        self.was_cut |= of_task.was_cut
        for digest, text in of_task.texts:
            self.sample.add(digest, text)


DoTasks = Callable[[SampleJob, Sequence[Task]], None]


def collect_sample(
    work: Path, options: Options, tasks: Sequence[Task], do_tasks: DoTasks
) -> tuple[TextSample, list[tuple[Task, RecordCounts]]] | None:
    """The sample of the corpus, and the counts of the tasks that were read, in the order of the corpus.

    It depends on the inputs and options only.

    Args:
        do_tasks: does the tasks that are not done, or nothing.

    Returns:
        None when a task that is needed is not done.
    """
    # The same file given twice has one sample.
    ordered = [task for _, task in sorted({task.identity: task for task in reversed(tasks)}.items())]
    limit = -(-options.sample_bytes // max(1, min(len(ordered), TASKS_SAMPLED)))
    while True:
        found = _round(SampleJob(work, options, limit), ordered, do_tasks)
        if found is None:
            return None
        if found.sample.is_enough or not found.was_cut:
            return found.sample, sorted(found.counts, key=lambda each: each[0].number)
        limit *= GROWTH


def _round(job: SampleJob, ordered: Sequence[Task], do_tasks: DoTasks) -> _Round | None:
    found, begin = _Round(TextSample(job.options.sample_bytes)), 0
    while begin < len(ordered) and not found.sample.is_enough:
        end = _wave(ordered, begin, job.limit, found.sample.max_bytes - found.sample.num_bytes)
        do_tasks(job, ordered[begin:end])
        for task in ordered[begin:end]:
            if found.sample.is_enough:
                break
            if not job.is_done(task):
                return None
            found.add(task, job.result(task))
        begin = end
    return found


def _wave(ordered: Sequence[Task], begin: int, limit: int, missing: int) -> int:
    """End of the tasks to do next, at once: as many as probably hold what is missing. Does not change the sample."""
    end = begin
    while end < len(ordered) and (missing > 0 or end < begin + TASKS_SAMPLED):
        missing -= min(limit, ordered[end].num_bytes)
        end += 1
    return end


def _beginning(document: Document) -> str:
    return "".join(_head(document.chunks, MAX_DOCUMENT_CHARS))


def _head(chunks: Iterable[str], num_chars: int) -> Iterator[str]:
    for chunk in chunks:
        yield chunk[:num_chars]
        num_chars -= len(chunk)
        if num_chars <= 0:
            return


def _file(folder: Path) -> Path:
    return folder / "sample.jsonl"
