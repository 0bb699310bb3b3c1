"""Sudoku boards: rules, solver, enumeration. A cell is a number from 0 to size - 1, or `EMPTY`; a board is a flat list."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

EMPTY = -1


@dataclass(frozen=True)
class Sudoku:
    """The rules of boards whose boxes have `box_rows` x `box_columns` cells, and as many symbols, rows and columns as a box has
    cells.
    """

    box_rows: int
    box_columns: int

    @property
    def size(self) -> int:
        """Symbols; also cells of a row, column or box."""
        return self.box_rows * self.box_columns

    @property
    def cells(self) -> int:
        """Cells of a board."""
        return self.size**2

    @cached_property
    def units(self) -> list[tuple[int, ...]]:
        """Cells of each row, column and box."""
        rows = [tuple(range(r * self.size, (r + 1) * self.size)) for r in range(self.size)]
        columns = [tuple(range(c, self.cells, self.size)) for c in range(self.size)]
        return [*rows, *columns, *(self._box(r, c) for r in range(self.box_columns) for c in range(self.box_rows))]

    def _box(self, row: int, column: int) -> tuple[int, ...]:
        first = row * self.box_rows * self.size + column * self.box_columns
        return tuple(first + r * self.size + c for r in range(self.box_rows) for c in range(self.box_columns))

    @cached_property
    def units_of(self) -> list[tuple[int, ...]]:
        """Numbers of the three units of each cell."""
        return [tuple(u for u, unit in enumerate(self.units) if cell in unit) for cell in range(self.cells)]

    def is_valid(self, board: Sequence[int]) -> bool:
        """Whether a full board has every symbol once in each row, column and box."""
        symbols = set(range(self.size))
        return len(board) == self.cells and all({board[cell] for cell in unit} == symbols for unit in self.units)

    def solutions(self, board: Sequence[int], orders: Sequence[Sequence[int]] | None = None) -> Iterator[list[int]]:
        """All full boards that agree with the cells that are not `EMPTY`, by backtracking on the most restricted cell.

        Args:
            orders: of each cell, the symbols in the order in which they are tried; ascending if None.
        """
        filled = list(board)
        used = [0] * len(self.units)  # of each unit, the symbols in it as bits
        for cell, symbol in enumerate(filled):
            if symbol != EMPTY:
                if any(used[unit] >> symbol & 1 for unit in self.units_of[cell]):
                    return
                self._flip(used, cell, symbol)
        yield from self._search(filled, used, orders or [range(self.size)] * self.cells)

    def _search(self, filled: list[int], used: list[int], orders: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        cell, taken = self._most_restricted(filled, used)
        if cell == EMPTY:
            yield list(filled)
            return
        for symbol in orders[cell]:
            if not taken >> symbol & 1:
                filled[cell] = symbol
                self._flip(used, cell, symbol)
                yield from self._search(filled, used, orders)
                self._flip(used, cell, symbol)
        filled[cell] = EMPTY

    def _flip(self, used: list[int], cell: int, symbol: int) -> None:
        for unit in self.units_of[cell]:
            used[unit] ^= 1 << symbol

    def _most_restricted(self, filled: Sequence[int], used: Sequence[int]) -> tuple[int, int]:
        """An empty cell with the fewest possible symbols, and its impossible ones as bits; `EMPTY` for a full board."""
        best, impossible, most = EMPTY, 0, -1
        for cell, symbol in enumerate(filled):
            if symbol == EMPTY:
                row, column, box = self.units_of[cell]
                taken = used[row] | used[column] | used[box]
                if (count := taken.bit_count()) > most:
                    best, impossible, most = cell, taken, count
        return best, impossible
