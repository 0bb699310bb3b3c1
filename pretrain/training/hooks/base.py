"""The interface of a hook."""

from pretrain.training.state import StepReport, TrainingRun


class Hook:
    """Something that happens beside training. Hooks run on every rank, in the order of the list in `start.py`.

    A hook overrides the methods that it needs. A method that communicates must do so on all ranks alike.
    """

    def on_start(self, run: TrainingRun) -> None:
        """Called before the first step of this start."""

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Called after each step. `run.stop_reason` is set if it is the last step of this start."""

    def on_failure(self, run: TrainingRun) -> None:
        """Called on all ranks when the run has diverged, before it goes back to a checkpoint or ends."""

    def on_end(self, run: TrainingRun) -> None:
        """Called after the last step of this start, unless an error ended it. The last hook comes first."""
