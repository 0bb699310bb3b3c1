"""Save every `checkpoint.every` steps and after the last step of every start, whatever ended it."""

from pretrain.training.checkpoint import prune, save_checkpoint
from pretrain.training.hooks.base import Hook
from pretrain.training.state import StepReport, TrainingRun


class Checkpoints(Hook):
    """Saves checkpoints and removes the oldest."""

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Save if a checkpoint is due or this is the last step of this start."""
        settings = run.plan.settings.checkpoint
        due = settings.every is not None and run.progress.step % settings.every == 0
        if due or run.stop_reason is not None:
            folder = save_checkpoint(run)
            if run.world.is_main:
                prune(run.folder, settings.keep)
                print(f"saved {folder}", flush=True)
