"""Put the documents of all tasks into shards of a chosen size.

Where a shard ends depends on the sizes of the documents only, not on the tasks. Each shard is a result of its own in the work
folder, so that a join that was stopped goes on from the shards that it has written.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from data_pipeline.errors import DataError
from data_pipeline.indexed import Index, write_index
from data_pipeline.manifest import FileInfo, sha256_of
from data_pipeline.tasks.addresses import content_address
from data_pipeline.tasks.report import Progress
from data_pipeline.tasks.task_records import ShardInfo
from data_pipeline.tasks.work import PARTIAL, SHARDS, require_space, result_folder

WrittenShard = tuple[Path, dict[str, FileInfo]]
"""Path without suffix, and files by suffix."""

COPY_BYTES = 1 << 22
NAME, RECORD_NAME = "shard", "shard.json"
# More do not read faster, and each holds the index of a shard in memory.
MOST_THREADS = 8


@dataclass(frozen=True)
class Source:
    """A finished task's part of a split: the pair `PREFIX.bin/.idx`."""

    prefix: Path
    info: ShardInfo

    @property
    def num_bytes(self) -> int:
        """Size of its tokens."""
        return self.info.files[".bin"].bytes

    def index(self) -> Index:
        """Its lengths and positions."""
        return Index(self.prefix)


@dataclass(frozen=True)
class Part:
    """The documents `first` .. `stop` - 1 of a source; `num_bytes` is the size of their tokens."""

    source: Source
    first: int
    stop: int
    num_bytes: int

    @property
    def is_whole(self) -> bool:
        """Whether these are all documents of the source."""
        return self.stop - self.first == self.source.info.documents


class ShardRecord(BaseModel):
    """The files of a finished shard, by suffix."""

    files: dict[str, FileInfo]


@dataclass
class _Cut:
    """Shards so far, and the parts of the next one."""

    limit: int
    shards: list[list[Part]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    room: int = 0

    def close(self) -> None:
        if self.parts:
            self.shards.append(self.parts)
        self.parts, self.room = [], self.limit

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self.room -= part.num_bytes


def cut_into_shards(sources: Sequence[Source], limit: int) -> list[list[Part]]:
    """The parts of each shard: as many documents as `limit` bytes of tokens hold, at least one.

    Only the index of a source that does not fit into a shard is read.
    """
    cut = _Cut(limit, room=limit)
    for source in sources:
        if source.num_bytes <= cut.room:
            cut.add(Part(source, 0, source.info.documents, source.num_bytes))
            continue
        index, first = source.index(), 0
        while first < len(index):
            stop = index.documents_within(first, cut.room)
            if stop == first and cut.parts:
                cut.close()
                continue
            stop = max(stop, first + 1)
            cut.add(Part(source, first, stop, index.bytes_of(first, stop)))
            first = stop
    cut.close()
    return cut.shards


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards into the work folder, each all or nothing.

    Attributes:
        work: the work folder.
        workers: number of threads; hashing and copying release the interpreter.
    """

    work: Path
    workers: int

    def write(self, shards: Sequence[Sequence[Part]]) -> None:
        """Write those that are missing. A shard of one whole task is that task's result.

        Raises:
            DataError: the disk has too little space, or the files of a task have changed.
        """
        joined = [parts for parts in shards if not _is_one_task(parts)]
        missing = [parts for parts in joined if self._record(parts) is None]
        if not missing:
            return
        for path in (self.work / SHARDS).glob(f"*{PARTIAL}*"):  # of a process that was killed
            shutil.rmtree(path)
        require_space(self.work, sum(_needed(parts) for parts in missing))
        progress = Progress("joining", None, len(missing), len(joined))
        with ThreadPoolExecutor(min(self.workers, MOST_THREADS)) as pool:
            for parts, _ in zip(missing, pool.map(self._write, missing), strict=True):
                progress.task_done()
                progress.update(sum(part.stop - part.first for part in parts), sum(part.num_bytes for part in parts), 0)
        progress.close()

    def written(self, parts: Sequence[Part]) -> WrittenShard:
        """Where a shard is that was written."""
        if _is_one_task(parts):
            return parts[0].source.prefix, parts[0].source.info.files
        return self._folder(parts) / NAME, self._record(parts).files

    def _folder(self, parts: Sequence[Part]) -> Path:
        described = [[*_hashes(part.source), part.first, part.stop] for part in parts]
        return self.work / SHARDS / content_address(described)

    def _record(self, parts: Sequence[Part]) -> ShardRecord | None:
        folder = self._folder(parts)
        try:
            record = ShardRecord.model_validate_json((folder / RECORD_NAME).read_bytes())
            sizes = {suffix: (folder / f"{NAME}{suffix}").stat().st_size for suffix in record.files}
        except (OSError, ValidationError):
            return None
        return record if sizes == {suffix: info.bytes for suffix, info in record.files.items()} else None

    def _write(self, parts: Sequence[Part]) -> None:
        final = self._folder(parts)
        with result_folder(final, lambda: self._record(parts) is not None) as folder:
            files = _write_pair(parts, folder / NAME)
            (folder / RECORD_NAME).write_text(ShardRecord(files=files).model_dump_json(), encoding="utf-8")


def _is_one_task(parts: Sequence[Part]) -> bool:
    return len(parts) == 1 and parts[0].is_whole


def _needed(parts: Sequence[Part]) -> int:
    """Bytes of a shard's two files."""
    return sum(part.num_bytes + 20 * (part.stop - part.first) for part in parts)


def _hashes(source: Source) -> list[str]:
    return [info.sha256 for _, info in sorted(source.info.files.items())]


def _write_pair(parts: Sequence[Part], prefix: Path) -> dict[str, FileInfo]:
    """Write `PREFIX.bin/.idx`; returns their sizes and hashes by suffix."""
    lengths, digest, num_bytes = [], hashlib.sha256(), 0
    with prefix.with_suffix(".bin").open("wb") as file:
        for part in parts:
            _require_unchanged(part.source)
            index = part.source.index()
            lengths.append(index.lengths[part.first : part.stop].copy())
            for block in _blocks(part, index.start(part.first) * index.dtype.itemsize):
                file.write(block)
                digest.update(block)
                num_bytes += len(block)
    path = prefix.with_suffix(".idx")
    write_index(path, np.concatenate(lengths), index.dtype)
    idx = FileInfo(bytes=path.stat().st_size, sha256=sha256_of(path))
    return {".bin": FileInfo(bytes=num_bytes, sha256=digest.hexdigest()), ".idx": idx}


def _blocks(part: Part, start: int) -> Iterator[bytes]:
    """The tokens of a part, from byte `start` of its source on."""
    left = part.num_bytes
    with part.source.prefix.with_suffix(".bin").open("rb") as file:
        file.seek(start)
        while left and (block := file.read(min(left, COPY_BYTES))):
            left -= len(block)
            yield block


def _require_unchanged(source: Source) -> None:
    """Compare a task's files with its record: the hashes of a shard would hide a change."""
    for suffix, info in source.info.files.items():
        path = source.prefix.with_suffix(suffix)
        if sha256_of(path) != info.sha256:
            raise DataError(
                f"{path} has changed since its task was done; remove {path.parent} and run the same command again"
            )
