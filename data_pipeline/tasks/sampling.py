"""A bounded sample of documents to train a tokenizer on."""

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data_pipeline.documents import Document
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.addresses import content_address, software
from data_pipeline.tasks.options import TRAIN
from data_pipeline.tasks.processes import Report
from data_pipeline.tasks.reading import new_digest, reported, task_documents
from data_pipeline.tasks.results import ResultJob
from data_pipeline.tasks.task import Task, require_unmodified
from data_pipeline.tasks.task_records import RecordCounts
from data_pipeline.tasks.work import SAMPLES, result_folder

SAMPLE_BYTES = 10_000_000
# Of one document, so that a long one does not fill the sample.
MAX_DOCUMENT_CHARS = 100_000


class HashSample:
    """The documents with the lowest hashes that fit into `max_bytes`, whatever the order in which they are added.

    Of each document only the first `MAX_DOCUMENT_CHARS` characters are kept.
    """

    def __init__(self, max_bytes: int = SAMPLE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._heap: list[tuple[bytes, str, int]] = []
        self._bytes = 0

    def add(self, document: Document) -> None:
        """Consider one document."""
        key = _inverted(document.digest)
        if self._bytes >= self._max_bytes and key < self._heap[0][0]:
            return
        text = _beginning(document.chunks, MAX_DOCUMENT_CHARS)
        size = len(text.encode("utf-8"))
        heapq.heappush(self._heap, (key, text, size))
        self._bytes += size
        while self._bytes - self._heap[0][2] >= self._max_bytes:
            self._bytes -= heapq.heappop(self._heap)[2]

    def texts(self) -> Iterator[str]:
        """The sample, in the order of the hashes."""
        return (text for _, text, _ in sorted(self._heap, reverse=True))

    def documents(self) -> Iterator[Document]:
        """The sample as documents with the texts kept and the digests of the whole documents, to add to another sample."""
        return (Document((text,), size, _inverted(key)) for key, text, size in self._heap)


def _beginning(chunks: Iterable[str], num_chars: int) -> str:
    text = ""
    for chunk in chunks:
        text += chunk[: num_chars - len(text)]
        if len(text) == num_chars:
            break
    return text


def _inverted(digest: bytes) -> bytes:
    """A key that orders digests from the largest to the smallest, because a heap pops its smallest key."""
    return bytes(255 - byte for byte in digest)


@dataclass(frozen=True)
class TaskSample:
    """What a task contributes: its counts, the bytes of all its text, and its part of the sample."""

    counts: RecordCounts
    num_bytes: int
    documents: list[Document]


@dataclass(frozen=True)
class SampleJob(ResultJob):
    """Samples the training split of a task into a file of JSON lines: a header, then one document per line."""

    kind: ClassVar[str] = SAMPLES

    def address(self, task: Task) -> str:
        """Content address of a task's sample."""
        return content_address(task.identity, self.options.of_documents(), software())

    def __call__(self, task: Task, report: Report) -> None:
        """Write the task's sample, all or nothing."""
        options, counter = self.options, RecordCounter(starts_corpus=task.number == 0)
        sample, num_bytes, digest = HashSample(), 0, new_digest()
        documents = task_documents(task, counter, options.text_key, options.filters, options.strict)
        for document in reported(documents, report):
            num_bytes += document.num_bytes
            digest.update(document.digest)
            if options.split_of(document) == TRAIN:
                sample.add(document)
        require_unmodified(task)
        header = {
            "address": self.address(task),
            "digest": digest.hexdigest(),
            "num_bytes": num_bytes,
            "account": RecordCounts.of(counter).model_dump(),
        }
        lines = [header, *([each.digest.hex(), each.num_bytes, each.text] for each in sample.documents())]
        final = self.path(task)
        with (
            result_folder(final, lambda: self.result_digest(task) == digest.hexdigest()) as folder,
            _file(folder).open("w", encoding="utf-8") as file,
        ):
            file.writelines(f"{json.dumps(line)}\n" for line in lines)
        self.digests.keep(task, digest.hexdigest())

    def result_digest(self, task: Task) -> str | None:
        """See `ResultJob`."""
        try:
            with _file(self.path(task)).open(encoding="utf-8") as file:
                header = json.loads(file.readline())
            return header["digest"] if header["address"] == self.address(task) else None
        except (OSError, ValueError, KeyError):
            return None

    def result(self, task: Task) -> TaskSample:
        """The sample of a finished task."""
        with _file(self.path(task)).open(encoding="utf-8") as file:
            header = json.loads(file.readline())
            lines = map(json.loads, file)
            documents = [Document((text,), size, bytes.fromhex(digest)) for digest, size, text in lines]
        return TaskSample(RecordCounts(**header["account"]), header["num_bytes"], documents)


def _file(folder: Path) -> Path:
    return folder / "sample.jsonl"
