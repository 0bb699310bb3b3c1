"""Generators of task instances, such as Sudoku boards, as documents of a corpus."""
