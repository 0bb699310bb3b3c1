"""Documents: the texts of a corpus, checked, with their size and hash."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from data_pipeline.errors import ReadError
from data_pipeline.readers.compression import DamagedFileError
from data_pipeline.readers.long_documents import LONG_BYTES, LongText, Utf8Error, chunks_of
from data_pipeline.readers.nested_keys import described
from data_pipeline.readers.not_text import NotTextError
from data_pipeline.readers.values import TextValue
from data_pipeline.rejects import Cause, Rejection


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        chunks: the text in parts, which can be iterated over more than once; a single part unless the document is long.
            A long text is read from its file each time; ReadError is raised when it is not the same text.
        num_bytes: its size in UTF-8.
        digest: its BLAKE2b-128 hash, which decides its split.
        place: where it is in its source, see `data_pipeline.provenance`.
        id: of its record, if it was asked for.
    """

    chunks: Iterable[str]
    num_bytes: int
    digest: bytes
    place: int = 0
    id: str | None = None

    @property
    def text(self) -> str:
        """The whole text, in memory."""
        return "".join(self.chunks)

    @cached_property
    def num_chars(self) -> int:
        """Its length in characters."""
        return sum(map(len, self.chunks))

    @property
    def first_chunk(self) -> str:
        """The whole text, or the first million or so characters of a long document."""
        return next(iter(self.chunks))

    @property
    def is_long(self) -> bool:
        """Whether the text is too long to be held in memory."""
        return self.num_bytes > LONG_BYTES


@dataclass(frozen=True)
class _SameText:
    """A long text that is read again for each use, and must be the text that its digest was computed of."""

    text: LongText
    digest: bytes

    def __iter__(self) -> Iterator[str]:
        digest, path = _new_digest(), str(self.text.path)
        try:
            for chunk in self.text:
                digest.update(chunk.encode("utf-8"))
                yield chunk
        except (DamagedFileError, ValueError) as error:
            raise ReadError.differs(path, str(error)) from error
        except (OSError, MemoryError) as error:
            raise ReadError.of(error, path, f"in the long text from byte {self.text.start:,} on") from error
        if digest.digest() != self.digest:
            raise ReadError.differs(path, f"in the long text from byte {self.text.start:,} on")


def build_document(value: TextValue, text_key: str, id_key: str | None = None) -> Document | Rejection:
    """The document of a value that a reader found, or why there is none. Reads a long text once, twice if it is rejected.

    Args:
        id_key: key of the records' ids, if they were asked for.

    Raises:
        OSError, MemoryError: the system reported a failure. ReadError: two reads gave different content.
    """
    content, number, start, id_ = value
    if id_key is not None and not is_id(id_):
        return Rejection(Cause.NO_ID, number, f"{id_key!r} holds {type_name(id_)}; a string or an integer is expected")
    if content is None:
        return Rejection(Cause.EMPTY, number, f"{text_key!r} holds null")
    if not isinstance(content, str | LongText):
        return Rejection(Cause.NOT_A_STRING, number, f"{text_key!r} holds {described(content, text_key)}")
    place = (number or 0) if start is None else start
    found = _examine(content, number, place)
    if isinstance(found, Rejection) and isinstance(content, LongText) and found != _examine(content, number, place):
        raise ReadError.differs(str(content.path), found.why)
    return replace(found, id=str(id_)) if id_key is not None and isinstance(found, Document) else found


def is_id(value: object) -> bool:
    """Whether a value can be the id of a record: a string that is not empty, or an integer."""
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def type_name(value: object) -> str:
    """What a value of JSON that is no id is, in words."""
    return "null" if value is None else repr(value) if value == "" else type(value).__name__


def _examine(content: str | LongText, number: int | None, place: int) -> Document | Rejection:
    num_bytes, digest, is_blank = 0, _new_digest(), True
    try:
        for chunk in chunks_of(content):
            encoded = chunk.encode("utf-8")
            digest.update(encoded)
            num_bytes += len(encoded)
            is_blank = is_blank and (not chunk or chunk.isspace())
    except UnicodeEncodeError:
        return Rejection(Cause.NOT_UTF8, number, "half of a surrogate pair, which UTF-8 cannot encode")
    except Utf8Error as error:
        return Rejection(Cause.NOT_UTF8, number, str(error))
    except NotTextError as error:
        return Rejection(Cause.NOT_TEXT, number, str(error))
    except DamagedFileError as error:
        return Rejection(Cause.BROKEN_FILE, None, str(error), missing=error.missing)
    except ValueError as error:  # a wrong escape in a long JSON string
        return Rejection(Cause.BROKEN_JSON, number, str(error))
    if is_blank:
        return Rejection(Cause.EMPTY, number, "only white space")
    chunks = _SameText(content, digest.digest()) if isinstance(content, LongText) else chunks_of(content)
    return Document(chunks, num_bytes, digest.digest(), place)


def _new_digest() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16)
