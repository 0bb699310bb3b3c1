"""The training loop. Everything periodic is a hook."""

import time
from collections.abc import Sequence

from pretrain.training.divergence import DivergedError
from pretrain.training.hooks.base import Hook
from pretrain.training.state import StepReport, TrainingRun
from pretrain.training.step import SPIKE_WINDOW, train_step
from pretrain.training.stop_request import StopRequest


def train(run: TrainingRun, hooks: Sequence[Hook], stop: StopRequest) -> None:
    """Take steps until the schedule, `run.stop_after` or a `StopRequest` ends this start.

    Raises:
        DivergedError: on all ranks.
    """
    run.stop_reason = "finished" if run.progress.step >= run.plan.total_steps else None
    for hook in hooks:
        hook.on_start(run)
    last = min(run.plan.total_steps, run.progress.step + (run.plan.settings.run.stop_after or run.plan.total_steps))
    batches = run.batches.from_step(run.progress.data_step)
    while run.stop_reason is None:
        begin = time.perf_counter()
        run.world.enter_phase("next batch", run.progress.step + 1)
        micro_batches = next(batches)
        data_wait = time.perf_counter() - begin
        report = train_step(run, micro_batches, data_wait, stop.requested)
        _advance(run, report, time.perf_counter() - begin)
        if run.progress.skipped_in_a_row > run.plan.settings.train.max_skipped:
            batches.close()
            for hook in hooks:
                hook.on_failure(run)
            raise DivergedError(f"step {report.step}: {report.skipped} at {report.loops} loops")
        run.stop_reason = _stop_reason(run, last, report)
        for hook in hooks:
            run.world.enter_phase(type(hook).__name__.lower())
            hook.on_step(run, report)
    batches.close()
    for hook in reversed(hooks):
        hook.on_end(run)


def _advance(run: TrainingRun, report: StepReport, seconds: float) -> None:
    """Count a step."""
    progress, train = run.progress, run.plan.settings.train
    progress.flops += run.plan.step_flops(progress.step)
    progress.elapsed += seconds
    if report.skipped is not None:
        progress.skipped += 1
        progress.skipped_in_a_row += 1
    else:
        progress.skipped_in_a_row = 0
        if run.is_plausible(sum(report.bin_nats), sum(report.bin_tokens)):
            progress.sound_step = progress.step
        if train.spike_threshold is not None:
            progress.recent_losses = [*progress.recent_losses, report.loss][-SPIKE_WINDOW:]
    progress.step += 1


def _stop_reason(run: TrainingRun, last: int, report: StepReport) -> str | None:
    """The same on all ranks: a signal that one rank received stops all of them after the same step."""
    if run.progress.step >= run.plan.total_steps:
        return "finished"
    if run.progress.step >= last:
        return "run.stop_after"
    return "request" if report.stop_requested else None
