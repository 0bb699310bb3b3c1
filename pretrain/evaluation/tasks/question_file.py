"""Files of questions, one JSON object per line: with choices, or with a number as the answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pretrain.errors import UserError
from pretrain.evaluation.tasks.choices import ChoiceQuestion, choice_question
from pretrain.evaluation.tasks.questions import QUESTION, Question, question_of
from pretrain.evaluation.text_files import filled_lines, json_lines, read_text, text_of

EXAMPLE = '{"question": "...", "answer": "..."}'
T = TypeVar("T")


def read_questions(path: Path) -> list[Question] | list[ChoiceQuestion]:
    """The questions of a file; all have choices, or none has.

    Raises:
        UserError: the file cannot be read or is empty, or a line is wrong.
    """
    records = list(json_lines(path, filled_lines(read_text("--tasks", path)), EXAMPLE))
    if not records:
        raise UserError(f"--tasks {path}: has no question; write one JSON object per line, such as {EXAMPLE}")
    if "choices" in records[0][1]:
        return [_read(source, record, _choices) for source, record in records]
    return [_read(source, record, _number) for source, record in records]


def _read(source: str, record: dict[str, Any], read: Callable[[str, str, dict[str, Any]], T]) -> T:
    for key in ("question", "answer"):
        if key not in record:
            raise UserError(f"{source}: has no key {key!r}; a line must be an object such as {EXAMPLE}")
    return read(source, text_of(source, "question", record["question"]), record)


def _number(source: str, question: str, record: dict[str, Any]) -> Question:
    if "choices" in record:
        raise UserError(f"{source}: has choices, unlike the first line; put them into a file of their own")
    return question_of(source, question, text_of(source, "answer", record["answer"]))


def _choices(source: str, question: str, record: dict[str, Any]) -> ChoiceQuestion:
    if "choices" not in record:
        raise UserError(f"{source}: has no choices, unlike the first line; put it into a file of its own")
    return choice_question(source, question, record["choices"], record["answer"])


def read_prompt(path: Path) -> str:
    """The prompt of a file, with `{question}` where the question goes.

    Raises:
        UserError: the file cannot be read, or has no place for the question, or several.
    """
    text = read_text("--few-shot", path).removesuffix("\n").removesuffix("\r")
    if text.count(QUESTION) != 1:
        raise UserError(
            f"--few-shot {path}: has {text.count(QUESTION)} times {QUESTION}; write it once, after the examples, where the "
            "question goes"
        )
    return text
