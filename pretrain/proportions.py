"""Proportions and their 95% intervals, which say something where all items agree and the standard error is 0."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

NORMAL_975 = 1.959963984540054
"""97.5% quantile of the normal distribution."""

INTERVAL_NOTE = "±: standard error; in parentheses: 95% interval of a proportion"

Interval = tuple[float, float]


def wilson_interval(share: float, count: int) -> Interval:
    """95% score interval of a proportion (Wilson 1927): the proportions that a test would not reject.

    Args:
        share: of `count` items, at least one.
    """
    square = NORMAL_975**2 / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    # Rounding would leave 1e-18 or 1 - 1e-16 where the interval ends at 0 or 1.
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def difference_interval(own: float, other: float, count: int, correlation: float = 0.0) -> Interval:
    """95% interval of `own` minus `other`, two proportions of `count` items each, from their Wilson intervals.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data", Statistics in
    Medicine 17 (1998), method 10; without a correlation, the method for independent items.
    """
    (low, high), (other_low, other_high) = wilson_interval(own, count), wilson_interval(other, count)

    def distance(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))

    below = distance(own - low, other_high - other)
    above = distance(high - own, other - other_low)
    return own - other - below, own - other + above


def paired_difference_interval(own: np.ndarray, other: np.ndarray) -> Interval:
    """95% interval of the difference of two proportions of the same items, whose values are 0 or 1 [n]."""
    count, both = len(own), float((own * other).sum())
    ones, other_ones = float(own.sum()), float(other.sum())
    product = both * (count - ones - other_ones + both) - (ones - both) * (other_ones - both)
    if product > 0:  # Newcombe's continuity correction
        product = max(0.0, product - count / 2)
    scale = math.sqrt(ones * (count - ones) * other_ones * (count - other_ones))
    return difference_interval(ones / count, other_ones / count, count, product / scale if scale else 0.0)


def interval_of(figures: Mapping[str, Any], name: str) -> Interval | None:
    """The 95% interval of a figure; None if it has none: it is no proportion, or the result is from before there were any."""
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def with_error(value: float, error: float | None, interval: Interval | None = None, sign: str = "") -> str:
    """A value, its standard error and, in parentheses, its interval; `none` for NaN. An error of 0 beside an interval misleads."""
    if math.isnan(value):
        return "none"
    shown = f"{value:{sign}.4f}"
    if error is not None and not (error == 0 and interval):
        shown += f" ± {error:.4f}"
    return shown if interval is None else f"{shown} ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"
