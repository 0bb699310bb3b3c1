"""The values of `--input` that name a generator: `NAME:COUNT` or `NAME:COUNT@SEED`."""

import re
from dataclasses import dataclass

from data_pipeline.errors import DataError
from data_pipeline.generators.arithmetic import MAX_DIGITS, SIGNS, Arithmetic
from data_pipeline.generators.boards import Sudoku
from data_pipeline.generators.generator import Generator
from data_pipeline.generators.lookup import MAX_HOPS, Lookup
from data_pipeline.generators.sudoku import SudokuBoards

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Size of a board -> rows and columns of its boxes."""

USUAL = {"addition": 3, "multiplication": 2, "lookup": 2}
"""Name without a number -> digits or hops."""

KNOWN = (
    "sudoku4, sudoku6, sudoku9, additionD and multiplicationD for D digits, and lookupH for H hops "
    f"({', '.join(f'{name} is {name}{number}' for name, number in USUAL.items())})"
)
NAME = re.compile(r"(sudoku|addition|multiplication|lookup)(\d*)")
COUNT = re.compile(r"(\d+)(?:@(\d+))?")
MAX_COUNT = 10**12


@dataclass(frozen=True)
class Generated:
    """Instances 0 .. count - 1 of a generator and a seed."""

    generator: Generator
    count: int
    seed: int = 0

    @property
    def identity(self) -> str:
        """Decides the texts, together with their numbers."""
        return f"{self.generator.name}, version {self.generator.version}, seed {self.seed}"


def names_generator(value: str) -> bool:
    """Whether a value of `--input` is meant as a generator."""
    return NAME.fullmatch(value.partition(":")[0]) is not None and ":" in value


def parse_generated(value: str) -> Generated:
    """The instances that a value of `--input` names.

    Raises:
        DataError: no such generator, or not a count and a seed.
    """
    name, _, numbers = value.partition(":")
    generator = find_generator(name)
    if generator is None:
        raise DataError(f"--input {value}: no generator {name!r}; there are {KNOWN}")
    match = COUNT.fullmatch(numbers)
    if match is None:
        raise DataError(f"--input {value}: expected {name}:COUNT or {name}:COUNT@SEED, such as {name}:10000")
    count, seed = int(match[1]), int(match[2] or 0)
    if not 1 <= count <= MAX_COUNT:
        raise DataError(f"--input {value}: the count must be from 1 to {MAX_COUNT:,}")
    if seed >= 2**63:
        raise DataError(f"--input {value}: the seed must be below 2^63")
    return Generated(generator, count, seed)


def find_generator(name: str) -> Generator | None:
    """The generator of a name such as sudoku6, addition3 or addition; None if there is none."""
    match = NAME.fullmatch(f"{name}{USUAL.get(name, '')}")
    if match is None or match[2] != str(int(match[2] or 0)):
        return None
    kind, number = match[1], int(match[2])
    if kind in SIGNS:
        return Arithmetic(kind, number) if 1 <= number <= MAX_DIGITS else None
    if kind == "lookup":
        return Lookup(number) if 1 <= number <= MAX_HOPS else None
    return SudokuBoards(Sudoku(*BOXES[number])) if number in BOXES else None
