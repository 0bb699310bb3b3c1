"""Find documents that came before in the corpus, exactly or nearly.

Every task writes its documents' signatures; then one process goes through all of them in the order of the corpus and keeps
the first of each kind. So the result does not depend on how many workers there were. It holds in memory some 120 bytes
for a document, with near duplicates some 1,400 (measured on 3 and 1 million).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.atomic_files import write_whole
from data_pipeline.documents import Document, RecordLog
from data_pipeline.tasks.encode import task_documents
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.processes import Report
from data_pipeline.tasks.tasks import Task
from data_pipeline.tasks.work import task_folder, task_name

# Two texts of Jaccard similarity s share a band with probability 1 - (1 - s**ROWS)**BANDS: a half at 0.67, 0.95 at 0.8.
BANDS, ROWS = 16, 8
SHINGLE_WORDS, SHINGLE_CHARS = 5, 13
# Scripts without spaces have "words" longer than this.
LONG_WORD_CHARS = 20
REPORT_BYTES = 1 << 20
KEPT, EXACT, NEAR = range(3)


@dataclass(frozen=True)
class SignatureJob:
    """Writes the signatures of one task's documents: a digest of 16 bytes each and, for near duplicates, BANDS keys."""

    folder: Path
    options: Options

    def address(self, task: Task) -> str:
        """Content address of a task's signatures."""
        return task.address(["signatures", self.options.of_documents()])

    def __call__(self, task: Task, report: Report) -> None:
        """Write the task's signatures, whole or not at all."""
        log = RecordLog(self.options.text_key, self.options.strict, is_first=task.number == 0)
        near = self.options.cleaning.duplicates == "near"
        digests, bands, told, num_bytes = [], [], 0, 0
        for document in task_documents(task, log, self.options.cleaning):
            digests.append(document.digest)
            if near:
                bands.append(band_keys(document))
            num_bytes += document.num_bytes
            if num_bytes >= REPORT_BYTES:
                report(len(digests) - told, num_bytes, 0)
                told, num_bytes = len(digests), 0
        report(len(digests) - told, num_bytes, 0)
        with task_folder(self.folder, task.number) as folder:
            np.save(folder / "digests.npy", np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16))
            np.save(folder / "bands.npy", np.array(bands, np.uint64).reshape(-1, BANDS))
            (folder / "address").write_text(self.address(task))

    def is_done(self, task: Task) -> bool:
        """Whether the task's signatures are there."""
        path = self._path(task, "address")
        return path.is_file() and path.read_text() == self.address(task)

    def result(self, task: Task) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """Digests [documents, 16] and bands [documents, BANDS], the latter empty without near duplicates."""
        return np.load(self._path(task, "digests.npy")), np.load(self._path(task, "bands.npy"))

    def _path(self, task: Task, name: str) -> Path:
        return self.folder / task_name(task.number) / name


def band_keys(document: Document) -> list[int]:
    """Keys of a document's MinHash bands, [BANDS]: similar texts are likely to share one."""
    import rensa

    minhash = rensa.RMinHash(num_perm=BANDS * ROWS, seed=42)
    for piece in document.pieces:
        minhash.update(shingles(piece))
    values = np.array(minhash.digest(), "<u8").reshape(BANDS, ROWS)
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8, salt=bytes([i])) for i, row in enumerate(values))
    return [int.from_bytes(digest.digest(), "little") for digest in digests]


def shingles(text: str) -> list[str]:
    """Runs of words, or of characters in a script without spaces; case and white space do not count."""
    words = text.casefold().split()
    if len(words) * LONG_WORD_CHARS < len(text):
        joined = "".join(words)
        return [joined[i : i + SHINGLE_CHARS] for i in range(max(1, len(joined) - SHINGLE_CHARS + 1))]
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]


def decide(job: SignatureJob, tasks: Sequence[Task], folder: Path) -> None:
    """Write for each task which of its documents to leave out: `folder/NUMBER`, a byte for each document."""
    folder.mkdir(exist_ok=True)
    texts: set[bytes] = set()
    keys: set[int] = set()
    for task in tasks:
        digests, bands = job.result(task)
        decisions = bytearray(len(digests))
        for i, digest in enumerate(digests):
            if (text := digest.tobytes()) in texts:
                decisions[i] = EXACT
                continue
            texts.add(text)
            if len(bands):
                row = bands[i].tolist()
                if keys.isdisjoint(row):
                    keys.update(row)
                else:
                    decisions[i] = NEAR
        write_whole(folder / task_name(task.number), bytes(decisions))
