"""Texts that are too long for memory: read in chunks, anew for each use.

Up to `LONG_BYTES` a document is one string. A longer one stays in its file and is read from there for each use: the content
of a text file directly, a string in a JSON line with its escapes decoded.
"""

import codecs
import json
import re
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from operator import getitem
from typing import BinaryIO

from data_pipeline.errors import ReadError
from data_pipeline.readers.compression import OpenFile, TrailingBytesError, open_decompressed
from data_pipeline.readers.input_files import InputFile
from data_pipeline.readers.nested_keys import key_path
from data_pipeline.readers.not_text import without_marks, without_nul

LONG_BYTES = 8 << 20
CHUNK_BYTES = 1 << 20
# Longer strings in a long JSON line stay in the file.
KEPT_BYTES = 1 << 16
# As many whole characters and escapes as there are; possessive, so that no memory is spent on backtracking.
WHOLE_ESCAPES = re.compile(r'(?:[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+', re.DOTALL)
WHOLE_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
FIRST_OF_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")
ESCAPE_CHARS = len("\\ud83d")


@dataclass(frozen=True)
class LongText:
    """A part of a file as text; each iteration reads it again.

    Attributes:
        start, stop: bytes of the decompressed file; a stop of None is its end.
        is_escaped: the part is the inside of a JSON string.
        trailing: takes what is found about bytes after the compressed content, which is then no error; None if it is one.

    Raises (while it is read):
        Utf8Error: it is not UTF-8. NotTextError: it has a NUL. ValueError: it is not the inside of a JSON string.
        DamagedFileError: the file is damaged.
        OSError, MemoryError: the system reported a failure. ReadError: the file is shorter than before.
    """

    path: InputFile
    start: int
    stop: int | None = None
    is_escaped: bool = False
    trailing: list[TrailingBytesError] | None = field(default=None, compare=False)

    def __iter__(self) -> Iterator[str]:
        texts = _decoded(self._blocks(), self.start)
        return _unescaped(texts) if self.is_escaped else without_nul(without_marks(texts))

    def _blocks(self) -> Iterator[bytes]:
        position = self.start
        with open_decompressed(self.path, self.start) as file:
            while self.stop is None or position < self.stop:
                wanted = CHUNK_BYTES if self.stop is None else min(CHUNK_BYTES, self.stop - position)
                if not (block := file.content.read(wanted)):
                    break
                position += len(block)
                yield block
            if self.stop is None:
                self._require_end(file, position)
            elif position < self.stop:
                raise ReadError.differs(str(self.path), f"it ended at byte {position:,}, before {self.stop:,}")

    def _require_end(self, file: OpenFile, position: int) -> None:
        try:
            file.require_end(position)
        except TrailingBytesError as error:
            if self.trailing is None:
                raise
            self.trailing[:] = [error]


@dataclass(frozen=True)
class Slices:
    """A long string that is in memory, in chunks."""

    text: str

    def __iter__(self) -> Iterator[str]:
        return (self.text[i : i + CHUNK_BYTES] for i in range(0, len(self.text), CHUNK_BYTES))


def chunks_of(text: str | LongText) -> Iterable[str]:
    """A text in chunks that can be iterated over more than once; a single one unless the text is long."""
    if isinstance(text, LongText):
        return text
    return (text,) if len(text) <= LONG_BYTES else Slices(text)


CONVERT = "if the file is in another encoding, convert it, for example with iconv -f LATIN1 -t UTF-8 (or -f GBK, -f SHIFT-JIS)"


class Utf8Error(ValueError):
    """Bytes that are not UTF-8; the message has the first one, its position, and what to do."""


def decode_utf8(content: bytes, start: int = 0) -> str:
    """The text of UTF-8 that is at `start` in its file; raises Utf8Error."""
    return _decode(codecs.getincrementaldecoder("utf-8")(), content, start, final=True)


def _decoded(blocks: Iterable[bytes], start: int) -> Iterator[str]:
    """Decode UTF-8; positions in errors count from the beginning of the file."""
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
        raise Utf8Error(f"byte 0x{error.object[error.start]:02x} at position {where}; {CONVERT}") from error


def _unescaped(texts: Iterable[str]) -> Iterator[str]:
    """Decode the escapes inside a JSON string."""
    left = ""
    for text in texts:
        left += text
        whole = _whole_escapes(left)
        if len(left) - whole > 2 * ESCAPE_CHARS:  # a wrong escape, not one that is cut by the end of the chunk
            whole = len(left)
        yield _unescape(left[:whole])
        left = left[whole:]
    yield _unescape(left)


def _whole_escapes(text: str) -> int:
    """Length of the longest beginning that ends neither inside an escape nor between the two of a surrogate pair."""
    whole = _match_end(WHOLE_ESCAPES, text)
    before = whole - ESCAPE_CHARS
    # The backslash found there may be the second half of an escaped backslash.
    is_first_of_pair = before >= 0 and FIRST_OF_PAIR.match(text, before, whole)
    return before if is_first_of_pair and _match_end(WHOLE_ESCAPES, text[:before]) == before else whole


def _unescape(text: str) -> str:
    try:
        return json.loads(f'"{text}"')
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in a long string") from error


def _match_end(pattern: re.Pattern, text: str | bytes, start: int = 0) -> int:
    """End of the match of a pattern that can match the empty string, so always matches."""
    match = pattern.match(text, start)
    assert match
    return match.end()


class LongLine:
    """A JSON line that is too long for memory. Reads it to its end and keeps all but the contents of its long strings.

    Args:
        file: the decompressed file at `path`, positioned after `first`.
        first: the beginning of the line.
        start: position of the line in the file.

    Attributes:
        num_bytes: length of the line.
        ends: whether it ends with a line end, and not with the file.
        is_blank: whether there is nothing on it.
    """

    def __init__(self, path: InputFile, file: BinaryIO, first: bytes, start: int) -> None:
        self._path = path
        self._short = bytearray()
        self._long: dict[str, LongText] = {}
        # Placeholder of a string that was left out; no text contains it by chance.
        self._name = uuid.uuid4().hex
        self.ends = False
        self.num_bytes = self._read(file, first, start) - start
        self.is_blank = not self._short.strip()

    def record(self, text_key: str) -> object:
        """The line's value; its text is a `LongText` where it is long, and other long strings are placeholders.

        Raises:
            ValueError: it is not JSON. Utf8Error: it is not UTF-8.
        """
        record = json.loads(decode_utf8(self._short))
        path = key_path(record, text_key) if isinstance(record, dict) else None
        holder = reduce(getitem, path[:-1], record) if path else {}
        text = holder[path[-1]] if path else None
        for name, content in self._long.items():
            if path and name == text:
                holder[path[-1]] = content
            else:
                deque(content, maxlen=0)  # a wrong escape makes the line invalid, whichever string has it
        return record

    def _read(self, file: BinaryIO, first: bytes, start: int) -> int:
        """Read the line to its end; returns the position of the end in the file."""
        string: _OpenString | None = None
        for block in chain([first], iter(lambda: file.readline(CHUNK_BYTES), b"")):
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
                self.ends = True
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
    """A JSON string whose end has not been read yet: its start and its first bytes."""

    def __init__(self, start: int) -> None:
        self.start, self.kept = start, bytearray()
        self._is_escape_open = False

    def read(self, block: bytes, i: int) -> int:
        """Continue at byte `i` of a block; returns the position of the closing quote, or the block's length."""
        begin = i
        if self._is_escape_open:
            i += 1
        end = _match_end(WHOLE_STRING, block, i)
        self._is_escape_open = block[end : end + 1] == b"\\"
        end += self._is_escape_open
        self.kept += block[begin : min(end, begin + KEPT_BYTES + 1)] if len(self.kept) <= KEPT_BYTES else b""
        return end
