"""Find the duplicates of a corpus: signatures of each task's documents, then one decision over all of them.

The decision is taken by one process in the order of the corpus, so it does not depend on the number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup import BANDS, Decisions, SeenDocuments, band_keys
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.addresses import content_address, software
from data_pipeline.tasks.processes import Report
from data_pipeline.tasks.reading import new_digest, reported, task_documents
from data_pipeline.tasks.results import ResultJob
from data_pipeline.tasks.task import Task, require_unmodified, task_name
from data_pipeline.tasks.work import SIGNATURES, result_folder


@dataclass(frozen=True)
class SignatureJob(ResultJob):
    """Writes the signatures of a task's documents: their digests of 16 bytes and, for near duplicates, BANDS keys."""

    kind: ClassVar[str] = SIGNATURES

    def address(self, task: Task) -> str:
        """Content address of a task's signatures."""
        packages = ("rensa",) if self.options.duplicates == "near" else ()
        return content_address(task.identity, self.options.of_documents(), software(*packages))

    def __call__(self, task: Task, report: Report) -> None:
        """Write the task's signatures, all or nothing."""
        options, counter = self.options, RecordCounter(starts_corpus=task.number == 0)
        digests, bands, digest = [], [], new_digest()
        documents = task_documents(task, counter, options.text_key, options.filters, options.strict)
        for document in reported(documents, report):
            digests.append(document.digest)
            digest.update(document.digest)
            if options.duplicates == "near":
                bands.append(band_keys(document))
        require_unmodified(task)
        with result_folder(self.path(task), lambda: self.result_digest(task) == digest.hexdigest()) as folder:
            # Not np.save: its errors tell neither that the disk is full nor the name of the file.
            (folder / "digests").write_bytes(b"".join(digests))
            (folder / "bands").write_bytes(np.array(bands, "<u8").tobytes())
            (folder / "digest").write_text(digest.hexdigest())
        self.digests.keep(task, digest.hexdigest())

    def result_digest(self, task: Task) -> str | None:
        """See `ResultJob`."""
        path = self.path(task) / "digest"
        return path.read_text() if path.is_file() else None

    def result(self, task: Task) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """Digests [documents, 16] and band keys [documents, BANDS]; [0, BANDS] unless near duplicates are wanted."""
        folder = self.path(task)
        digests = np.frombuffer((folder / "digests").read_bytes(), np.uint8).reshape(-1, 16)
        return digests, np.frombuffer((folder / "bands").read_bytes(), "<u8").reshape(-1, BANDS)


def find_duplicates(job: SignatureJob, tasks: Sequence[Task], folder: Path) -> None:
    """Write which documents of each task to leave out, to `folder/NUMBER`, see `Decisions`."""
    seen = SeenDocuments()
    for task in tasks:
        digests, bands = job.result(task)
        (folder / task_name(task.number)).write_bytes(Decisions.pack(digests, seen.decide(digests, bands)))
