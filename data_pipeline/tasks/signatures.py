"""Find the duplicates of a corpus: signatures of each task's documents, then one decision over all of them.

The decision is taken by one process in the order of the corpus, so it does not depend on the number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.atomic_files import write_atomic
from data_pipeline.dedup import BANDS, Decisions, SeenDocuments, band_keys
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.processes import Report
from data_pipeline.tasks.reading import reported, task_documents
from data_pipeline.tasks.task import Task
from data_pipeline.tasks.work import task_folder, task_name


@dataclass(frozen=True)
class SignatureJob:
    """Writes the signatures of a task's documents: their digests of 16 bytes and, for near duplicates, BANDS keys."""

    folder: Path
    options: Options

    def address(self, task: Task) -> str:
        """Content address of a task's signatures."""
        return task.address(["signatures", self.options.of_documents()])

    def __call__(self, task: Task, report: Report) -> None:
        """Write the task's signatures, all or nothing."""
        options, counter = self.options, RecordCounter(starts_corpus=task.number == 0)
        digests, bands = [], []
        documents = task_documents(task, counter, options.text_key, options.filters, options.strict)
        for document in reported(documents, report):
            digests.append(document.digest)
            if options.duplicates == "near":
                bands.append(band_keys(document))
        with task_folder(self.folder, task.number) as folder:
            # Not np.save: its errors tell neither that the disk is full nor the name of the file.
            (folder / "digests").write_bytes(b"".join(digests))
            (folder / "bands").write_bytes(np.array(bands, "<u8").tobytes())
            (folder / "address").write_text(self.address(task))

    def is_done(self, task: Task) -> bool:
        """Whether the task's signatures have been written."""
        path = self._path(task, "address")
        return path.is_file() and path.read_text() == self.address(task)

    def result(self, task: Task) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """Digests [documents, 16] and band keys [documents, BANDS]; [0, BANDS] unless near duplicates are wanted."""
        digests = np.frombuffer(self._path(task, "digests").read_bytes(), np.uint8).reshape(-1, 16)
        return digests, np.frombuffer(self._path(task, "bands").read_bytes(), "<u8").reshape(-1, BANDS)

    def _path(self, task: Task, name: str) -> Path:
        return self.folder / task_name(task.number) / name


def find_duplicates(job: SignatureJob, tasks: Sequence[Task], folder: Path) -> None:
    """Write which documents of each task to leave out, to `folder/NUMBER`, see `Decisions`."""
    seen = SeenDocuments()
    for task in tasks:
        digests, bands = job.result(task)
        write_atomic(folder / task_name(task.number), Decisions.pack(digests, seen.decide(digests, bands)))
