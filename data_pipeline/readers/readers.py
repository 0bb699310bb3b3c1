"""Read documents from a span: a range of one file or dataset that is read by itself.

Memory stays constant: one record or one batch of rows at a time, and of a document that is long only where it lies
(`data_pipeline.readers.long_documents`). Parquet files and datasets hand over whole values: of those the largest one is in memory.
Every reader hands what it cannot use to a `RecordLog`. Packed files (`.gz .zst .xz .bz2`) are unpacked on the way.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from data_pipeline.documents import Cause, Document, RecordLog
from data_pipeline.errors import DataError
from data_pipeline.readers.compression import DAMAGED_STREAM, open_unpacked
from data_pipeline.readers.file_ranges import SKIPPED_BYTES, Span, is_packed
from data_pipeline.readers.long_documents import LONG_BYTES, LongLine, LongText, Utf8Error, decode_utf8

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Scalar
    from pyarrow.parquet import ParquetFile

ROWS_PER_BATCH = 256
BATCH_BYTES = 16 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_span(span: Span, log: RecordLog) -> Iterator[Document]:
    """Every usable document of a span, in order; `log` takes the rejected records.

    Raises:
        DataError: the file cannot be opened.
    """
    log.begin(span)
    try:
        if span.kind == "dataset":
            yield from _read_dataset(span, log)
        elif span.kind == "parquet":
            yield from _read_parquet(span, log)
        else:
            with _opened(Path(span.source), log) as file:
                yield from _read_lines(file, span, log) if span.kind == "lines" else _read_text(file, span, log)
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"cannot read {span.source}: {error.strerror}") from error


@contextmanager
def _opened(path: Path, log: RecordLog) -> Iterator[BinaryIO]:
    """The unpacked content; a damaged stream is rejected once what was whole has been read."""
    suffix = path.suffix.lower()
    try:
        with open_unpacked(path) as file:
            yield file
    except OSError as error:
        # bz2 and Arrow's zstd report damage as an OSError without a number; all others come from the system.
        if error.errno is not None or not is_packed(path):
            raise
        log.reject(Cause.BROKEN_FILE, None, f"the {suffix[1:]} stream ends early or is damaged ({error})")
    except DAMAGED_STREAM as error:
        name = "gzip" if suffix == ".gz" else suffix[1:]
        log.reject(Cause.BROKEN_FILE, None, f"the {name} stream ends early or is damaged ({error})")


def _read_text(file: BinaryIO, span: Span, log: RecordLog) -> Iterator[Document]:
    content = file.read(LONG_BYTES + 1)
    start = len(BYTE_ORDER_MARK) if content.startswith(BYTE_ORDER_MARK) else 0
    is_long = len(content) > LONG_BYTES
    try:
        document = log.document(LongText(Path(span.source), start) if is_long else decode_utf8(content[start:]), None)
    except Utf8Error as error:
        log.reject(Cause.NOT_UTF8, None, str(error))
        return
    if document:
        yield document


def _read_lines(file: BinaryIO, span: Span, log: RecordLog) -> Iterator[Document]:
    position, number = _first_line(file, span), 0
    while (span.stop is None or position < span.stop) and (line := file.readline(LONG_BYTES + 1)):
        number += 1
        log.lines[-1] = number
        mark = len(BYTE_ORDER_MARK) if number == 1 and not span.start and line.startswith(BYTE_ORDER_MARK) else 0
        if len(line) > LONG_BYTES and not line.endswith(b"\n"):
            long = LongLine(Path(span.source), file, line[mark:], position + mark)
            position += mark + long.num_bytes
            document = None if long.is_blank else _parse(partial(long.record, log.text_key), number, log)
        else:
            position += len(line)
            content = line[mark:]
            document = _parse(partial(_load_line, content), number, log) if content.strip() else None
            del content
        del line  # a document may be a large part of the memory: once is enough
        if document:
            yield document


def _first_line(file: BinaryIO, span: Span) -> int:
    """Go to the first line that begins in the span; returns its offset."""
    if not span.start:
        return 0
    position = span.start - 1
    file.seek(position)
    # A line that began earlier may be longer than the whole span, and longer than memory.
    while (span.stop is None or position < span.stop) and (skipped := file.readline(SKIPPED_BYTES)):
        position += len(skipped)
        if skipped.endswith(b"\n"):
            break
    return position


def _parse(load: Callable[[], object], number: int, log: RecordLog) -> Document | None:
    """A document of the record that `load` gives, or None when it is rejected."""
    try:
        return log.document_of(load(), number)
    except Utf8Error as error:
        return log.reject(Cause.NOT_UTF8, number, str(error))
    except json.JSONDecodeError as error:
        hint = " (one JSON object per line is expected)" if error.doc.strip() in ("[", "{") else ""
        return log.reject(Cause.BROKEN_JSON, number, f"{error.msg} at column {error.colno}{hint}")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets a thousand deep
        return log.reject(Cause.BROKEN_JSON, number, str(error))


def _load_line(line: bytes) -> object:
    return json.loads(decode_utf8(line.rstrip(b"\r\n")))


def _read_parquet(span: Span, log: RecordLog) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(span.source) as file:
            groups = range(span.start, file.num_row_groups if span.stop is None else span.stop)
            sizes = [file.metadata.row_group(i).num_rows for i in range(groups.stop)]
            names = file.schema_arrow.names
            if log.text_key not in names:
                log.reject_missing_key(None, names, count=sum(sizes[span.start :]))
                return
            row = sum(sizes[: span.start])
            # One row group after the other: where rows are large, a batch has few.
            batches = chain.from_iterable(
                file.iter_batches(
                    batch_size=_rows_at_once(file, i, log.text_key), row_groups=[i], columns=[log.text_key]
                )
                for i in groups
            )
            for batch in batches:
                yield from _column_documents(map(_parquet_value, batch.column(0)), row, log)
                row += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        log.reject(Cause.BROKEN_FILE, None, str(error).splitlines()[0])


def _rows_at_once(file: "ParquetFile", group: int, column: str) -> int:
    """Rows of a row group that hold about `BATCH_BYTES` of a column."""
    found = file.metadata.row_group(group)
    columns = (found.column(i) for i in range(found.num_columns))
    num_bytes = sum(each.total_uncompressed_size for each in columns if each.path_in_schema.split(".")[0] == column)
    return _rows_in_a_batch(found.num_rows, num_bytes)


def _rows_in_a_batch(num_rows: int, num_bytes: int) -> int:
    """Rows that hold about `BATCH_BYTES`, where all have `num_bytes`."""
    return max(1, min(ROWS_PER_BATCH, BATCH_BYTES * num_rows // max(1, num_bytes)))


def _parquet_value(scalar: "Scalar") -> object:
    """A value of a column; a string that is not UTF-8, which Parquet does not prevent, as its bytes."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return bytes(scalar.as_buffer())


def _column_documents(values: Iterable[object], first_row: int, log: RecordLog) -> Iterator[Document]:
    for row, value in enumerate(values, start=first_row):
        document = log.document(value, row)
        if document:
            yield document


def _read_dataset(span: Span, log: RecordLog) -> Iterator[Document]:
    """The values of a Hugging Face dataset's text column, row by row."""
    dataset = _opened_dataset(span.source)
    stop = len(dataset) if span.stop is None else span.stop
    if log.text_key not in dataset.column_names:
        log.reject_missing_key(None, dataset.column_names, count=stop - span.start)
        return
    row = span.start
    part = dataset.select_columns([log.text_key]).select(range(span.start, stop))
    for batch in part.iter(batch_size=_rows_in_a_batch(part.data.num_rows, part.data.nbytes)):
        values = batch[log.text_key]
        yield from _column_documents(values, row, log)
        row += len(values)


@cache
def _opened_dataset(word: str) -> "Dataset":
    """Each process opens a dataset once; only its name crosses the border between processes."""
    from data_pipeline.readers.hub import open_dataset

    return open_dataset(word)
