"""Read documents from a span: a range of one file or dataset that is read by itself.

Memory stays constant beside the document at hand: one record or one batch of rows at a time. Every reader hands what
it cannot use to a `RecordLog`. Packed files (`.gz .zst .xz .bz2`) are unpacked on the way.
"""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from data_pipeline.errors import DataError
from data_pipeline.records import Cause, Document, RecordLog
from data_pipeline.spans import SKIPPED_BYTES, Span, is_packed

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Scalar

DAMAGED_STREAM = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
ROWS_PER_BATCH = 256
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
            with _opened(Path(span.source), span, log) as file:
                yield from _read_lines(file, span, log) if span.kind == "lines" else _read_text(file, log)
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"cannot read {span.source}: {error.strerror}") from error


@contextmanager
def _opened(path: Path, span: Span, log: RecordLog) -> Iterator[BinaryIO]:
    """The unpacked content; a damaged stream is rejected once what was whole has been read."""
    suffix = path.suffix.lower()
    openers = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _open_zstandard}
    try:
        with openers.get(suffix, io.open)(path, "rb") as file:
            yield cast(BinaryIO, file)
    except OSError as error:
        # bz2 and Arrow's zstd report damage as an OSError without a number; all others come from the system.
        if error.errno is not None or not is_packed(path):
            raise
        log.reject(Cause.BROKEN_FILE, None, f"the {suffix[1:]} stream ends early or is damaged ({error})")
    except DAMAGED_STREAM as error:
        name = "gzip" if suffix == ".gz" else suffix[1:]
        log.reject(Cause.BROKEN_FILE, None, f"the {name} stream ends early or is damaged ({error})")


@contextmanager
def _open_zstandard(path: Path, mode: str) -> Iterator[BinaryIO]:
    import pyarrow

    with path.open(mode) as packed, pyarrow.CompressedInputStream(packed, "zstd") as stream:
        yield io.BufferedReader(stream, SKIPPED_BYTES)


def _read_text(file: BinaryIO, log: RecordLog) -> Iterator[Document]:
    try:
        text = file.read().removeprefix(BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        log.reject(Cause.NOT_UTF8, None, _explain_decoding(error))
        return
    document = log.document(text, None)
    if document:
        yield document


def _read_lines(file: BinaryIO, span: Span, log: RecordLog) -> Iterator[Document]:
    position, number = _first_line(file, span), 0
    while (span.stop is None or position < span.stop) and (line := file.readline()):
        position, number = position + len(line), number + 1
        log.lines[-1] = number
        content = line.removeprefix(BYTE_ORDER_MARK) if number == 1 and not span.start else line
        document = _parse_json_line(content, number, log) if content.strip() else None
        del line, content  # a document may be a large part of the memory: once is enough
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


def _parse_json_line(line: bytes, number: int, log: RecordLog) -> Document | None:
    try:
        record = json.loads(line.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return log.reject(Cause.NOT_UTF8, number, _explain_decoding(error))
    except json.JSONDecodeError as error:
        hint = " (one JSON object per line is expected)" if line.strip() in (b"[", b"{") else ""
        return log.reject(Cause.BROKEN_JSON, number, f"{error.msg} at column {error.colno}{hint}")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets a thousand deep
        return log.reject(Cause.BROKEN_JSON, number, str(error))
    return log.document_of(record, number)


def _explain_decoding(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at position {error.start}"


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
            batches = file.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=groups, columns=[log.text_key])
            for batch in batches:
                yield from _column_documents(map(_parquet_value, batch.column(0)), row, log)
                row += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        log.reject(Cause.BROKEN_FILE, None, str(error).splitlines()[0])


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
    for batch in part.iter(batch_size=ROWS_PER_BATCH):
        values = batch[log.text_key]
        yield from _column_documents(values, row, log)
        row += len(values)


@cache
def _opened_dataset(word: str) -> "Dataset":
    """Each process opens a dataset once; only its name crosses the border between processes."""
    from data_pipeline.hub import open_dataset

    return open_dataset(word)
