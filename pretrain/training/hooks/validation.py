"""Validation NELBO during training, with the weights as they are."""

import json
from collections.abc import Sequence
from typing import Any

from data_pipeline.atomic_files import write_atomic
from data_pipeline.dataset.packed_dataset import PackedDataset
from pretrain.evaluation.nelbo import EvaluationSet, evaluate_loops, mixed_figures, short_figures
from pretrain.training.hooks.sinks import TensorBoard
from pretrain.training.loop import TrainingRun
from pretrain.training.step import StepReport


class Validation:
    """Evaluates every `eval.every` steps at `eval.loops`; noise is frozen, so training's is untouched.

    Several sets are evaluated one by one, and summed up in the shares of training.

    Args:
        tensorboard: also written to.
    """

    def __init__(self, sets: Sequence[EvaluationSet], tensorboard: TensorBoard | None) -> None:
        self._sets, self._tensorboard = sets, tensorboard

    def on_start(self, run: TrainingRun) -> None:
        """Nothing to do."""

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Evaluate when it is time; all ranks share the rows."""
        every = run.plan.settings.eval.every
        if every is None or run.progress.step % every:
            return
        figures = [self._evaluate(run, one.rows) for one in self._sets]
        if not run.world.is_main:
            return
        for one, found in zip(self._sets, figures, strict=True):
            self._tell(run, one.name, found)
        if len(self._sets) > 1:
            self._tell(run, "mixture", mixed_figures(self._sets, figures))

    def _evaluate(self, run: TrainingRun, rows: PackedDataset) -> dict[str, Any]:
        settings, attention = run.plan.settings.eval, run.plan.settings.train.attention
        run.engine.set_training(False)
        figures = evaluate_loops(
            run.engine.logits, rows, attention, settings.loops, settings.rows, settings.batch_size, run.world
        )
        run.engine.set_training(True)
        return figures

    def _tell(self, run: TrainingRun, name: str, figures: dict[str, Any]) -> None:
        step, suffix = run.progress.step, f"_{name}" if name else ""
        figures = figures | {"step": step, "weights": "raw"}
        write_atomic(run.folder / "eval" / f"train_step_{step}{suffix}.json", json.dumps(figures, indent=2) + "\n")
        if self._tensorboard is not None:
            tag = f"validation_nats_per_token{suffix}"
            nats = {f"{tag}/loops_{f['loops']}": f["nats_per_token"] for f in figures["loops"]}
            self._tensorboard.write_scalars(step, nats)
        what = f"validation of {name}" if name else "validation"
        print(f"{what} at step {step} (raw weights), nats/token: {short_figures(figures)}", flush=True)

    def on_end(self, run: TrainingRun) -> None:
        """Nothing to do."""
