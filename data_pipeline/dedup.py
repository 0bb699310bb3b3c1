"""What documents are compared by to find duplicates, and what was decided about them.

Near duplicates are found by MinHash with banding (Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
chapter 3): documents that share a band are compared by their signatures, b-bit minwise hashes (Li and Koenig 2010,
https://arxiv.org/abs/0910.3349). The search itself is in `data_pipeline.tasks.duplicate_search`.
"""

import hashlib
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.documents import Document
from data_pipeline.rejects import Cause

Duplicates = Literal["keep", "exact", "near", "together"]
# Two texts of Jaccard similarity s share a band with probability 1 - (1 - s**ROWS)**BANDS: 0.5 at s = 0.67, 0.95 at 0.8.
BANDS, ROWS = 16, 8
SHINGLE_WORDS, SHINGLE_CHARS = 5, 13
# "Words" of a script without spaces are longer than this on average.
LONG_WORD_CHARS = 20
# Near duplicates have at least this estimated Jaccard similarity of their shingles. The standard error of the estimate at 0.7
# is 0.04: sqrt(0.7 * 0.3 / 128).
SIMILARITY = 0.7
# A signature has one byte per MinHash value. Unequal values have equal bytes once in 256.
SIGNATURE_BYTES = BANDS * ROWS
MIN_EQUAL_BYTES = math.ceil(SIGNATURE_BYTES * (SIMILARITY + (1 - SIMILARITY) / 256))
# An odd number near 2**64 divided by the golden ratio: the high byte of a product depends on all bits of the factor.
SPREAD = np.uint64(0x9E3779B97F4A7C15)
# What decides signatures and decisions, for their addresses.
METHOD = (3, BANDS, ROWS, SIMILARITY)
# Decisions. A document that is kept belongs to the split of its own text, or to the split of the first of its near copies.
KEPT, EXACT, NEAR, KEPT_IN_TRAIN, KEPT_IN_VALIDATION = range(5)
CAUSES = {EXACT: Cause.DUPLICATE, NEAR: Cause.NEAR_DUPLICATE}


def near_keys(document: Document) -> tuple[bytes, bytes]:
    """What a document is compared by to find near duplicates.

    Returns:
        Keys of its MinHash bands, BANDS little-endian uint64: similar texts are likely to share one; and its signature, uint8
        [SIGNATURE_BYTES].
    """
    import rensa

    minhash = rensa.RMinHash(num_perm=BANDS * ROWS, seed=42)
    for chunk in document.chunks:
        minhash.update(shingles(chunk))
    values = np.array(minhash.digest(), "<u8")
    rows = (row.tobytes() for row in values.reshape(BANDS, ROWS))
    keys = (hashlib.blake2b(row, digest_size=8, salt=bytes([i])).digest() for i, row in enumerate(rows))
    return b"".join(keys), (values * SPREAD >> np.uint64(56)).astype(np.uint8).tobytes()


def equal_bytes(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.int32]:
    """How many bytes of each pair of signatures are equal, [pairs]; both arguments are [pairs, SIGNATURE_BYTES]."""
    return np.count_nonzero(first == second, axis=1).astype(np.int32)


def shingles(text: str) -> list[str]:
    """Runs of words, or of characters in a script without spaces; case and white space are ignored."""
    words = text.casefold().split()
    if len(words) * LONG_WORD_CHARS < len(text):
        joined = "".join(words)
        return [joined[i : i + SHINGLE_CHARS] for i in range(max(1, len(joined) - SHINGLE_CHARS + 1))]
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]


class Decisions:
    """What was decided about the documents of a task, in their order, with the digests that it was decided by."""

    SIZE = 17  # of a document: its digest and its decision

    def __init__(self, content: bytes) -> None:
        self._content = content

    @classmethod
    def pack(cls, digests: NDArray[np.uint8], decisions: NDArray[np.uint8]) -> bytes:
        """The content of a file of decisions, from digests [documents, 16] and decisions [documents]."""
        return np.column_stack([digests, decisions]).tobytes()

    def __len__(self) -> int:
        return len(self._content) // self.SIZE

    def digest(self, i: int) -> bytes:
        """The digest of document i when it was decided about; empty if there was no such document."""
        return self._content[self.SIZE * i : self.SIZE * (i + 1) - 1]

    def cause(self, i: int) -> Cause | None:
        """Why document i is left out; None when it is kept."""
        return CAUSES.get(self._decision(i))

    def is_in_validation(self, i: int) -> bool | None:
        """Whether document i was put into the validation split; None when its own text decides."""
        return {KEPT_IN_TRAIN: False, KEPT_IN_VALIDATION: True}.get(self._decision(i))

    def _decision(self, i: int) -> int:
        return self._content[self.SIZE * (i + 1) - 1]
