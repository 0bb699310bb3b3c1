"""Validation NELBO during training, with the weights as they are."""

import json

from data_pipeline.dataset import PackedDataset
from pretrain.evaluation import evaluate_loops
from pretrain.hooks.sinks import TensorBoard
from pretrain.loop import TrainingRun
from pretrain.step import StepReport
from pretrain.writing import replace_text


class Validation:
    """Evaluates every `eval.every` steps at `eval.loops`; noise is frozen, so training's is untouched."""

    def __init__(self, dataset: PackedDataset, tensorboard: TensorBoard | None) -> None:
        self._dataset, self._tensorboard = dataset, tensorboard

    def on_start(self, run: TrainingRun) -> None:
        """Nothing to do."""

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Evaluate when it is time; all ranks share the rows."""
        settings = run.plan.settings.eval
        if settings.every is None or run.progress.step % settings.every:
            return
        run.engine.set_training(False)
        forward = run.engine.logits
        figures = evaluate_loops(forward, self._dataset, settings.loops, settings.rows, settings.batch_size, run.world)
        run.engine.set_training(True)
        if run.world.is_main:
            figures |= {"step": run.progress.step, "weights": "raw"}
            replace_text(
                run.folder / "eval" / f"train_step_{run.progress.step}.json", json.dumps(figures, indent=2) + "\n"
            )
            if self._tensorboard is not None:
                nats = {f"validation_nats_per_token/loops_{f['loops']}": f["nats_per_token"] for f in figures["loops"]}
                self._tensorboard.write_scalars(run.progress.step, nats)
            shown = [f"S={f['loops']} {f['nats_per_token']:.4f}±{f['nats_per_token_se']:.4f}" for f in figures["loops"]]
            print(f"validation at step {run.progress.step}, nats/token: {', '.join(shown)}", flush=True)

    def on_end(self, run: TrainingRun) -> None:
        """Nothing to do."""
