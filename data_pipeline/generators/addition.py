"""Sums of two numbers of D digits, such as 037+981=1018: zero-padded, so that all texts have the same length."""

from dataclasses import dataclass

from data_pipeline.generators.generator import below, words

MAX_DIGITS = 18


@dataclass(frozen=True)
class Addition:
    """a+b=c, with a and b uniform below 10**digits.

    Of the two orders of a sum only the one with the smaller number first is a text: a sum of the validation split does not occur
    in the training split with its numbers exchanged.
    """

    digits: int
    version: int = 1

    @property
    def name(self) -> str:
        """See `Generator`."""
        return f"addition{self.digits}"

    @property
    def alphabet(self) -> str:
        """Digits, plus and equals sign."""
        return "+0123456789="

    @property
    def length(self) -> int:
        """Two numbers, the sum, which has one more digit, and two signs."""
        return 3 * self.digits + 3

    def text(self, seed: int, index: int) -> str:
        """See `Generator`."""
        first, second = sorted(below(word, 10**self.digits) for word in words(seed, index, 2))
        width = self.digits
        return f"{first:0{width}}+{second:0{width}}={first + second:0{width + 1}}"
