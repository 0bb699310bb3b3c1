"""Keyed permutations of a range, evaluated per index: no table, and no memory that grows with the range."""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

# Tiny ranges need this many for all orders to be equally likely (by chi-square tests); large ones need fewer.
ROUNDS = 16
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit words that spreads bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key_of(name: str) -> np.uint64:
    """A 64-bit key from a name."""
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


class Permutation:
    """Permutations of ``0 .. size - 1``, one for each 64-bit key.

    Each is a sixteen-round Feistel network over pairs (left, right) in Z_a x Z_b, where a*b is the smallest near-square product
    that holds `size`; the rounds add modulo a and b in turn. The few pairs beyond `size` are walked along their cycle until
    they fall inside (Black and Rogaway, CT-RSA 2002).

    Args:
        size: at least 1.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._radix_left = math.isqrt(size - 1) + 1
        self._radix_right = -(-size // self._radix_left)

    def __call__(self, positions: NDArray[np.integer], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What stands at each position, int64 [n].

        Args:
            positions: 0 .. size - 1, [n].
            keys: of the permutation of each position, [n].
        """
        result = self._permute_pairs(positions.astype(np.uint64), keys)
        outside = np.flatnonzero(result >= self.size)
        while outside.size:
            result[outside] = self._permute_pairs(result[outside], keys[outside])
            outside = outside[result[outside] >= self.size]
        return result.astype(np.int64)

    def _permute_pairs(self, x: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """One pass of the network over ``0 .. a*b - 1``."""
        radix_left, radix_right = np.uint64(self._radix_left), np.uint64(self._radix_right)
        left, right = np.divmod(x, radix_right)
        for i in range(ROUNDS):
            round_keys = mix(keys + np.uint64((i + 1) * GOLDEN % 2**64))
            if i % 2 == 0:
                left = (left + mix(right ^ round_keys) % radix_left) % radix_left
            else:
                right = (right + mix(left ^ round_keys) % radix_right) % radix_right
        return left * radix_right + right
