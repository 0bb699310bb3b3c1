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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Shard:
    """One `.bin/.idx` pair, described without opening it.

    Attributes:
        stem: its name without suffix.
        dtype: type of the tokens.
        documents, tokens: what it holds.
    """

    stem: str
    dtype: np.dtype
    documents: int
    tokens: int

    @classmethod
    def of_sizes(cls, stem: str, dtype: np.dtype, bin_bytes: int, idx_bytes: int) -> Self:
        """From the sizes of its files. Raises ValueError for sizes that no pair has."""
        documents, rest = divmod(idx_bytes - HEADER.size - 8, 20)
        if rest or documents < 0 or bin_bytes % dtype.itemsize:
            raise ValueError(f"{stem}.bin of {bin_bytes} bytes and {stem}.idx of {idx_bytes} bytes are no shard")
        return cls(stem, dtype, documents, bin_bytes // dtype.itemsize)

    def index(self, folder: Path) -> "Index":
        """Map its `.idx`. Raises DataError when that is damaged or describes something else."""
        index = Index(folder / self.stem)
        found, expected = (len(index), index.num_tokens, index.dtype), (self.documents, self.tokens, self.dtype)
        if found != expected:
            raise DataError(
                f"{folder / self.stem}.idx describes {found[0]:,} documents of {found[1]:,} tokens ({found[2]}), the manifest "
                f"{expected[0]:,} of {expected[1]:,} ({expected[2]}); prepare the data again"
            )
        return index

    def map_tokens(self, folder: Path) -> NDArray[np.integer]:
        """Map its `.bin`, [tokens], read-only. Raises DataError when that is missing or has another size."""
        return map_tokens(folder / self.stem, self.dtype, self.tokens)


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
        write_index(self._index_path, np.concatenate([np.zeros(0, np.int32), *self._lengths]), self.dtype)


def write_index(path: Path, lengths: NDArray[np.int32], dtype: np.dtype) -> None:
    """Write the `.idx` file of documents of `lengths` tokens, [documents]."""
    offsets = np.zeros(lengths.size, np.int64)
    np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
    document_indices = np.arange(lengths.size + 1, dtype=np.int64)
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, DTYPE_CODES[dtype], lengths.size, document_indices.size))
        for array in (lengths, offsets * dtype.itemsize, document_indices):
            file.write(array.tobytes())


def map_tokens(prefix: Path, dtype: np.dtype, num_tokens: int) -> NDArray[np.integer]:
    """Map `PREFIX.bin`, [num_tokens], read-only.

    Raises:
        DataError: the file is missing or has another size.
    """
    path, expected = prefix.with_suffix(".bin"), num_tokens * dtype.itemsize
    try:
        bin_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; prepare the data again") from error
    if bin_bytes != expected:
        raise DataError(f"{path} has {bin_bytes} bytes, its index describes {expected}; prepare the data again")
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, mode="r") if bin_bytes else np.zeros(0, dtype)


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

    def select(self, documents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Positions of the first tokens, and lengths, of some documents; [n] each."""
        return self._byte_offsets[documents] // self.dtype.itemsize, self.lengths[documents]

    def document_at(self, position: int) -> int:
        """The document that holds the token at a position."""
        # `bisect` reads about thirty entries. Of several documents that begin there, all but the last have no tokens.
        return bisect_right(self._byte_offsets, position * self.dtype.itemsize) - 1

    def bytes_of(self, first: int, stop: int) -> int:
        """Size of the tokens of the documents `first` .. `stop` - 1, with first < stop."""
        last = int(self._byte_offsets[stop - 1]) + int(self.lengths[stop - 1]) * self.dtype.itemsize
        return last - int(self._byte_offsets[first])

    def documents_within(self, first: int, num_bytes: int) -> int:
        """The largest `stop` for which the documents `first` .. `stop` - 1 have at most `num_bytes` of tokens."""
        limit = int(self._byte_offsets[first]) + num_bytes
        # Documents that begin up to the limit; the last of them may end beyond it.
        stop = bisect_right(self._byte_offsets, limit, lo=first)
        while stop > first and self.bytes_of(first, stop) > num_bytes:
            stop -= 1
        return stop

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
        self.tokens = map_tokens(prefix, self.index.dtype, self.index.num_tokens)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each document, int32 [documents]."""
        return self.index.lengths

    def __len__(self) -> int:
        return len(self.index)

    def document(self, i: int) -> NDArray[np.integer]:
        """Ids of document `i`, [lengths[i]], the end-of-document id last."""
        start = self.index.start(i)
        return self.tokens[start : start + int(self.lengths[i])]


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
