"""The documents of a task: read, built, filtered and counted."""

import hashlib
from collections.abc import Iterable, Iterator

from data_pipeline.documents import Document, build_document
from data_pipeline.errors import DataError, ReadError
from data_pipeline.filters import ActiveFilters
from data_pipeline.readers.file_ranges import FileRange
from data_pipeline.readers.readers import BlankLine, read_range
from data_pipeline.rejects import Cause, RecordCounter, Rejection, wrong_key
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.processes import Report
from data_pipeline.tasks.task import Task

REPORT_BYTES = 1 << 20
UNITS = {
    "lines": ("line", "byte"),
    "parquet": ("row", "row group"),
    "dataset": ("row", "row"),
    "generated": ("instance", "instance"),
}
"""Kind of a file range -> what its records are, and what its start counts."""


def task_documents(
    task: Task, counter: RecordCounter, text_key: str, filters: ActiveFilters, strict: bool = False
) -> Iterator[Document]:
    """Every usable document of a task that the filters keep, in order; `counter` counts them and the rejected records.

    Raises:
        ReadError: the system reported a failure, or a file read differently the second time.
        DataError: the corpus begins with too many records without a key, or a record is rejected under `strict`.
            What filters leave out is not an error.
    """
    for file_range in task.ranges:
        counter.begin_range()
        try:
            for item in _range_documents(file_range, counter, text_key, filters):
                if isinstance(item, Document):
                    yield item
                    continue
                if strict:
                    raise _strict_error(file_range, item)
                counter.reject(item)
                if counter.key_is_wrong:
                    raise wrong_key(text_key, counter.other_keys, _first_without_key(task, counter))
                if counter.id_key_is_wrong:
                    example = _first_without_key(task, counter)
                    raise wrong_key(filters.id_key, counter.other_keys, example, option="--id-key")
        except (OSError, MemoryError) as error:
            raise ReadError.of(error, file_range.source, _progress(file_range, counter.last)) from error


def _first_without_key(task: Task, counter: RecordCounter) -> str:
    example = next(each for each in counter.examples if each.cause in (Cause.MISSING_KEY, Cause.NO_ID))
    return f"{task.ranges[example.file_range].place(example.number)}: {example.why}"


def _progress(file_range: FileRange, last: int | None) -> str:
    """How far a range was read, for messages."""
    if file_range.kind == "text":
        return ""
    unit, start = UNITS[file_range.kind]
    if last is None:
        return f"before the first {unit} from {start} {file_range.start:,} on"
    # Rows are numbered from the beginning of the file, lines from that of the range.
    counted = f" from byte {file_range.start:,} on" if file_range.kind == "lines" and file_range.start else ""
    return f"after {unit} {last:,}{counted}"


def _range_documents(
    file_range: FileRange, counter: RecordCounter, text_key: str, filters: ActiveFilters
) -> Iterator[Document | Rejection]:
    """The documents that the filters keep, counted, and the records that are broken, which are not counted yet."""
    for found in read_range(file_range, text_key, filters.id_key):
        if found.number is not None:
            counter.last = found.number
            if file_range.kind == "lines":
                counter.lines[-1] = found.number
        if isinstance(found, BlankLine):
            continue
        item = found if isinstance(found, Rejection) else build_document(found, text_key, filters.id_key)
        if isinstance(item, Document):
            if objection := filters.rejection(item):
                cause, why = objection
                counter.reject(Rejection(cause, found.number, why))
                continue
            counter.accept(found.number)
        yield item


def _strict_error(file_range: FileRange, rejection: Rejection) -> DataError:
    number = rejection.number and rejection.number + file_range.lines_before()
    place = file_range.place(number)
    return DataError(
        f"{place}: {rejection.cause}: {rejection.why} (without --strict such records are counted and left out)"
    )


def read_digest(task: Task, options: Options) -> str:
    """Digest of the documents that a task reads now, as its record has it."""
    digest = new_digest()
    for document in task_documents(task, RecordCounter(), options.text_key, options.filters):
        digest.update(document.digest)
    return digest.hexdigest()


def new_digest() -> "hashlib.blake2b":
    """The hash over the digests of a task's documents."""
    return hashlib.blake2b(digest_size=16)


def reported(documents: Iterable[Document], report: Report) -> Iterator[Document]:
    """The same documents, with a report after each megabyte of text and at the end."""
    count, num_bytes = 0, 0
    for document in documents:
        count += 1
        num_bytes += document.num_bytes
        if num_bytes >= REPORT_BYTES:
            report(count, num_bytes, 0)
            count, num_bytes = 0, 0
        yield document
    report(count, num_bytes, 0)
