"""The state of a training run, what one step did, and how far the run is."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.dataset.blend import Blend
from pretrain.config.run_plan import RunPlan
from pretrain.parallel.engine import Engine
from pretrain.parallel.world import World
from pretrain.training.batches import Batches

PLAUSIBLE = 10
"""A model has diverged if its masked tokens cost more than this many times as much as with a uniform guess."""


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint.

    Attributes:
        step: optimizer steps taken.
        flops: training FLOPs of the loops actually run, over all ranks.
        elapsed: seconds of training, over all starts.
        skipped: steps whose update was not applied.
        skipped_in_a_row: such steps since the last update.
        passed_over: steps whose samples were passed over when the run went back to a checkpoint.
        diverged_at: the last step at which the run went back; 0 if it never did.
        sound_step: the last step after which the weights gave a plausible loss and a finite gradient, as the next step showed.
        recent_losses: of the last steps, for `train.spike_threshold`; empty without one.
    """

    step: int = 0
    flops: float = 0.0
    elapsed: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    passed_over: int = 0
    diverged_at: int = 0
    sound_step: int = 0
    recent_losses: list[float] = field(default_factory=list)

    @property
    def data_step(self) -> int:
        """The step whose samples and noise come next."""
        return self.step + self.passed_over


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
        stop_requested: some rank is to stop: it received a signal, or its time is over.
        skipped: why the update was not applied, or None.
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
    skipped: str | None = None


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

    def is_plausible(self, nats: float, tokens: float) -> bool:
        """Whether weights that give masked tokens this sum of -log p may be trained on. False for NaN."""
        return nats <= PLAUSIBLE * math.log(self.plan.settings.model.vocab_size) * tokens

    @property
    def samples(self) -> int:
        """Rows consumed: the index of the next sample."""
        return self.progress.data_step * self.plan.samples_per_step

    @property
    def tokens(self) -> int:
        """Tokens consumed."""
        return self.progress.step * self.plan.tokens_per_step
