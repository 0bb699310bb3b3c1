"""Figures of the steps since the last line, made once and given to every sink."""

import resource
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from pretrain.training.loop import TrainingRun
from pretrain.training.step import TIMESTEP_BINS, StepReport

Record = dict[str, Any]
"""A line of metrics.jsonl. Fields are fixed by the README's table."""


class Sink(Protocol):
    """Somewhere that records go; lives on the main rank only."""

    def open(self, run: TrainingRun) -> None:
        """Before the first record of this start; drops records of steps that will be taken again."""

    def write(self, record: Record) -> None:
        """One record."""

    def close(self) -> None:
        """After the last record."""


class Metrics:
    """Means over the steps since the last record; sums where the field is cumulative."""

    def __init__(self, sinks: Sequence[Sink], peak_flops: float | None) -> None:
        self._sinks, self._peak_flops = sinks, peak_flops
        self._reports: list[StepReport] = []
        self._waits: list[float] = []

    def on_start(self, run: TrainingRun) -> None:
        """Open the sinks and start the clock."""
        self._begin(run)
        if run.world.is_main:
            for sink in self._sinks:
                sink.open(run)

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Collect; write when the window is full or this start ends."""
        self._reports.append(report)
        self._waits.append(run.data_wait)
        if run.progress.step % run.plan.settings.log.every == 0 or run.stop_reason is not None:
            if run.world.is_main:
                record = self._record(run)
                for sink in self._sinks:
                    sink.write(record)
            self._begin(run)

    def on_end(self, run: TrainingRun) -> None:
        """Close the sinks."""
        if run.world.is_main:
            for sink in self._sinks:
                sink.close()

    def _begin(self, run: TrainingRun) -> None:
        self._reports, self._waits = [], []
        self._elapsed, self._flops = run.progress.elapsed, run.progress.flops

    def _record(self, run: TrainingRun) -> Record:
        seconds = run.progress.elapsed - self._elapsed  # of training: evaluation and checkpoints are not its speed
        reports, flops_per_second = self._reports, (run.progress.flops - self._flops) / seconds
        peak = self._peak_flops and self._peak_flops * run.world.size
        return {
            "step": run.progress.step,
            "samples": run.samples,
            "tokens": run.tokens,
            "flops": run.progress.flops,
            "loss": _mean([r.loss for r in reports]),
            "loops": _mean([r.loops for r in reports]),
            "lr": reports[-1].lr,
            "grad_norm": _mean([r.grad_norm for r in reports]),
            "tokens_per_second": len(reports) * run.plan.tokens_per_step / seconds,
            "flops_per_second": flops_per_second,
            "mfu": flops_per_second / peak if peak else None,
            "memory_gib": peak_memory_gib(run.world.device),
            "data_wait": sum(self._waits) / seconds,
            "elapsed": run.progress.elapsed,
            "eta": _eta(run),
            "loss_by_timestep": _by_timestep(reports),
            "loss_by_loops": _by_loops(reports),
        }


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this rank has held: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _eta(run: TrainingRun) -> float:
    """Seconds to the last step at the mean speed of this run, with expected instead of drawn loops."""
    plan, step = run.plan, run.progress.step
    rest = (plan.total_steps - step) * plan.tokens_per_step * plan.expected_flops_per_token
    return rest * run.progress.elapsed / run.progress.flops


def _by_timestep(reports: Sequence[StepReport]) -> list[float | None]:
    """Mean -log p of a masked token in each bin of t, in nats; null where no token was masked."""
    nats = torch.stack([r.bin_nats for r in reports]).sum(dim=0)
    tokens = torch.stack([r.bin_tokens for r in reports]).sum(dim=0)
    return [(nats[i] / tokens[i]).item() if tokens[i] else None for i in range(TIMESTEP_BINS)]


def _by_loops(reports: Sequence[StepReport]) -> dict[str, float]:
    """Mean loss of the steps that ran each S."""
    losses = defaultdict(list)
    for report in reports:
        losses[report.loops].append(report.loss)
    return {str(loops): _mean(losses[loops]) for loops in sorted(losses)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
