"""Sudoku boards that a model has written, as a picture: cells that break a rule are marked."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from data_pipeline.generators.boards import Sudoku
from data_pipeline.generators.names import find_generator
from data_pipeline.generators.sudoku import SudokuBoards
from data_pipeline.json_text import lines_of
from pretrain.proportions import wilson_interval
from pretrain.studies.blocks import Drawing
from pretrain.studies.results import Results, TrialResult

SHOWN = 6
"""Boards of each model."""

SPECIAL, NO_SYMBOL = re.compile(r"<\|[^|]*\|>"), "·"
"""The text of a special token, such as the end of the document, and what stands for it in a cell."""

CELL = 16
GAP = 14


def drawings(results: Results) -> list[Drawing]:
    """The first boards of seed 0 of every arm at every S. The same column has the same random numbers."""
    measurement = results.experiment.study.boards
    found = []
    for arm, (first, *_) in results.best.items():
        content = next(iter(first.measured[measurement].values()))
        generator = find_generator(content["task"].partition("_")[0])
        if not isinstance(generator, SudokuBoards):
            return []
        for row in content["loops"]:
            boards = texts(first, content, row["loops"])[:SHOWN]
            valid, count = row[content["metric"]], content["items"]
            low, high = wilson_interval(valid, count)
            title = f"{arm}, S = {row['loops']}: {valid:.0%} of {count} boards are valid (95% interval {low:.1%} to {high:.1%})"
            found.append(Drawing(title, picture(generator, boards)))
    return found


def texts(result: TrialResult, content: dict[str, Any], loops: str | int) -> list[str]:
    """What the items of a task wrote, in their order; from the records beside the results of the run."""
    settings = {key: value for key, value in content["settings"].items() if key not in ("compute", "limit")}
    wanted = [settings | compute for compute in content["settings"]["compute"] if compute["loops"] == loops]
    for path in sorted((result.trial.folder / "eval").glob("*.items.jsonl")):
        header, *records = map(json.loads, lines_of(path.read_text(encoding="utf-8")))
        if [header["settings"]] == wanted:
            boards = {record["item"]: record["board"] for record in records if "board" in record}
            return [SPECIAL.sub(NO_SYMBOL, boards[item]) for item in sorted(boards)]
    return []


def picture(generator: SudokuBoards, boards: Sequence[str]) -> str:
    """The boards in a row, as SVG."""
    size = generator.sudoku.size * CELL
    width = len(boards) * (size + GAP)
    parts = "".join(
        f'<g transform="translate({number * (size + GAP)} 1)">{_board(generator, text)}</g>'
        for number, text in enumerate(boards)
    )
    says = "boards; cells that break a rule are filled"
    return (
        f'<svg class="boards" viewBox="-1 0 {width} {size + 2}" style="max-width:{1.3 * width:.0f}px" role="img" '
        f'aria-label="{says}">{parts}</svg>'
    )


def _board(generator: SudokuBoards, text: str) -> str:
    sudoku, side = generator.sudoku, generator.sudoku.size
    symbols = list(text[: sudoku.cells].ljust(sudoku.cells))
    wrong = broken(sudoku, symbols)
    parts = []
    for cell, symbol in enumerate(symbols):
        x, y = cell % side * CELL, cell // side * CELL
        fill = "var(--wrong)" if cell in wrong else "none"
        parts.append(
            f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{fill}" class="cell"/>'
            f'<text x="{x + CELL / 2}" y="{y + CELL / 2 + 4}" text-anchor="middle" class="symbol">{escape(symbol)}</text>'
        )
    for row in range(0, side, sudoku.box_rows):
        for column in range(0, side, sudoku.box_columns):
            parts.append(
                f'<rect x="{column * CELL}" y="{row * CELL}" width="{sudoku.box_columns * CELL}" '
                f'height="{sudoku.box_rows * CELL}" class="box"/>'
            )
    return "".join(parts)


def broken(sudoku: Sudoku, symbols: Sequence[str]) -> set[int]:
    """Cells without a digit, or whose digit occurs again in their row, column or box."""
    wrong = {cell for cell, symbol in enumerate(symbols) if not symbol.isdecimal()}
    for unit in sudoku.units:
        counts = Counter(symbols[cell] for cell in unit)
        wrong |= {cell for cell in unit if counts[symbols[cell]] > 1}
    return wrong
