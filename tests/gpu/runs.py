"""Training runs built by the product's own functions, and their comparison."""

import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from data_pipeline.dataset.blend import Blend, load_blend
from pretrain.config.load import load_settings
from pretrain.config.run_plan import RunPlan, make_run_plan
from pretrain.parallel.world import start_world
from pretrain.training.start import build_run
from pretrain.training.state import StepReport, TrainingRun
from pretrain.training.step import train_step


def plan_of(words: Sequence[str]) -> tuple[RunPlan, Blend]:
    """The plan and the data of the smoke recipe with these overrides, on one rank."""
    settings = load_settings("smoke", words)
    blend = load_blend(settings.data.path)
    return make_run_plan(settings, blend.manifest, 1), blend


@contextmanager
def running(words: Sequence[str]) -> Iterator[TrainingRun]:
    """A run of the smoke recipe with these overrides, at step 0.

    DeepSpeed keeps an engine and its parameters alive after their last reference is gone, and their tensors would count towards
    the peak memory of the next run. `destroy` removes its hooks; what it attached to the parameters is removed here.
    """
    release()
    plan, blend = plan_of(words)
    run = build_run(plan, blend, start_world((0, 1, 0), plan.shape))
    try:
        yield run
    finally:
        run.engine._engine.destroy()
        for parameter in run.engine.model.parameters():
            vars(parameter).clear()
            parameter.grad = None
            parameter.data = torch.empty(0, device=parameter.device)


def steps(run: TrainingRun, count: int) -> list[StepReport]:
    """Take the next `count` steps."""
    batches = run.batches.from_step(run.progress.step)
    reports = []
    for _ in range(count):
        reports.append(train_step(run, next(batches)))
        run.progress.step += 1
    batches.close()
    return reports


def release() -> None:
    """Free the memory of runs that are no longer referenced, and start the peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def deviation(values: Iterable[float], expected: Iterable[float]) -> float:
    """Largest relative deviation."""
    return max(abs(a / b - 1) for a, b in zip(values, expected, strict=True))


def weight_deviation(weights: dict[str, Any], expected: dict[str, Any]) -> float:
    """Largest relative deviation of a weight, by norm."""
    return max(((weights[name].cpu() - value).norm() / value.norm()).item() for name, value in expected.items())


def read_records(run_folder: Path) -> list[dict[str, Any]]:
    """Training records of metrics.jsonl."""
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "validation" not in record]
