"""The training loop. Everything periodic is a hook."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pretrain.config.run_plan import RunPlan
from pretrain.errors import UserError
from pretrain.parallel.engine import Engine
from pretrain.parallel.world import World
from pretrain.training.batches import Batches
from pretrain.training.step import StepReport, train_step
from pretrain.training.stop_request import StopRequest


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint.

    Attributes:
        step: optimiser steps taken.
        flops: training FLOPs of the loops actually run, over all ranks.
        elapsed: seconds of training, over all starts.
    """

    step: int = 0
    flops: float = 0.0
    elapsed: float = 0.0


@dataclass
class TrainingRun:
    """Everything a hook may look at.

    Attributes:
        data_wait: seconds that the step just taken waited for its batch.
        stop_reason: why this start ends after the step just taken, or None.
    """

    plan: RunPlan
    world: World
    engine: Engine
    batches: Batches
    folder: Path
    progress: Progress
    data_wait: float = 0.0
    stop_reason: str | None = None

    @property
    def samples(self) -> int:
        """Rows consumed: the index of the next sample."""
        return self.progress.step * self.plan.settings.train.global_batch_size

    @property
    def tokens(self) -> int:
        """Tokens consumed."""
        return self.progress.step * self.plan.tokens_per_step


class Hook(Protocol):
    """Something that happens beside training. Hooks run in order, on every rank."""

    def on_start(self, run: TrainingRun) -> None:
        """Before the first step of this start."""

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """After a step; `run.stop_reason` tells whether it is the last one."""

    def on_end(self, run: TrainingRun) -> None:
        """After the last step of this start."""


def train(run: TrainingRun, hooks: Sequence[Hook], stop: StopRequest) -> None:
    """Take steps until the schedule, `run.stop_after` or a signal ends this start.

    Raises:
        UserError: the loss or the gradient is no longer finite.
    """
    for hook in hooks:
        hook.on_start(run)
    last = min(run.plan.total_steps, run.progress.step + (run.plan.settings.run.stop_after or run.plan.total_steps))
    batches = run.batches.from_step(run.progress.step)
    while run.stop_reason is None:
        begin = time.perf_counter()
        run.world.enter_phase("next batch", run.progress.step + 1)
        micro_batches = next(batches)
        run.data_wait = time.perf_counter() - begin
        report = train_step(run.engine, run.world, run.plan, run.progress.step, micro_batches)
        _refuse_non_finite(run, report)
        run.progress.flops += run.plan.step_flops(run.progress.step)
        run.progress.elapsed += time.perf_counter() - begin
        run.progress.step += 1
        run.world.enter_phase("stop request")
        run.stop_reason = _stop_reason(run, last, stop)
        for hook in hooks:
            run.world.enter_phase(type(hook).__name__.lower())
            hook.on_step(run, report)
    batches.close()
    for hook in hooks:
        hook.on_end(run)


def _stop_reason(run: TrainingRun, last: int, stop: StopRequest) -> str | None:
    """All ranks get the same answer: a signal that one rank saw stops all after the same step."""
    if run.progress.step >= run.plan.total_steps:
        return "finished"
    if run.progress.step >= last:
        return "run.stop_after"
    return "signal" if run.world.any(stop.requested) else None


def _refuse_non_finite(run: TrainingRun, report: StepReport) -> None:
    if math.isfinite(report.loss) and math.isfinite(report.grad_norm):
        return
    raise UserError(
        f"step {report.step}: loss {report.loss}, gradient norm {report.grad_norm} at {report.loops} loops; the weights are "
        f"spoilt and were not saved. Start again from the last checkpoint in {run.folder / 'checkpoints'} with a lower "
        "optim.lr or optim.clip_norm"
    )
