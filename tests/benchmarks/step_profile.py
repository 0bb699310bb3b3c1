"""Where the time of a training step on a CPU goes, and the speed of matrix products that it is held against."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from model.architecture import Architecture

ATTENTION = ("scaled_dot_product", "flash_attention", "_Attention")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul", "mkldnn::")
OPTIMIZER = ("adam", "_foreach", "aten::lerp", "aten::_fused")
PARTS = (
    "products of attention",
    "attention without them",
    "products of feed-forward",
    "rest of feed-forward",
    "LM head and cross-entropy",
    "optimizer",
    "RoPE, norms, residuals, copies",
    "data, Python and the rest",
)


def matmul_flops(precision: str, size: int = 1024, rounds: int = 9) -> float:
    """FLOP/s of a square product of this device and number of threads, the best of several rounds."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(2, size, size, dtype=dtype)
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def step_parts(step: Callable[[], None], architecture: Architecture, rounds: int = 3) -> dict[str, float]:
    """Share of each of `PARTS` in the time of a step, medians over the rounds. Profiling makes a step somewhat slower."""
    found = [_parts(step, architecture) for _ in range(rounds)]
    return {part: statistics.median(shares[part] for shares in found) for part in PARTS}


def _parts(step: Callable[[], None], architecture: Architecture) -> dict[str, float]:
    begin = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        begin = time.perf_counter()
        step()
        wall = time.perf_counter() - begin
    spent: Counter[str] = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        if event.key.startswith(("aten::", "mkldnn::", "torch_library::", "autograd::")):
            spent[part_of(event.key, event.input_shapes or (), architecture)] += event.self_cpu_time_total / 1e6
    spent[PARTS[-1]] = wall - sum(spent.values())
    return {part: spent[part] / wall for part in PARTS}


def part_of(name: str, shapes: Sequence[Sequence[int]], architecture: Architecture) -> str:
    """The part of a step that an operator belongs to, by its name and the sizes of its tensors."""
    sizes = {size for shape in shapes for size in shape if isinstance(size, int)}
    product = name.startswith(PRODUCTS)
    if any(mark in name for mark in ATTENTION):
        return PARTS[1]
    if any(mark in name for mark in OPTIMIZER):
        return PARTS[5]
    if architecture.padded_vocab_size in sizes:
        return PARTS[4]
    if sizes & {architecture.ffn_size, 2 * architecture.ffn_size}:
        return PARTS[2] if product else PARTS[3]
    return PARTS[0] if product else PARTS[6]
