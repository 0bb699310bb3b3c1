"""Content that is no UTF-8 text, recognized by its beginning: other encodings, archives, and formats with a suffix of text."""

import codecs
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator

from data_pipeline.rejects import Cause

BEGINNING_BYTES = 4096
# The marks of UTF-32 begin with those of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
SIGNATURES = (
    (257, b"ustar", "a tar archive; unpack it"),
    (0, b"PK\x03\x04", "a zip archive, or an office document; unpack it, or extract its text"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (0, b"\x1f\x8b\x08", "gzip data; decompress it"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data; decompress it"),
    (0, b"\xfd7zXZ\x00", "xz data; decompress it"),
    (0, b"BZh91AY&SY", "bzip2 data; decompress it"),
    (0, b"PAR1", "a Parquet file; name it .parquet"),
    (0, b"ARROW1", "an Arrow file; convert it to .parquet"),
    (0, b"%PDF-", "a PDF document; extract its text"),
)
# In UTF-16, the second byte of each ASCII character is zero.
SHARE_OF_ZEROS = 0.3
# Bytes that no text has where ASCII is one byte each; without \t \n \v \f \r, the end of DOS files, and escape.
CONTROL_BYTES = bytes({*range(32)} - {*b"\t\n\v\f\r\x1a\x1b"})
# In UTF-16, about 5% of the bytes of Chinese are control bytes, and half of those of Russian.
LEAST_CONTROLS, MOSTLY_CONTROLS = 0.01, 0.3
LEAST_CHARS = 8
# Encodings of seven bits, which would pass for ASCII: Japanese between its escapes, and what Korean texts begin with.
SEVEN_BITS = (
    ("ISO-2022-JP", re.compile(rb"\x1b\$[@B](?:[!-~]{2})+(?:\x1b\([BJ]|[!-~]?\Z)")),
    ("ISO-2022-KR", re.compile(rb"^\x1b\$\)C|\x1b\$\)C\x0e", re.MULTILINE)),
)


def objection(beginning: bytes) -> tuple[Cause, str] | None:
    """Why the content with this beginning is no UTF-8 text; None if it may be."""
    for place, signature, what in SIGNATURES:
        if beginning.startswith(signature, place):
            return Cause.NOT_TEXT, f"holds {what}"
    encoding = _other_encoding(beginning)
    if encoding:
        return Cause.NOT_UTF8, f"looks like {encoding}; convert it with iconv -f {encoding} -t UTF-8"
    return None


def _other_encoding(beginning: bytes) -> str | None:
    for mark, encoding in MARKS:
        if beginning.startswith(mark):
            return encoding
    first, second = beginning[::2], beginning[1::2]
    zeros = first.count(0), second.count(0)
    if not min(zeros) and max(zeros) >= max(1, SHARE_OF_ZEROS * len(second)):
        return "UTF-16BE" if zeros[0] else "UTF-16LE"
    for encoding, pattern in SEVEN_BITS:
        if pattern.search(beginning):
            return encoding
    return _other_unicode(beginning)


def _other_unicode(beginning: bytes) -> str | None:
    """The Unicode encoding without a mark in which a content is plain text, while it is none in UTF-8; None if in doubt."""
    controls = len(beginning) - len(beginning.translate(None, CONTROL_BYTES))
    if controls < LEAST_CONTROLS * len(beginning):
        return None
    if controls < MOSTLY_CONTROLS * len(beginning) and _decoded(beginning, "UTF-8") is not None:
        return None
    for encodings in (("UTF-32LE", "UTF-32BE"), ("UTF-16LE", "UTF-16BE")):
        possible = [each for each in encodings if _is_plain(_decoded(beginning, each))]
        if len(possible) == 1:
            return possible[0]
    return None


def _decoded(beginning: bytes, encoding: str) -> str | None:
    """The text, without a character that is cut off at the end; None where it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(beginning)
    except UnicodeDecodeError:
        return None


def _is_plain(text: str | None) -> bool:
    """Whether a text has some length and consists of characters that have a meaning."""
    if text is None or len(text) < LEAST_CHARS:
        return False
    return not any(unicodedata.category(each) in ("Cc", "Cn", "Co") and each not in "\t\n\v\f\r" for each in text)


BYTE_ORDER_MARK = "\ufeff"
LINE_OF_MARKS = re.compile(f"\n{BYTE_ORDER_MARK}+")


def without_marks(chunks: Iterable[str]) -> Iterator[str]:
    """A text without the byte order marks that begin its lines: several files that begin with one were joined."""
    begins_line = True
    for chunk in chunks:
        text = LINE_OF_MARKS.sub("\n", chunk.lstrip(BYTE_ORDER_MARK) if begins_line else chunk)
        begins_line = text.endswith("\n") if text else begins_line
        yield text


def marks_length(line: bytes) -> int:
    """Bytes of the marks of UTF-8 that a line begins with."""
    length = 0
    while line.startswith(codecs.BOM_UTF8, length):
        length += len(codecs.BOM_UTF8)
    return length


class NotTextError(ValueError):
    """A character that no text has."""


def require_text(content: io.BufferedReader) -> None:
    """Raise NotTextError when an open file begins like something else than UTF-8 text."""
    if problem := objection(content.peek(BEGINNING_BYTES)[:BEGINNING_BYTES]):
        raise NotTextError(problem[1])


def without_nul(chunks: Iterable[str]) -> Iterator[str]:
    """The chunks of a text.

    Raises:
        NotTextError: after the last one, that there is a NUL character, and where.
    """
    num_chars, first = 0, None
    for chunk in chunks:
        if first is None and (i := chunk.find("\0")) >= 0:
            first = num_chars + i
        num_chars += len(chunk)
        yield chunk
    if first is not None:
        raise NotTextError(f"a NUL as character {first:,}: binary content, or another encoding than UTF-8")
