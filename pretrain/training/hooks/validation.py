"""Validation NELBO during training, with the current weights."""

import json
from collections.abc import Sequence
from typing import Any

from data_pipeline.manifest import VALIDATION
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
        done = run.world.from_main(_is_recorded(run) if run.world.is_main else None)
        if run.progress.step and not done:
            self._evaluate(run)

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Evaluate if it is due. All ranks share the rows."""
        if report.skipped is None:
            self._evaluate(run)

    def _evaluate(self, run: TrainingRun) -> None:
        settings = run.plan.settings.eval
        if settings.every is None or run.progress.step % settings.every:
            return
        evaluator = Evaluator(
            run.engine.logits, run.world, run.plan.settings.train.attention, settings.rows, settings.batch_size,
            lambda: self._stop.requested,
        )  # fmt: skip
        run.engine.set_training(False)
        try:
            results = evaluate_sets(evaluator, self._sets, settings.loops)
        except EvaluationStopped:
            run.stop_reason = run.stop_reason or "request"
            return
        finally:
            run.engine.set_training(True)
        if run.world.is_main:
            self._record(run, results)

    def _record(self, run: TrainingRun, results: Sequence[dict[str, Any]]) -> None:
        settings = run.plan.settings.eval
        asked = evaluation_settings(run.blend, VALIDATION, settings.loops, settings.rows)
        about = {"step": run.progress.step, "weights": "raw", "settings": asked}
        for figures in results:
            content = {key: value for key, value in figures.items() if key != "name"}
            stem = f"train_step_{run.progress.step}{figures['name'] and '_' + figures['name']}"
            save_result(run.folder / "eval", stem, content | about)
            record = {"elapsed": run.progress.elapsed, "validation": figures | {"weights": "raw"}}
            self._recorder.record_validation(position(run) | record)


def _is_recorded(run: TrainingRun) -> bool:
    """Whether metrics.jsonl has a validation of the present step. For the main rank."""
    path = run.folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return any('"validation"' in line and json.loads(line)["step"] == run.progress.step for line in lines)
