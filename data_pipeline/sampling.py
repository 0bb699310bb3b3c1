"""A bounded sample of documents to train a tokenizer on."""

import heapq
from collections.abc import Iterator

from data_pipeline.records import Document

SAMPLE_BYTES = 10_000_000
# One long document must not fill the sample.
MAX_DOCUMENT_CHARS = 100_000


class HashSample:
    """The documents with the lowest hashes that fit into `max_bytes`: a sample that no order of reading changes.

    Of a long document only the first `MAX_DOCUMENT_CHARS` characters are kept.
    """

    def __init__(self, max_bytes: int = SAMPLE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._heap: list[tuple[bytes, str, int]] = []
        self._bytes = 0

    def add(self, document: Document) -> None:
        """Consider one document."""
        key = _inverted(document.digest)
        if self._bytes >= self._max_bytes and key < self._heap[0][0]:
            return
        text = document.text[:MAX_DOCUMENT_CHARS]
        size = document.num_bytes if len(text) == len(document.text) else len(text.encode("utf-8"))
        heapq.heappush(self._heap, (key, text, size))
        self._bytes += size
        while self._bytes - self._heap[0][2] >= self._max_bytes:
            self._bytes -= heapq.heappop(self._heap)[2]

    def texts(self) -> Iterator[str]:
        """The sample, in the order of the hashes."""
        return (text for _, text, _ in sorted(self._heap, reverse=True))


def _inverted(digest: bytes) -> bytes:
    """A key whose smallest value belongs to the largest digest, for a heap that gives up the largest first."""
    return bytes(255 - byte for byte in digest)
