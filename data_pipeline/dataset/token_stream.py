"""A split's shards as one stream of tokens."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.open_maps import process_maps
from data_pipeline.indexed import Index, Shard


class TokenStream:
    """The documents of `.bin/.idx` shards one after another, by memory maps that are opened when needed.

    Attributes:
        num_tokens, num_documents: of all shards.

    Args:
        folder: the folder of the shards.
        shards: in order.

    Reading raises DataError when a shard is missing or damaged.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._folder, self._shards = folder, shards
        self._starts = [0, *accumulate(shard.tokens for shard in shards)]
        self.num_tokens = self._starts[-1]
        self._first_documents = [0, *accumulate(shard.documents for shard in shards)]
        self.num_documents = self._first_documents[-1]
        self._maps = process_maps()
        self._maps.drop_with(self)

    def read(self, start: int, out: NDArray[np.integer]) -> None:
        """Copy the tokens from position `start` on into `out` [tokens]."""
        i, done = self._shard_of(start), 0
        while done < out.size:
            at = start + done - self._starts[i]
            part = self._tokens(i)[at : at + out.size - done]
            out[done : done + part.size] = part
            done += part.size
            i += 1

    def token(self, position: int) -> int:
        """The id at one position."""
        out = np.empty(1, np.int64)
        self.read(position, out)
        return int(out[0])

    def document(self, i: int) -> NDArray[np.integer]:
        """Ids of document `i`, 0 .. num_documents - 1, its end-of-document id last; a view that keeps its file open."""
        shard = bisect_right(self._first_documents, i) - 1
        index, number = self._index(shard), i - self._first_documents[shard]
        start = index.start(number)
        return self._tokens(shard)[start : start + int(index.lengths[number])]

    def document_at(self, position: int) -> int:
        """The document that holds the token at a position."""
        shard = self._shard_of(position)
        return self._first_documents[shard] + self._index(shard).document_at(position - self._starts[shard])

    def lengths(self, step: int) -> NDArray[np.int32]:
        """Tokens of every `step`-th document of each shard, [documents]."""
        # One index at a time: they are not needed again.
        lengths = [shard.index(self._folder).lengths[::step].copy() for shard in self._shards]
        return np.concatenate(lengths)

    def document_ids(self, start: int, length: int) -> NDArray[np.int32]:
        """Number of the document of each token from `start` on, counted from 0, int32 [length]."""
        begins = np.zeros(length, np.int32)
        for i in range(self._shard_of(start), len(self._shards)):
            first = self._starts[i]
            if first >= start + length:
                break
            if first > start:
                begins[first - start] = 1
            begins[self._index(i).starts_between(start - first, start + length - first) + first - start] = 1
        return np.cumsum(begins, dtype=np.int32)

    def _tokens(self, i: int) -> NDArray[np.integer]:
        return self._maps.get(self, (i, "tokens"), lambda: self._shards[i].map_tokens(self._folder))

    def _index(self, i: int) -> Index:
        return self._maps.get(self, (i, "index"), lambda: self._shards[i].index(self._folder))

    def _shard_of(self, position: int) -> int:
        """The shard that holds the token at a position; of several that begin there, the last one, as the others are empty."""
        return bisect_right(self._starts, position) - 1
