"""The training loop. Everything periodic is a hook."""

import time
from collections.abc import Sequence

from pretrain.errors import UserError
from pretrain.training.hooks.base import Hook
from pretrain.training.state import StepReport, TrainingRun
from pretrain.training.step import train_step
from pretrain.training.stop_request import StopRequest


def train(run: TrainingRun, hooks: Sequence[Hook], stop: StopRequest) -> None:
    """Take steps until the schedule, `run.stop_after` or a signal ends this start.

    Raises:
        UserError: the loss or the gradient norm is not finite.
    """
    for hook in hooks:
        hook.on_start(run)
    last = min(run.plan.total_steps, run.progress.step + (run.plan.settings.run.stop_after or run.plan.total_steps))
    batches = run.batches.from_step(run.progress.step)
    while run.stop_reason is None:
        begin = time.perf_counter()
        run.world.enter_phase("next batch", run.progress.step + 1)
        micro_batches = next(batches)
        data_wait = time.perf_counter() - begin
        try:
            report = train_step(run, micro_batches, data_wait, stop.requested)
        except FloatingPointError as error:
            for hook in hooks:
                hook.on_failure(run)
            raise UserError(_not_finite(run, error)) from error
        run.progress.flops += run.plan.step_flops(run.progress.step)
        run.progress.elapsed += time.perf_counter() - begin
        run.progress.step += 1
        run.stop_reason = _stop_reason(run, last, report)
        for hook in hooks:
            run.world.enter_phase(type(hook).__name__.lower())
            hook.on_step(run, report)
    batches.close()
    for hook in hooks:
        hook.on_end(run)


def _stop_reason(run: TrainingRun, last: int, report: StepReport) -> str | None:
    """The same on all ranks: a signal that one rank received stops all of them after the same step."""
    if run.progress.step >= run.plan.total_steps:
        return "finished"
    if run.progress.step >= last:
        return "run.stop_after"
    return "signal" if report.stop_requested else None


def _not_finite(run: TrainingRun, error: FloatingPointError) -> str:
    step = run.progress.step
    return (
        f"step {step + 1}: {error} at {run.plan.loops(step)} loops. The update was not applied and nothing was saved. Run the "
        f"same command again, with a lower optim.lr or optim.clip_norm, to resume from the last checkpoint in "
        f"{run.folder / 'checkpoints'}"
    )
