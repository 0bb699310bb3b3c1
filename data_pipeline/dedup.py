"""Recognise documents that came before in the corpus, exactly or nearly.

Near duplicates are found by MinHash with banding (Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
chapter 3). The first document of each kind is kept, in the order of the corpus. The process that decides holds about 120 bytes
per document in memory, with near duplicates about 1,400 (measured on 3 million and 1 million documents).
"""

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.documents import Document
from data_pipeline.rejects import Cause

Duplicates = Literal["keep", "exact", "near"]
# Two texts of Jaccard similarity s share a band with probability 1 - (1 - s**ROWS)**BANDS: 0.5 at s = 0.67, 0.95 at 0.8.
BANDS, ROWS = 16, 8
SHINGLE_WORDS, SHINGLE_CHARS = 5, 13
# "Words" of a script without spaces are longer than this on average.
LONG_WORD_CHARS = 20
KEPT, EXACT, NEAR = range(3)
CAUSES = {EXACT: Cause.DUPLICATE, NEAR: Cause.NEAR_DUPLICATE}


def band_keys(document: Document) -> list[int]:
    """Keys of a document's MinHash bands, [BANDS]: similar texts are likely to share one."""
    import rensa

    minhash = rensa.RMinHash(num_perm=BANDS * ROWS, seed=42)
    for chunk in document.chunks:
        minhash.update(shingles(chunk))
    values = np.array(minhash.digest(), "<u8").reshape(BANDS, ROWS)
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8, salt=bytes([i])) for i, row in enumerate(values))
    return [int.from_bytes(digest.digest(), "little") for digest in digests]


def shingles(text: str) -> list[str]:
    """Runs of words, or of characters in a script without spaces; case and white space are ignored."""
    words = text.casefold().split()
    if len(words) * LONG_WORD_CHARS < len(text):
        joined = "".join(words)
        return [joined[i : i + SHINGLE_CHARS] for i in range(max(1, len(joined) - SHINGLE_CHARS + 1))]
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]


class SeenDocuments:
    """The documents kept so far."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._bands: set[int] = set()

    def decide(self, digests: NDArray[np.uint8], bands: NDArray[np.uint64]) -> bytes:
        """KEPT, EXACT or NEAR for each of the documents that come next, one byte per document.

        Args:
            digests: uint8 [documents, 16].
            bands: keys from `band_keys`, uint64 [documents, BANDS]; [0, BANDS] to look for exact duplicates only.
        """
        decisions = bytearray(len(digests))
        for i, digest in enumerate(digests):
            if (text := digest.tobytes()) in self._digests:
                decisions[i] = EXACT
                continue
            self._digests.add(text)
            if len(bands):
                keys = bands[i].tolist()
                if self._bands.isdisjoint(keys):
                    self._bands.update(keys)
                else:
                    decisions[i] = NEAR
        return bytes(decisions)


class Decisions:
    """What was decided about the documents of a task, in their order, with the digests that it was decided by."""

    SIZE = 17  # of a document: its digest and its decision

    def __init__(self, content: bytes) -> None:
        self._content = content

    @classmethod
    def pack(cls, digests: NDArray[np.uint8], decisions: bytes) -> bytes:
        """The content of a file of decisions; see `SeenDocuments.decide`."""
        return np.column_stack([digests, np.frombuffer(decisions, np.uint8)]).tobytes()

    def __len__(self) -> int:
        return len(self._content) // self.SIZE

    def digest(self, i: int) -> bytes:
        """The digest of document i when it was decided about; empty if there was no such document."""
        return self._content[self.SIZE * i : self.SIZE * (i + 1) - 1]

    def cause(self, i: int) -> Cause | None:
        """Why document i is left out; None when it is kept."""
        return CAUSES.get(self._content[self.SIZE * (i + 1) - 1])
