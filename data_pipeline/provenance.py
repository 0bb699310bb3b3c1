"""Where the documents of a prepared folder come from: Parquet files beside the tokens, which training does not read.

`sources.parquet` has a row for each file, dataset or generator that was read: the `--input` value that it belongs to, its
name, and how it was read. `SPLIT.places.parquet` has a row for each document of a split, in the order of the shards: the row
of its source, and its place there. `duplicates.parquet` has a row for each document that repeats an earlier one, with the
source and place of both.

A place is the byte at which a line of JSON begins, after decompression, or the number of a row or an instance, from 0; it is 0
for a file that is one document. Documents are in the order of their sources, so that a row takes two or three bytes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from data_pipeline.errors import DataError

SOURCES_NAME, DUPLICATES_NAME = "sources.parquet", "duplicates.parquet"
PLACES_SUFFIX = ".places.parquet"
# Any of them can be read without the others.
ROWS_PER_GROUP = 1 << 17
SOURCES = pyarrow.schema({"input": pyarrow.string(), "name": pyarrow.string(), "kind": pyarrow.string()})
PLACES = pyarrow.schema({"source": pyarrow.uint32(), "place": pyarrow.int64()})
DUPLICATES = pyarrow.schema(
    {
        "source": pyarrow.uint32(),
        "place": pyarrow.int64(),
        "first_source": pyarrow.uint32(),
        "first_place": pyarrow.int64(),
        "is_exact": pyarrow.bool_(),
    }
)
UNITS = {"lines": "byte", "parquet": "row", "dataset": "row", "generated": "instance"}


def shown_place(name: str, kind: str, place: int) -> str:
    """A place in words, such as `corpus.jsonl, byte 120`."""
    return f"{name}, {UNITS[kind]} {place:,}" if kind in UNITS else name


class DocumentSource(NamedTuple):
    """Where a document was read.

    Attributes:
        input: the `--input` value.
        name: of the file, dataset or generator.
        kind: how it was read, see `FileRange`.
        place: see the module.
    """

    input: str
    name: str
    kind: str
    place: int

    def __str__(self) -> str:
        return shown_place(self.name, self.kind, self.place)


class TableWriter:
    """Writes a Parquet file in row groups of equal size, which are all that is held in memory. Use it as a context manager.

    Args:
        schema: columns of integers are stored as differences, others with a dictionary.
    """

    def __init__(self, path: Path, schema: pyarrow.Schema) -> None:
        self._schema, self._parts, self._pending = schema, [], 0
        # Errors of writing then come from Python, with the name of the file.
        self._file = path.open("wb")
        places = [field.name for field in schema if field.type == pyarrow.int64()]
        self._writer = parquet.ParquetWriter(
            self._file,
            schema,
            use_dictionary=[field.name for field in schema if field.name not in places],
            column_encoding=dict.fromkeys(places, "DELTA_BINARY_PACKED"),
            compression="zstd",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._write(self._pending)
                self._writer.close()
            else:
                with suppress(Exception):  # the file is incomplete anyhow
                    self._writer.close()

    def append(self, *columns: NDArray | Sequence) -> None:
        """Add rows: the values of each column of the schema, [rows]."""
        arrays = [_array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._parts.append(pyarrow.record_batch(arrays, schema=self._schema))
        self._pending += len(arrays[0])
        if self._pending >= ROWS_PER_GROUP:
            self._write(self._pending - self._pending % ROWS_PER_GROUP)

    def _write(self, rows: int) -> None:
        """Write the first `rows` pending ones."""
        table = pyarrow.Table.from_batches(self._parts, self._schema)
        if rows:
            self._writer.write_table(table.slice(0, rows), row_group_size=ROWS_PER_GROUP)
        self._parts, self._pending = table.slice(rows).combine_chunks().to_batches(), table.num_rows - rows


def _array(values: NDArray | Sequence, kind: pyarrow.DataType) -> pyarrow.Array:
    """`pyarrow.array`, which imports pandas, half a second of every process, only where it has to convert.

    Raises:
        OverflowError: an integer does not fit.
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
        return pyarrow.array(values, kind)
    converted = np.ascontiguousarray(values, kind.to_pandas_dtype())
    if not np.array_equal(converted, values):
        raise OverflowError(f"an integer does not fit into {kind}")
    return pyarrow.Array.from_buffers(kind, len(converted), [None, pyarrow.py_buffer(converted)])


class Provenance:
    """The sources of the documents of a split.

    Args:
        folder: a prepared folder.

    Reading raises DataError when a file is missing or damaged.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._sources, self._places = folder / SOURCES_NAME, folder / f"{split}{PLACES_SUFFIX}"

    def __len__(self) -> int:
        with _opened(self._places) as file:
            return file.metadata.num_rows

    def of_document(self, i: int) -> DocumentSource:
        """The source of document `i` of the split, 0 .. documents - 1. Raises DataError when a file is damaged."""
        source, place = _row(self._places, i)
        return DocumentSource(*_row(self._sources, source), place)


@contextmanager
def _opened(path: Path) -> Iterator[parquet.ParquetFile]:
    try:
        with path.open("rb") as source, parquet.ParquetFile(source) as file:
            yield file
    except (OSError, IndexError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: {error}; prepare the data again with --overwrite") from error


def _row(path: Path, i: int) -> tuple:
    """The values of row `i`; reads its row group only."""
    group, position = divmod(i, ROWS_PER_GROUP)
    with _opened(path) as file:
        return tuple(column[position].as_py() for column in file.read_row_group(group).columns)


def read_columns(path: Path) -> list[NDArray]:
    """All columns of a small file, [rows] each.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            return [np.asarray(column) for column in parquet.read_table(file).columns]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: {error}; remove {path.parent} and run the same command again") from error
