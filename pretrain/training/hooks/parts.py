"""Gradient norms and update-to-weight ratios of the model's parts, at the steps that are logged."""

from pretrain.optimizer.update_norms import UpdateNorms, part_figures
from pretrain.training.hooks.base import Hook
from pretrain.training.state import StepReport, TrainingRun


class Parts(Hook):
    """Measures the update of every step that `log.every` divides. Comes before `Metrics`, which records the figures.

    Attributes:
        figures: of the step just taken, as from `part_figures`; None if it was not measured, or its update was skipped.
    """

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, float]] | None = None
        self._norms: UpdateNorms | None = None

    def on_start(self, run: TrainingRun) -> None:
        """Begin to observe the optimizer. A checkpoint has been restored."""
        engine = run.engine
        owned = {
            tensor: [piece for piece in pieces if engine.owns(piece.name)] for tensor, pieces in engine.pieces().items()
        }
        self._norms = UpdateNorms(engine.optimizer, owned)
        self._arm(run)

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Sum over the ranks what they have measured."""
        self.figures = None
        if self._observer.armed and report.skipped is None:
            squares = run.world.sum(self._observer.take())
            self.figures = part_figures(squares, report.grad_norm, run.plan.settings.optim.clip_norm)
        self._arm(run)

    def on_failure(self, run: TrainingRun) -> None:
        """Stop observing."""
        self.on_end(run)

    def on_end(self, run: TrainingRun) -> None:
        """Stop observing."""
        self._observer.close()

    def _arm(self, run: TrainingRun) -> None:
        self._observer.armed = (run.progress.step + 1) % run.plan.settings.log.every == 0

    @property
    def _observer(self) -> UpdateNorms:
        assert self._norms is not None, "on_start was not called"
        return self._norms
