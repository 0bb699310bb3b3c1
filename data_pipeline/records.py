"""Documents, and the account of records that could not become one."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from data_pipeline.errors import DataError

MAX_EXAMPLES = 3
# Enough records without the key, and not one with it, to call the key wrong before reading on.
MISSING_KEY_LIMIT = 1000


@dataclass(frozen=True)
class Document:
    """One text with its size in UTF-8 and its BLAKE2b-128 digest, which decides its split."""

    text: str
    num_bytes: int
    digest: bytes


class Cause(StrEnum):
    """Why a record was left out."""

    BROKEN_JSON = "broken JSON"
    NOT_UTF8 = "not UTF-8"
    MISSING_KEY = "key missing"
    NOT_A_STRING = "text is not a string"
    EMPTY = "empty text"
    BROKEN_FILE = "broken or truncated file"


class RecordLog:
    """Turns records into documents; counts those it rejects by cause and keeps the first few of each.

    Args:
        text_key: key or column of structured records that holds the text.
        strict: raise at the first rejected record.
    """

    def __init__(self, text_key: str, strict: bool) -> None:
        self.text_key = text_key
        self.strict = strict
        self.accepted = 0
        self.rejected: Counter[Cause] = Counter()
        self.examples: dict[Cause, list[str]] = {}
        self._other_keys: Counter[str] = Counter()

    def document(self, text: object, where: str) -> Document | None:
        """A document of `text`, or None when it is rejected; `where` is its file:line."""
        if not isinstance(text, str):
            return self.reject(Cause.NOT_A_STRING, where, f"{self.text_key!r} holds {type(text).__name__}")
        if not text.strip():
            return self.reject(Cause.EMPTY, where, "nothing but white space")
        try:
            encoded = text.encode("utf-8")
        except UnicodeEncodeError:
            return self.reject(Cause.NOT_UTF8, where, "half of a surrogate pair, which UTF-8 cannot carry")
        self.accepted += 1
        return Document(text, len(encoded), hashlib.blake2b(encoded, digest_size=16).digest())

    def document_of(self, record: object, where: str) -> Document | None:
        """A document of a parsed record's text key, or None when it is rejected."""
        if not isinstance(record, dict):
            return self.reject(Cause.BROKEN_JSON, where, f"expected an object, found {type(record).__name__}")
        if self.text_key not in record:
            return self.reject_missing_key(where, record)
        return self.document(record[self.text_key], where)

    def reject(self, cause: Cause, where: str, why: str, count: int = 1) -> None:
        """Count `count` records as rejected.

        Raises:
            DataError: under `strict`.
        """
        if self.strict:
            raise DataError(f"{where}: {cause}: {why} (without --strict such records are counted and left out)")
        self.rejected[cause] += count
        examples = self.examples.setdefault(cause, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(f"{where}: {why}")

    def reject_missing_key(self, where: str, keys: Iterable[str], count: int = 1) -> None:
        """Count records without the text key; `keys` are those they have.

        Raises:
            DataError: under `strict`, or when the first thousand records all lack the key.
        """
        keys = list(keys)
        self._other_keys.update(keys[:100])
        self.reject(Cause.MISSING_KEY, where, f"no key {self.text_key!r} among {_listed(keys)}", count)
        if self.accepted == 0 and self.rejected[Cause.MISSING_KEY] >= MISSING_KEY_LIMIT:
            self.raise_if_key_is_wrong()

    def raise_if_key_is_wrong(self) -> None:
        """Raise DataError, with the keys that exist, when records were seen and none had the text key."""
        if self.accepted or not self.rejected[Cause.MISSING_KEY]:
            return
        keys = [key for key, _ in self._other_keys.most_common()]
        close = difflib.get_close_matches(self.text_key, keys, n=1, cutoff=0.5)
        hint = f"did you mean --text-key {close[0]}?" if close else "name one of them with --text-key"
        raise DataError(f"no record has the key {self.text_key!r}; the records have {_listed(keys)}: {hint}")


def _listed(keys: list[str]) -> str:
    shown = ", ".join(repr(key) for key in keys[:10])
    return f"{shown}, ..." if len(keys) > 10 else shown or "none"
