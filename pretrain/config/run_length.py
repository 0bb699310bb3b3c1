"""The length of a run: steps until `train.steps` or `train.max_flops` ends it. Imports no torch.

Everything that is a share of the run follows from this one number: start and ramp of the loops, the decay of the learning
rate, and the end itself. Start and ramp also decide what a step costs, so they are solved together with a budget.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from model.loops import LoopSchedule

BLOCK = 16_384
"""Steps whose FLOPs are added up at once."""


@dataclass(frozen=True)
class Spent:
    """What a run has used before this start, from its checkpoint.

    Attributes:
        step: optimizer steps taken.
        flops: training FLOPs of the loops that they ran.
    """

    step: int = 0
    flops: float = 0.0


@dataclass(frozen=True)
class RunLength:
    """How a run ends.

    Attributes:
        steps: `train.steps`; None for no such limit.
        max_flops: `train.max_flops`; None for no budget.
        start, ramp: `train.loop_start` and `train.loop_ramp`, shares of the run.
        schedule: S of every step, given the numbers of steps of the start and of the ramp.
        flops: of a step with S = 1, and of one more pass: they are linear in S.
        spent: before this start. Later steps are counted with the settings of this start.
    """

    steps: int | None
    max_flops: float | None
    start: float
    ramp: float
    schedule: Callable[[int, int], LoopSchedule]
    flops: tuple[float, float]
    spent: Spent = field(default_factory=Spent)

    def ramp_steps(self, total_steps: int) -> tuple[int, int]:
        """Steps with S = 1 at the beginning, and steps over which the largest S then grows."""
        return math.ceil(self.start * total_steps), math.ceil(self.ramp * total_steps)

    def total_steps(self) -> int:
        """Steps until the run ends; the step that reaches the budget is the last one.

        A longer run has a longer start and ramp, which make its first steps cheaper, so that the budget lasts longer. Starting
        without either, this rises to the smallest length that agrees with its own start and ramp.
        """
        total = self._steps_with((0, 0))
        while (self.start or self.ramp) and (longer := self._steps_with(self.ramp_steps(total))) != total:
            total = longer
        return total

    def _steps_with(self, ramp_steps: tuple[int, int]) -> int:
        """Steps until the run ends, with a start and a ramp of a given length."""
        if self.max_flops is None:
            assert self.steps is not None
            return self.steps
        schedule, (once, more) = self.schedule(*ramp_steps), self.flops
        first, spent = self.spent.step, self.spent.flops
        if spent >= self.max_flops:
            return first if self.steps is None else min(first, self.steps)
        while self.steps is None or first < self.steps:
            totals = spent + np.cumsum(once + more * (schedule.between(first, first + BLOCK) - 1))
            if totals[-1] >= self.max_flops:
                first += int(np.searchsorted(totals, self.max_flops)) + 1
                break
            first, spent = first + BLOCK, totals[-1]
        return first if self.steps is None else min(first, self.steps)
