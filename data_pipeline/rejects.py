"""Records that did not become documents: why, how many, and the first few of each cause as examples."""

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from shlex import quote

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.errors import DataError

MAX_EXAMPLES = 3
MAX_KEYS = 100
# Once this many records lack the key and none has it, the key is reported as wrong without reading further.
MISSING_KEY_LIMIT = 1000


class Cause(StrEnum):
    """Why a record was left out. Filters have causes of their own, see `data_pipeline.filters`."""

    BROKEN_JSON = "broken JSON"
    NOT_UTF8 = "not UTF-8"
    NOT_TEXT = "not text"
    MISSING_KEY = "key missing"
    NOT_A_STRING = "text is not a string"
    NO_ID = "no id"
    EMPTY = "empty text"
    BROKEN_FILE = "broken or truncated file"
    TRAILING_BYTES = "bytes after the compressed content"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near duplicate"


@dataclass(frozen=True)
class Rejection:
    """Records that are left out.

    Attributes:
        cause: a `Cause`, or the cause of a filter.
        number: line of the record within the file range, or its row in the file; None for a whole file.
        why: the details, for the user.
        count: number of records.
        keys: where the key of texts or ids is missing, the keys that the records have.
        missing: of a broken file, what was not read, as far as known.
    """

    cause: str
    number: int | None
    why: str
    count: int = 1
    keys: tuple[str, ...] = ()
    missing: str = ""


def missing_key(
    text_key: str, number: int | None, keys: Iterable[str], count: int = 1, obstacle: str = ""
) -> Rejection:
    """The rejection of `count` records that have `keys` but not the text key; `obstacle` is what it runs into."""
    keys = tuple(keys)
    why = f"no key {text_key!r} among {listed(keys)}" + (f"; {obstacle}" if obstacle else "")
    return Rejection(Cause.MISSING_KEY, number, why, count, keys[:MAX_KEYS])


def missing_id(id_key: str, number: int | None, keys: Iterable[str], count: int = 1) -> Rejection:
    """The rejection of `count` records that have `keys` but not the key of ids."""
    return replace(missing_key(id_key, number, keys, count), cause=Cause.NO_ID)


class Example(BaseModel):
    """A rejected record.

    Attributes:
        file_range: index of its file range within the task.
        number, why: see `Rejection`.
        place: of a document that repeats another one, where it is in the file, see `data_pipeline.provenance`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)

    cause: str
    file_range: int = Field(alias="span")  # its name in task records
    number: int | None
    why: str
    place: int | None = None


class BrokenFile(BaseModel):
    """A file whose content is broken from some place on.

    Attributes:
        file_range: index of its file range within the task.
        why: what is wrong.
        documents: number of documents kept from the range.
        last: the last line or row of the range that was read; None when there is none, and for text files.
        missing: what was not read, as far as known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file_range: int
    why: str
    documents: int
    last: int | None
    missing: str


class RecordCounter:
    """Counts the documents and the rejected records of some file ranges.

    Args:
        starts_corpus: the first record counted is the first of the whole corpus.

    Attributes:
        accepted: documents.
        rejected: records left out, by cause.
        examples: the first few of each cause.
        broken: the files that could not be read to their ends.
        lines: lines read from each file range so far.
        last: number of the last record of the present range, as in `Rejection`.
        other_keys: keys of the records that lack the key of texts or ids.
    """

    def __init__(self, starts_corpus: bool = False) -> None:
        self.accepted = 0
        self.rejected: Counter[str] = Counter()
        self.examples: list[Example] = []
        self.broken: list[BrokenFile] = []
        self.lines: list[int] = []
        self.last: int | None = None
        self.other_keys: Counter[str] = Counter()
        self._starts_corpus = starts_corpus
        self._last_accepted: int | None = None
        self._accepted_before = 0

    @property
    def file_range(self) -> int:
        """Index of the present file range."""
        return len(self.lines) - 1

    @property
    def key_is_wrong(self) -> bool:
        """Whether the corpus begins with `MISSING_KEY_LIMIT` records without the text key."""
        return self._begins_with(Cause.MISSING_KEY)

    @property
    def id_key_is_wrong(self) -> bool:
        """Whether the corpus begins with `MISSING_KEY_LIMIT` records without the key of ids."""
        return self._begins_with(Cause.NO_ID)

    def _begins_with(self, cause: Cause) -> bool:
        return self._starts_corpus and not self.accepted and self.rejected[cause] >= MISSING_KEY_LIMIT

    def begin_range(self) -> None:
        """Count the records that follow to the next file range."""
        self.lines.append(0)
        self.last = None
        self._accepted_before = self.accepted

    def accept(self, number: int | None) -> None:
        """Count a document; `number` is as in `Rejection`."""
        self.accepted += 1
        self._last_accepted = number

    def reject(self, rejection: Rejection, place: int | None = None) -> None:
        """Count rejected records. `place` is as in `Example`."""
        self.rejected[rejection.cause] += rejection.count
        self.other_keys.update(rejection.keys)
        if rejection.cause == Cause.BROKEN_FILE:
            self._add_broken(rejection)
        if sum(example.cause == rejection.cause for example in self.examples) < MAX_EXAMPLES:
            where = {"file_range": self.file_range, "number": rejection.number, "place": place}
            self.examples.append(Example(cause=rejection.cause, why=rejection.why, **where))

    def _add_broken(self, rejection: Rejection) -> None:
        self.broken.append(
            BrokenFile(
                file_range=self.file_range,
                why=rejection.why,
                documents=self.accepted - self._accepted_before,
                last=self.last,
                missing=rejection.missing,
            )
        )

    def reject_last_accepted(self, cause: str, why: str, place: int) -> None:
        """Count the document accepted last, which is at `place`, as rejected after all."""
        self.accepted -= 1
        self.reject(Rejection(cause, self._last_accepted, why), place)


def wrong_key(
    key: str, other_keys: Counter[str], example: str, value: str | None = None, option: str = "--text-key"
) -> DataError:
    """The error for a corpus, or the input `value`, in which no record has the key that `option` gives.

    Args:
        example: the first record without it, with its place.
    """
    keys = [each for each, _ in other_keys.most_common()]
    of_input = f" of --input {value}" if value else ""
    hint = advice(option, key, keys)
    return DataError(f"no record{of_input} has the key {key!r}; the records have {listed(keys)}: {hint}\n    {example}")


def advice(option: str, key: str, keys: list[str]) -> str:
    """What to do about an option that gives `key` where the records have `keys`."""
    asked = key.strip(" \t\r\n.")
    # Of `a.b`, `a` is no better: it holds no object with this key.
    leading = [each for each in keys if asked.startswith(f"{each}.")]
    others = {each.lower(): each for each in reversed(keys) if each not in leading}
    # Where one ends in the same name, the objects around it are wrong, or missing.
    ending = (each for word, each in others.items() if _last_part(word) == _last_part(asked.lower()))
    close = difflib.get_close_matches(asked.lower(), others, n=1, cutoff=0.5)
    if meant := next(ending, None) or (others[close[0]] if close else None):
        return f"did you mean {option} {quote(meant)}?"
    return f"{leading[0]!r} leads to no such key" if leading else f"choose one of them with {option}"


def _last_part(key: str) -> str:
    return key.rpartition(".")[2]


def listed(keys: Iterable[str]) -> str:
    """The first ten keys, for a message."""
    keys = list(keys)
    shown = ", ".join(repr(key) for key in keys[:10])
    return f"{shown}, ..." if len(keys) > 10 else shown or "none"
