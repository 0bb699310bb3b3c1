"""A hash table from words to ids that looks up all words of a text at once, in numpy.

The key of a word of up to 15 bytes is the word itself: two 64-bit numbers, with the length in the last byte, so that equal
keys mean equal words. Longer words are looked up one by one, and words of more than `MAX_KNOWN_BYTES` are encoded each time.
Words that are not in the table yet are encoded together.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

# Classes of bytes, and which neighbours belong to one word: spaces belong to what follows them.
LETTER, SPACE, PUNCTUATION, LINE_END = range(4)
JOINED = ((SPACE, SPACE), (SPACE, LETTER), (SPACE, PUNCTUATION), (LETTER, LETTER), (PUNCTUATION, PUNCTUATION))
KEY_BYTES = 15
# Longer words hardly ever come again: lines without spaces, sequences, base64.
MAX_KNOWN_BYTES = 128
# Memory of a long word beside its text and ids: two Python objects and its place in a dictionary.
LONG_WORD_BYTES = 200
SLOTS = 1 << 20
# A table with more words than this is cleared, and as many at most are looked up at a time: half of the slots are always free.
MAX_WORDS = SLOTS // 4
# The same for the memory of the long words and of all ids; the slots take 20 MB more.
MAX_BYTES = 32 << 20
# Bytes of text to process at a time, which bounds the memory.
BLOCK_BYTES = 1 << 20
MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)


class WordTable:
    """Encodes UTF-8 text word by word.

    Args:
        classes: class of each byte, uint8 [256]; bytes from 0x80 must be LETTER, so that characters are not cut.
        encode: ids of words; called once for each word that is kept, and again after the table was cleared.
    """

    def __init__(self, classes: NDArray[np.uint8], encode: Callable[[list[str]], list[list[int]]]) -> None:
        self._classes = classes
        self._is_cut = np.ones(16, bool)
        self._is_cut[[4 * first + second for first, second in JOINED]] = False
        self._encode = encode
        self.clear()

    def like(self, encode: Callable[[list[str]], list[list[int]]]) -> "WordTable":
        """An empty table of the same words with other ids."""
        return WordTable(self._classes, encode)

    def clear(self) -> None:
        """Forget all words."""
        self._keys = np.zeros((SLOTS, 2), np.uint64)
        self._values = np.zeros(SLOTS, np.int32)
        self._long: dict[bytes, int] = {}
        self._long_bytes = 0
        # Where the ids of each known word begin in `_ids`, and one entry for the end of the last.
        self._begins = np.zeros(1, np.int64)
        self._ids = np.zeros(0, np.int32)

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[np.int32]]:
        """Ids of each text, int32 [tokens]."""
        if not texts:
            return []
        if sum(map(len, texts)) <= BLOCK_BYTES:
            return self._encode_block(texts)
        return [np.concatenate([np.zeros(0, np.int32), *self._encode_long(text)]) for text in texts]

    def word_starts(self, content: bytes, edges: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where words begin in concatenated texts, int64 [words]; `edges` are where the texts begin and end."""
        classes = self._classes[np.frombuffer(content, np.uint8)]
        is_start = np.ones(classes.size + 1, bool)
        is_start[1:-1] = self._is_cut[4 * classes[:-1] + classes[1:]]
        is_start[edges] = True
        return np.flatnonzero(is_start[:-1])

    def last_start(self, text: bytes) -> int:
        """Where the last word of a text begins; it may continue after the text."""
        return int(self.word_starts(text, np.zeros(1, np.int64))[-1]) if text else 0

    def _encode_long(self, text: bytes) -> Iterator[NDArray[np.int32]]:
        """Ids of a long text, one block of whole words at a time."""
        start, size = 0, BLOCK_BYTES
        while start < len(text):
            stop = min(start + size, len(text))
            if stop < len(text):
                stop = start + self.last_start(text[start:stop])
            if stop == start:  # one word is longer than the block
                size *= 2
                continue
            yield self._encode_block([text[start:stop]])[0]
            start, size = stop, BLOCK_BYTES

    def _encode_block(self, texts: Sequence[bytes]) -> list[NDArray[np.int32]]:
        content = b"".join(texts)
        edges = np.cumsum([0, *map(len, texts)])
        starts = self.word_starts(content, edges)
        lengths = np.diff(starts, append=len(content))
        some = [slice(i, i + MAX_WORDS) for i in range(0, max(1, starts.size), MAX_WORDS)]
        ids, counts = zip(*(self._encode_words(content, starts[part], lengths[part]) for part in some), strict=True)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
        return np.split(np.concatenate(ids), ends[np.searchsorted(starts, edges[1:-1])])

    def _encode_words(
        self, content: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of up to MAX_WORDS words one after another, int32 [ids], and the number of ids of each, int64 [words]."""
        if len(self._begins) > MAX_WORDS or self._long_bytes + self._ids.nbytes > MAX_BYTES:
            self.clear()
        try:
            words, others = self._look_up(content, starts, lengths)
        except BaseException:
            self.clear()  # words without ids may have taken slots
            raise
        all_begins, all_ids = _appended(self._begins, self._ids, others)
        begins = all_begins[words]
        counts = all_begins[words + 1] - begins
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return all_ids[np.repeat(begins - ends[:-1], counts) + np.arange(ends[-1])], counts

    def _look_up(
        self, content: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], list[list[int]]]:
        """Index of each word, int64 [words], and the ids of those that are not kept, which have the indices after the others."""
        words = np.empty(starts.size, np.int64)
        is_short, is_kept = lengths <= KEY_BYTES, lengths <= MAX_KNOWN_BYTES
        short, long, once = np.flatnonzero(is_short), np.flatnonzero(~is_short & is_kept), np.flatnonzero(~is_kept)
        words[short], new = self._find(_keys(content, starts[short], lengths[short]))
        unknown = list(_cut_out(content, starts[short[new]], lengths[short[new]]))
        first = len(self._begins) - 1
        long_texts = list(_cut_out(content, starts[long], lengths[long]))
        for text in long_texts:
            if text not in self._long:
                self._long[text] = first + len(unknown)
                self._long_bytes += len(text) + LONG_WORD_BYTES
                unknown.append(text)
        words[long] = [self._long[text] for text in long_texts]
        encoded = self._encode_texts([*unknown, *_cut_out(content, starts[once], lengths[once])])
        self._begins, self._ids = _appended(self._begins, self._ids, encoded[: len(unknown)])
        words[once] = np.arange(once.size) + len(self._begins) - 1
        return words, encoded[len(unknown) :]

    def _find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Index of each key [words, 2], and which keys are new, in the order of their indices."""
        found = np.empty(len(keys), np.int64)
        slots, left, new = _slots(keys), np.arange(len(keys)), [np.zeros(0, np.int64)]
        number = len(self._begins) - 1
        while left.size:
            free = self._keys[slots, 1] == 0
            wanted, wanting = slots[free], np.flatnonzero(free)
            # Where several keys want one slot, the one written last gets it.
            self._values[wanted] = wanting
            takes = self._values[wanted] == wanting
            taken, taking = wanted[takes], wanting[takes]
            self._keys[taken] = keys[taking]
            self._values[taken] = number + np.arange(taken.size)
            number += taken.size
            new.append(left[taking])
            there = self._keys[slots]
            same = (there[:, 0] == keys[:, 0]) & (there[:, 1] == keys[:, 1])
            found[left[same]] = self._values[slots[same]]
            left, keys, slots = left[~same], keys[~same], (slots[~same] + 1) % SLOTS
        return found, np.concatenate(new)

    def _encode_texts(self, texts: list[bytes]) -> list[list[int]]:
        return self._encode([text.decode("utf-8") for text in texts]) if texts else []


def _appended(
    begins: NDArray[np.int64], ids: NDArray[np.int32], encoded: Sequence[Sequence[int]]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """`begins` and `ids` of a table with the ids of further words."""
    if not encoded:
        return begins, ids
    ends = begins[-1] + np.cumsum(list(map(len, encoded)))
    return np.concatenate([begins, ends]), np.concatenate([ids, np.fromiter(chain.from_iterable(encoded), np.int32)])


def _cut_out(content: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[bytes]:
    return (content[start:stop] for start, stop in zip(starts.tolist(), (starts + lengths).tolist(), strict=True))


def _keys(content: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Keys of words of up to KEY_BYTES, uint64 [words, 2]."""
    padded = content + bytes(16)
    # Eight bytes from every offset on: a view with a stride of one byte.
    eights = np.ndarray(len(content) + 9, "<u8", padded, strides=(1,))
    keys = np.empty((starts.size, 2), np.uint64)
    keys[:, 0] = eights[starts] & MASKS[np.minimum(lengths, 8)]
    keys[:, 1] = eights[starts + 8] & MASKS[np.maximum(lengths - 8, 0)]
    keys[:, 1] |= lengths.astype(np.uint64) << np.uint64(56)
    return keys


def _slots(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The slot at which the search for each key begins."""
    mixed = keys[:, 0] * MULTIPLIERS[0] ^ keys[:, 1] * MULTIPLIERS[1]
    mixed ^= mixed >> np.uint64(32)
    mixed *= MULTIPLIERS[0]
    return (mixed >> np.uint64(64 - (SLOTS.bit_length() - 1))).astype(np.int64)
