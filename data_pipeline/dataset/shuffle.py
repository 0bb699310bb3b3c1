"""The order in which training visits the rows of a split: a keyed permutation, evaluated per index.

There is no shuffle file and no start-up pass: the row of any sample index, in any epoch, takes about a hundred integer
operations. A run therefore resumes from one integer, the number of samples consumed.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

# Tiny splits need this many for all orders to be equally likely (by chi-square tests); large ones need fewer.
ROUNDS = 16
GOLDEN = 0x9E3779B97F4A7C15


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit words that spreads bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class SampleOrder:
    """A keyed permutation of ``0 .. num_rows - 1`` for every epoch.

    Each epoch is a sixteen-round Feistel network over pairs (left, right) in Z_a x Z_b, where a*b is the smallest
    near-square product that holds `num_rows`; the rounds add modulo a and b in turn. The few pairs beyond `num_rows`
    are walked along their cycle until they fall inside (Black and Rogaway, CT-RSA 2002).

    Args:
        seed: any integer; the run's seed.
        num_rows: rows in the split, at least 1.
    """

    def __init__(self, seed: int, num_rows: int) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {num_rows}")
        self.seed = seed
        self.num_rows = num_rows
        self._radix_left = math.isqrt(num_rows - 1) + 1
        self._radix_right = -(-num_rows // self._radix_left)
        digest = hashlib.blake2b(f"sample order {seed}".encode(), digest_size=8).digest()
        self._seed_key = np.uint64(int.from_bytes(digest, "little"))

    def rows(self, sample_indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of the split for each global sample index.

        Args:
            sample_indices: int64 of any shape, each >= 0; epoch = index // num_rows.

        Returns:
            int64 of the same shape, each in [0, num_rows).
        """
        indices = np.asarray(sample_indices, dtype=np.int64)
        if indices.size and indices.min() < 0:
            raise ValueError(f"sample indices must not be negative, got {indices.min()}")
        epoch, position = np.divmod(indices.ravel(), self.num_rows)
        keys = _mix(self._seed_key + epoch.astype(np.uint64) * np.uint64(GOLDEN))
        result = self._permute_pairs(position.astype(np.uint64), keys)
        outside = np.flatnonzero(result >= self.num_rows)
        while outside.size:
            result[outside] = self._permute_pairs(result[outside], keys[outside])
            outside = outside[result[outside] >= self.num_rows]
        return result.astype(np.int64).reshape(indices.shape)

    def _permute_pairs(self, x: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """One pass of the network over ``0 .. a*b - 1``; `keys` holds the epoch's key of each element."""
        radix_left, radix_right = np.uint64(self._radix_left), np.uint64(self._radix_right)
        left, right = np.divmod(x, radix_right)
        for i in range(ROUNDS):
            round_keys = _mix(keys + np.uint64((i + 1) * GOLDEN % 2**64))
            if i % 2 == 0:
                left = (left + _mix(right ^ round_keys) % radix_left) % radix_left
            else:
                right = (right + _mix(left ^ round_keys) % radix_right) % radix_right
        return left * radix_right + right
