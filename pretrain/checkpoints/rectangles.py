"""Where a range of a weight's shard lies in the whole weight, as rectangles. Imports no torch.

ZeRO gives a rank a range of the flattened shard that tensor parallelism gave it. In the whole weight such a range is at most
three rectangles for each block of the shard: the end of a row, whole rows, and the beginning of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.weights import Shards


@dataclass(frozen=True)
class Rectangle:
    """Rows [row, row + rows) and columns [column, column + columns) of a matrix. A vector is a matrix of one column."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.rows * self.columns

    def overlap(self, other: "Rectangle") -> "Rectangle | None":
        """What both have in common; None if nothing."""
        row, column = max(self.row, other.row), max(self.column, other.column)
        rows = min(self.row + self.rows, other.row + other.rows) - row
        columns = min(self.column + self.columns, other.column + other.columns) - column
        return Rectangle(row, column, rows, columns) if rows > 0 and columns > 0 else None

    def within(self, outer: "Rectangle") -> tuple[slice, slice]:
        """Where it lies in a tensor that holds `outer`."""
        row, column = self.row - outer.row, self.column - outer.column
        return slice(row, row + self.rows), slice(column, column + self.columns)


@dataclass(frozen=True)
class Region:
    """A rectangle of the whole weight, and where its elements begin in the range that it comes from.

    Attributes:
        start: of the elements, row by row, in the range.
    """

    rectangle: Rectangle
    start: int


def regions_of(
    start: int, length: int, shape: tuple[int, int], shards: "Shards | None", rank: int, size: int, rows: int
) -> list[Region]:
    """Regions of the whole weight that a range [start, start + length) of a flattened shard covers, in the order of the range.

    Args:
        shape: of the shard, as a matrix.
        shards: how the weight is split; None if every tensor-parallel rank holds it in full.
        rank, size: which shard this is, of how many.
        rows: of the whole weight that count; those behind are padding and belong to no region.
    """
    found, done = [], 0
    for part in _rectangles(start, length, shape[1]):
        for piece in _by_block(part, shape[0], shards):
            placed = _place(piece, shape, shards, rank, size)
            kept = placed.overlap(Rectangle(0, 0, rows, placed.column + placed.columns))
            if kept is not None:
                found.append(Region(kept, done))
            done += piece.size
    return found


def _rectangles(start: int, length: int, columns: int) -> Iterator[Rectangle]:
    """A range of a flattened matrix: the end of a row, whole rows, the beginning of a row."""
    end = start + length
    while start < end:
        row, column = divmod(start, columns)
        if column or end - start < columns:
            width = min(columns - column, end - start)
            yield Rectangle(row, column, 1, width)
            start += width
        else:
            rows = (end - start) // columns
            yield Rectangle(row, 0, rows, columns)
            start += rows * columns


def _by_block(part: Rectangle, rows: int, shards: "Shards | None") -> Iterator[Rectangle]:
    """Cut a rectangle of a shard where one of its blocks ends."""
    per_block = rows // shards.blocks if shards is not None and shards.dim == 0 else rows
    row = part.row
    while row < part.row + part.rows:
        end = min(part.row + part.rows, (row // per_block + 1) * per_block)
        yield Rectangle(row, part.column, end - row, part.columns)
        row = end


def _place(part: Rectangle, shape: tuple[int, int], shards: "Shards | None", rank: int, size: int) -> Rectangle:
    """The rectangle of the whole weight that a rectangle of a shard, within one block, holds."""
    if shards is None:
        return part
    if shards.dim == 1:
        return Rectangle(part.row, part.column + rank * shape[1], part.rows, part.columns)
    per_block = shape[0] // shards.blocks
    block, inside = divmod(part.row, per_block)
    return Rectangle((block * size + rank) * per_block + inside, part.column, part.rows, part.columns)
