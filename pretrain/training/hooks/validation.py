"""Validation NELBO during training, with the current weights."""

from collections.abc import Sequence
from typing import Any

from data_pipeline.manifest import VALIDATION
from pretrain.config.run_folder import has_record
from pretrain.evaluation.nelbo import EvaluationStopped, Evaluator
from pretrain.evaluation.report import evaluation_settings
from pretrain.evaluation.result_files import save_result
from pretrain.evaluation.sets import EvaluationSet, evaluate_sets
from pretrain.training.hooks.base import Hook
from pretrain.training.hooks.metrics import position
from pretrain.training.hooks.recorder import Recorder
from pretrain.training.state import StepReport, TrainingRun
from pretrain.training.stop_request import StopRequest


class Validation(Hook):
    """Evaluates every `eval.every` steps at `eval.loops`. Its noise is frozen and does not touch that of training.

    A request to stop ends an evaluation. The next start makes up for it.
    """

    def __init__(self, sets: Sequence[EvaluationSet], recorder: Recorder, stop: StopRequest) -> None:
        self._sets, self._recorder, self._stop = sets, recorder, stop

    def on_start(self, run: TrainingRun) -> None:
        """Evaluate what was restored if that is due and was not done."""
        if validation_is_missing(run):
            self._evaluate(run)

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Evaluate if it is due. All ranks share the rows."""
        if _is_due(run) and not self._evaluate(run):
            run.stop_reason = "request"

    def _evaluate(self, run: TrainingRun) -> bool:
        """Returns whether it came to an end."""
        settings, causal = run.plan.settings.eval, run.plan.settings.model.causal
        evaluator = Evaluator(
            run.engine.logits, run.world, run.plan.settings.train.attention, settings.rows, settings.batch_size,
            lambda: self._stop.requested, causal,
        )  # fmt: skip
        run.engine.set_training(False)
        try:
            results = evaluate_sets(evaluator, self._sets, settings.loops)
        except EvaluationStopped:
            return False
        finally:
            run.engine.set_training(True)
        if run.world.is_main:
            self._record(run, results)
        return True

    def _record(self, run: TrainingRun, results: Sequence[dict[str, Any]]) -> None:
        settings = run.plan.settings.eval
        asked = evaluation_settings(run.blend, VALIDATION, settings.loops, settings.rows)
        about = {"step": run.progress.step, "weights": "raw", "settings": asked}
        for figures in results:
            content = {key: value for key, value in figures.items() if key != "name"}
            stem = f"train_step_{run.progress.step}{figures['name'] and '_' + figures['name']}"
            record = {"elapsed": run.progress.elapsed, "validation": figures | {"weights": "raw"}}
            self._recorder.record_validation(position(run) | record)
            try:
                save_result(run.folder / "eval", stem, content | about)
            except OSError as error:
                print(
                    f"warning: {run.folder / 'eval'}: {stem}.json could not be written: {error}. Training goes on",
                    flush=True,
                )


def validation_is_missing(run: TrainingRun) -> bool:
    """Whether the validation of the present step is due and was not done, because a request to stop ended it. Collective."""
    missing = run.world.is_main and _is_due(run) and not has_record(run.folder, "validation", run.progress.step)
    return run.world.from_main(missing)


def _is_due(run: TrainingRun) -> bool:
    every, progress = run.plan.settings.eval.every, run.progress
    return bool(every and progress.step and progress.step % every == 0 and not progress.skipped_in_a_row)
