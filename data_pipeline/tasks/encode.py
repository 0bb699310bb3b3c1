"""Tokenize one task into shards of its own."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_pipeline.dedup import Decisions
from data_pipeline.documents import Document
from data_pipeline.errors import DataError, ReadError
from data_pipeline.indexed import IndexedWriter
from data_pipeline.manifest import TRAIN, VALIDATION, FileInfo, TokenizerInfo, sha256_of
from data_pipeline.provenance import PLACES, PLACES_SUFFIX, TableWriter
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.addresses import content_address, software
from data_pipeline.tasks.processes import Report
from data_pipeline.tasks.reading import new_digest, task_documents
from data_pipeline.tasks.results import ResultJob
from data_pipeline.tasks.task import Task, require_unmodified, task_name
from data_pipeline.tasks.task_records import RECORD_NAME, RecordCounts, ShardInfo, TaskRecord, read_task_record
from data_pipeline.tasks.work import DECISIONS, SIGNATURES, TOKENS, result_folder
from data_pipeline.tokenizers.tokenizers import Tokenizer, load_tokenizer

BATCH_BYTES = 1 << 18
BATCH_DOCUMENTS = 512
BATCH_PLACES = 1 << 13
SHARD_SUFFIXES = (".bin", ".idx")


# The packages that decide the tokens, by the kind of the tokenizer.
ENCODERS = {"sentencepiece": ("sentencepiece",), "huggingface": ("tokenizers",), "bytes": ()}


@dataclass(frozen=True)
class TokenJob(ResultJob):
    """Tokenises one task at a time. Everything that decides the content of the shards is part of a task's address.

    Attributes:
        decisions: folder of the decisions about duplicates; None when all are kept.
        keeps_words: see `WordEncoder`. The ids are the same.
    """

    tokenizer_file: Path
    tokenizer: TokenizerInfo
    vocab_size: int
    decisions: Path | None = None
    keeps_words: bool = True
    kind: ClassVar[str] = TOKENS

    def address(self, task: Task) -> str:
        """Content address of a task's output."""
        decisions = hashlib.blake2b(self._decisions(task), digest_size=16).hexdigest()
        settings = [self.tokenizer.model_dump(), self.vocab_size, self.options.of_documents(), decisions]
        return content_address(task.identity, settings, software(*ENCODERS[self.tokenizer.kind]))

    def __call__(self, task: Task, report: Report) -> TaskRecord:
        """Write the task's folder of shards, all or nothing; returns its record."""
        final = self.path(task)
        with result_folder(final, lambda: read_task_record(final, record.address, record.digest) is not None) as folder:
            record = self._write(task, folder, report)
            (folder / RECORD_NAME).write_text(record.model_dump_json(), encoding="utf-8")
            require_unmodified(task)
        self.digests.keep(task, record.digest)
        return record

    def _decisions(self, task: Task) -> bytes:
        """Which of the task's documents are duplicates, see `Decisions`; empty when all are kept."""
        return (self.decisions / task_name(task.number)).read_bytes() if self.decisions else b""

    def result_digest(self, task: Task) -> str | None:
        """See `ResultJob`."""
        record = read_task_record(self.path(task), self.address(task))
        return record.digest if record else None

    def record(self, task: Task) -> TaskRecord | None:
        """The record of a task that is finished, else None."""
        digest = self.digests.digest(task)
        return digest and read_task_record(self.path(task), self.address(task), digest)

    def _write(self, task: Task, folder: Path, report: Report) -> TaskRecord:
        options, counter = self.options, RecordCounter(task.starts_corpus)
        documents = task_documents(task, counter, options.text_key, options.filters, options.strict)
        digest = new_digest()
        decided = self._without_duplicates(task, documents, counter, digest)
        tokenizer = _loaded_tokenizer(self.tokenizer_file, self.tokenizer.sha256, self.keeps_words)
        shards: dict[str, _Shard] = {}
        with ExitStack() as stack:
            for document, split in decided:
                if split not in shards:
                    writer = stack.enter_context(IndexedWriter(folder / split, self.vocab_size))
                    places = stack.enter_context(TableWriter(folder / f"{split}{PLACES_SUFFIX}", PLACES))
                    shards[split] = _Shard(writer, places, tokenizer, self.tokenizer.eod_id, report)
                shards[split].add(document, counter.file_range)
            for shard in shards.values():
                shard.finish()
        infos = {split: shard.describe(folder, split) for split, shard in sorted(shards.items())}
        return TaskRecord(
            address=self.address(task), digest=digest.hexdigest(), counts=RecordCounts.of(counter), shards=infos
        )

    def _without_duplicates(
        self, task: Task, documents: Iterable[Document], counter: RecordCounter, digest: "hashlib.blake2b"
    ) -> Iterator[tuple[Document, str]]:
        """The documents that are kept, each with its split. `digest` is updated with those of all documents.

        Raises:
            ReadError, DataError: the documents are not those that were decided about.
        """
        decisions, count = Decisions(self._decisions(task)), 0
        for document in documents:
            digest.update(document.digest)
            if self.decisions:
                if decisions.digest(count) != document.digest:
                    raise self._other_documents(task, decisions, counter)
                if cause := decisions.cause(count):
                    counter.reject_last_accepted(cause, f"digest {document.digest.hex()}", document.place)
                    count += 1
                    continue
            yield document, self._split(document, decisions, count)
            count += 1
        if self.decisions and count < len(decisions):
            raise self._other_documents(task, decisions, counter)

    def _split(self, document: Document, decisions: Decisions, i: int) -> str:
        """The split of a document: that of its own text, or the one that was decided for all of its near copies."""
        in_validation = decisions.is_in_validation(i) if self.decisions else None
        return self.options.split_of(document) if in_validation is None else (TRAIN, VALIDATION)[in_validation]

    def _other_documents(self, task: Task, decisions: Decisions, counter: RecordCounter) -> Exception:
        """The error for documents other than those that were decided about: which of the two reads was wrong?"""
        file_range = task.ranges[counter.file_range]
        options = self.options
        again = task_documents(task, RecordCounter(), options.text_key, options.filters)
        found = [document.digest for document in again]
        if found == [decisions.digest(i) for i in range(len(decisions))]:
            return ReadError.differs(file_range.source, f"at {file_range.place(counter.last)}")
        return DataError(
            f"{file_range.place(counter.last)}: the duplicates were decided by other documents than the file holds now; remove "
            f"{self.work / SIGNATURES} and {self.work / DECISIONS}, then run the same command again, with several machines "
            "from --stage start on"
        )


@dataclass
class _Shard:
    """One split's documents on their way to a file, tokenized in batches."""

    writer: IndexedWriter
    places: TableWriter
    tokenizer: Tokenizer
    eod_id: int
    report: Report
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    _texts: list[str] = field(default_factory=list)
    _places: "array[int]" = field(default_factory=lambda: array("q"))  # file range and place of each document in turn
    _pending: int = 0

    def add(self, document: Document, file_range: int) -> None:
        """Add a document of the task's file range of that index."""
        self._places.extend((file_range, document.place))
        if len(self._places) == 2 * BATCH_PLACES:
            self._write_places()
        if document.is_long:
            self.flush()
            self._add_long(document)
            return
        self._texts.append(document.text)
        self._pending += document.num_bytes
        if self._pending >= BATCH_BYTES or len(self._texts) >= BATCH_DOCUMENTS:
            self.flush()

    def flush(self) -> None:
        if not self._texts:
            return
        eod = np.array([self.eod_id], dtype=np.int32)
        encoded = self.tokenizer.encode_batch(self._texts)
        lengths = np.array([ids.size + 1 for ids in encoded], dtype=np.int32)
        tokens = np.concatenate([part for ids in encoded for part in (ids, eod)])
        self.writer.append(tokens, lengths)
        self.report(lengths.size, self._pending, tokens.size)
        self.documents += lengths.size
        self.tokens += tokens.size
        self.bytes += self._pending
        self._texts, self._pending = [], 0

    def _add_long(self, document: Document) -> None:
        """Read, encode and write a document chunk by chunk."""
        eod = np.array([self.eod_id], dtype=np.int32)
        encoded = self.tokenizer.encode_long(self._reported(document.chunks))
        tokens = self.writer.append_document(chain(encoded, [eod]))
        self.report(1, 0, tokens)
        self.documents += 1
        self.tokens += tokens
        self.bytes += document.num_bytes

    def _reported(self, chunks: Iterable[str]) -> Iterator[str]:
        for chunk in chunks:
            self.report(0, len(chunk.encode("utf-8")), 0)
            yield chunk

    def finish(self) -> None:
        """Write what is left."""
        self.flush()
        self._write_places()

    def _write_places(self) -> None:
        self.places.append(*np.array(self._places).reshape(-1, 2).T)
        self._places = array("q")

    def describe(self, folder: Path, split: str) -> ShardInfo:
        files = {suffix: _describe_file(folder / f"{split}{suffix}") for suffix in SHARD_SUFFIXES}
        places = _describe_file(folder / f"{split}{PLACES_SUFFIX}")
        return ShardInfo(documents=self.documents, tokens=self.tokens, bytes=self.bytes, files=files, places=places)


def _describe_file(path: Path) -> FileInfo:
    return FileInfo(bytes=path.stat().st_size, sha256=sha256_of(path))


@lru_cache(maxsize=1)
def _loaded_tokenizer(path: Path, sha256: str, keeps_words: bool) -> Tokenizer:
    """Each process loads a tokenizer once, and again when the file has changed."""
    return load_tokenizer(path, keeps_words)
