"""Leave out the documents whose ids are in lists, such as what a deduplication on many machines decided to remove."""

import argparse
import hashlib
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.documents import Document, is_id, type_name
from data_pipeline.errors import DataError, ReadError
from data_pipeline.filters import Limit
from data_pipeline.paths import user_input
from data_pipeline.readers.compression import DamagedFileError, open_decompressed
from data_pipeline.readers.file_ranges import FileRange
from data_pipeline.readers.inputs import Input, naming, require_known_kinds, resolve_input
from data_pipeline.readers.long_documents import Utf8Error, decode_utf8
from data_pipeline.readers.not_text import BYTE_ORDER_MARK, NotTextError, require_text
from data_pipeline.readers.readers import read_range
from data_pipeline.readers.remote import RemotePath
from data_pipeline.readers.values import BlankLine
from data_pipeline.rejects import Cause, Rejection

CAUSE = "id on a drop list"
SHOWN_CHARS = 60


class IdSet:
    """Ids as 64-bit hashes, in memory that worker processes share: 8 bytes for each.

    An id that is not in the set seems to be with a probability of its length / 2^64. Linux only (`memfd_create`).

    Attributes:
        digest: hash of the content.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        hashes = np.fromiter(map(_hash, ids), np.uint64)
        hashes.sort()
        hashes = hashes[np.diff(hashes, prepend=~hashes[:1]) != 0]
        self.digest = hashlib.blake2b(hashes, digest_size=16).hexdigest()
        self._hashes = hashes
        self._memory: int | None = None

    def __len__(self) -> int:
        return self._hashes.size

    def __contains__(self, id_: str) -> bool:
        value = _hash(id_)
        i = self._hashes.searchsorted(np.uint64(value))
        return i < self._hashes.size and int(self._hashes[i]) == value

    def __getstate__(self) -> dict[str, Any]:
        """For a process that this one starts, and that ends before it."""
        if self._memory is None:
            self._memory = os.memfd_create("ids")
            weakref.finalize(self, os.close, self._memory)
            with os.fdopen(self._memory, "wb", closefd=False) as file:
                file.write(memoryview(self._hashes))
            self._hashes = _mapped(self._path)
        return {"digest": self.digest, "path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.digest, self._memory, self._hashes = state["digest"], None, _mapped(state["path"])

    @property
    def _path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._memory}"


def _mapped(path: str) -> NDArray[np.uint64]:
    return np.memmap(path, np.uint64, "r")


def _hash(id_: str) -> int:
    return int.from_bytes(hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True, eq=False)
class DroppedIds:
    """A filter that leaves out documents by their ids, see `AddedFilter`.

    Attributes:
        id_key: key of the ids in the corpus.
        ids: of the documents to leave out.
        example: one of them.
    """

    id_key: str
    ids: IdSet
    example: str

    def rejection(self, document: Document) -> tuple[str, str] | None:
        """See `AddedFilter`."""
        return (CAUSE, _shown(document.id)) if document.id in self.ids else None

    def record(self) -> dict[str, str | Limit]:
        """See `AddedFilter`."""
        return {"id_key": self.id_key, "dropped_ids": self.ids.digest}

    def found_note(self, count: int) -> str | None:
        """What to look at if `count`, the number of documents that were left out, is below that of the ids."""
        if count >= len(self.ids):
            return None
        if count:
            return (
                f"note: the {len(self.ids):,} ids of --drop-ids left out {count:,} documents; the others may be of other inputs, "
                f"or not be written as the values of {self.id_key!r}"
            )
        return (
            f"warning: no document has an id of --drop-ids, such as {_shown(self.example)}: compare them with the values of "
            f"{self.id_key!r} in the inputs"
        )


def add_drop_options(parser: argparse._ArgumentGroup) -> None:
    """Declare `--drop-ids` and what belongs to it."""
    parser.add_argument(
        "--drop-ids",
        type=user_input,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="leave out the documents whose ids are in these files, for example the result of a deduplication on many "
        "machines: JSON lines or Parquet with a key or column of ids, or text files with an id on each line; given as for --input",
    )
    parser.add_argument("--id-key", metavar="K", help="with --drop-ids: key of the ids in the inputs (default: id)")
    parser.add_argument(
        "--drop-ids-key", metavar="K", help="with --drop-ids: key of the ids in the lists (default: that of --id-key)"
    )


def dropped_ids(
    values: Sequence[str] | None, id_key: str | None, list_key: str | None, inputs: Sequence[Input]
) -> DroppedIds | None:
    """The filter for some lists; None if there are none.

    Args:
        values: of `--drop-ids`.
        id_key, list_key: keys of the ids in the inputs and in the lists; None for the default.

    Raises:
        DataError: a list cannot be read or holds no ids, an input has no ids, or there are keys but no lists.
    """
    if not values:
        for option, key in (("--id-key", id_key), ("--drop-ids-key", list_key)):
            if key is not None:
                raise DataError(f"{option} {key}: say which documents to leave out, with --drop-ids PATH...")
        return None
    id_key = "id" if id_key is None else id_key
    _require_ids(inputs)
    with naming("--drop-ids", has_as=False):
        lists = [resolve_input(value) for value in values]
        require_known_kinds(lists)
    example = next(_ids(lists, list_key or id_key), None)
    if example is None:
        raise DataError(f"--drop-ids {' '.join(values)}: no id in it")
    ids = IdSet(_ids(lists, list_key or id_key))
    print(f"--drop-ids: {len(ids):,} ids, such as {_shown(example)}", flush=True)
    return DroppedIds(id_key, ids, example)


def _require_ids(inputs: Sequence[Input]) -> None:
    for found in inputs:
        if found.kind in ("generated", "stdlib"):
            raise DataError(f"--drop-ids: --input {found.value} has no ids; give what has ids by itself")
        for path in () if found.kind == "datasets" else found.files:
            if found.kind_of(path) == "text":
                raise DataError(f"--drop-ids: {path} is a text without an id; give JSON lines or Parquet by themselves")


def _ids(lists: Sequence[Input], key: str) -> Iterator[str]:
    """All ids of some lists. Raises DataError when a file holds something else."""
    for file_range in (file_range for found in lists for file_range in _ranges(found)):
        try:
            yield from _lines(file_range) if file_range.kind == "text" else _values(file_range, key)
        except (OSError, DamagedFileError, ReadError, NotTextError, Utf8Error) as error:
            raise DataError(f"--drop-ids {file_range.source}: {error}") from error


def _ranges(found: Input) -> Iterator[FileRange]:
    if found.kind in ("datasets", "generated"):
        yield FileRange("dataset" if found.kind == "datasets" else "text", found.value, found.name, 0)
        return
    for path in found.files:
        remote = path if isinstance(path, RemotePath) else None
        yield FileRange(found.kind_of(path), str(path), found.shown(path), 0, remote=remote)


def _lines(file_range: FileRange) -> Iterator[str]:
    with open_decompressed(file_range.file) as file:
        require_text(file.content)
        position = 0
        for line in file.content:
            if id_ := decode_utf8(line, position).removeprefix(BYTE_ORDER_MARK).strip():
                yield id_
            position += len(line)
        file.require_end(position)


def _values(file_range: FileRange, key: str) -> Iterator[str]:
    for found in read_range(file_range, key):
        if isinstance(found, BlankLine):
            continue
        if isinstance(found, Rejection):
            hint = "; give the key of the ids with --drop-ids-key" if found.cause == Cause.MISSING_KEY else ""
            raise DataError(f"--drop-ids {file_range.place(found.number)}: {found.cause}: {found.why}{hint}")
        if not is_id(found.content):
            shown = f"{file_range.place(found.number)}: {key!r} holds {type_name(found.content)}"
            raise DataError(f"--drop-ids {shown}; a string or an integer is expected")
        yield str(found.content)


def _shown(id_: str | None) -> str:
    return repr(id_ and id_[:SHOWN_CHARS])
