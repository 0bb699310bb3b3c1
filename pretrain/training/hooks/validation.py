"""Validation NELBO during training, with the current weights."""

from collections.abc import Sequence

from pretrain.evaluation.nelbo import Evaluator
from pretrain.evaluation.report import write_figures
from pretrain.evaluation.sets import EvaluationSet, evaluate_sets
from pretrain.training.hooks.base import Hook
from pretrain.training.hooks.metrics import position
from pretrain.training.hooks.recorder import Recorder
from pretrain.training.state import StepReport, TrainingRun


class Validation(Hook):
    """Evaluates every `eval.every` steps at `eval.loops`. Its noise is frozen and does not touch that of training."""

    def __init__(self, sets: Sequence[EvaluationSet], recorder: Recorder) -> None:
        self._sets, self._recorder = sets, recorder

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Evaluate if it is due. All ranks share the rows."""
        settings = run.plan.settings.eval
        if settings.every is None or run.progress.step % settings.every:
            return
        evaluator = Evaluator(
            run.engine.logits, run.world, run.plan.settings.train.attention, settings.rows, settings.batch_size
        )
        run.engine.set_training(False)
        results = evaluate_sets(evaluator, self._sets, settings.loops)
        run.engine.set_training(True)
        if not run.world.is_main:
            return
        step = run.progress.step
        for figures in results:
            write_figures(run.folder, f"train_step_{step}", figures | {"step": step, "weights": "raw"})
            record = {"elapsed": run.progress.elapsed, "validation": figures | {"weights": "raw"}}
            self._recorder.record_validation(position(run) | record)
