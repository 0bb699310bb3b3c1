"""Writer and memory-mapped reader of Megatron-LM's `.bin/.idx` token files.

The `.bin` file is the bare token stream. The `.idx` file, little-endian throughout, holds the magic bytes, the version
(uint64), a data type code (uint8), the number of sequences and of document marks (uint64 each), then the sequence
lengths (int32), their byte offsets in `.bin` (int64) and the document marks (int64). Here one document is one
sequence, so the marks are 0, 1, ..., documents. Layout and codes follow megatron-core's
`megatron/core/datasets/indexed_dataset.py`, which reads these files.
"""

import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
# megatron-core leaves a margin below 2**16 and calls anything larger int32; its readers take the type from the file.
UINT16_VOCAB_LIMIT = 65500


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest type that Megatron uses for a vocabulary of this size: uint16 or int32."""
    return np.dtype(np.uint16 if vocab_size < UINT16_VOCAB_LIMIT else np.int32)


class IndexedWriter:
    """Appends documents to `PREFIX.bin`; `close` writes `PREFIX.idx`. Use it as a context manager.

    Memory grows by four bytes per document. Leaving the context through an exception writes no index.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.dtype = token_dtype(vocab_size)
        self._index_path = prefix.with_suffix(".idx")
        self._bin = prefix.with_suffix(".bin").open("wb")
        self._lengths: list[NDArray[np.int32]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bin.close()
        if error is None:
            self._write_index()

    def append(self, tokens: NDArray[np.integer], lengths: NDArray[np.integer]) -> None:
        """Add whole documents.

        Args:
            tokens: ids of all documents one after another, [sum(lengths)].
            lengths: tokens of each document, [documents], with the end-of-document id counted.
        """
        if tokens.size != lengths.sum():
            raise ValueError(f"{tokens.size} tokens for documents of {lengths.sum()} in all")
        self._bin.write(np.ascontiguousarray(tokens, dtype=self.dtype).data)
        self._lengths.append(lengths.astype(np.int32))

    def _write_index(self) -> None:
        lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths])
        offsets = np.zeros(lengths.size, np.int64)
        np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
        marks = np.arange(lengths.size + 1, dtype=np.int64)
        with self._index_path.open("wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, DTYPE_CODES[self.dtype], lengths.size, marks.size))
            for array in (lengths, offsets * self.dtype.itemsize, marks):
                file.write(array.tobytes())


class IndexedReader:
    """Memory-mapped view of one `.bin/.idx` pair.

    Attributes:
        tokens: the whole stream, uint16 or int32 [tokens], read-only.
        lengths: int32 [documents].

    Raises:
        DataError: the index is not one of these, is cut short, or does not fit its `.bin`.
    """

    def __init__(self, prefix: Path) -> None:
        index_path, bin_path = prefix.with_suffix(".idx"), prefix.with_suffix(".bin")
        try:
            index = index_path.read_bytes()
            bin_bytes = bin_path.stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} is missing; prepare the data again") from error
        count, dtype = _parse_header(index_path, index)
        self.lengths = np.frombuffer(index, np.int32, count, offset=HEADER.size)
        self._offsets = np.frombuffer(index, np.int64, count, offset=HEADER.size + 4 * count) // dtype.itemsize
        expected = int(self.lengths.sum(dtype=np.int64)) * dtype.itemsize
        if bin_bytes != expected:
            raise DataError(f"{bin_path} has {bin_bytes} bytes, its index describes {expected}; prepare it again")
        # An empty file cannot be mapped.
        self.tokens = np.memmap(bin_path, dtype, mode="r") if bin_bytes else np.zeros(0, dtype)

    def __len__(self) -> int:
        return self.lengths.size

    def document(self, i: int) -> NDArray[np.integer]:
        """Ids of document `i`, [lengths[i]], the end-of-document id last."""
        start = self._offsets[i]
        return self.tokens[start : start + self.lengths[i]]


def _parse_header(path: Path, index: bytes) -> tuple[int, np.dtype]:
    """Number of sequences and data type of an index whose size fits its header."""
    if len(index) < HEADER.size:
        raise DataError(f"{path} is cut short ({len(index)} bytes); prepare it again")
    magic, version, code, sequences, marks = HEADER.unpack_from(index)
    dtypes = {code: dtype for dtype, code in DTYPE_CODES.items()}
    if magic != MAGIC or version != VERSION or code not in dtypes:
        raise DataError(f"{path} is not a Megatron index of version {VERSION} with int32 or uint16 tokens")
    expected = HEADER.size + 12 * sequences + 8 * marks
    if len(index) != expected:
        raise DataError(f"{path} has {len(index)} bytes, its header describes {expected}; prepare it again")
    return sequences, dtypes[code]
