"""Read the text values of a file range, record by record.

Readers yield what they find: values, which `data_pipeline.documents` checks, and records that are rejected already. Memory
is constant: one record or one batch of rows at a time, and long texts stay in their files
(`data_pipeline.readers.long_documents`). Parquet files and datasets yield whole values, so the largest one is in memory.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from data_pipeline.readers.compression import DamagedFileError, open_decompressed
from data_pipeline.readers.file_ranges import SKIPPED_BYTES, FileRange
from data_pipeline.readers.long_documents import LONG_BYTES, LongLine, LongText, Utf8Error, decode_utf8
from data_pipeline.rejects import Cause, Rejection, missing_key

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Scalar
    from pyarrow.parquet import ParquetFile

ROWS_PER_BATCH = 256
BATCH_BYTES = 16 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TextValue(NamedTuple):
    """What a record holds under the text key, not checked yet.

    Attributes:
        content: any value of JSON or of a column, or a `LongText`.
        number: line of the record within the file range, or its row in the file; None for a whole file.
    """

    content: object
    number: int | None


class BlankLine(NamedTuple):
    """A line with nothing on it: no record, but it counts for line numbers."""

    number: int


Found = TextValue | BlankLine | Rejection


def read_range(file_range: FileRange, text_key: str) -> Iterator[Found]:
    """Everything that a file range holds, in order.

    Raises:
        FileNotFoundError, PermissionError: the file cannot be opened.
    """
    if file_range.kind == "dataset":
        yield from _read_dataset(file_range, text_key)
    elif file_range.kind == "parquet":
        yield from _read_parquet(file_range, text_key)
    else:
        try:
            with open_decompressed(Path(file_range.source)) as file:
                if file_range.kind == "lines":
                    yield from _read_lines(file, file_range, text_key)
                else:
                    yield _read_text(file, file_range)
        except DamagedFileError as error:
            yield Rejection(Cause.BROKEN_FILE, None, str(error))


def _read_text(file: BinaryIO, file_range: FileRange) -> Found:
    content = file.read(LONG_BYTES + 1)
    start = len(BYTE_ORDER_MARK) if content.startswith(BYTE_ORDER_MARK) else 0
    if len(content) > LONG_BYTES:
        return TextValue(LongText(Path(file_range.source), start), None)
    try:
        return TextValue(decode_utf8(content[start:]), None)
    except Utf8Error as error:
        return Rejection(Cause.NOT_UTF8, None, str(error))


def _read_lines(file: BinaryIO, file_range: FileRange, text_key: str) -> Iterator[Found]:
    position, number, stop = _first_line(file, file_range), 0, file_range.stop
    while (stop is None or position < stop) and (line := file.readline(LONG_BYTES + 1)):
        number += 1
        skipped = len(BYTE_ORDER_MARK) if position == 0 and line.startswith(BYTE_ORDER_MARK) else 0
        if len(line) > LONG_BYTES and not line.endswith(b"\n"):
            long = LongLine(Path(file_range.source), file, line[skipped:], position + skipped)
            position += skipped + long.num_bytes
            load = None if long.is_blank else partial(long.record, text_key)
        else:
            position += len(line)
            content = line[skipped:]
            load = partial(_load_line, content) if content.strip() else None
            del content
        del line  # a document may take much memory: one copy is enough
        yield _parse(load, text_key, number) if load else BlankLine(number)


def _first_line(file: BinaryIO, file_range: FileRange) -> int:
    """Move to the first line that begins in the range; returns its offset."""
    if not file_range.start:
        return 0
    position = file_range.start - 1
    file.seek(position)
    # A line that began before the range may be longer than the whole range, and longer than memory.
    while (file_range.stop is None or position < file_range.stop) and (skipped := file.readline(SKIPPED_BYTES)):
        position += len(skipped)
        if skipped.endswith(b"\n"):
            break
    return position


def _parse(load: Callable[[], object], text_key: str, number: int) -> TextValue | Rejection:
    """The text value of the record that `load` returns."""
    try:
        record = load()
    except Utf8Error as error:
        return Rejection(Cause.NOT_UTF8, number, str(error))
    except json.JSONDecodeError as error:
        hint = " (one JSON object per line is expected)" if error.doc.strip() in ("[", "{") else ""
        return Rejection(Cause.BROKEN_JSON, number, f"{error.msg} at column {error.colno}{hint}")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets nested a thousand deep
        return Rejection(Cause.BROKEN_JSON, number, str(error))
    if not isinstance(record, dict):
        return Rejection(Cause.BROKEN_JSON, number, f"expected an object, found {type(record).__name__}")
    return TextValue(record[text_key], number) if text_key in record else missing_key(text_key, number, record)


def _load_line(line: bytes) -> object:
    return json.loads(decode_utf8(line.rstrip(b"\r\n")))


def _read_parquet(file_range: FileRange, text_key: str) -> Iterator[Found]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file_range.source) as file:
            groups = range(file_range.start, file.num_row_groups if file_range.stop is None else file_range.stop)
            sizes = [file.metadata.row_group(i).num_rows for i in range(groups.stop)]
            names = file.schema_arrow.names
            if text_key not in names:
                yield missing_key(text_key, None, names, count=sum(sizes[file_range.start :]))
                return
            row = sum(sizes[: file_range.start])
            # One row group after the other, because the batch size depends on the size of its rows.
            batches = chain.from_iterable(
                file.iter_batches(batch_size=_rows_at_once(file, i, text_key), row_groups=[i], columns=[text_key])
                for i in groups
            )
            for batch in batches:
                yield from _column_values(map(_parquet_value, batch.column(0)), row)
                row += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        yield Rejection(Cause.BROKEN_FILE, None, str(error).splitlines()[0])


def _rows_at_once(file: "ParquetFile", group: int, column: str) -> int:
    """Rows of a row group that hold about `BATCH_BYTES` of a column."""
    found = file.metadata.row_group(group)
    columns = (found.column(i) for i in range(found.num_columns))
    num_bytes = sum(each.total_uncompressed_size for each in columns if each.path_in_schema.split(".")[0] == column)
    return _rows_in_a_batch(found.num_rows, num_bytes)


def _rows_in_a_batch(num_rows: int, num_bytes: int) -> int:
    """Rows that hold about `BATCH_BYTES`, when all of them hold `num_bytes`."""
    return max(1, min(ROWS_PER_BATCH, BATCH_BYTES * num_rows // max(1, num_bytes)))


def _parquet_value(scalar: "Scalar") -> object:
    """A value of a column; a string that is not UTF-8, which Parquet does not prevent, as bytes."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return bytes(scalar.as_buffer())


def _column_values(values: Iterable[object], first_row: int) -> Iterator[TextValue]:
    return (TextValue(value, row) for row, value in enumerate(values, start=first_row))


def _read_dataset(file_range: FileRange, text_key: str) -> Iterator[Found]:
    """The values of a Hugging Face dataset's text column, row by row."""
    dataset = _opened_dataset(file_range.source)
    start, stop = file_range.start, len(dataset) if file_range.stop is None else file_range.stop
    if text_key not in dataset.column_names:
        yield missing_key(text_key, None, dataset.column_names, count=stop - start)
        return
    row, part = start, dataset.select_columns([text_key]).select(range(start, stop))
    for batch in part.iter(batch_size=_rows_in_a_batch(part.data.num_rows, part.data.nbytes)):
        values = batch[text_key]
        yield from _column_values(values, row)
        row += len(values)


@cache
def _opened_dataset(name: str) -> "Dataset":
    """Each process opens a dataset once; only its name is sent to other processes."""
    from data_pipeline.readers.hub import open_dataset

    return open_dataset(name)
