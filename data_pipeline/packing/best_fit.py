"""Best-fit packing: which documents share a row, computed from their lengths only.

A document that fits in a row is kept whole; a longer one is cut into full rows and a remainder. Documents and remainders are
placed from the longest to the shortest, each into the row with the least room that still holds it (best-fit decreasing;
Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830).
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Measured: 90 to 125 here, and 50 of the caller.
PACKING_BYTES = 175
# Full rows of long documents in one part: there may be many more of them than documents, and each takes about 40 bytes.
PART_ROWS = 1 << 20


@dataclass(frozen=True)
class PackedRows:
    """Rows as segments of the token stream; row i has the segments row_starts[i] .. row_starts[i+1] - 1, in the order of the
    documents.

    Attributes:
        row_starts: int64 [rows + 1].
        starts: position of each segment's first token in the stream, int64 [segments].
        lengths: tokens of each segment, int32 [segments].
    """

    row_starts: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]


def best_fit(positions: NDArray[np.integer], lengths: NDArray[np.integer], seq_len: int) -> Iterator[PackedRows]:
    """Pack documents into rows of at most `seq_len` tokens, in parts. Takes `PACKING_BYTES` of memory per document.

    Args:
        positions: of the first token of each document in the stream, in the order in which they are placed, [documents].
        lengths: their tokens, [documents].

    The full rows of long documents come first. Every token is in exactly one segment, and every segment lies in one document.
    Documents without tokens have no segment.
    """
    full, rest = np.divmod(lengths.astype(np.int64), seq_len)
    yield from _full_rows(positions, full, seq_len)
    yield _rows_of_rests(positions + seq_len * full, rest, seq_len)


def _full_rows(positions: NDArray[np.integer], counts: NDArray[np.int64], seq_len: int) -> Iterator[PackedRows]:
    """The first `counts` rows of each document [documents], `PART_ROWS` at a time."""
    ends = np.cumsum(counts)
    total = int(counts.sum())
    for begin in range(0, total, PART_ROWS):
        rows = np.arange(begin, min(begin + PART_ROWS, total))
        owners = np.searchsorted(ends, rows, side="right")
        yield PackedRows(
            row_starts=np.arange(rows.size + 1),
            starts=positions[owners] + seq_len * (rows - ends[owners] + counts[owners]),
            lengths=np.full(rows.size, seq_len, np.int32),
        )


def _rows_of_rests(positions: NDArray[np.integer], lengths: NDArray[np.int64], seq_len: int) -> PackedRows:
    """Rows of the documents and remainders that are shorter than a row."""
    items = np.flatnonzero(lengths)
    rows, num_rows = assign_rows(lengths[items], seq_len)
    items = items[np.argsort(rows, kind="stable")]
    return PackedRows(
        row_starts=np.append(0, np.cumsum(np.bincount(rows, minlength=num_rows))),
        starts=positions[items],
        lengths=lengths[items].astype(np.int32),
    )


def assign_rows(lengths: NDArray[np.integer], capacity: int) -> tuple[NDArray[np.int64], int]:
    """Best-fit decreasing; items of equal length keep their order.

    Items of one length are placed together, so the time is that of sorting plus O(capacity * log(capacity)) steps.

    Args:
        lengths: of the items, 1 .. capacity, [items].
        capacity: tokens of a row.

    Returns:
        The row of each item, int64 [items], and the number of rows.
    """
    # numpy sorts 16-bit keys by radix, which is several times faster.
    keys = (capacity - lengths).astype(np.uint16 if capacity < 2**16 else np.int64)
    longest_first = np.argsort(keys, kind="stable")
    counts = np.bincount(lengths, minlength=capacity + 1)
    open_rows = _OpenRows(capacity)
    placed = [open_rows.place(int(length), int(counts[length])) for length in np.flatnonzero(counts)[::-1]]
    rows = np.empty(lengths.size, np.int64)
    rows[longest_first] = np.concatenate([np.zeros(0, np.int64), *placed])
    return rows, open_rows.opened


class _OpenRows:
    """Rows that are not full, by the room left in them.

    Attributes:
        opened: number of rows so far.
    """

    def __init__(self, capacity: int) -> None:
        self.opened = 0
        self._capacity = capacity
        self._by_room: dict[int, list[NDArray[np.int64]]] = {}
        self._rooms: list[int] = []  # the keys of the above, ascending

    def place(self, length: int, items: int) -> NDArray[np.int64]:
        """Place `items` items of one length, not longer than any placed before; returns their rows, [items].

        The row with the least room that holds one such item remains that row until it holds no further one, because its room
        only shrinks and no other row has a room in between. So whole groups of rows are filled at once.
        """
        placed = []
        while items:
            room = self._least_room(length)
            per_row = room // length
            rows = self._take(room, -(-items // per_row))
            taken = min(items, per_row * rows.size)
            filled, rest = divmod(taken, per_row)
            self._put(room - per_row * length, rows[:filled])
            self._put(room - rest * length, rows[filled:])
            placed.append(np.repeat(rows, per_row)[:taken])
            items -= taken
        return np.concatenate(placed)

    def _least_room(self, length: int) -> int:
        i = bisect_left(self._rooms, length)
        return self._rooms[i] if i < len(self._rooms) else self._capacity

    def _take(self, room: int, wanted: int) -> NDArray[np.int64]:
        """Up to `wanted` rows with that room, in the order in which they were put; new ones where there are none."""
        if room not in self._by_room:
            self.opened += wanted
            return np.arange(self.opened - wanted, self.opened)
        rows = np.concatenate(self._by_room.pop(room))
        self._rooms.pop(bisect_left(self._rooms, room))
        self._put(room, rows[wanted:])
        return rows[:wanted]

    def _put(self, room: int, rows: NDArray[np.int64]) -> None:
        if room and rows.size:
            if room not in self._by_room:
                insort(self._rooms, room)
            self._by_room.setdefault(room, []).append(rows)
