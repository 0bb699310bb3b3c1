"""Estimates over seeds with intervals, and where one curve reaches the level of another."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t distribution with 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval, which one seed does not give.

    Attributes:
        value: None if the quantity does not exist, such as the FLOPs at which a curve reaches a level that it never reaches.
        undecided: whether it exists or not depends on which seeds are taken, or was not trained for long enough to see.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    undecided: bool = False

    def __str__(self) -> str:
        if self.undecided:
            return (
                "not reached by some seeds, or not yet"
                if self.value is None
                else f"{self.value:.3g} (not by all seeds)"
            )
        if self.value is None:
            return "not reached"
        spread = "" if self.low is None or self.high is None else f" ({self.low:.3g} to {self.high:.3g})"
        return f"{self.value:.3g}{spread}"


def jackknife(statistic: Callable[[Sequence[int]], float | None], seeds: Sequence[int], log: bool = False) -> Interval:
    """A statistic of several seeds with the t interval of its pseudo-values (Tukey 1958).

    For a mean it is the ordinary t interval.

    Args:
        statistic: of some of the seeds; None where it does not exist.
        log: compute the interval of the logarithm, for a ratio.
    """
    whole, count = statistic(seeds), len(seeds)
    if count < 2:
        return Interval(whole)
    parts = [statistic([s for s in seeds if s != left]) for left in seeds]
    if whole is None or any(part is None for part in parts):
        return Interval(whole, undecided=any((part is None) != (whole is None) for part in parts))
    scale, back = (math.log, math.exp) if log else (float, float)
    centre = scale(whole)
    pseudo = np.array([count * centre - (count - 1) * scale(part) for part in parts if part is not None])
    half = T_975[count - 2] * float(pseudo.std(ddof=1)) / math.sqrt(count)
    return Interval(whole, back(centre - half), back(centre + half))


Curve = tuple[np.ndarray, np.ndarray]
"""Positions, ascending and above 0, and values, both [n]."""


def aligned(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Several trainings of the same length at equal shares of it: mean positions [n], and the value of each [curves, n].

    The shares are those at which a value of some curve is known, from the first that all curves have; between them, values are
    interpolated linearly in the logarithm. So trainings at different speeds are averaged at equal progress.
    """
    shares, end = [x / x[-1] for x, _ in curves], float(np.mean([x[-1] for x, _ in curves]))
    inside = np.unique(np.concatenate(shares))
    inside = inside[inside >= max(share[0] for share in shares)]
    values = [np.interp(np.log(inside), np.log(share), y) for share, (_, y) in zip(shares, curves, strict=True)]
    return inside * end, np.array(values)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean of several trainings of the same length, see `aligned`."""
    positions, values = aligned(curves)
    return positions, values.mean(axis=0)


def position_of(curve: Curve, level: float) -> float | None:
    """Where a curve first comes down to a level; None if it never does.

    Between points, the lowest value so far is interpolated linearly in the logarithm of the position.
    """
    x, y = curve
    lowest = np.minimum.accumulate(y)
    if lowest[-1] > level:
        return None
    after = int(np.argmax(lowest <= level))
    if after == 0:
        return float(x[0])
    share = (lowest[after - 1] - level) / (lowest[after - 1] - lowest[after])
    return float(np.exp(np.log(x[after - 1]) + share * (np.log(x[after]) - np.log(x[after - 1]))))


def to_tie(curves: Sequence[Curve], reference: Sequence[Curve]) -> float | None:
    """How many times less a method needs than the reference: the reference's end, divided by where the mean of the method's
    curves reaches the mean of the reference's last values. None if it does not get there.
    """
    level = float(np.mean([y[-1] for _, y in reference]))
    position = position_of(mean_curve(curves), level)
    return None if position is None else end_of(reference) / position


def end_of(curves: Sequence[Curve]) -> float:
    """Mean of the last positions."""
    return float(np.mean([x[-1] for x, _ in curves]))
