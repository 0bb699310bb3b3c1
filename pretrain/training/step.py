"""One optimiser step, the same under every layout."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.objective import diffusion_loss, masked_cross_entropy
from pretrain.config.run_plan import RunPlan
from pretrain.optimizer.adamw import learning_rate
from pretrain.parallel.engine import Engine
from pretrain.parallel.world import World
from pretrain.training.batches import MicroBatch

TIMESTEP_BINS = 10
"""Equal bins of t in which the loss is reported."""


@dataclass(frozen=True)
class StepReport:
    """What one step did, over the global batch.

    Attributes:
        step: steps taken so far, this one included.
        loops: S of this step.
        loss: NELBO estimate in nats per token.
        grad_norm: global gradient norm before clipping.
        lr: learning rate of this step.
        bin_nats: summed -log p of the masked tokens per bin of t, fp64 [TIMESTEP_BINS].
        bin_tokens: masked tokens per bin of t, fp64 [TIMESTEP_BINS].
        seconds: wall time, without waiting for data.
    """

    step: int
    loops: int
    loss: float
    grad_norm: float
    lr: float
    bin_nats: Tensor
    bin_tokens: Tensor
    seconds: float


def train_step(
    engine: Engine, world: World, plan: RunPlan, step: int, batches: Sequence[MicroBatch | None]
) -> StepReport:
    """Forward and backward over the micro-batches of `step` (from 0), then one update."""
    start = time.perf_counter()
    loops, lr = plan.loops(step), learning_rate(plan.settings.optim, step, plan.total_steps)
    tally = torch.zeros(1 + 2 * TIMESTEP_BINS, dtype=torch.float64, device=world.device)

    def loss_of(number: int, logits: Tensor) -> Tensor:
        batch = batches[number]
        assert batch is not None  # only stages between the first and the last go without
        cross_entropy = masked_cross_entropy(logits, batch.targets)
        loss = diffusion_loss(cross_entropy, batch.weights, batch.batch_tokens)
        if world.holds_loss:
            tally.add_(_tally(loss.detach(), cross_entropy.detach(), batch))
        return loss

    world.enter_phase("forward and backward")
    engine.forward_backward([batch and batch.inputs for batch in batches], loops, loss_of)
    world.enter_phase("gradient reduction and update")
    grad_norm = engine.step(lr)
    world.enter_phase("sum of figures")
    tally = world.sum(tally)
    loss_sum, bin_nats, bin_tokens = tally[0].item(), tally[1 : 1 + TIMESTEP_BINS], tally[1 + TIMESTEP_BINS :]
    return StepReport(step + 1, loops, loss_sum, grad_norm, lr, bin_nats, bin_tokens, time.perf_counter() - start)


def _tally(loss: Tensor, cross_entropy: Tensor, batch: MicroBatch) -> Tensor:
    """[loss, nats per bin..., masked tokens per bin...] of one micro-batch, fp64."""
    bins = (batch.target_timesteps * TIMESTEP_BINS).long().clamp(max=TIMESTEP_BINS - 1)
    nats = torch.bincount(bins, weights=cross_entropy.double(), minlength=TIMESTEP_BINS)
    tokens = torch.bincount(bins, minlength=TIMESTEP_BINS).double()
    return torch.cat([loss.double().view(1), nats, tokens])
