"""Sums and products of two numbers of D digits, such as 037+981=1018: zero-padded, so that all texts have the same length."""

from dataclasses import dataclass
from typing import Literal

from data_pipeline.generators.generator import below, words

MAX_DIGITS = 18

SIGNS = {"addition": "+", "multiplication": "*"}


@dataclass(frozen=True)
class Arithmetic:
    """a+b=c or a*b=c, with a and b uniform below 10**digits.

    Of the two orders of the numbers only the one with the smaller number first is a text: an instance of the validation split
    does not occur in the training split with its numbers exchanged.
    """

    operation: Literal["addition", "multiplication"]
    digits: int
    version: int = 1

    @property
    def name(self) -> str:
        """See `Generator`."""
        return f"{self.operation}{self.digits}"

    @property
    def alphabet(self) -> str:
        """Digits, the sign and the equals sign."""
        return "".join(sorted(f"{SIGNS[self.operation]}0123456789="))

    @property
    def answer_length(self) -> int:
        """See `Question`."""
        return self.digits + 1 if self.operation == "addition" else 2 * self.digits

    @property
    def length(self) -> int:
        """Two numbers, two signs and the result."""
        return 2 * self.digits + 2 + self.answer_length

    def text(self, seed: int, index: int) -> str:
        """See `Generator`."""
        first, second = sorted(below(word, 10**self.digits) for word in words(seed, index, 2))
        result = first + second if self.operation == "addition" else first * second
        width = self.digits
        return f"{first:0{width}}{SIGNS[self.operation]}{second:0{width}}={result:0{self.answer_length}}"
