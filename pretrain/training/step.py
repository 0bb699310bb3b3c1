"""One optimizer step, the same under every layout."""

import math
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from pretrain.optimizer.schedule import learning_rate
from pretrain.training.batches import TIMESTEP_BINS, MicroBatch
from pretrain.training.state import StepReport, TrainingRun

SPIKE_WINDOW = 100
"""Losses that a spike is compared with."""

NORMAL = 1.4826
"""Standard deviation of a normal distribution divided by its median absolute deviation."""


def train_step(
    run: TrainingRun, batches: Sequence[MicroBatch], data_wait: float = 0.0, stop_requested: bool = False
) -> StepReport:
    """Forward and backward over the micro-batches of the next step, then one update. Collective.

    If the loss or the gradient norm is not finite, or the loss is a spike, no rank updates weights, moments or the average.

    Args:
        batches: this rank's micro-batches of step `run.progress.data_step`.
        data_wait: seconds that this rank waited for them, for the report.
        stop_requested: this rank is to stop; the report says whether any rank is.
    """
    plan, world, step = run.plan, run.world, run.progress.step
    loops, lr = plan.loops(step), learning_rate(plan.settings.optim, step, plan.total_steps)
    # One vector, so that one reduction carries everything: the stop request, the loss, nats and tokens per bin of t.
    tally = torch.zeros(2 + 2 * TIMESTEP_BINS, dtype=torch.float64, device=world.device)
    tally[0] = stop_requested

    def record(number: int, loss: Tensor, cross_entropy: Tensor) -> None:
        if world.holds_loss:
            tally[1:].add_(_tally(loss, cross_entropy, batches[number]))

    world.enter_phase("forward and backward")
    run.engine.forward_backward([batch.inputs for batch in batches], loops, record)
    world.enter_phase("sum of figures")
    # One copy: on a GPU the host waits here, until the backward pass has finished.
    stops, loss, *bins = world.sum(tally).tolist()
    world.enter_phase("gradient reduction and update")
    grad_norm, skipped = _update(run, loss, lr)
    nats, tokens = bins[:TIMESTEP_BINS], bins[TIMESTEP_BINS:]
    return StepReport(step + 1, loops, loss, grad_norm, lr, nats, tokens, data_wait, stops > 0, skipped)


def _update(run: TrainingRun, loss: float, lr: float) -> tuple[float, str | None]:
    """Update, or not; returns the gradient norm, and why there was no update."""
    problem = f"the loss is {loss}" if not math.isfinite(loss) else _spike(run, loss)
    if problem is not None:
        run.engine.discard_gradients()
        return math.nan, problem
    try:
        return run.engine.step(lr), None
    except FloatingPointError as error:
        return math.nan, str(error)


def _spike(run: TrainingRun, loss: float) -> str | None:
    """What is wrong with a finite loss, by the median and the median absolute deviation of the last SPIKE_WINDOW losses."""
    threshold, recent = run.plan.settings.train.spike_threshold, run.progress.recent_losses
    if threshold is None or len(recent) < SPIKE_WINDOW:
        return None
    middle = median(recent)
    deviation = NORMAL * median(abs(each - middle) for each in recent) or math.ulp(middle)
    if loss <= middle + threshold * deviation:
        return None
    return (
        f"the loss is {loss:.4f}, {(loss - middle) / deviation:.1f} standard deviations above the median {middle:.4f}"
    )


def _tally(loss: Tensor, cross_entropy: Tensor, batch: MicroBatch) -> Tensor:
    """[loss, nats per bin..., masked tokens per bin...] of one micro-batch, fp64."""
    bins = (batch.timesteps * TIMESTEP_BINS).long().clamp(max=TIMESTEP_BINS - 1)
    # A product instead of `bincount`, which waits for the device and whose sums on a GPU depend on the order of threads.
    in_bin = (bins == torch.arange(TIMESTEP_BINS, device=bins.device)[:, None]).double()
    return torch.cat([loss.double().view(1), in_bin @ cross_entropy.double(), in_bin.sum(dim=1)])
