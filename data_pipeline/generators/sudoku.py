"""Full Sudoku boards, as the digits of their cells row by row, and puzzles with a single solution."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from data_pipeline.generators.boards import EMPTY, Sudoku
from data_pipeline.generators.generator import below, permutation, words

LARGEST_ENUMERATED = 6
"""Size up to which all boards are enumerated."""


@dataclass(frozen=True)
class SudokuBoards:
    """Boards of one size.

    Up to 6x6 all boards are equally likely: a board with the first row in ascending order is drawn from a list of all, 12 of
    4x4 and 39,168 of 6x6, and its symbols are permuted. There are 288 and 28,200,960 boards. 9x9 boards come from backtracking
    with random symbols, which does not give all of them the same probability.
    """

    sudoku: Sudoku
    version: int = 1

    @property
    def name(self) -> str:
        """See `Generator`."""
        return f"sudoku{self.sudoku.size}"

    @property
    def alphabet(self) -> str:
        """The digits from 1 on."""
        return "".join(str(digit) for digit in range(1, self.sudoku.size + 1))

    @property
    def length(self) -> int:
        """Cells of a board."""
        return self.sudoku.cells

    def text(self, seed: int, index: int) -> str:
        """See `Generator`."""
        size = self.sudoku.size
        if size > LARGEST_ENUMERATED:
            draws = words(seed, index, self.length * size).reshape(self.length, size)
            return self.text_of(self._by_backtracking(draws))
        boards = ascending_boards(self.sudoku)
        which, *symbols = words(seed, index, 1 + size)
        names = np.array(permutation(np.array(symbols)))
        return self.text_of(names[boards[below(which, len(boards))]].tolist())

    def text_of(self, board: Sequence[int]) -> str:
        """The digits of a full board."""
        return "".join(self.alphabet[symbol] for symbol in board)

    def board_of(self, text: str) -> list[int] | None:
        """The board that a text shows; None if it is not one digit per cell."""
        if len(text) != self.length or set(text) - set(self.alphabet):
            return None
        return [self.alphabet.index(digit) for digit in text]

    def puzzle(self, board: Sequence[int], given: int, seed: int, index: int) -> list[int]:
        """The cells that are given, ascending: `given` random ones, and further ones until only this board agrees with them."""
        order = permutation(words(seed, index, self.length))
        for count in range(given, self.length):
            kept = set(order[:count])
            partial = [symbol if cell in kept else EMPTY for cell, symbol in enumerate(board)]
            if len(list(islice(self.sudoku.solutions(partial), 2))) == 1:
                return sorted(kept)
        return list(range(self.length))

    def _by_backtracking(self, draws: NDArray[np.uint64]) -> list[int]:
        empty = [EMPTY] * self.length
        return next(self.sudoku.solutions(empty, np.argsort(draws, axis=1, kind="stable").tolist()))


@cache
def ascending_boards(sudoku: Sudoku) -> NDArray[np.uint8]:
    """All boards whose first row is 0, 1, 2, ..., uint8 [boards, cells]. Each process enumerates them once."""
    first_row = [*range(sudoku.size), *[EMPTY] * (sudoku.cells - sudoku.size)]
    return np.array(list(sudoku.solutions(first_row)), np.uint8)
