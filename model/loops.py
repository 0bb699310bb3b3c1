"""The loop schedule: S, the number of passes of the mid block in a training step, as a function of (seed, step).

LoopMDM (arXiv 2605.26106) draws one S ~ Uniform{1, ..., S_max} per training step and uses it for the whole batch. This
module does not import torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from model.noise import Stream, uniform

LoopDistribution = Annotated[int, Field(ge=1)] | Literal["uniform", "inverse_flops"]
"""A fixed S; "uniform": S ~ Uniform{1, ..., S_max}, as in LoopMDM; "inverse_flops": p(S) proportional to 1 / F(S), the
FLOPs of a step with S passes, as in the second run of looped-UDLM (huggingface.co/saitejautpala/looped_udlm)."""

BLOCK = 256
"""Steps that share one index of the random stream. Changing it changes the numbers of every run."""


@dataclass(frozen=True)
class LoopSchedule:
    """S of every optimizer step. It is computed from (seed, step), so all ranks and micro-batches have the same S.

    Attributes:
        seed: the run's seed.
        maximum: S_max.
        distribution: see `LoopDistribution`.
        ramp_steps: number of steps over which S_max grows linearly from 1 to `maximum`; 0 for no ramp.
        flops: F(S), the training FLOPs of one token with S passes, for "inverse_flops".
        start_steps: number of steps before the ramp, with S = 1.
        tail: probability of an S beyond S_max: uniform on S_max + 1, ..., 2 S_max.
    """

    seed: int
    maximum: int
    distribution: LoopDistribution
    ramp_steps: int
    flops: Callable[[int], float]
    start_steps: int = 0
    tail: float = 0.0

    def maximum_at(self, step: int) -> int:
        """S_max at `step`, counted from 0, with the start and the ramp applied."""
        if step < self.start_steps:
            return 1
        if (ramped := step - self.start_steps) >= self.ramp_steps:
            return self.maximum
        return 1 + (self.maximum - 1) * ramped // self.ramp_steps

    def probabilities(self, step: int) -> np.ndarray:
        """p(S = 1), p(S = 2), ... at `step`, float64 [S_max at that step; twice as many with a tail]."""
        if step < self.start_steps:
            return np.ones(1)
        maximum = self.maximum_at(step)
        if isinstance(self.distribution, int):
            weights = np.zeros(maximum)
            weights[min(self.distribution, maximum) - 1] = 1.0
        elif self.distribution == "uniform":
            weights = np.ones(maximum)
        else:
            weights = 1.0 / np.array([self.flops(loops) for loops in range(1, maximum + 1)])
        if not self.tail:
            return weights / weights.sum()
        return np.append((1 - self.tail) * weights / weights.sum(), np.full(maximum, self.tail / maximum))

    def __call__(self, step: int) -> int:
        """S of optimizer step `step`, counted from 0."""
        return int(self.between(step, step + 1)[0])

    def between(self, first: int, last: int) -> np.ndarray:
        """S of the steps first, ..., last - 1, int64 [last - first]. Inverts the cumulative distribution."""
        draws = self._draws(first, last)
        loops = np.empty(last - first, dtype=np.int64)
        begin = first
        while begin < last:  # one pass for each set of probabilities in the interval
            end = min(last, self._same_maximum_until(begin))
            chosen = slice(begin - first, end - first)
            cumulative = np.cumsum(self.probabilities(begin))
            loops[chosen] = 1 + np.searchsorted(cumulative[:-1], draws[chosen], side="right")
            begin = end
        return loops

    def _same_maximum_until(self, step: int) -> int | float:
        """The first step after `step` that may have other probabilities; infinity after the ramp."""
        if step < self.start_steps:
            return self.start_steps
        if step - self.start_steps >= self.ramp_steps:
            return math.inf
        # In the ramp, maximum_at(start + n) >= m if and only if (maximum - 1) n >= (m - 1) ramp_steps.
        steps = -(-self.maximum_at(step) * self.ramp_steps // max(1, self.maximum - 1))
        return self.start_steps + min(self.ramp_steps, steps)

    def _draws(self, first: int, last: int) -> np.ndarray:
        """One uniform number per step, float64 [last - first]; drawn in blocks, which makes a million steps fast."""
        blocks = range(first // BLOCK, (last - 1) // BLOCK + 1)
        drawn = np.concatenate([uniform(self.seed, Stream.LOOPS, block, BLOCK) for block in blocks])
        return drawn[first - blocks[0] * BLOCK : last - blocks[0] * BLOCK]

    def expected_passes(self, first: int, last: int) -> float:
        """Sum of E[S] over the steps first, ..., last - 1."""
        total, begin = 0.0, first
        while begin < last:  # one term for each S_max in the interval
            end = min(last, self._same_maximum_until(begin))
            total += (end - begin) * self.mean(begin)
            begin = end
        return total

    def mean(self, step: int) -> float:
        """E[S] at `step`."""
        probabilities = self.probabilities(step)
        return float(probabilities @ np.arange(1, len(probabilities) + 1))
