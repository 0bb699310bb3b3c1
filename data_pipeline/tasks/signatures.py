"""Find the duplicates of a corpus: signatures of each task's documents, then one decision over all of them.

One process decides, by queries over the files of all tasks. The result does not depend on the number of workers.
"""

import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from data_pipeline.dedup import (
    BANDS,
    EXACT,
    KEPT_IN_TRAIN,
    KEPT_IN_VALIDATION,
    METHOD,
    NEAR,
    SIGNATURE_BYTES,
    Decisions,
    Duplicates,
    near_keys,
)
from data_pipeline.errors import DataError
from data_pipeline.manifest import VALIDATION
from data_pipeline.provenance import TableWriter
from data_pipeline.readers.inputs import Input
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.addresses import content_address, software
from data_pipeline.tasks.duplicate_search import RepeatedOfTask, find_repeated
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.processes import Report
from data_pipeline.tasks.reading import new_digest, reported, task_documents
from data_pipeline.tasks.results import ResultJob
from data_pipeline.tasks.task import Task, require_unmodified, task_name
from data_pipeline.tasks.work import SIGNATURES, result_folder

FOUND_NAME = "found.json"
REPEATS = pyarrow.schema(
    {
        "is_exact": pyarrow.bool_(),
        "ranges": pyarrow.uint32(),
        "places": pyarrow.int64(),
        "first_tasks": pyarrow.uint32(),
        "first_ranges": pyarrow.uint32(),
        "first_places": pyarrow.int64(),
    }
)


@dataclass(frozen=True)
class SignatureJob(ResultJob):
    """Writes what a task's documents are compared by into a Parquet file, see `find_repeated`."""

    kind: ClassVar[str] = SIGNATURES

    @property
    def near(self) -> bool:
        """Whether near duplicates are looked for."""
        return self.options.duplicates != "exact"

    def address(self, task: Task) -> str:
        """Content address of a task's signatures."""
        packages = ("rensa",) if self.near else ()
        return content_address(task.identity, self.options.of_documents(), METHOD, software(*packages))

    def __call__(self, task: Task, report: Report) -> None:
        """Write the task's signatures, all or nothing."""
        options, counter = self.options, RecordCounter(task.starts_corpus)
        digests, bands, signatures, digest = bytearray(), bytearray(), bytearray(), new_digest()
        places = array("q")
        documents = task_documents(task, counter, options.text_key, options.filters, options.strict)
        for document in reported(documents, report):
            digests += document.digest
            places.extend((counter.file_range, document.place))
            digest.update(document.digest)
            if self.near:
                keys, signature = near_keys(document)
                bands += keys
                signatures += signature
        require_unmodified(task)
        with result_folder(self.path(task), lambda: self.result_digest(task) == digest.hexdigest()) as folder:
            _file(folder).write_bytes(signature_file(digests, places, bands, signatures))
            (folder / "digest").write_text(digest.hexdigest())
        self.digests.keep(task, digest.hexdigest())

    def result_digest(self, task: Task) -> str | None:
        """See `ResultJob`."""
        path = self.path(task) / "digest"
        return path.read_text() if path.is_file() else None

    def result(self, task: Task) -> Path:
        """The file of a finished task."""
        return _file(self.path(task))

    def require_documents(self, inputs: Sequence[Input], tasks: Sequence[Task]) -> None:
        """Raise DataError when a value of `--against` gave no document, so that nothing would be compared with it."""
        found = Counter(dict.fromkeys(range(len(inputs)), 0))
        for task in tasks:
            found[task.input] += parquet.read_metadata(self.result(task)).num_rows
        if empty := [inputs[i].value for i, documents in found.items() if not documents]:
            raise DataError(
                f"--against {empty[0]} gives no document; it is read with the same --text-key and filters as the inputs"
            )


def _file(folder: Path) -> Path:
    return folder / "signatures.parquet"


def signature_file(digests: bytes, places: Sequence[int], bands: bytes, signatures: bytes) -> memoryview:
    """The content of a file of signatures; of exact duplicates only without bands and signatures.

    Args:
        places: the file range and the place of each document in turn, [2 * documents].
    """
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)
    ranges, starts = np.array(places, np.int64).reshape(-1, 2).T
    columns = {"high": halves[:, 0], "low": halves[:, 1]}
    columns |= {"file_range": ranges.astype(np.uint32), "place": np.ascontiguousarray(starts)}
    if bands or not digests:
        keys = np.frombuffer(bands, "<u8").reshape(-1, BANDS)
        columns |= {f"band{i}": np.ascontiguousarray(keys[:, i]) for i in range(BANDS)}
        kind = pyarrow.binary(SIGNATURE_BYTES)
        columns["signature"] = pyarrow.Array.from_buffers(kind, len(halves), [None, pyarrow.py_buffer(signatures)])
    buffer = pyarrow.BufferOutputStream()  # errors of writing then come from Python, with the name of the file
    parquet.write_table(
        pyarrow.table(columns), buffer, compression="none", use_dictionary=False, write_statistics=False
    )
    return memoryview(buffer.getvalue())


def find_duplicates(
    job: SignatureJob, against: Sequence[Task], tasks: Sequence[Task], folder: Path, threads: int
) -> None:
    """Write what is decided about the documents of each task to `folder/NUMBER`, see `Decisions`, and what they repeat.

    Those of the tasks `against` come first in the search; nothing is decided about them. In the files of `repeats_file` they
    are numbered from `len(tasks)` on.
    """
    before = len(against)
    files = {i: job.result(task) for i, task in enumerate([*against, *tasks])}
    with find_repeated(files, job.near, folder / "spill", threads) as repeated:
        for number, task in enumerate(tasks):
            digests, of_task = _digests(job.result(task)), repeated.of_task(before + number)
            firsts = np.where(
                of_task.first_tasks < before, of_task.first_tasks + len(tasks), of_task.first_tasks - before
            )
            of_task = of_task._replace(first_tasks=firsts)
            decisions = _decisions(len(digests), of_task, job.options)
            (folder / task_name(number)).write_bytes(Decisions.pack(digests, decisions))
            if of_task.positions.size:
                with TableWriter(repeats_file(folder, number), REPEATS) as table:
                    table.append(*(getattr(of_task, name) for name in REPEATS.names))
        documents, groups = repeated.totals(before)
        (folder / FOUND_NAME).write_text(json.dumps({"documents": documents, "groups": groups}))


def repeats_file(decisions: Path, number: int) -> Path:
    """Which documents those of a task repeat, a file with the columns `REPEATS`; missing where none does."""
    return decisions / f"{task_name(number)}.repeats.parquet"


def describe_found(decisions: Path, duplicates: Duplicates) -> str:
    """What the search for duplicates found, for the user."""
    found = json.loads((decisions / FOUND_NAME).read_text())
    kind = "the text of" if duplicates == "exact" else "the text of, or nearly the text of,"
    end = "; all are kept, each group in one split" if duplicates == "together" else ""
    return f"duplicates: {found['documents']:,} documents have {kind} one of {found['groups']:,} earlier ones{end}"


def _digests(file: Path) -> NDArray[np.uint8]:
    """Digests of a task's documents, [documents, 16]."""
    table = parquet.read_table(file, columns=["high", "low"])
    halves = np.column_stack([table["high"].to_numpy(), table["low"].to_numpy()])
    return halves.astype(">u8").view(np.uint8).reshape(-1, 16)


def _decisions(documents: int, repeated: RepeatedOfTask, options: Options) -> NDArray[np.uint8]:
    """What is decided about a task's documents, [documents]."""
    decisions = np.zeros(documents, np.uint8)  # KEPT
    if options.duplicates == "together":
        in_validation = [options.split_of_digest(each.tobytes()) == VALIDATION for each in repeated.first_digests]
        decisions[repeated.positions] = np.where(in_validation, KEPT_IN_VALIDATION, KEPT_IN_TRAIN)
    else:
        decisions[repeated.positions] = np.where(repeated.is_exact, EXACT, NEAR)
    return decisions
