"""Tasks that the data pipeline generates: Sudoku boards and questions, on instances that training has not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.generators.generator import Question
from data_pipeline.generators.sudoku import SudokuBoards
from data_pipeline.tokenizers.tokenizers import PreparedTokenizer
from pretrain.errors import UserError
from pretrain.evaluation.statistics import mean_and_error, proportion
from pretrain.evaluation.tasks.rows import digest
from pretrain.evaluation.tasks.task import Record, TaskModel


@dataclass(frozen=True)
class HeldOut:
    """Instances of the validation split, as rows of one token per character.

    Attributes:
        texts: the instances.
        tokenizer: of the model.
    """

    texts: Sequence[str]
    tokenizer: PreparedTokenizer

    @cached_property
    def rows(self) -> list[list[int]]:
        """Token ids of each instance and the end of the document.

        Raises:
            UserError: the tokenizer has no token for a character, or longer tokens than characters.
        """
        remedy = "train on a folder that was prepared with the characters of the task"
        try:
            encoded = self.tokenizer.encode_batch(list(self.texts))
        except DataError as error:
            raise UserError(f"{self.texts[0]!r}: {error}; {remedy}") from None
        for text, ids in zip(self.texts, encoded, strict=True):
            if (written := self.tokenizer.decode(ids.tolist())) != text:
                raise UserError(f"{text!r}: the tokenizer of the run turns it into {written!r}; {remedy}")
            if len(ids) != len(text):
                raise UserError(
                    f"{text!r} has {len(ids)} tokens for {len(text)} characters: the tokenizer of the run joins characters; "
                    f"{remedy}"
                )
        return [[*ids.tolist(), self.tokenizer.eod_id] for ids in encoded]

    def hidden(self, number: int, given: Sequence[int]) -> list[int]:
        """The row of an instance with [MASK] for all characters but those of `given`; its end is given."""
        row = self.rows[number]
        kept = {*given, len(row) - 1}
        return [token if i in kept else self.tokenizer.mask_id for i, token in enumerate(row)]

    def text_of(self, tokens: Sequence[int]) -> str:
        """The characters of a filled row, without its last token."""
        return self.tokenizer.decode(tokens[:-1])


@dataclass(frozen=True)
class SudokuTask:
    """Boards from nothing, or from some cells of held-out boards.

    Attributes:
        given: cells that are given, at least: as many more as leave a single solution. 0: none, and item i is sample i.
    """

    boards: SudokuBoards
    held_out: HeldOut
    given: int
    count: int
    seed: int
    metric: str = "valid_boards"
    samples: bool = True

    @property
    def name(self) -> str:
        """See `Task`."""
        return f"{self.boards.name}_given_{self.given}" if self.given else self.boards.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Task`."""
        items = {"items_sha256": digest(list(self.held_out.texts))} if self.given else {}
        return {"task": self.boards.name, "given": self.given, **items}

    @property
    def sizes(self) -> Sequence[int]:
        """See `Task`."""
        return [self.boards.length + 1] * (len(self.held_out.texts) if self.given else self.count)

    def run(self, model: TaskModel, items: Sequence[int]) -> list[Record]:
        """See `Task`."""
        puzzles = [self._given(item) for item in items]
        instances = [
            item if self.given else 0 for item in items
        ]  # without given cells, only the length of the row matters
        rows = [self.held_out.hidden(number, given) for number, given in zip(instances, puzzles, strict=True)]
        samples = model.fill(rows, items)
        return [
            self._record(item, self.held_out.text_of(sample.tokens), given)
            for item, sample, given in zip(items, samples, puzzles, strict=True)
        ]

    def _given(self, item: int) -> list[int]:
        if not self.given:
            return []
        board = self.boards.board_of(self.held_out.texts[item])
        assert board is not None
        return self.boards.puzzle(board, self.given, self.seed, item)

    def _record(self, item: int, text: str, given: Sequence[int]) -> Record:
        board = self.boards.board_of(text)
        valid = board is not None and self.boards.sudoku.is_valid(board)
        record = {"item": item, "valid": float(valid), "board": text}
        if self.given:
            record |= {"exact": float(text == self.held_out.texts[item]), "given": len(given)}
        return record

    def figures(self, model: TaskModel, records: Sequence[Record]) -> dict[str, float | None]:
        """See `Task`. `exact_solutions` are those of the puzzles; a puzzle has one."""
        figures = proportion("valid_boards", self.values(records))
        if self.given:
            figures |= proportion("exact_solutions", [record["exact"] for record in records])
            given = mean_and_error(np.array([float(record["given"]) for record in records]))
            figures["given_cells"], figures["given_cells_se"] = given
        return figures

    def values(self, records: Sequence[Record]) -> np.ndarray:
        """See `Task`."""
        return np.array([record["valid"] for record in records])


@dataclass(frozen=True)
class AnswerTask:
    """The answers of held-out instances, such as the sums of two numbers."""

    question: Question
    held_out: HeldOut
    metric: str = "exact_answers"
    samples: bool = True

    @property
    def name(self) -> str:
        """See `Task`."""
        return self.question.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Task`."""
        return {"task": self.name, "items_sha256": digest(list(self.held_out.texts))}

    @property
    def sizes(self) -> Sequence[int]:
        """See `Task`."""
        return [self.question.length + 1] * len(self.held_out.texts)

    def run(self, model: TaskModel, items: Sequence[int]) -> list[Record]:
        """See `Task`."""
        given = range(self.question.length - self.question.answer_length)
        samples = model.fill([self.held_out.hidden(item, given) for item in items], items)
        return [
            self._record(item, self.held_out.text_of(sample.tokens))
            for item, sample in zip(items, samples, strict=True)
        ]

    def _record(self, item: int, text: str) -> Record:
        return {"item": item, "correct": float(text == self.held_out.texts[item]), "text": text}

    def figures(self, model: TaskModel, records: Sequence[Record]) -> dict[str, float | None]:
        """See `Task`."""
        return proportion("exact_answers", self.values(records))

    def values(self, records: Sequence[Record]) -> np.ndarray:
        """See `Task`."""
        return np.array([record["correct"] for record in records])
