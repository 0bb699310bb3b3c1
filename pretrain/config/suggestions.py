"""Numbers that would do, for error messages."""

from collections.abc import Iterable


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, smallest first."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def nearest(choices: Iterable[int], wanted: int) -> str:
    """The nearest choice below and above `wanted`, such as `4 or 8`; empty if there is none."""
    ordered = sorted(choices)
    below, above = [n for n in ordered if n <= wanted][-1:], [n for n in ordered if n > wanted][:1]
    return " or ".join(str(n) for n in below + above)
