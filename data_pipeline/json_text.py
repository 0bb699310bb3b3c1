"""JSON as the standard has it: without NaN and infinities, and file names as it can hold them; and files of it, line by line."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """Plain values as JSON. Figures that are not finite become null: JSON has no word for them, and strict readers fail on NaN.

    Halves of surrogate pairs, which stand for the bytes of file names that are not UTF-8, are escaped, so that the text can be
    written as UTF-8.
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
    return value


def lines_of(text: str) -> list[str]:
    """The lines of a file of JSON objects. `str.splitlines` also splits at characters of their texts, such as U+2028."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def why_no_json_line(error: json.JSONDecodeError) -> str:
    """What is wrong with a line that should hold one JSON object, and what to do."""
    what = f"{error.msg.removesuffix(' at')} at column {error.colno}"
    rest = error.doc[error.pos :].lstrip(" \t\r") if error.msg == "Extra data" else ""
    joined = "a second object, as where files were joined without a line end between them"
    if rest.startswith("\ufeff"):
        return f"{what}: a byte order mark and {joined}; join them with awk 1 FILE... > JOINED"
    if rest.startswith(","):
        return f"{what}: a comma; one JSON object per line is expected, without commas between them"
    if rest.startswith("{") or error.doc.strip() == "{":
        second = f": {joined}" if rest else ""
        return f"{what}{second} (one JSON object per line is expected; jq -c . rewrites a file like this)"
    return what


def shown_name(path: str | Path) -> str:
    """A path as text: bytes of a file name that are not UTF-8, which no JSON can hold, are written as `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
