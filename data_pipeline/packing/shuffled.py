"""Rows of documents in shuffled order, written as segments while the documents are visited.

The order is a keyed permutation of the documents of the split, the same for equal numbers of documents, so that equal inputs
give equal rows. Memory does not grow with the number of documents: only a block of them is held at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.indexed import Shard
from data_pipeline.permutation import Permutation, key_of

KEY = key_of("document order")
BLOCK_DOCUMENTS = 1 << 20
BLOCK_SEGMENTS = 1 << 21


def document_order(positions: NDArray[np.integer], documents: int) -> NDArray[np.int64]:
    """The document at each position of the shuffled split, int64 [n]."""
    return Permutation(documents)(positions, np.full(positions.size, KEY))


@dataclass(frozen=True)
class Block:
    """Documents one after another in the order of the rows: the first token of each in the stream, and their lengths."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def shuffled_blocks(folder: Path, shards: Sequence[Shard]) -> Iterator[Block]:
    """All documents in shuffled order; one index is open at a time."""
    first_documents = np.cumsum([0, *(shard.documents for shard in shards)])
    first_tokens = np.cumsum([0, *(shard.tokens for shard in shards)])
    total = int(first_documents[-1])
    for begin in range(0, total, BLOCK_DOCUMENTS):
        documents = document_order(np.arange(begin, min(begin + BLOCK_DOCUMENTS, total)), total)
        # In the order of the files, so that each is opened once and read forwards.
        order = np.argsort(documents)
        edges = np.searchsorted(documents[order], first_documents)
        block = Block(np.empty(order.size, np.int64), np.empty(order.size, np.int64))
        for i in np.flatnonzero(np.diff(edges)):
            chosen = order[edges[i] : edges[i + 1]]
            starts, lengths = shards[i].index(folder).select(documents[chosen] - first_documents[i])
            block.starts[chosen], block.lengths[chosen] = starts + first_tokens[i], lengths
        yield block


def write_concat(folder: Path, shards: Sequence[Shard], seq_len: int, paths: Sequence[Path]) -> int:
    """Cut the shuffled stream of documents into rows, without the last partial one; returns the number of rows.

    Args:
        paths: of the arrays `row_starts`, `starts` and `lengths`, see `PackedRows`.
    """
    rows = sum(shard.tokens for shard in shards) // seq_len
    position = 0  # in the shuffled stream
    with ExitStack() as stack:
        kinds = (np.int64, np.int64, np.int32)
        row_starts, starts, lengths = (stack.enter_context(ArrayFile(*each)) for each in zip(paths, kinds, strict=True))
        for block in shuffled_blocks(folder, shards):
            for part in _parts(block, seq_len):
                at, begins, sizes = _segments(part, position, seq_len)
                position += int(part.lengths.sum())
                kept = slice(0, int(np.searchsorted(at, rows * seq_len)))
                row_starts.append(lengths.size + np.flatnonzero(at[kept] % seq_len == 0))
                starts.append(begins[kept])
                lengths.append(sizes[kept])
        row_starts.append(np.array([lengths.size]))
    return rows


def _parts(block: Block, seq_len: int) -> Iterator[Block]:
    """A block in parts of bounded numbers of segments; a document of more is a part of its own."""
    most = np.cumsum(block.lengths // seq_len + 2)
    begin = 0
    while begin < most.size:
        done = most[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(most, done + BLOCK_SEGMENTS, side="right")))
        yield Block(block.starts[begin:end], block.lengths[begin:end])
        begin = end


def _segments(block: Block, position: int, seq_len: int) -> tuple[NDArray[np.int64], ...]:
    """Where each segment begins in the shuffled stream and in the stream of the shards, and its length; int64 [segments]."""
    ends = position + np.cumsum(block.lengths)
    begins = ends - block.lengths
    # A document without tokens has no segment.
    counts = np.where(block.lengths > 0, (ends - 1) // seq_len - begins // seq_len + 1, 0)
    owners = np.repeat(np.arange(counts.size), counts)
    number = np.arange(owners.size) - np.repeat(np.cumsum(counts) - counts, counts)
    row_begin = (begins[owners] // seq_len + number) * seq_len
    at = np.maximum(begins[owners], row_begin)
    sizes = np.minimum(ends[owners], row_begin + seq_len) - at
    return at, block.starts[owners] + at - begins[owners], sizes


class ArrayFile:
    """A one-dimensional `.npy` file that grows; its bytes are those of `numpy.save`. Use it as a context manager.

    Attributes:
        size: number of elements so far.
    """

    def __init__(self, path: Path, dtype: type) -> None:
        self._file, self._dtype, self.size = path.open("wb"), np.dtype(dtype), 0

    def __enter__(self) -> Self:
        self._write_header()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._file.seek(0)
            self._write_header()  # numpy leaves room for any size in it
        self._file.close()

    def append(self, values: NDArray[np.integer]) -> None:
        """Add elements."""
        self._file.write(values.astype(self._dtype).tobytes())
        self.size += values.size

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self._file, header)
