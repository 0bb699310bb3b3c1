"""20 steps in every ZeRO stage and with offload, against fp32 without ZeRO on the CPU.

Rows, noise and the number of loops follow from the seed, so both sides train on the same batches.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.gpu.harness import Check
from tests.gpu.runs import deviation, running, steps, weight_deviation

LAYOUTS = {
    "ZeRO-0": ["parallel.zero_stage=0"],
    "ZeRO-1": ["parallel.zero_stage=1"],
    "ZeRO-1, optimizer on CPU": ["parallel.zero_stage=1", "parallel.offload=optimizer"],
    "ZeRO-3": ["parallel.zero_stage=3"],
    "ZeRO-2": ["parallel.zero_stage=2"],
    "ZeRO-2, optimizer on CPU": ["parallel.zero_stage=2", "parallel.offload=optimizer"],
    "ZeRO-3, optimizer on CPU": ["parallel.zero_stage=3", "parallel.offload=optimizer"],
    "ZeRO-3, weights on CPU": ["parallel.zero_stage=3", "parallel.offload=parameters"],
    "ZeRO-1, recompute loop": ["parallel.zero_stage=1", "parallel.recompute=loop"],
    "ZeRO-1, micro-batch 16": ["parallel.zero_stage=1", "train.micro_batch_size=16"],
}
"""The first three also run under --quick."""

LIMITS = {"fp32": (1e-4, 1e-3, 1e-3, 2e-2), "bf16": (1e-2, 5e-2, 5e-2, 0.3)}
"""Largest relative deviation of losses, gradient norms, final weights, and the change of the weights."""


def check_fp32(check: Check) -> None:
    """All layouts in fp32."""
    train_layouts(check, "fp32")


def check_bf16(check: Check) -> None:
    """All layouts in bf16, which needs ZeRO."""
    train_layouts(check, "bf16")


def train_layouts(check: Check, precision: str) -> None:
    """Train every layout and compare."""
    torch.backends.cuda.matmul.allow_tf32 = False
    count = 6 if check.quick else 20
    path = check.scratch / f"cpu_{precision}.pt"
    with check.part("reference: CPU, fp32, ZeRO-0"):
        train_reference(check, path, count)
    expected = torch.load(path, map_location="cpu")
    for name, layout in list(LAYOUTS.items())[: 3 if check.quick else None]:
        if precision == "bf16" and name == "ZeRO-0":
            continue
        with check.part(name) as figures:
            got = trained([*words_of(check), f"train.precision={precision}", *layout], count)
            figures["optimizer"] = got["optimizer"]
            figures["ms per step"] = got["ms per step"]
            compare(check, figures, got, expected, LIMITS[precision])


def words_of(check: Check) -> list[str]:
    """The smoke recipe with wide initial weights: rounding is compared to weights and not to Adam's first updates."""
    data = f"data.path={check.scratch / 'data' / 'small'}"
    return [data, "model.init_std=0.05", "optim.lr=1e-3", "optim.weight_decay=0.1"]


def compare(
    check: Check, figures: dict[str, Any], got: dict[str, Any], expected: dict[str, Any], limits: Sequence[float]
) -> None:
    """Relative deviations, and a problem for each that exceeds its limit."""
    start = expected["start"]
    changes = [{name: value - start[name] for name, value in one["weights"].items()} for one in (got, expected)]
    found = {
        "loss": deviation(got["losses"], expected["losses"]),
        "gradient norm": deviation(got["norms"], expected["norms"]),
        "weights": weight_deviation(got["weights"], expected["weights"]),
        "change of weights": weight_deviation(*changes),
    }
    figures.update(found)
    for (name, value), limit in zip(found.items(), limits, strict=True):
        check.expect(value < limit, f"{name}: deviation {value:.2g}, limit {limit:g}")


def trained(words: Sequence[str], count: int) -> dict[str, Any]:
    """Losses, gradient norms, weights before and after, and the time of a step."""
    with running(words) as run:
        start = full_weights(run)
        reports = steps(run, 2)
        begin = time.perf_counter()
        reports += steps(run, count - 2)
        seconds = time.perf_counter() - begin
        return {
            "optimizer": type(run.engine.optimizer).__name__,
            "losses": [report.loss for report in reports],
            "norms": [report.grad_norm for report in reports],
            "ms per step": 1e3 * seconds / (count - 2),
            "start": start,
            "weights": full_weights(run),
        }


def full_weights(run: Any) -> dict[str, torch.Tensor]:
    """fp32 copies of all weights on the CPU."""
    return {name: weight.cpu().clone() for name, weight in run.engine.full_weights()}


def train_reference(check: Check, path: Path, count: int) -> None:
    """Write the reference to `path`: in this process on a CPU, else in one that sees no GPU."""
    words = [*words_of(check), "train.precision=fp32", "parallel.zero_stage=0"]
    if check.device == "cpu":
        torch.save(trained(words, count), path)
        return
    command = [sys.executable, "-m", "tests.gpu.zero_stages", str(path), str(count), json.dumps(words)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    torch.save(trained(json.loads(sys.argv[3]), int(sys.argv[2])), sys.argv[1])
