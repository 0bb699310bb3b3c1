"""Words that people type -> numbers, truth values and paths. What is not plainly one of these is refused, never guessed."""

import math
import os
import re
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
LOCAL = "file://"

_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")
_BYTES = re.compile(
    r"(?P<number>([0-9]+\.?[0-9]*|\.[0-9]+)(e[0-9]{1,2})?)\s*((?P<unit>[kmgt])(?P<binary>i)?)?b?", re.IGNORECASE
)
_GROUPED = re.compile(r"[^, ]+([, ][0-9]{3})*")
_NOT_FINITE = re.compile(r"[+-]?\.?(inf|infinity|nan)", re.IGNORECASE)


def whole_number(word: str) -> int:
    """`12`, `0012`, `1e3` or `1.0`. Raises ValueError that says what to write."""
    if not _DECIMAL.fullmatch(word):
        raise ValueError(f"should be a whole number{_respelled(word, 'such as 20 or 1e3')}")
    number = Decimal(word)
    if number and number.adjusted() >= 19:
        raise ValueError("should be a whole number below 2^63")
    if number != number.to_integral_value():
        raise ValueError("should be a whole number, without a fraction")
    if not -(2**63) <= number < 2**63:
        raise ValueError("should be a whole number below 2^63")
    return int(number)


def real_number(word: str) -> float:
    """`0.002`, `2e-3`, `.5` or `5.`. Raises ValueError that says what to write."""
    if not _DECIMAL.fullmatch(word):
        if _NOT_FINITE.fullmatch(word):
            raise ValueError("should be a finite number")
        raise ValueError(f"should be a number{_respelled(word, 'such as 0.5 or 1e-3')}")
    value = float(word)
    if math.isinf(value):
        raise ValueError("should be a finite number; this one is too large")
    return value


def number_of_bytes(word: str) -> int:
    """`4GB`, `500 MB`, `1.5GiB` or `4e9`: decimal units, or binary ones with an i. Raises ValueError that says what to write."""
    match = _BYTES.fullmatch(word.strip())
    if not match:
        raise ValueError("should be a size such as 500MB or 4GB")
    number, power, binary = match["number"], " kmgt".index((match["unit"] or " ").lower()), match["binary"]
    size = int(Decimal(number) * (1024 if binary else 1000) ** power)
    if not 1 <= size < 2**63:
        raise ValueError("should be a size of at least one byte, such as 500MB or 4GB")
    return size


def truth(word: str) -> bool:
    """`true`, `yes`, `on`, `1` and their opposites. Raises ValueError."""
    try:
        return TRUTH[word.lower()]
    except KeyError:
        raise ValueError("should be true or false") from None


def path_of(word: str | Path) -> Path:
    """A path with `~`, `$NAME` and `${NAME}` expanded.

    Raises:
        ValueError: it is empty, a URL, or names a user or an environment variable that does not exist.
    """
    text = without_protocol(os.path.expandvars(str(word)))
    unset = re.search(r"\$(\w+|\{[^}]*\})", text)
    if unset:
        raise ValueError(f"the environment variable {unset[1].strip('{}')} is not set; set it or write the path out")
    if not text:
        raise ValueError("is empty; give a path")
    return Path(home_expanded(text))


def is_remote(text: str) -> bool:
    """Whether a text is a URL of another protocol than `file://`."""
    return URL.match(text) is not None and not text.startswith(LOCAL)


def without_protocol(text: str) -> str:
    """A path without `file://`. Raises ValueError for the URL of another protocol."""
    if is_remote(text):
        raise ValueError(
            "URLs are taken only by --input and --against of loopmdm prepare and by loopmdm copy; copy a prepared folder with: "
            "loopmdm copy URL DIR, other files with the tool of the store, such as aws s3 sync, and give the path of the copy"
        )
    return text.removeprefix(LOCAL)


def home_expanded(text: str) -> str:
    """A path with a leading `~` or `~user` replaced by the home folder.

    Raises:
        ValueError: there is no such user, or a file is named `~`: a shell inserts its name for `*`.
    """
    home, slash, rest = text.partition("/")
    if not home.startswith("~"):
        return text
    if text == "~" and Path(text).exists():
        raise ValueError(f"is the home folder, and there is a file of this name here; write ./~ or {Path.home()}")
    try:
        return f"{Path(home).expanduser()}{slash}{rest}"
    except RuntimeError:
        literal = f", or ./{text} for the file of this name" if Path(text).exists() else ""
        raise ValueError(f"{home} is not the home of a user; write the path out{literal}") from None


def _respelled(word: str, example: str) -> str:
    """` in decimal digits; write 1000` for `1_000`, `1,000` or `0x3E8`, which some readers take for a number; else the example.

    The comma or blank of `1,5` and `1 2` groups no digits: it may stand for a point or separate two numbers.
    """
    if _GROUPED.fullmatch(word):
        with suppress(ValueError):
            return f" in decimal digits; write {int(re.sub('[_, ]', '', word), 0)}"
    return f", {example}"
