"""Save every `checkpoint.every` steps and after the last step of every start, whatever ended it."""

import math
from pathlib import Path

from pretrain.checkpoints.saver import Saver
from pretrain.errors import CopiesDifferError, TrainingDivergedError, UserError
from pretrain.training.checkpoint import remove_old, saver_of, start_save
from pretrain.training.divergence import loss_of_weights, set_unsound_aside
from pretrain.training.hooks.base import Hook
from pretrain.training.state import StepReport, TrainingRun


class Checkpoints(Hook):
    """Saves checkpoints beside training and removes the oldest. After the last step it waits until the save is complete."""

    def __init__(self) -> None:
        self._saver: Saver | None = None
        self._unproved: int | None = None

    def on_start(self, run: TrainingRun) -> None:
        """Called when the run has been restored."""
        self._saver = saver_of(run)

    def on_failure(self, run: TrainingRun) -> None:
        """Complete the save of an earlier step that is on its way."""
        self._complete_earlier(run)

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Save if a checkpoint is due or this is the last step of this start.

        After a skipped step nothing is saved: the weights are those of the step before.
        """
        settings, last = run.plan.settings.checkpoint, run.stop_reason is not None
        due = settings.every is not None and run.progress.step % settings.every == 0 and report.skipped is None
        if due or last:
            self._complete_earlier(run)
        try:
            self._running.poll()
            if due or last:
                self._save(run)
            if last or not settings.asynchronous:
                self._running.wait()
        except UserError as error:
            if last or isinstance(error, CopiesDifferError):
                raise
            self._warn(run, error)
        self._remove_replaced(run)

    def _complete_earlier(self, run: TrainingRun) -> None:
        """If the save that is on its way fails, that must not cost what comes now."""
        try:
            self._running.wait()
        except UserError as error:
            self._warn(run, error)

    @staticmethod
    def _warn(run: TrainingRun, error: UserError) -> None:
        if run.world.is_main:
            then = "Training goes on until the next save" if run.stop_reason is None else "The last step is saved now"
            print(f"warning: {error}. {then}", flush=True)

    def _save(self, run: TrainingRun) -> None:
        # After a signal there may be little time.
        if run.stop_reason in ("finished", "run.stop_after"):
            loss = loss_of_weights(run)
            if not math.isfinite(loss):
                raise TrainingDivergedError(_diverged(run, set_unsound_aside(run)))
            if run.is_plausible(loss, 1) and not run.progress.skipped_in_a_row:
                run.progress.sound_step = run.progress.step
        start_save(run, self._running)
        self._unproved = run.progress.step

    def _remove_replaced(self, run: TrainingRun) -> None:
        """Once a step has shown that a new checkpoint is sound, the one before need not stay."""
        if self._unproved is None or self._running.is_writing or run.progress.sound_step < self._unproved:
            return
        self._unproved = None
        if run.world.is_main:
            remove_old(run)

    @property
    def _running(self) -> Saver:
        assert self._saver is not None, "on_start was not called"
        return self._saver


def _diverged(run: TrainingRun, sound: Path | None) -> str:
    where = f"to resume from {sound}" if sound else "and --no-resume: no checkpoint has proved sound"
    return (
        f"step {run.progress.step}: the weights give no finite loss, and were not saved. Run the "
        f"same command with a lower optim.lr or optim.clip_norm, {where}"
    )
