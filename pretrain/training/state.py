"""The state of a training run, what one step did, and how far the run is."""

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.dataset.blend import Blend
from pretrain.config.run_plan import RunPlan
from pretrain.parallel.engine import Engine
from pretrain.parallel.world import World
from pretrain.training.batches import Batches


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint.

    Attributes:
        step: optimizer steps taken.
        flops: training FLOPs of the loops actually run, over all ranks.
        elapsed: seconds of training, over all starts.
    """

    step: int = 0
    flops: float = 0.0
    elapsed: float = 0.0


@dataclass(frozen=True)
class StepReport:
    """What one step did, over the global batch.

    Attributes:
        step: steps taken so far, including this one.
        loops: S of this step.
        loss: NELBO estimate in nats per token.
        grad_norm: global gradient norm before clipping.
        lr: learning rate of this step.
        bin_nats: summed -log p of the masked tokens in each of TIMESTEP_BINS bins of t.
        bin_tokens: masked tokens in each bin of t.
        data_wait: seconds that this rank waited for its batch.
        stop_requested: some rank received a signal to stop.
    """

    step: int
    loops: int
    loss: float
    grad_norm: float
    lr: float
    bin_nats: list[float]
    bin_tokens: list[float]
    data_wait: float
    stop_requested: bool


@dataclass
class TrainingRun:
    """A run in this process: what hooks and checkpoints work on.

    Attributes:
        blend: the prepared data.
        folder: the run folder.
        stop_reason: why this start ends after the step just taken, or None.
    """

    plan: RunPlan
    world: World
    engine: Engine
    blend: Blend
    batches: Batches
    folder: Path
    progress: Progress
    stop_reason: str | None = None

    @property
    def samples(self) -> int:
        """Rows consumed: the index of the next sample."""
        return self.progress.step * self.plan.samples_per_step

    @property
    def tokens(self) -> int:
        """Tokens consumed."""
        return self.progress.step * self.plan.tokens_per_step
