"""Read the text column of Parquet files and datasets. They yield whole values, so the largest one is in memory."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, reduce
from itertools import count, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import first_line
from data_pipeline.json_text import shown_name
from data_pipeline.readers.compression import DamagedFileError
from data_pipeline.readers.file_ranges import FileRange
from data_pipeline.readers.input_files import InputFile
from data_pipeline.readers.mapped import require_readable
from data_pipeline.readers.nested_keys import described, key_names, key_path, obstacle
from data_pipeline.readers.values import Found, TextValue
from data_pipeline.rejects import Rejection, missing_id, missing_key

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Array, ChunkedArray, Scalar, Schema, StructType
    from pyarrow.parquet import ParquetFile

ROWS_PER_BATCH = 256
BATCH_BYTES = 16 << 20


def read_parquet(file_range: FileRange, text_key: str, id_key: str | None = None) -> Iterator[Found]:
    """The values of a Parquet file's columns of texts and ids, one row group after the other.

    Raises:
        DamagedFileError: the content is broken. OSError, MemoryError: the system reported a failure.
    """
    import pyarrow

    first = row = end = None
    try:
        with _open_parquet(file_range.file) as file:
            groups = range(file_range.start, file.num_row_groups if file_range.stop is None else file_range.stop)
            sizes = [file.metadata.row_group(i).num_rows for i in range(groups.stop)]
            paths = _paths(file.schema_arrow, text_key, id_key, count=sum(sizes[file_range.start :]))
            if isinstance(paths, Rejection):
                yield paths
                return
            _require_one_column(file.schema_arrow.names, [path[0] for path in paths], file_range)
            columns = [".".join(path) for path in paths]
            first = row = sum(sizes[: file_range.start])
            end = sum(sizes)
            for i in groups:
                # One row group after the other, because the batch size depends on the size of its rows.
                rows_at_once = _rows_at_once(file, i, columns[0])
                for batch in file.iter_batches(batch_size=rows_at_once, row_groups=[i], columns=columns):
                    values = (map(_parquet_value, _nested(batch.column(path[0]), path)) for path in paths)
                    yield from _column_values(row, *values)
                    row += batch.num_rows
                if row != sum(sizes[: i + 1]):
                    raise DamagedFileError(
                        f"row group {i} ends before its last row", _missing(file_range, row, first, end)
                    )
    except (pyarrow.ArrowException, OSError) as error:
        if is_of_system(error):
            raise
        raise DamagedFileError(first_line(error), _missing(file_range, row, first, end)) from error


def row_group_bytes(path: InputFile) -> list[int] | None:
    """Sizes of the row groups of a Parquet file; None when its content is broken, which the reader will report.

    Raises:
        OSError, MemoryError: the system reported a failure.
    """
    import pyarrow

    for _ in range(2):  # two reads that agree show that the content is broken
        try:
            with _open_parquet(path) as file:
                return [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        except (pyarrow.ArrowException, OSError) as error:
            if is_of_system(error):
                raise
    return None


@contextmanager
def _open_parquet(path: InputFile) -> Iterator["ParquetFile"]:
    from pyarrow import parquet

    # Arrow takes only names that are UTF-8.
    is_name = isinstance(path, Path) and shown_name(path) == str(path)
    with (
        nullcontext(str(path)) if is_name else path.open("rb") as source,
        parquet.ParquetFile(source) as file,
    ):
        yield file


def is_of_system(error: Exception) -> bool:
    """Whether an exception of pyarrow or datasets reports a failure of the system, not broken content.

    Arrow's errors keep the number of a system call that failed; broken content, also a file that ends early, has none.
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def _missing(file_range: FileRange, row: int | None, first: int | None, end: int | None) -> str:
    if row is None or first is None or end is None:
        return f"all of its {file_range.num_bytes:,} bytes"
    return f"{end - row:,} of {end - first:,} rows"


def _rows_at_once(file: "ParquetFile", group: int, column: str) -> int:
    """Rows of a row group that hold about `BATCH_BYTES` of a column, which may be a part of another."""
    found = file.metadata.row_group(group)
    columns = (found.column(i) for i in range(found.num_columns))
    num_bytes = sum(
        each.total_uncompressed_size for each in columns if f"{each.path_in_schema}.".startswith(f"{column}.")
    )
    return _rows_in_a_batch(found.num_rows, num_bytes)


def _rows_in_a_batch(num_rows: int, num_bytes: int) -> int:
    """Rows that hold about `BATCH_BYTES`, when all of them hold `num_bytes`."""
    return max(1, min(ROWS_PER_BATCH, BATCH_BYTES * num_rows // max(1, num_bytes)))


def _tree(fields: "Schema | StructType") -> dict[str, Any]:
    """The names of columns, or of the fields of a struct; for those that are structs, the names inside."""
    from pyarrow import types

    return {field.name: _tree(field.type) if types.is_struct(field.type) else field.type for field in fields}


def _paths(schema: "Schema", text_key: str, id_key: str | None, count: int) -> list[tuple[str, ...]] | Rejection:
    """What leads to the texts, and to the ids if there is a key of them; or the rejection of `count` records without one."""
    tree = _tree(schema)
    path = key_path(tree, text_key)
    if path is None:
        return missing_key(text_key, None, key_names(tree), count, obstacle(tree, text_key, _described))
    if id_key is None:
        return [path]
    id_path = key_path(tree, id_key)
    return missing_id(id_key, None, key_names(tree), count) if id_path is None else [path, id_path]


def _require_one_column(names: Sequence[str], wanted: Iterable[str], file_range: FileRange) -> None:
    """Raise DamagedFileError when several columns of a Parquet file have the name of one that is read."""
    for name in wanted:
        if (count := names.count(name)) > 1:
            why = f"has {count} columns named {name!r}, so that it is unclear which one is meant; rename them"
            raise DamagedFileError(why, f"all of its {file_range.num_bytes:,} bytes")


def _described(inner: object, key: str) -> str:
    """What a column holds, by its part of a `_tree`."""
    return described(inner, key) if isinstance(inner, dict) else f"values of type {inner}"


def _nested(column: "Array | ChunkedArray", path: Sequence[str]) -> "Array | ChunkedArray":
    """The part of a column that `path`, which begins with its name, leads to; null where a struct above it is null."""
    from pyarrow import compute

    return reduce(compute.struct_field, path[1:], column)


def _parquet_value(scalar: "Scalar") -> object:
    """A value of a column; a string that is not UTF-8, which Parquet does not prevent, as bytes."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return bytes(scalar.as_buffer())


def _column_values(
    first_row: int, texts: Iterable[object], ids: Iterable[object] = repeat(None)
) -> Iterator[TextValue]:
    return (TextValue(text, row, id=id_) for row, text, id_ in zip(count(first_row), texts, ids))


def read_dataset(file_range: FileRange, text_key: str, id_key: str | None = None) -> Iterator[Found]:
    """The values of a Hugging Face dataset's columns of texts and ids, row by row.

    Raises:
        DamagedFileError: the content is broken. OSError, MemoryError: the system reported a failure.
    """
    dataset = _opened_dataset(file_range.source)
    start, stop = file_range.start, len(dataset) if file_range.stop is None else file_range.stop
    paths = _paths(dataset.features.arrow_schema, text_key, id_key, count=stop - start)
    if isinstance(paths, Rejection):
        yield paths
        return
    columns = list(dict.fromkeys(path[0] for path in paths))
    row, part = start, dataset.select_columns(columns).select(range(start, stop))
    try:
        rows_at_once = _rows_in_a_batch(part.data.num_rows, part.data.nbytes)
        for batch in part.with_format("arrow").iter(batch_size=rows_at_once):
            for path in paths:
                require_readable(batch.column(path[0]), path[1:])
            yield from _column_values(row, *(_nested(batch.column(path[0]), path).to_pylist() for path in paths))
            row += batch.num_rows
    except Exception as error:  # the library raises its own exceptions, Arrow's, and many built-in ones
        if is_of_system(error):
            raise
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DamagedFileError(why, _missing(file_range, row, start, stop)) from error


@cache
def _opened_dataset(name: str) -> "Dataset":
    """Each process opens a dataset once; only its name is sent to other processes."""
    from data_pipeline.readers.hub import open_dataset

    return open_dataset(name)
