"""Questions with a number as the answer, as in GSM8K (Cobbe et al. 2021): exact match on the last number of the sample."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from functools import cached_property
from typing import Any

import numpy as np

from data_pipeline.tokenizers.tokenizers import PreparedTokenizer
from pretrain.errors import UserError
from pretrain.evaluation.statistics import proportion
from pretrain.evaluation.tasks.rows import answer_row, digest
from pretrain.evaluation.tasks.task import Record, TaskModel

NUMBER = re.compile(
    r"(?P<minus>-(?=[.\d])|(?<![.\d])[-\u2212])?[$\u20ac\u00a3]?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)
"""Commas separate thousands (also lakhs), else numbers. A minus is a hyphen before digits, or, unless a number comes before it, a
hyphen before a currency or the sign of its own."""
PART_OF_ANOTHER = re.compile(r"[\d.,]*\d(?: ?/ ?|[:^]|[eE]\+?)$")
"""Before the last number, which then is the end of a fraction, ratio, power or exponent."""
QUESTION = "{question}"
DEFAULT_PROMPT = f"Question: {QUESTION}\nAnswer:"
DEFAULT_UNTIL = ("Question:",)


@dataclass(frozen=True)
class Question:
    """A question and its answer, whose last number counts."""

    source: str
    text: str
    answer: str


@dataclass(frozen=True)
class QuestionTask:
    """Questions of a file.

    Attributes:
        name: of the file.
        prompt: the text before an answer, with `{question}` where the question goes; examples before it make it few-shot.
        until: an answer ends where one of these texts begins.
        answer_length: tokens of an answer, at least.
        seq_len: tokens of the longest row.
    """

    name: str
    questions: Sequence[Question]
    prompt: str
    until: Sequence[str]
    answer_length: int
    seq_len: int
    tokenizer: PreparedTokenizer
    metric: str = "exact_match"
    samples: bool = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Task`."""
        items = [[question.text, question.answer] for question in self.questions]
        about = {"prompt": self.prompt, "until": list(self.until), "answer_length": self.answer_length}
        return {"task": self.name, **about, "items_sha256": digest(items)}

    @cached_property
    def sizes(self) -> Sequence[int]:
        """See `Task`."""
        return [len(row) for row, _ in self._rows]

    @cached_property
    def _rows(self) -> list[tuple[list[int], int]]:
        """The row of each question, and the number of tokens of its prompt."""
        texts = [self.prompt.replace(QUESTION, question.text) for question in self.questions]
        mask_id = self.tokenizer.mask_id
        return [
            (answer_row(ids.tolist(), self.answer_length, self.seq_len, mask_id, question.source), len(ids))
            for question, ids in zip(self.questions, self.tokenizer.encode_batch(texts), strict=True)
        ]

    def run(self, model: TaskModel, items: Sequence[int]) -> list[Record]:
        """See `Task`. An answer also ends at the end of the document."""
        stopping = replace(model, sampler=replace(model.sampler, stop=True))
        samples = stopping.fill([self._rows[item][0] for item in items], items)
        return [
            self._record(item, self.tokenizer.decode(sample.tokens[self._rows[item][1] :]))
            for item, sample in zip(items, samples, strict=True)
        ]

    def _record(self, item: int, completion: str) -> Record:
        answer = completion
        for text in self.until:
            answer = answer.partition(text)[0]
        found, expected = last_number(answer), last_number(self.questions[item].answer)
        right = found is not None and found == expected
        return {
            "item": item,
            "correct": float(right),
            "number": None if found is None else str(found),
            "answer": answer,
        }

    def figures(self, model: TaskModel, records: Sequence[Record]) -> dict[str, float | None]:
        """See `Task`."""
        numbers = [self._scored(record)["number"] for record in records]
        answered = proportion("with_a_number", [number is not None for number in numbers])
        return proportion("exact_match", self.values(records)) | answered

    def values(self, records: Sequence[Record]) -> np.ndarray:
        """See `Task`."""
        return np.array([self._scored(record)["correct"] for record in records])

    def _scored(self, record: Record) -> Record:
        """The record with the answer read again: an earlier version may have stored what it read otherwise."""
        return self._record(record["item"], record["answer"])


def last_number(text: str) -> Decimal | None:
    """The last number of a text; 1,000.0 is 1000. None if there is none."""
    found = list(NUMBER.finditer(text))
    if not found:
        return None
    digits = found[-1]["digits"].replace(",", "")
    number = Decimal(digits).normalize(Context(prec=len(digits)))  # the usual context rounds to 28 digits
    return number.copy_negate() if found[-1]["minus"] and number else number


def question_of(source: str, question: str, answer: str) -> Question:
    """A question of a file.

    Raises:
        UserError: the answer has no number, or its last number is only a part of one, such as the 2 of 1/2.
    """
    *_, last = [None, *NUMBER.finditer(answer)]
    if last is None:
        raise UserError(f"{source}: the answer has no number, and the last number is what is compared")
    before = PART_OF_ANOTHER.search(answer, 0, last.start())
    if before is not None:
        raise UserError(
            f"{source}: only '{last[0]}' of the answer '{before[0]}{last[0]}' would be compared; write it as a decimal number"
        )
    return Question(source, question, answer)
