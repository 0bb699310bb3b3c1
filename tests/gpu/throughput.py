"""Tokens per second, MFU and peak memory at 12 layers of 768, rows of 1,024 tokens, bf16, ZeRO-1, as the product reports them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pretrain.machine.devices import peak_flops
from pretrain.planning.memory import memory_of
from pretrain.training.hooks.metrics import Metrics
from pretrain.training.hooks.recorder import Record, Recorder, Sink
from pretrain.training.loop import train
from pretrain.training.state import TrainingRun
from pretrain.training.stop_request import StopRequest
from tests.gpu.harness import Check
from tests.gpu.runs import release, running

MEMORY_LIMIT = 0.15
"""Largest relative deviation of the measured peak from the planner's."""


class Kept(Sink):
    """A sink that keeps the training records."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write_training(self, record: Record) -> None:
        """Keep it."""
        self.records.append(record)


def paper_words(check: Check) -> list[str]:
    """1 + 2 x S + 9 layers of 768 (the paper's 170M model) and 32 rows per step; something tiny under --quick."""
    precision = "fp32" if check.device == "cpu" else "bf16"
    if check.quick:
        return [
            f"data.path={check.scratch / 'data' / 'small'}", "train.global_batch_size=4", f"train.precision={precision}"
        ]  # fmt: skip
    return [
        f"data.path={check.scratch / 'data' / 'large'}", "train.global_batch_size=32", f"train.precision={precision}",
        "model.num_layers=12", "model.hidden_size=768", "model.num_heads=12", "model.loop.tail=9", "model.loop.max=12",
    ]  # fmt: skip


def check_throughput(check: Check) -> None:
    """S = 1 and S ~ uniform on 1..12, three micro-batches; then attention within documents and recomputed passes."""
    sizes = (2,) if check.quick else (8, 16, 32)
    cases = [[f"train.loops={loops}", f"train.micro_batch_size={size}"] for loops in ("1", "uniform") for size in sizes]
    common = ["train.loops=uniform", f"train.micro_batch_size={sizes[len(sizes) // 2]}"]
    cases += [[*common, "train.attention=document"], [*common, "parallel.recompute=loop"]]
    for words in cases:
        with check.part(", ".join(word.split(".", 1)[1] for word in words)) as figures:
            window = 2 if check.quick else 6
            figures.update(measured([*paper_words(check), f"train.steps={3 * window}", f"log.every={window}", *words]))
            off = figures["memory over plan"] - 1
            check.expect(
                check.device == "cpu" or abs(off) <= MEMORY_LIMIT,
                f"peak memory deviates from the plan by {off:+.0%}, limit {MEMORY_LIMIT:.0%}",
            )


def measured(words: Sequence[str]) -> dict[str, Any]:
    """Train three windows under the product's loop; the first one warms up.

    Memory is compared with the plan at the largest S drawn. On a CPU it is the resident size of this process at its peak, which
    the plan does not describe.
    """
    release()
    cuda = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if cuda else 0
    with running(words) as run:
        settings, kept = run.plan.settings, Kept()
        peak = peak_flops(run.world.device, settings.train.precision, settings.hardware.peak_tflops)
        with StopRequest() as stop:
            train(run, [Metrics(Recorder([kept]), peak)], stop)
        records = kept.records[1:]
        figures = figures_of(run, records, before)
        if cuda:
            figures["GiB reserved"] = torch.cuda.max_memory_reserved() / 2**30
        return figures


def figures_of(run: TrainingRun, records: Sequence[Record], before: int) -> dict[str, Any]:
    """Means over the windows, and the planner's memory by part; `before`: bytes allocated before the run was built."""
    largest = max(run.plan.loops(step) for step in range(run.progress.step))
    settings = run.plan.settings
    at_largest = replace(run.plan, settings=replace(settings, train=replace(settings.train, loops=largest)))
    planned = memory_of(at_largest, run.engine.model.stage)
    peak = records[-1]["memory_gib"] - before / 2**30
    rates = {name: [record[name] for record in records] for name in ("tokens_per_second", "mfu", "loops", "data_wait")}
    seconds = [1 / value for value in rates["tokens_per_second"]]
    return {
        "tokens/s": len(seconds) / sum(seconds),
        "MFU": None if rates["mfu"][0] is None else sum(rates["mfu"]) / len(rates["mfu"]),
        "mean S": sum(rates["loops"]) / len(rates["loops"]),
        "largest S": largest,
        "GiB measured": peak,
        "GiB planned": planned.total / 2**30,
        "GiB before": before / 2**30,
        "memory over plan": peak * 2**30 / planned.total,
        "windows": rates,
        "planned parts": {name: round(value / 2**30, 3) for name, value in vars(planned).items()},
    }
