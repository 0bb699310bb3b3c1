"""How many passes of the looped block a training step makes: S as a function of (seed, step). Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from model.noise import Stream, uniform

LoopDistribution = Annotated[int, Field(ge=1)] | Literal["uniform", "inverse_flops"]
"""A fixed S, S ~ Uniform{1..S_max} (the paper), or p(S) proportional to 1 / F(S) (looped-UDLM's second run)."""


@dataclass(frozen=True)
class LoopSchedule:
    """S of every optimiser step, the same on all ranks and micro-batches because nobody draws it: it is computed.

    Attributes:
        seed: the run's seed.
        maximum: S_max.
        distribution: see LoopDistribution.
        ramp_steps: S_max grows linearly from 1 to `maximum` over the first so many steps; 0 for no ramp.
        flops: training FLOPs of one token at S passes, for `inverse_flops`.
    """

    seed: int
    maximum: int
    distribution: LoopDistribution
    ramp_steps: int
    flops: Callable[[int], float]

    def maximum_at(self, step: int) -> int:
        """S_max of `step` (the first step is 0) under the ramp."""
        if step >= self.ramp_steps:
            return self.maximum
        return 1 + (self.maximum - 1) * step // self.ramp_steps

    def probabilities(self, step: int) -> np.ndarray:
        """p(S = 1), ..., p(S = S_max) at `step`, float64 [S_max of that step]."""
        maximum = self.maximum_at(step)
        if isinstance(self.distribution, int):
            weights = np.zeros(maximum)
            weights[min(self.distribution, maximum) - 1] = 1.0
        elif self.distribution == "uniform":
            weights = np.ones(maximum)
        else:
            weights = 1.0 / np.array([self.flops(loops) for loops in range(1, maximum + 1)])
        return weights / weights.sum()

    def __call__(self, step: int) -> int:
        """S of optimiser step `step`, which counts from 0."""
        draw = uniform(self.seed, Stream.LOOPS, step, 1)[0]
        cumulative = np.cumsum(self.probabilities(step))
        return 1 + int(np.searchsorted(cumulative[:-1], draw, side="right"))

    def mean(self, step: int) -> float:
        """E[S] at `step`."""
        probabilities = self.probabilities(step)
        return float(probabilities @ np.arange(1, len(probabilities) + 1))
