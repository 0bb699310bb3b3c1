"""Writer and memory-mapped reader of Megatron-LM's `.bin/.idx` token files.

The `.bin` file is the bare token stream. The `.idx` file, little-endian throughout, holds the magic bytes, the version
(uint64), a data type code (uint8), the number of sequences and of document indices (uint64 each), then the sequence
lengths (int32), their byte offsets in `.bin` (int64) and the document indices (int64). Here one document is one
sequence, so the document indices are 0, 1, ..., documents. Layout and codes follow megatron-core's
`megatron/core/datasets/indexed_dataset.py`, which reads these files.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
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
# megatron-core uses int32 from here on; its readers take the type from the file.
UINT16_VOCAB_LIMIT = 65500
MAX_LENGTH = 2**31 - 1


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
            raise ValueError(f"{tokens.size} tokens for documents of {lengths.sum()} tokens in total")
        self._bin.write(np.ascontiguousarray(tokens, dtype=self.dtype).data)
        self._lengths.append(lengths.astype(np.int32))

    def append_document(self, parts: Iterable[NDArray[np.integer]]) -> int:
        """Add one document that comes in parts, the end-of-document id included; returns its number of tokens.

        Raises:
            DataError: the document has more tokens than the index can store.
        """
        length = 0
        for part in parts:
            self._bin.write(np.ascontiguousarray(part, dtype=self.dtype).data)
            length += part.size
        if length > MAX_LENGTH:
            raise DataError(
                f"a document has {length:,} tokens, the index allows {MAX_LENGTH:,}; split it, or leave it out with --max-chars"
            )
        self._lengths.append(np.array([length], np.int32))
        return length

    def _write_index(self) -> None:
        lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths])
        offsets = np.zeros(lengths.size, np.int64)
        np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
        document_indices = np.arange(lengths.size + 1, dtype=np.int64)
        with self._index_path.open("wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, DTYPE_CODES[self.dtype], lengths.size, document_indices.size))
            for array in (lengths, offsets * self.dtype.itemsize, document_indices):
                file.write(array.tobytes())


class Index:
    """Memory-mapped view of one `.idx` file.

    Attributes:
        dtype: type of the tokens.
        lengths: tokens of each document, int32 [documents], read-only.
        num_tokens: in all documents.

    Raises:
        DataError: the file is missing, is not an index, or is truncated.
    """

    def __init__(self, prefix: Path) -> None:
        path = prefix.with_suffix(".idx")
        try:
            # Reading 10^9 lengths from a cold disk takes minutes; mapped, only those needed are read.
            index = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing; prepare the data again") from error
        except ValueError as error:  # an empty file cannot be mapped
            raise DataError(f"{path} is truncated (0 bytes); prepare the data again") from error
        count, self.dtype = _parse_header(path, index)
        lengths_end = HEADER.size + 4 * count
        self.lengths = index[HEADER.size : lengths_end].view(np.int32)
        self._byte_offsets = index[lengths_end : lengths_end + 8 * count].view(np.int64)
        self.num_tokens = self.start(count - 1) + int(self.lengths[-1]) if count else 0

    def __len__(self) -> int:
        return self.lengths.size

    def start(self, i: int) -> int:
        """Position of document i's first token."""
        return int(self._byte_offsets[i]) // self.dtype.itemsize

    def starts_between(self, first: int, stop: int) -> NDArray[np.int64]:
        """Positions p, first < p < stop, at which documents start, ascending, int64."""
        # `bisect` reads about thirty entries; numpy would copy the whole array, which is not aligned.
        low = bisect_right(self._byte_offsets, first * self.dtype.itemsize)
        high = bisect_left(self._byte_offsets, stop * self.dtype.itemsize, lo=low)
        return self._byte_offsets[low:high] // self.dtype.itemsize


class IndexedReader:
    """Memory-mapped view of one `.bin/.idx` pair.

    Attributes:
        index: lengths and positions of the documents.
        tokens: the whole stream, uint16 or int32 [tokens], read-only.

    Raises:
        DataError: the index is not valid or is truncated, or does not fit its `.bin`.
    """

    def __init__(self, prefix: Path) -> None:
        self.index = Index(prefix)
        path, dtype = prefix.with_suffix(".bin"), self.index.dtype
        try:
            bin_bytes = path.stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing; prepare the data again") from error
        expected = self.index.num_tokens * dtype.itemsize
        if bin_bytes != expected:
            raise DataError(f"{path} has {bin_bytes} bytes, its index describes {expected}; prepare the data again")
        # An empty file cannot be mapped.
        self.tokens = np.memmap(path, dtype, mode="r") if bin_bytes else np.zeros(0, dtype)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each document, int32 [documents]."""
        return self.index.lengths

    def __len__(self) -> int:
        return len(self.index)

    def document(self, i: int) -> NDArray[np.integer]:
        """Ids of document `i`, [lengths[i]], the end-of-document id last."""
        start = self.index.start(i)
        return self.tokens[start : start + self.lengths[i]]


def _parse_header(path: Path, index: NDArray[np.uint8]) -> tuple[int, np.dtype]:
    """Number of sequences and data type of an index, after a check of its size."""
    if len(index) < HEADER.size:
        raise DataError(f"{path} is truncated ({len(index)} bytes); prepare the data again")
    magic, version, code, sequences, document_indices = HEADER.unpack_from(index)
    dtypes = {code: dtype for dtype, code in DTYPE_CODES.items()}
    if magic != MAGIC or version != VERSION or code not in dtypes:
        raise DataError(f"{path} is not a Megatron index of version {VERSION} with int32 or uint16 tokens")
    expected = HEADER.size + 12 * sequences + 8 * document_indices
    if len(index) != expected:
        raise DataError(f"{path} has {len(index)} bytes, its header describes {expected}; prepare the data again")
    return sequences, dtypes[code]
