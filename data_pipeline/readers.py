"""Read documents from one file or dataset; memory stays constant, one record (or one batch of rows) at a time.

Every reader yields `Document`s and hands what it cannot use to a `RecordLog`. Files ending in `.gz` are unpacked on
the way by the standard library.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from data_pipeline.errors import DataError
from data_pipeline.records import Cause, Document, RecordLog

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Scalar

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")
UNSUPPORTED_SUFFIXES = (".zst", ".xz", ".bz2", ".zip", ".tar", ".tgz", ".7z", ".lz4")
ROWS_PER_BATCH = 256
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_file(path: Path, shown: str, log: RecordLog) -> Iterator[Document]:
    """Documents of one file: JSON lines, Parquet, or else one document that is the whole text.

    Args:
        path: the file.
        shown: its name in messages.
        log: takes the rejected records.

    Raises:
        DataError: the file cannot be opened, or is packed in a way that is not read.
    """
    suffix = content_suffix(path)
    try:
        if suffix in PARQUET_SUFFIXES:
            yield from _read_parquet(path, shown, log)
            return
        with _open(path) as file:
            yield from _read_stream(file, suffix, shown, log)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        log.reject(Cause.BROKEN_FILE, shown, f"the gzip stream ends early or is damaged ({error})")
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def content_suffix(path: Path) -> str:
    """Suffix that says what is in the file, without a final `.gz`.

    Raises:
        DataError: an archive or compression that is not supported.
    """
    if path.suffix.lower() in UNSUPPORTED_SUFFIXES:
        raise DataError(f"{path}: {path.suffix} files are not read; unpack it or pack it with gzip")
    return Path(path.stem).suffix.lower() if _is_gzip(path) else path.suffix.lower()


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if _is_gzip(path) else path.open("rb")


def _read_stream(file: BinaryIO, suffix: str, shown: str, log: RecordLog) -> Iterator[Document]:
    if suffix in JSON_SUFFIXES:
        yield from _read_json_lines(file, shown, log)
        return
    try:
        text = file.read().removeprefix(BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        log.reject(Cause.NOT_UTF8, shown, _explain_decoding(error))
        return
    document = log.document(text, shown)
    if document:
        yield document


def _read_json_lines(file: BinaryIO, shown: str, log: RecordLog) -> Iterator[Document]:
    for number, line in enumerate(file, start=1):
        content = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        document = _parse_json_line(content, f"{shown}:{number}", log) if content.strip() else None
        if document:
            yield document


def _parse_json_line(line: bytes, where: str, log: RecordLog) -> Document | None:
    try:
        record = json.loads(line.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return log.reject(Cause.NOT_UTF8, where, _explain_decoding(error))
    except json.JSONDecodeError as error:
        hint = " (one JSON object per line is expected)" if line.strip() in (b"[", b"{") else ""
        return log.reject(Cause.BROKEN_JSON, where, f"{error.msg} at column {error.colno}{hint}")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets a thousand deep
        return log.reject(Cause.BROKEN_JSON, where, str(error))
    return log.document_of(record, where)


def _explain_decoding(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at position {error.start}"


def _read_parquet(path: Path, shown: str, log: RecordLog) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if log.text_key not in names:
                log.reject_missing_key(shown, names, count=file.metadata.num_rows)
                return
            row = 0
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=[log.text_key]):
                yield from _column_documents(map(_parquet_value, batch.column(0)), shown, row, log)
                row += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        log.reject(Cause.BROKEN_FILE, shown, str(error).splitlines()[0])


def _parquet_value(scalar: "Scalar") -> object:
    """A value of a column; a string that is not UTF-8, which Parquet does not prevent, as its bytes."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return bytes(scalar.as_buffer())


def _column_documents(values: Iterable[object], shown: str, first_row: int, log: RecordLog) -> Iterator[Document]:
    for row, value in enumerate(values, start=first_row):
        document = log.document(value, f"{shown}, row {row}")
        if document:
            yield document


def read_dataset(dataset: "Dataset", shown: str, log: RecordLog) -> Iterator[Document]:
    """Documents of a Hugging Face `datasets.Dataset`: the values of the text column, row by row."""
    if log.text_key not in dataset.column_names:
        log.reject_missing_key(shown, dataset.column_names, count=len(dataset))
        return
    row = 0
    for batch in dataset.select_columns([log.text_key]).iter(batch_size=ROWS_PER_BATCH):
        values = batch[log.text_key]
        yield from _column_documents(values, shown, row, log)
        row += len(values)
