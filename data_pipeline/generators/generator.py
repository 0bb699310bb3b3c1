"""What a generator of task instances is, and its random numbers."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Generator(Protocol):
    """Instances of a task, each a text that is a pure function of (seed, index).

    The split of a document follows from the hash of its text, so the training and the validation split share no instance.

    Attributes:
        name: as in `--input NAME:COUNT`.
        version: changes when a seed gives other texts.
        alphabet: all characters that occur in a text, sorted.
        length: characters of every text.
    """

    name: str
    version: int
    alphabet: str
    length: int

    def text(self, seed: int, index: int) -> str:
        """Instance `index` of a seed."""


class Question(Generator, Protocol):
    """Instances whose last characters are the answer to what stands before.

    Attributes:
        answer_length: number of these characters.
    """

    answer_length: int


def words(seed: int, index: int, size: int) -> NDArray[np.uint64]:
    """`size` random 64-bit words of instance `index`.

    From numpy's Philox4x64-10, whose raw words numpy guarantees not to change, with key = seed and counter = index.
    """
    counter = np.array([0, 0, index, 0], np.uint64)  # each index has 2**128 counter values to itself
    return np.random.Philox(key=np.array([seed, 0], np.uint64), counter=counter).random_raw(size)


def below(word: int | np.uint64, limit: int) -> int:
    """A random number from 0 to `limit` - 1 from a 64-bit word. Their probabilities differ by at most 2**-64."""
    return int(word) * limit >> 64


def permutation(order: NDArray[np.uint64]) -> list[int]:
    """A random permutation of 0 .. n - 1 from n random words."""
    return np.argsort(order, kind="stable").tolist()
