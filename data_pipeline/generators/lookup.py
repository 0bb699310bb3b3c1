"""Look-ups of several hops in a table, such as 4719028356:3>8: the table maps 0 to 4, 1 to 7, ..., and is used H times from 3."""

from dataclasses import dataclass

import numpy as np

from data_pipeline.generators.generator import below, permutation, words

SYMBOLS = 10
MAX_HOPS = 99


@dataclass(frozen=True)
class Lookup:
    """A random permutation of the digits, a start, and what `hops` applications of the permutation make of it.

    Each hop depends on the one before, so the answer needs as many look-ups in a row.
    """

    hops: int
    version: int = 1
    answer_length: int = 1

    @property
    def name(self) -> str:
        """See `Generator`."""
        return f"lookup{self.hops}"

    @property
    def alphabet(self) -> str:
        """Digits and two signs."""
        return "0123456789:>"

    @property
    def length(self) -> int:
        """The table, the start, the answer and two signs."""
        return SYMBOLS + 4

    def text(self, seed: int, index: int) -> str:
        """See `Generator`."""
        start, *order = words(seed, index, 1 + SYMBOLS)
        table = permutation(np.array(order))
        at = first = below(start, SYMBOLS)
        for _ in range(self.hops):
            at = table[at]
        return f"{''.join(map(str, table))}:{first}>{at}"
