"""A value as it was typed -> a value of the type that its key has. Constraints, such as "greater than 0", are left to pydantic."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_origin

from data_pipeline.typed_words import path_of, real_number, truth, whole_number
from data_pipeline.yaml_files import Value, Word
from pretrain.config.keys import members


class MistypedError(ValueError):
    """A word that does not have the type of its key.

    Attributes:
        word: the word; None where the value is no single word.
    """

    def __init__(self, word: Word | None, text: str) -> None:
        super().__init__(text)
        self.word = word


def typed(value: Value, annotation: Any) -> Any:
    """Convert a value to the type of its key. Raises MistypedError, which says what to write."""
    kinds = members(annotation)
    if any(get_origin(kind) is tuple for kind in kinds):
        return tuple(_scalar(part, [int]) for part in _parts(value))
    return _scalar(value, kinds)


def _parts(value: Value) -> Sequence[Value]:
    """Items of a list that is written as `[1, 2, 4]`, `1,2,4` or `4`."""
    if isinstance(value, Word):
        if re.search(r"\d\s+\d", value):
            raise MistypedError(value, "should be a list such as 1,2,4, with commas")
        return [Word(part.strip(), value.line) for part in value.split(",")]
    if isinstance(value, list):
        return value
    raise MistypedError(None, "should be a list such as 1,2,4, not a section")


def _scalar(value: Value, kinds: Sequence[Any]) -> Any:
    if not isinstance(value, Word):
        raise MistypedError(None, f"should be one value, not a {'list' if isinstance(value, list) else 'section'}")
    if value.is_null and type(None) in kinds:
        return None
    if str in kinds:
        return str(value)
    if not value:
        raise MistypedError(value, "has no value; give it one or leave the key out")
    constants = [kind for kind in kinds if isinstance(kind, str | int)]
    for constant in constants:
        if value == str(constant):
            return constant
    try:
        return _reader(kinds)(value)
    except ValueError as error:
        choices = _choices(constants)
        if choices and not (int in kinds and re.match("[0-9]", value)):
            raise MistypedError(value, f"should be {'a whole number or ' if int in kinds else ''}{choices}") from None
        raise MistypedError(value, str(error)) from None


def _reader(kinds: Sequence[Any]) -> Callable[[str], Any]:
    """How to read a word that is none of the constants."""
    readers: dict[type, Callable[[str], Any]] = {Path: path_of, bool: truth, int: whole_number, float: real_number}
    for kind, reader in readers.items():
        if kind in kinds:
            return reader
    constants = [kind for kind in kinds if isinstance(kind, int)]

    def one_of(word: str) -> int:
        if (value := whole_number(word)) not in constants:
            raise ValueError
        return value

    return one_of


def _choices(constants: Sequence[str | int]) -> str:
    """Such as `'fp32' or 'bf16'`."""
    *rest, last = [""] * (not constants) + [repr(constant) for constant in constants]
    return f"{', '.join(rest)} or {last}" if rest else last
