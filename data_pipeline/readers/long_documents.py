"""Texts that are too long to hold: read piece after piece, as often as asked for.

Up to `LONG_BYTES` a document is one string. Beyond, it stays in its file and is read from there again for each use: a text
file as it is, the value of a JSON line through the escapes of JSON.
"""

import codecs
import json
import re
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from data_pipeline.readers.compression import open_unpacked

LONG_BYTES = 8 << 20
PIECE_BYTES = 1 << 20
# Of the strings in a long JSON line, those beyond this are not kept.
KEPT_BYTES = 1 << 16
# As far as whole characters and escapes go; possessive, so that nothing is remembered for going back.
WHOLE_ESCAPES = re.compile(r'(?:[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+', re.DOTALL)
WHOLE_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
FIRST_OF_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")
ESCAPE_CHARS = len("\\ud83d")


@dataclass(frozen=True)
class LongText:
    """A stretch of a file as text; each iteration reads it anew.

    Attributes:
        start, stop: bytes of the unpacked file; a stop of None is its end.
        is_escaped: the stretch is the inside of a JSON string.

    Raises (while it is read):
        Utf8Error: it is not UTF-8. ValueError: it is not the inside of a JSON string.
    """

    path: Path
    start: int
    stop: int | None = None
    is_escaped: bool = False

    def __iter__(self) -> Iterator[str]:
        texts = _decoded(self._blocks(), self.start)
        return _unescaped(texts) if self.is_escaped else texts

    def _blocks(self) -> Iterator[bytes]:
        position = self.start
        with open_unpacked(self.path, self.start) as file:
            while self.stop is None or position < self.stop:
                wanted = PIECE_BYTES if self.stop is None else min(PIECE_BYTES, self.stop - position)
                if not (block := file.read(wanted)):
                    return
                position += len(block)
                yield block


@dataclass(frozen=True)
class Slices:
    """A string that is in memory anyway, piece after piece."""

    text: str

    def __iter__(self) -> Iterator[str]:
        return (self.text[i : i + PIECE_BYTES] for i in range(0, len(self.text), PIECE_BYTES))


def pieces_of(text: str) -> Iterable[str]:
    """A text that is in memory as what a document holds."""
    return (text,) if len(text) <= LONG_BYTES else Slices(text)


class Utf8Error(ValueError):
    """Bytes that are not UTF-8; says which and where."""


def decode_utf8(content: bytes) -> str:
    """The text of UTF-8; raises Utf8Error."""
    return _decode(codecs.getincrementaldecoder("utf-8")(), content, 0, final=True)


def _decoded(blocks: Iterable[bytes], start: int) -> Iterator[str]:
    """UTF-8 to text; positions of errors count from the beginning of the file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, block = start, b""
    for block in blocks:
        yield _decode(decoder, block, position)
        position += len(block)
    yield _decode(decoder, b"", position, final=True)


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, position: int, final: bool = False) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        where = position - pending + error.start
        raise Utf8Error(f"byte 0x{error.object[error.start]:02x} at position {where}") from error


def _unescaped(texts: Iterable[str]) -> Iterator[str]:
    """The inside of a JSON string to what it stands for."""
    left = ""
    for text in texts:
        left += text
        whole = _whole_escapes(left)
        if len(left) - whole > 2 * ESCAPE_CHARS:  # not cut short: wrong
            whole = len(left)
        yield _unescape(left[:whole])
        left = left[whole:]
    yield _unescape(left)


def _whole_escapes(text: str) -> int:
    """Length of the beginning that ends neither inside an escape nor between two that stand for one character."""
    whole = _match_end(WHOLE_ESCAPES, text)
    before = whole - ESCAPE_CHARS
    # A backslash there may belong to the escape before it.
    is_first_of_pair = before >= 0 and FIRST_OF_PAIR.match(text, before, whole)
    return before if is_first_of_pair and _match_end(WHOLE_ESCAPES, text[:before]) == before else whole


def _unescape(text: str) -> str:
    try:
        return json.loads(f'"{text}"')
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in a long string") from error


def _match_end(pattern: re.Pattern, text: str | bytes, start: int = 0) -> int:
    """End of a match of a pattern that matches everywhere, if only nothing."""
    match = pattern.match(text, start)
    assert match
    return match.end()


class LongLine:
    """A JSON line that is too long to hold, read to its end: all of it but the contents of its long strings.

    Attributes:
        num_bytes: of the line.
        is_blank: whether there is nothing on it.

    Args:
        file: what follows `first` of the unpacked file at `path`.
        first: the beginning of the line.
        start: where that is in the file.
    """

    def __init__(self, path: Path, file: BinaryIO, first: bytes, start: int) -> None:
        self._path = path
        self._short = bytearray()
        self._long: dict[str, LongText] = {}
        # Stands for a string that was left out: nothing that a text could hold by chance.
        self._name = uuid.uuid4().hex
        self.num_bytes = self._read(file, first, start) - start
        self.is_blank = not self._short.strip()

    def record(self, text_key: str) -> object:
        """The line's value; long strings other than its text are empty.

        Raises:
            ValueError: it is not JSON. Utf8Error: not UTF-8.
        """
        record = json.loads(decode_utf8(self._short))
        text = record.get(text_key) if isinstance(record, dict) else None
        for name, content in self._long.items():
            if name == text:
                record[text_key] = content
            else:
                deque(content, maxlen=0)  # wrong escapes are wrong wherever they stand
        return record

    def _read(self, file: BinaryIO, first: bytes, start: int) -> int:
        """Read the line to its end; returns where that is."""
        string: _OpenString | None = None
        for block in chain([first], iter(lambda: file.readline(PIECE_BYTES), b"")):
            i = 0
            while i < len(block):
                if string is None:
                    quote = block.find(b'"', i) + 1
                    self._short += block[i : quote or None]
                    i = quote or len(block)
                    string = _OpenString(start + i) if quote else None
                else:
                    i = string.read(block, i)
                    if i < len(block):
                        self._close(string, start + i)
                        string = None
                        self._short += b'"'
                        i += 1
            start += len(block)
            if block.endswith(b"\n"):
                break
        if string is not None:
            self._short += string.kept
        return start

    def _close(self, string: "_OpenString", stop: int) -> None:
        if stop - string.start <= KEPT_BYTES:
            self._short += string.kept
            return
        name = f"{self._name} {len(self._long)}"
        self._long[name] = LongText(self._path, string.start, stop, is_escaped=True)
        self._short += name.encode()


class _OpenString:
    """A JSON string whose end has not been found yet: where it began, and its first bytes."""

    def __init__(self, start: int) -> None:
        self.start, self.kept = start, bytearray()
        self._is_escape_open = False

    def read(self, block: bytes, i: int) -> int:
        """Read on from byte `i` of a block; returns where the closing quote is, or the block's length."""
        begin = i
        if self._is_escape_open:
            i += 1
        end = _match_end(WHOLE_STRING, block, i)
        self._is_escape_open = block[end : end + 1] == b"\\"
        end += self._is_escape_open
        self.kept += block[begin : min(end, begin + KEPT_BYTES + 1)] if len(self.kept) <= KEPT_BYTES else b""
        return end
