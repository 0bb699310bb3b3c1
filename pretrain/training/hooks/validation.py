"""Validation NELBO during training, with the current weights."""

from collections.abc import Sequence

from data_pipeline.manifest import VALIDATION
from pretrain.evaluation.nelbo import Evaluator
from pretrain.evaluation.report import evaluation_settings
from pretrain.evaluation.result_files import save_result
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
        asked = evaluation_settings(run.blend, VALIDATION, settings.loops, settings.rows)
        about = {"step": run.progress.step, "weights": "raw", "settings": asked}
        for figures in results:
            content = {key: value for key, value in figures.items() if key != "name"}
            stem = f"train_step_{run.progress.step}{figures['name'] and '_' + figures['name']}"
            save_result(run.folder / "eval", stem, content | about)
            record = {"elapsed": run.progress.elapsed, "validation": figures | {"weights": "raw"}}
            self._recorder.record_validation(position(run) | record)
