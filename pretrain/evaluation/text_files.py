"""Texts and JSON lines that an option of the command line names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.errors import UserError


def read_text(option: str, path: Path) -> str:
    """A UTF-8 text, with or without a byte order mark.

    Raises:
        UserError: names the option, and the file's problem.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {path}: {not_utf8(error)}") from None
    except FileNotFoundError:
        raise UserError(f"{option} {path}: no such file") from None
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be read ({error.strerror})") from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are not UTF-8, and the fix."""
    return (
        f"byte 0x{error.object[error.start]:02x} at position {error.start} is not UTF-8; "
        "convert it, for example with iconv"
    )


def json_lines(path: Path, lines: Iterator[tuple[int, str]], example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of numbered lines, each with its place for messages.

    Args:
        example: an object as it should be.

    Raises:
        UserError: a line is not a JSON object.
    """
    for number, line in lines:
        source = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: is not JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{source}: must be an object such as {example}")
        yield source, record


def text_of(source: str, key: str, value: object) -> str:
    """The text of a key.

    Raises:
        UserError: it is not a text.
    """
    if not isinstance(value, str):
        raise UserError(f"{source}: {key} must be a text, not {type(value).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{source}: {key} has half of a surrogate pair, which is no character")
    return value


def filled_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())
