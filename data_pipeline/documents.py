"""Documents, and the account of records that could not become one."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from data_pipeline.errors import DataError
from data_pipeline.readers.file_ranges import Span
from data_pipeline.readers.long_documents import LONG_BYTES, LongText, pieces_of

MAX_EXAMPLES = 3
# Enough records without the key, and not one with it, to call the key wrong before reading on.
MISSING_KEY_LIMIT = 1000


@dataclass(frozen=True)
class Document:
    """One text with its size in UTF-8 and its BLAKE2b-128 digest, which decides its split.

    Attributes:
        pieces: the text, piece after piece, as often as asked for; a single one unless the document is long.
    """

    pieces: Iterable[str]
    num_bytes: int
    digest: bytes

    @property
    def text(self) -> str:
        """The whole text, in memory."""
        return "".join(self.pieces)

    @property
    def is_long(self) -> bool:
        """Whether it should not be held in memory more often than it is."""
        return self.num_bytes > LONG_BYTES


class Cause(StrEnum):
    """Why a record was left out."""

    BROKEN_JSON = "broken JSON"
    NOT_UTF8 = "not UTF-8"
    MISSING_KEY = "key missing"
    NOT_A_STRING = "text is not a string"
    EMPTY = "empty text"
    BROKEN_FILE = "broken or truncated file"
    TOO_SHORT = "too short"
    TOO_LONG = "too long"
    FEW_LETTERS = "few letters"
    REPEATED_LINES = "repeated lines"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near duplicate"


@dataclass(frozen=True)
class Example:
    """A rejected record: `number` is its line within the span, or its row; `span` counts the log's spans."""

    cause: Cause
    span: int
    number: int | None
    why: str


class RecordLog:
    """Turns records into documents; counts those it rejects by cause and keeps the first few of each.

    Args:
        text_key: key or column of structured records that holds the text.
        strict: raise at the first rejected record.
        is_first: the log begins at the first record of all inputs, so that a key which is missing from the first
            thousand records is wrong.

    Attributes:
        lines: of each span begun, the lines read.
        other_keys: keys of the records that lack the text key.
    """

    def __init__(self, text_key: str, strict: bool, is_first: bool = False) -> None:
        self.text_key = text_key
        self.strict = strict
        self.accepted = 0
        self.rejected: Counter[Cause] = Counter()
        self.examples: list[Example] = []
        self.lines: list[int] = []
        self.other_keys: Counter[str] = Counter()
        self._is_first = is_first
        self._span: Span | None = None
        self._number: int | None = None

    def begin(self, span: Span) -> None:
        """Records that follow are of this span."""
        self._span = span
        self.lines.append(0)

    def document(self, text: object, number: int | None) -> Document | None:
        """A document of `text`, or None when it is rejected; `number` is its line within the span, or its row.

        Raises what reading a `LongText` raises.
        """
        if not isinstance(text, str | LongText):
            return self.reject(Cause.NOT_A_STRING, number, f"{self.text_key!r} holds {type(text).__name__}")
        pieces = pieces_of(text) if isinstance(text, str) else text
        num_bytes, digest, is_blank = 0, hashlib.blake2b(digest_size=16), True
        try:
            for piece in pieces:
                encoded = piece.encode("utf-8")
                digest.update(encoded)
                num_bytes += len(encoded)
                is_blank = is_blank and (not piece or piece.isspace())
        except UnicodeEncodeError:
            return self.reject(Cause.NOT_UTF8, number, "half of a surrogate pair, which UTF-8 cannot carry")
        if is_blank:
            return self.reject(Cause.EMPTY, number, "nothing but white space")
        self.accepted += 1
        self._number = number
        return Document(pieces, num_bytes, digest.digest())

    def document_of(self, record: object, number: int) -> Document | None:
        """A document of a parsed record's text key, or None when it is rejected."""
        if not isinstance(record, dict):
            return self.reject(Cause.BROKEN_JSON, number, f"expected an object, found {type(record).__name__}")
        if self.text_key not in record:
            return self.reject_missing_key(number, record)
        return self.document(record[self.text_key], number)

    def reject(self, cause: Cause, number: int | None, why: str, count: int = 1) -> None:
        """Count `count` records as rejected.

        Raises:
            DataError: under `strict`.
        """
        assert self._span is not None
        if self.strict:
            place = self._span.place(number and number + self._span.lines_before())
            raise DataError(f"{place}: {cause}: {why} (without --strict such records are counted and left out)")
        self._count(cause, number, why, count)

    def drop(self, cause: Cause, why: str) -> None:
        """Leave out the last document accepted: as asked, so `strict` does not mind."""
        self.accepted -= 1
        self._count(cause, self._number, why, 1)

    def _count(self, cause: Cause, number: int | None, why: str, count: int) -> None:
        self.rejected[cause] += count
        if sum(example.cause == cause for example in self.examples) < MAX_EXAMPLES:
            self.examples.append(Example(cause, len(self.lines) - 1, number, why))

    def reject_missing_key(self, number: int | None, keys: Iterable[str], count: int = 1) -> None:
        """Count records without the text key; `keys` are those they have.

        Raises:
            DataError: under `strict`, or when the first thousand records all lack the key.
        """
        keys = list(keys)
        self.other_keys.update(keys[:100])
        self.reject(Cause.MISSING_KEY, number, f"no key {self.text_key!r} among {_listed(keys)}", count)
        if self._is_first and not self.accepted and self.rejected[Cause.MISSING_KEY] >= MISSING_KEY_LIMIT:
            raise wrong_key(self.text_key, self.other_keys)


def wrong_key(text_key: str, other_keys: Counter[str]) -> DataError:
    """What to say when records were seen and none had the text key."""
    keys = [key for key, _ in other_keys.most_common()]
    close = difflib.get_close_matches(text_key, keys, n=1, cutoff=0.5)
    hint = f"did you mean --text-key {close[0]}?" if close else "name one of them with --text-key"
    return DataError(f"no record has the key {text_key!r}; the records have {_listed(keys)}: {hint}")


def _listed(keys: list[str]) -> str:
    shown = ", ".join(repr(key) for key in keys[:10])
    return f"{shown}, ..." if len(keys) > 10 else shown or "none"
