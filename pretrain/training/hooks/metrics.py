"""Figures of the steps since the last record."""

import math
import resource
import sys
from collections import defaultdict
from collections.abc import Sequence

import torch

from pretrain.training.batches import TIMESTEP_BINS
from pretrain.training.hooks.base import Hook
from pretrain.training.hooks.parts import Parts
from pretrain.training.hooks.recorder import Record, Recorder
from pretrain.training.state import StepReport, TrainingRun


class Metrics(Hook):
    """Means over the steps since the last record; totals where the field is cumulative.

    Args:
        peak_flops: of one rank; None if unknown.
        parts: whose figures of the last step are recorded too; None not to.
    """

    def __init__(self, recorder: Recorder, peak_flops: float | None, parts: Parts | None = None) -> None:
        self._recorder, self._peak_flops, self._parts = recorder, peak_flops, parts
        self._reports: list[StepReport] = []

    def on_start(self, run: TrainingRun) -> None:
        """Start the clock."""
        self._begin(run)
        self._before = self._elapsed, self._flops  # what earlier starts have spent, perhaps on other machines

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Collect the report; record every `log.every` steps and after the last step of this start."""
        self._reports.append(report)
        if report.skipped is not None and run.world.is_main:
            print(
                f"warning: step {report.step}: {report.skipped} at {report.loops} loops; the update was skipped on all ranks",
                flush=True,
            )
        if run.progress.step % run.plan.settings.log.every == 0 or run.stop_reason is not None:
            self._flush(run)

    def on_end(self, run: TrainingRun) -> None:
        """Record the last steps if a later hook stopped the run."""
        if self._reports:
            self._flush(run)

    def _flush(self, run: TrainingRun) -> None:
        if run.world.is_main:
            self._recorder.record_training(self._record(run))
        self._begin(run)

    def _begin(self, run: TrainingRun) -> None:
        self._reports = []
        self._elapsed, self._flops = run.progress.elapsed, run.progress.flops

    def _record(self, run: TrainingRun) -> Record:
        seconds = run.progress.elapsed - self._elapsed  # of training alone, without validation and checkpoints
        reports, flops_per_second = self._reports, (run.progress.flops - self._flops) / seconds
        taken = [report for report in reports if report.skipped is None]
        peak = self._peak_flops and self._peak_flops * run.world.size
        parts = {"parts": self._parts.figures} if self._parts and self._parts.figures else {}
        return position(run) | {
            "loss": _mean([r.loss for r in taken]),
            "loops": _mean([r.loops for r in reports]),
            "lr": reports[-1].lr,
            "grad_norm": _mean([r.grad_norm for r in taken]),
            "tokens_per_second": len(reports) * run.plan.tokens_per_step / seconds,
            "flops_per_second": flops_per_second,
            "mfu": flops_per_second / peak if peak else None,
            "memory_gib": peak_memory_gib(run.world.device),
            "data_wait": sum(r.data_wait for r in reports) / seconds,
            "skipped": run.progress.skipped,
            "elapsed": run.progress.elapsed,
            "eta": self._eta(run),
            "loss_by_timestep": _by_timestep(taken),
            "loss_by_loops": _by_loops(taken),
            **parts,
        }

    def _eta(self, run: TrainingRun) -> float:
        """Seconds to the last step at the mean FLOP/s of this start, with the expected number of loops."""
        elapsed, flops = run.progress.elapsed - self._before[0], run.progress.flops - self._before[1]
        return run.plan.expected_flops(run.progress.step, run.plan.total_steps) * elapsed / flops


def position(run: TrainingRun) -> Record:
    """Where in the run a record was made: the first fields of every record."""
    return {
        "step": run.progress.step,
        "samples": run.samples,
        "tokens": run.tokens,
        "flops": run.progress.flops,
    }


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that this rank has held: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _by_timestep(reports: Sequence[StepReport]) -> list[float | None]:
    """Mean -log p of a masked token in each bin of t, in nats; null where no token was masked."""
    none = [0.0] * TIMESTEP_BINS
    nats = map(sum, zip(none, *(r.bin_nats for r in reports), strict=True))
    tokens = map(sum, zip(none, *(r.bin_tokens for r in reports), strict=True))
    return [in_bin / count if count else None for in_bin, count in zip(nats, tokens, strict=True)]


def _by_loops(reports: Sequence[StepReport]) -> dict[str, float]:
    """Mean loss of the steps that ran each S."""
    losses = defaultdict(list)
    for report in reports:
        losses[report.loops].append(report.loss)
    return {str(loops): _mean(losses[loops]) for loops in sorted(losses)}


def _mean(values: Sequence[float]) -> float:
    """NaN of no values: all updates were skipped."""
    return sum(values) / len(values) if values else math.nan
