"""Standard output and standard error that can show every text and, where a command asks for it, outlive their reader."""

import atexit
import codecs
import io
import locale
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

ASCII = {
    "±": "+/-", "…": "...", "·": ".", "█": "=", "░": "#", "│": "|", "┌": "+", "▁": "_",
    "↵": "\\n", "→": "\\t", "␍": "\\r", "␛": "\\e",
} | dict.fromkeys("▏▎▍▌▋▊▉", "-")  # fmt: skip
"""How the characters that this project prints are written where the terminal's encoding does not have them."""

ERRORS = "loopmdm.replace"
"""Name of the error handler of `codecs` that writes them so, and other characters as escapes such as \\u6f22."""


def prepare_console(outlive_reader: bool = False) -> None:
    """Set up `sys.stdout` and `sys.stderr`; every entry point calls this first.

    Characters that the encoding does not have are replaced. A stream that the parent has closed (`>&-`) discards its text.
    Where the locale is ASCII, the process starts itself again in Python's UTF-8 mode: libraries read their own files in the
    encoding of the locale.

    Args:
        outlive_reader: text that cannot be written is dropped, and the command goes on. Otherwise printing raises OSError.
    """
    _leave_ascii_locale()
    for descriptor in (0, 1, 2):
        _open_if_closed(descriptor)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or os.fdopen(descriptor, "w", encoding="utf-8", closefd=False)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
        setattr(sys, name, ConsoleStream(stream, outlive_reader))


class ConsoleStream:
    """A text stream that may drop what it cannot write. Everything else is left to the stream that it wraps."""

    def __init__(self, stream: TextIO, outlive_reader: bool) -> None:
        self._stream, self._outlive_reader = stream, outlive_reader
        atexit.register(self._finish)

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        with self._drop_or_raise():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream; what cannot be written now stays in its buffer."""
        with self._drop_or_raise():
            self._stream.flush()

    @contextmanager
    def _drop_or_raise(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if not self._outlive_reader:
                raise

    def _finish(self) -> None:
        """Let what is still in the buffer disappear: the interpreter's own flush at its end would report an error."""
        try:
            self._stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _leave_ascii_locale() -> None:
    """Replace this process by one in UTF-8 mode, which still prints ASCII. With `python -I` that is not possible."""
    is_ascii = codecs.lookup(locale.getencoding()).name == "ascii"
    if is_ascii and not sys.flags.utf8_mode and not sys.flags.ignore_environment:
        variables = {"PYTHONIOENCODING": "ascii"} | os.environ | {"PYTHONUTF8": "1"}
        os.execve(sys.executable, sys.orig_argv, variables)


def _open_if_closed(descriptor: int) -> None:
    """Otherwise the next file that is opened, such as a checkpoint, would get this number and receive what is printed."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled_out, error.object[error.start : error.end])), error.end


def _spelled_out(character: str) -> str:
    """ASCII for one character. The surrogates U+DC80..U+DCFF stand for the bytes of file names that are not UTF-8."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return ASCII.get(character) or character.encode("ascii", "backslashreplace").decode()


codecs.register_error(ERRORS, _replace)
