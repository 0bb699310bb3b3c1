"""Tokenise batches of documents in worker processes, in order."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.records import Document
from data_pipeline.staging import stop_signals_wait
from data_pipeline.tokenizers import Tokenizer, load_tokenizer

BATCH_BYTES = 1 << 18
BATCH_DOCUMENTS = 512
# Enough to keep every worker busy while the parent reads and writes, small enough to bound memory.
BATCHES_PER_WORKER = 3


@dataclass(frozen=True)
class Encoded:
    """Some documents of one split: ids one after another [sum(lengths)], an EOD closing each; tokens of each."""

    split: str
    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    num_bytes: int


@dataclass
class _Batch:
    split: str
    texts: list[str] = field(default_factory=list)
    num_bytes: int = 0

    def add(self, document: Document) -> None:
        self.texts.append(document.text)
        self.num_bytes += document.num_bytes

    @property
    def is_full(self) -> bool:
        return self.num_bytes >= BATCH_BYTES or len(self.texts) >= BATCH_DOCUMENTS


def encode_documents(
    documents: Iterable[tuple[str, Document]], tokenizer_file: Path, eod_id: int, workers: int
) -> Iterator[Encoded]:
    """Tokenise (split, document) pairs. The result does not depend on `workers`; one worker starts no process.

    Raises:
        DataError: a worker process died.
    """
    batches = _batches(documents)
    if workers == 1:
        tokenizer = load_tokenizer(tokenizer_file)
        yield from (_encode(batch, tokenizer, eod_id) for batch in batches)
        return
    with _pool(workers) as pool:
        pending: deque[Future[Encoded]] = deque()
        for batch in batches:
            with stop_signals_wait():  # this may start a worker
                pending.append(pool.submit(_encode_in_worker, batch, tokenizer_file, eod_id))
            if len(pending) >= workers * BATCHES_PER_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _batches(documents: Iterable[tuple[str, Document]]) -> Iterator[_Batch]:
    """Group documents of one split, in their order; each split fills its own batch."""
    open_batches: dict[str, _Batch] = {}
    for split, document in documents:
        batch = open_batches.setdefault(split, _Batch(split))
        batch.add(document)
        if batch.is_full:
            yield open_batches.pop(split)
    yield from open_batches.values()


def _encode(batch: _Batch, tokenizer: Tokenizer, eod_id: int) -> Encoded:
    eod = np.array([eod_id], dtype=np.int32)
    encoded = tokenizer.encode_batch(batch.texts)
    lengths = np.array([ids.size + 1 for ids in encoded], dtype=np.int32)
    tokens = np.concatenate([part for ids in encoded for part in (ids, eod)])
    return Encoded(batch.split, tokens, lengths, batch.num_bytes)


def _encode_in_worker(batch: _Batch, tokenizer_file: Path, eod_id: int) -> Encoded:
    return _encode(batch, _worker_tokenizer(tokenizer_file), eod_id)


@cache
def _worker_tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes: forking one whose libraries run threads can deadlock."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise DataError(
            "a tokenising process was killed, most likely for lack of memory; use fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, one thread per process to the scheduler, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
