"""Which corpus each training sample comes from: a function of the sample's index and one small table.

Weights are exact fractions, so the order repeats after a cycle; where it would be longer than `MAX_CYCLE` samples, the shares
are rounded to that cycle, by less than 1 / MAX_CYCLE. Within a cycle every sample of a corpus has a window of
slots, and each slot is given to the open window that ends first, which satisfies all windows whenever that is possible. The
windows are the narrowest for which it always is (Tijdeman 1980, "The chairman assignment problem"): with K corpora, after any
number n of samples, a corpus with share w has had w * n samples, with a deviation of at most 1 - 1 / (2K - 2).

Counted from the first sample, shares are therefore exact to one sample. Between any two samples the deviation is the
difference of two such deviations: at most one for two corpora, and below two for more, where no order is exact to one sample
in every window except for a few special weights (Fraenkel's conjecture).
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError

# The table of a cycle this long takes a tenth of a second to make and a megabyte.
MAX_CYCLE = 100_000
# In samples per cycle: a smaller share would be rounded up to more than twice what was asked for.
SMALLEST_SHARE = Fraction(1, 2)


def fair_order(counts: Sequence[int]) -> NDArray[np.int64]:
    """An order of sum(counts) slots in which corpus k has counts[k] slots, spread evenly as described above."""
    total, parts = sum(counts), max(1, 2 * len([count for count in counts if count]) - 2)

    def opens(k: int) -> int:
        """First slot at which corpus k can have one more sample without being too far ahead."""
        return -(-(done[k] * parts + 1) * total // (parts * counts[k])) - 1

    def closes(k: int) -> int:
        """First slot by which corpus k is too far behind without one more sample."""
        return (done[k] * parts + parts - 1) * total // (parts * counts[k]) + 1

    order = np.empty(total, np.int64)
    done = [0] * len(counts)
    opening: defaultdict[int, list[int]] = defaultdict(list)
    for k, count in enumerate(counts):
        if count:
            opening[opens(k)].append(k)
    ready: list[tuple[int, int]] = []
    for slot in range(total):
        for k in opening.pop(slot, ()):
            heapq.heappush(ready, (closes(k), k))
        _, k = heapq.heappop(ready)
        order[slot] = k
        done[k] += 1
        if done[k] < counts[k]:
            opening[max(opens(k), slot + 1)].append(k)
    return order


@dataclass(frozen=True)
class _Interval:
    """An interval of samples with the same corpora.

    Attributes:
        start: its first sample.
        counts: samples of each corpus in a cycle, int64 [corpora]; 0 for one that has reached its cap.
        before: samples of each corpus before the interval, int64 [corpora].
    """

    start: int
    counts: NDArray[np.int64]
    before: NDArray[np.int64]

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Corpus of each slot of a cycle, [cycle]."""
        return fair_order(self.counts.tolist())

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """For each slot of a cycle, the number of earlier slots with the same corpus, [cycle]."""
        ranks = np.empty(self.order.size, np.int64)
        for k in np.flatnonzero(self.counts):
            ranks[self.order == k] = np.arange(self.counts[k])
        return ranks

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Corpus of each sample, and the samples of that corpus before it."""
        cycle, slot = np.divmod(samples - self.start, self.order.size)
        corpus = self.order[slot]
        return corpus, self.before[corpus] + cycle * self.counts[corpus] + self.ranks[slot]

    def end(self, caps: Sequence[int | None]) -> int | None:
        """End of the interval: the sample after which the first corpus has reached its cap; None when no cap ends it."""
        ends = []
        for k, cap in enumerate(caps):
            if cap is not None and self.counts[k]:
                cycle, rank = divmod(cap - int(self.before[k]) - 1, int(self.counts[k]))
                slot = np.flatnonzero(self.order == k)[rank]
                ends.append(self.start + cycle * self.order.size + int(slot) + 1)
        return min(ends, default=None)

    def counted(self, end: int) -> NDArray[np.int64]:
        """Samples of each corpus before sample `end`, which is in the interval or its end; int64 [corpora]."""
        cycles, slots = divmod(end - self.start, self.order.size)
        return self.before + cycles * self.counts + np.bincount(self.order[:slots], minlength=self.counts.size)


class BlendSchedule:
    """Samples of several corpora in fixed shares; when a corpus reaches its cap, its share goes to the others.

    Attributes:
        num_samples: samples until every corpus has reached its cap; None when a corpus has no cap.

    Args:
        weights: of the corpora, above 0; only their ratios matter.
        caps: largest number of samples to take from each corpus; None for no limit.
        names: of the corpora, for messages.

    Raises:
        DataError: a weight is too small a part of the sum.
    """

    def __init__(self, weights: Sequence[Fraction], caps: Sequence[int | None], names: Sequence[str] = ()) -> None:
        self._intervals: list[_Interval] = []
        self.num_samples: int | None = None
        start, before = 0, np.zeros(len(weights), np.int64)
        while True:
            left = [cap is None or before[k] < cap for k, cap in enumerate(caps)]
            if not any(left):
                self.num_samples = start
                return
            shares = [w if open_ else Fraction(0) for w, open_ in zip(weights, left, strict=True)]
            interval = _Interval(start, _cycle(shares, names or range(1, len(weights) + 1)), before)
            self._intervals.append(interval)
            end = interval.end(caps)
            if end is None:
                return
            start, before = end, interval.counted(end)

    def locate(self, samples: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Corpus of each sample index [n], and which sample of that corpus it is, counted from 0; int64 [n] both.

        Raises:
            IndexError: an index is negative or not below `num_samples`.
        """
        samples = np.asarray(samples, np.int64)
        if samples.size and (samples.min() < 0 or (self.num_samples is not None and samples.max() >= self.num_samples)):
            raise IndexError(
                f"samples {samples.min()} to {samples.max()} of a blend of {self.num_samples or 'any number of'} samples"
            )
        corpus, count = np.empty_like(samples), np.empty_like(samples)
        number = np.searchsorted([interval.start for interval in self._intervals], samples, side="right") - 1
        for i in np.unique(number):
            corpus[number == i], count[number == i] = self._intervals[i].locate(samples[number == i])
        return corpus, count

    def counts(self, end: int) -> NDArray[np.int64]:
        """Samples of each corpus among the first `end`, int64 [corpora]."""
        return next(interval for interval in reversed(self._intervals) if interval.start <= end).counted(end)


def _cycle(weights: Sequence[Fraction], names: Sequence[object]) -> NDArray[np.int64]:
    """Samples of each corpus in a cycle, int64 [corpora]: the ratio of the weights, rounded if the cycle is too long for it.

    Rounding is by largest remainders, and leaves each corpus at least one sample.
    """
    total = sum(weights)
    scale = math.lcm(*((weight / total).denominator for weight in weights))
    if scale <= MAX_CYCLE:
        return np.array([int(weight / total * scale) for weight in weights], np.int64)
    shares = [weight / total * MAX_CYCLE for weight in weights]
    if any(0 < share < SMALLEST_SHARE for share in shares):
        smallest, k = min((weight, k) for k, weight in enumerate(weights) if weight)
        raise DataError(
            f"the weight {float(smallest):g} of corpus {names[k]} is less than one part in "
            f"{int(MAX_CYCLE / SMALLEST_SHARE):,} of the sum of the weights; raise it or leave the corpus out"
        )
    counts = [math.floor(share) for share in shares]
    remainders = sorted(range(len(shares)), key=lambda k: (counts[k] - shares[k], k))
    for k in remainders[: MAX_CYCLE - sum(counts)]:
        counts[k] += 1
    counts = [max(1, count) if share else 0 for count, share in zip(counts, shares, strict=True)]
    return np.array(counts, np.int64) // math.gcd(*counts)
