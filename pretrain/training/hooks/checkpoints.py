"""Save every `checkpoint.every` steps and after the last step of every start, whatever ended it."""

from pretrain.checkpoints.saver import Saver
from pretrain.errors import UserError
from pretrain.training.checkpoint import saver_of, start_save
from pretrain.training.hooks.base import Hook
from pretrain.training.state import StepReport, TrainingRun


class Checkpoints(Hook):
    """Saves checkpoints beside training and removes the oldest. After the last step it waits until the save is complete."""

    def __init__(self) -> None:
        self._saver: Saver | None = None

    def on_start(self, run: TrainingRun) -> None:
        """Called when the run has been restored."""
        self._saver = saver_of(run)

    def on_failure(self, run: TrainingRun) -> None:
        """Complete the save of an earlier step that is on its way."""
        assert self._saver is not None, "on_start was not called"
        self._saver.wait()

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Save if a checkpoint is due or this is the last step of this start."""
        assert self._saver is not None, "on_start was not called"
        settings, last = run.plan.settings.checkpoint, run.stop_reason is not None
        due = settings.every is not None and run.progress.step % settings.every == 0
        try:
            self._saver.poll()
            if due or last:
                start_save(run, self._saver)
            if last or not settings.asynchronous:
                self._saver.wait()
        except UserError as error:
            if last:
                raise
            if run.world.is_main:
                print(f"warning: {error}. Training goes on until the next save", flush=True)
