"""Rows of segments, written while the documents are visited, in shuffled order or in that of the inputs.

The order is a keyed permutation of the documents of the split, the same for equal numbers of documents, so that equal inputs
give equal rows. Memory does not grow with the number of documents: only a block of them is held at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.indexed import Shard
from data_pipeline.packing.best_fit import best_fit
from data_pipeline.permutation import Permutation, key_of

KEY = key_of("document order")
BLOCK_DOCUMENTS = 1 << 20
BLOCK_SEGMENTS = 1 << 21
# Packed together by best fit, in about 0.7 GB: of so many, nearly all rows become full.
PACKED_DOCUMENTS = 1 << 22


def document_order(positions: NDArray[np.integer], documents: int) -> NDArray[np.int64]:
    """The document at each position of the shuffled split, int64 [n]."""
    return Permutation(documents)(positions, np.full(positions.size, KEY))


@dataclass(frozen=True)
class Block:
    """Documents one after another in the order of the rows: the first token of each in the stream, and their lengths."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def blocks_in_order(folder: Path, shards: Sequence[Shard], size: int) -> Iterator[Block]:
    """All documents in the order of the shards, `size` in a block; one index is open at a time."""
    starts, lengths, pending = [], [], 0
    first_token = 0
    for shard in shards:
        index = shard.index(folder)
        for begin, stop in _cut(shard.documents, size, size - pending):
            of_part = index.select(np.arange(begin, stop))
            starts.append(of_part[0] + first_token)
            lengths.append(of_part[1])
            pending += stop - begin
            if pending == size:
                yield Block(np.concatenate(starts), np.concatenate(lengths))
                starts, lengths, pending = [], [], 0
        first_token += shard.tokens
    if pending:
        yield Block(np.concatenate(starts), np.concatenate(lengths))


def _cut(count: int, size: int, first: int) -> Iterator[tuple[int, int]]:
    """Parts of `count` things: the first of at most `first`, the others of at most `size`."""
    edges = [0, *range(first, count, size), count] if count else []
    return pairwise(edges)


def shuffled_blocks(folder: Path, shards: Sequence[Shard], size: int) -> Iterator[Block]:
    """All documents in shuffled order, `size` in a block; one index is open at a time."""
    first_documents = np.cumsum([0, *(shard.documents for shard in shards)])
    first_tokens = np.cumsum([0, *(shard.tokens for shard in shards)])
    total = int(first_documents[-1])
    for begin in range(0, total, size):
        documents = document_order(np.arange(begin, min(begin + size, total)), total)
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
        row_starts, starts, lengths = (stack.enter_context(each) for each in _array_files(paths))
        for block in shuffled_blocks(folder, shards, BLOCK_DOCUMENTS):
            for part in _parts(block, seq_len):
                at, begins, sizes = _segments(part, position, seq_len)
                position += int(part.lengths.sum())
                kept = slice(0, int(np.searchsorted(at, rows * seq_len)))
                row_starts.append(lengths.size + np.flatnonzero(at[kept] % seq_len == 0))
                starts.append(begins[kept])
                lengths.append(sizes[kept])
        row_starts.append(np.array([lengths.size]))
    return rows


def write_best_fit(folder: Path, shards: Sequence[Shard], seq_len: int, shuffle: bool, paths: Sequence[Path]) -> int:
    """Pack documents whole, `PACKED_DOCUMENTS` at a time; returns the number of rows. See `write_concat`."""
    visit = shuffled_blocks if shuffle else blocks_in_order
    with ExitStack() as stack:
        row_starts, starts, lengths = (stack.enter_context(each) for each in _array_files(paths))
        for block in visit(folder, shards, PACKED_DOCUMENTS):
            for packed in best_fit(block.starts, block.lengths, seq_len):
                row_starts.append(packed.row_starts[:-1] + starts.size)
                starts.append(packed.starts)
                lengths.append(packed.lengths)
        row_starts.append(np.array([lengths.size]))
        return row_starts.size - 1


def _array_files(paths: Sequence[Path]) -> Iterator["ArrayFile"]:
    return (ArrayFile(*each) for each in zip(paths, (np.int64, np.int64, np.int32), strict=True))


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
