"""When the result of a task can be used: the digest of the documents that it was made from is that of the documents now.

That digest is kept for files of certain modification times, in `OUTPUT.work/documents`. As long as the times are the same,
nothing is read. After `touch` or a copy the documents are read again, once for all kinds of results, and compared. So they are in
each run where a server tells no version of a file.
"""

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import ClassVar

from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.addresses import content_address, software
from data_pipeline.tasks.claims import process_name
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.processes import Report
from data_pipeline.tasks.reading import new_digest, reported, task_documents
from data_pipeline.tasks.task import Task, require_unmodified
from data_pipeline.tasks.work import DOCUMENTS, PARTIAL


@dataclass(frozen=True)
class DigestJob:
    """Reads the documents of a task and keeps their digest.

    Attributes:
        work: the work folder.
    """

    work: Path
    options: Options

    def path(self, task: Task) -> Path:
        """The file that holds the digest."""
        address = content_address(task.identity, task.versions, self.options.of_documents(), software())
        return self.work / DOCUMENTS / address

    def digest(self, task: Task) -> str | None:
        """The digest, None if the documents have not been read since the files were modified."""
        try:
            content = self.path(task).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return content if len(content) == 2 * new_digest().digest_size else None

    def is_done(self, task: Task) -> bool:
        """Whether the digest is known."""
        return self.digest(task) is not None

    def keep(self, task: Task, digest: str) -> None:
        """Keep the digest of documents that have been read."""
        path = self.path(task)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f"{path.name}{PARTIAL}{process_name()}-{token_hex(4)}")
        partial.write_text(digest, encoding="utf-8")
        with suppress(FileNotFoundError):  # another process has removed what seemed to be left over
            partial.rename(path)

    def __call__(self, task: Task, report: Report) -> None:
        """Read the documents of a task."""
        options, digest = self.options, new_digest()
        documents = task_documents(task, RecordCounter(), options.text_key, options.filters)
        for document in reported(documents, report):
            digest.update(document.digest)
        require_unmodified(task)
        self.keep(task, digest.hexdigest())


@dataclass(frozen=True)
class ResultJob(ABC):
    """Makes one kind of result of each task, in the folder `work/kind/ADDRESS`.

    Attributes:
        work: the work folder.
        kind: name of the folder of these results.
    """

    work: Path
    options: Options
    kind: ClassVar[str]

    @abstractmethod
    def address(self, task: Task) -> str:
        """Content address of a task's result."""

    @abstractmethod
    def result_digest(self, task: Task) -> str | None:
        """Digest of the documents that a task's result was made from, None when there is no whole result."""

    @property
    def digests(self) -> DigestJob:
        """The digests of the documents as they are now."""
        return DigestJob(self.work, self.options)

    def path(self, task: Task) -> Path:
        """The folder of a task's result."""
        return self.work / self.kind / self.address(task)

    def is_done(self, task: Task) -> bool:
        """Whether a task's result is there, whole, and of the documents as they are now."""
        digest = self.digests.digest(task)
        return digest is not None and digest == self.result_digest(task)

    def needs_comparison(self, task: Task) -> bool:
        """Whether there is a result, and it is not known whether its documents are the same now."""
        return not self.digests.is_done(task) and self.result_digest(task) is not None
