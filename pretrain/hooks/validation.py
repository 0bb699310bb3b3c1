"""Validation NELBO during training, with the weights as they are."""

import json
from collections.abc import Mapping
from typing import Any

from data_pipeline.dataset import PackedDataset
from pretrain.evaluation import evaluate_loops
from pretrain.hooks.sinks import TensorBoard
from pretrain.loop import TrainingRun
from pretrain.step import StepReport
from pretrain.writing import replace_text


class Validation:
    """Evaluates every `eval.every` steps at `eval.loops`; noise is frozen, so training's is untouched.

    Args:
        datasets: name -> rows, one for each corpus of a mixture; a single one may be called "".
        tensorboard: also written to.
    """

    def __init__(self, datasets: Mapping[str, PackedDataset], tensorboard: TensorBoard | None) -> None:
        self._datasets, self._tensorboard = datasets, tensorboard

    def on_start(self, run: TrainingRun) -> None:
        """Nothing to do."""

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Evaluate when it is time; all ranks share the rows."""
        settings, attention = run.plan.settings.eval, run.plan.settings.train.attention
        if settings.every is None or run.progress.step % settings.every:
            return
        for name, dataset in self._datasets.items():
            run.engine.set_training(False)
            forward = run.engine.logits
            figures = evaluate_loops(
                forward, dataset, attention, settings.loops, settings.rows, settings.batch_size, run.world
            )
            run.engine.set_training(True)
            if run.world.is_main:
                self._tell(run, name, figures | {"step": run.progress.step, "weights": "raw"})

    def _tell(self, run: TrainingRun, name: str, figures: dict[str, Any]) -> None:
        step, suffix = run.progress.step, f"_{name}" if name else ""
        replace_text(run.folder / "eval" / f"train_step_{step}{suffix}.json", json.dumps(figures, indent=2) + "\n")
        if self._tensorboard is not None:
            tag = f"validation_nats_per_token{suffix}"
            nats = {f"{tag}/loops_{f['loops']}": f["nats_per_token"] for f in figures["loops"]}
            self._tensorboard.write_scalars(step, nats)
        shown = [f"S={f['loops']} {f['nats_per_token']:.4f}±{f['nats_per_token_se']:.4f}" for f in figures["loops"]]
        what = f"validation of {name}" if name else "validation"
        print(f"{what} at step {step}, nats/token: {', '.join(shown)}", flush=True)

    def on_end(self, run: TrainingRun) -> None:
        """Nothing to do."""
