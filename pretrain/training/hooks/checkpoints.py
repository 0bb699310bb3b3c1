"""Save every so many steps and at the end of every start, whatever ended it."""

from data_pipeline.dataset.blend import Blend
from pretrain.training.checkpoint import prune, save_checkpoint
from pretrain.training.loop import TrainingRun
from pretrain.training.step import StepReport


class Checkpoints:
    """Saves complete checkpoints and removes the oldest."""

    def __init__(self, blend: Blend) -> None:
        self._blend = blend

    def on_start(self, run: TrainingRun) -> None:
        """Nothing to do: a run that took no step has nothing to lose."""

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Save when it is time or when this is the last step of this start."""
        settings = run.plan.settings.checkpoint
        due = settings.every is not None and run.progress.step % settings.every == 0
        if due or run.stop_reason is not None:
            folder = save_checkpoint(run, self._blend)
            if run.world.is_main:
                prune(run.folder, settings.keep)
                print(f"saved {folder}", flush=True)

    def on_end(self, run: TrainingRun) -> None:
        """Nothing to do."""
