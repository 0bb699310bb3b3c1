"""`key=value` words of a command line -> values, and the spellings that are refused with the right one."""

import re
from collections.abc import Sequence

from data_pipeline.yaml_files import Value, Word, YamlError, parse_yaml
from pretrain.config.keys import inside
from pretrain.errors import Problem


def parse_overrides(words: Sequence[str]) -> tuple[list[tuple[str, Value]], list[Problem]]:
    """Keys with their values, in the order given, and one problem for each word that is not of the form key=value."""
    values, problems = [], []
    for typed, meant in _joined(words):
        key, equals, text = meant.partition("=")
        if typed != meant:
            problems.append(Problem(repr(typed), None, f"write {meant}, without spaces"))
        elif not equals or not key:
            problems.append(Problem(repr(typed), None, _not_an_override(typed)))
        else:
            try:
                values.append((key, _value(key, text)))
            except YamlError as error:
                what = str(error).partition(": ")[2]
                unclosed = "the brackets or quotation marks are not closed; correct the value"
                problems.append(Problem(key, text, unclosed if what.startswith("not valid YAML") else what))
    return values, problems


def _joined(words: Sequence[str]) -> list[tuple[str, str]]:
    """(as typed, as meant): `a = 1` is three words, or one that contains spaces, and means `a=1`."""
    joined, rest = [], list(words)
    while rest:
        typed = rest.pop(0)
        if rest and re.fullmatch(r"=.*", rest[0], re.DOTALL) and "=" not in typed:
            typed += f" {rest.pop(0)}"
        if rest and typed.rstrip().endswith("=") and "=" not in rest[0]:
            typed += f" {rest.pop(0)}"
        key, equals, value = typed.partition("=")
        joined.append((typed, f"{key.strip()}={value.strip()}" if equals else typed))
    return joined


def _not_an_override(word: str) -> str:
    """What is wrong with a word without `=`, and what to write."""
    if written := re.fullmatch(r"([a-z_]\w*(?:\.\w+)*):\s*(\S+)", word):
        return f"is written as in a YAML file; write {written[1]}={written[2]}"
    return "is not of the form key=value, such as optim.lr=3e-4"


def _value(key: str, text: str) -> Value:
    """Text as typed; lists and sections in brackets and words in quotation marks are read as YAML. Raises YamlError."""
    quoted = len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]
    bracketed = text.startswith("[") or (text.startswith("{") and bool(inside(key)))
    value = parse_yaml(text, key) if quoted or bracketed else Word(text)
    return Word(value, quoted=value.quoted) if isinstance(value, Word) else value
