"""Where the time of a step goes: by the clock, by kernel, and the lines at which the host waits for the GPU."""

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pretrain.training.state import TrainingRun
from tests.gpu.harness import Check
from tests.gpu.runs import running, steps, synchronize
from tests.gpu.throughput import paper_words

ROOT = Path(__file__).resolve().parents[2]

KINDS = (
    ("attention", ("fmha", "flash", "sdpa", "attention", "mem_eff")),
    ("matrix products", ("gemm", "cutlass", "nvjet", "cublas", "xmma", "splitk")),
    ("optimizer", ("adam", "multi_tensor", "lerp")),
    ("norms", ("layer_norm", "rms_norm", "layernorm", "rmsnorm")),
    ("reductions", ("reduce_kernel", "softmax")),
    ("copies", ("memcpy", "copy", "cat")),
    ("fills", ("memset", "fill")),
    ("indexing", ("index", "gather", "scatter", "embedding", "sort", "scan", "nonzero", "where")),
    ("elementwise", ("elementwise", "vectorized")),
)
"""What a kernel does -> parts of its name; the first match counts."""


def check_step_parts(check: Check) -> None:
    """At S = 6 and micro-batch 16."""
    loops, size = (2, 2) if check.quick else (6, 16)
    words = [*paper_words(check), f"train.loops={loops}", f"train.micro_batch_size={size}", "train.steps=20"]
    with running(words) as run:
        steps(run, 3)
        with check.part("share of a step, waiting for the device between parts") as figures:
            figures.update(timed_parts(run, 3))
        with check.part("kernels") as figures:
            figures.update(profiled(run, 2))
        if check.device == "cuda":
            with check.part("lines that wait for the device") as figures:
                figures["lines"] = synchronizing_lines(run)
                figures["waits per step"] = sum(figures["lines"].values())


def timed_parts(run: TrainingRun, count: int) -> dict[str, float]:
    """Milliseconds of a step and the share of each of its parts."""
    spent: Counter[str] = Counter()
    with clocks(run, spent):
        begin = time.perf_counter()
        steps(run, count)
        synchronize()
        whole = time.perf_counter() - begin
    inner = spent["forward"] + spent["backward"]
    shares = {
        "forward without LM head": spent["forward"] - spent["LM head"],
        "LM head": spent["LM head"],
        "cross-entropy and tally": spent["forward, loss, backward"] - inner,
        "backward": spent["backward"],
        "reduction and update": spent["update"],
        "batch and rest": whole - spent["forward, loss, backward"] - spent["update"],
    }
    return {"ms per step": 1e3 * whole / count, **{name: seconds / whole for name, seconds in shares.items()}}


@contextmanager
def clocks(run: TrainingRun, spent: Counter[str]) -> Iterator[None]:
    """Add the seconds of each part to `spent`."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            synchronize()
            begin = time.perf_counter()
            result = function(*arguments, **keywords)
            synchronize()
            spent[name] += time.perf_counter() - begin
            return result

        return call

    engine, deepspeed = run.engine, run.engine._engine
    places = [
        (engine.model, "forward", "forward"), (engine.model, "output", "LM head"), (deepspeed, "backward", "backward"),
        (engine, "step", "update"), (engine, "forward_backward", "forward, loss, backward"),
    ]  # fmt: skip
    saved = [(owner, attribute, vars(owner).get(attribute)) for owner, attribute, _ in places]
    for owner, attribute, name in places:
        setattr(owner, attribute, timed(name, getattr(owner, attribute)))
    try:
        yield
    finally:
        for owner, attribute, old in saved:
            if old is None:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, old)


def profiled(run: TrainingRun, count: int) -> dict[str, Any]:
    """Kernels by time and kind, and the share of the time in which the GPU does nothing. Without a GPU: nothing."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as profiler:
        synchronize()
        begin = time.perf_counter()
        steps(run, count)
        synchronize()
        wall = time.perf_counter() - begin
    kernels = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    kernels = [event for event in kernels if not getattr(event, "is_user_annotation", False)]
    if not kernels:
        return {}
    by_name, calls, by_kind = Counter[str](), Counter[str](), Counter[str]()
    for event in kernels:
        length = event.time_range.elapsed_us()
        by_name[event.name] += length
        calls[event.name] += 1
        by_kind[kind_of(event.name)] += length
    total = sum(by_name.values())
    busy = union((event.time_range.start, event.time_range.end) for event in kernels) / 1e6
    return {
        "ms per step": 1e3 * wall / count,
        "ms per step in which a kernel runs": 1e3 * busy / count,
        "idle share": 1 - busy / wall,
        "kernels per step": len(kernels) / count,
        **{kind: length / total for kind, length in by_kind.most_common()},
        "longest": [[name[:160], calls[name] / count, length / total] for name, length in by_name.most_common(25)],
    }


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    lower = kernel.lower()
    return next((kind for kind, marks in KINDS if any(mark in lower for mark in marks)), "other")


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def synchronizing_lines(run: TrainingRun) -> dict[str, int]:
    """The product's lines at which one step waits for the GPU -> how often."""
    found: Counter[str] = Counter()

    def show(message: Any, *_: Any) -> None:
        if "synchronizing" in str(message):
            own = [f for f in traceback.extract_stack() if is_product(f.filename)]
            line = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno} {own[-1].line}" if own else "autograd"
            found[line] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            steps(run, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(found.most_common())


def is_product(filename: str) -> bool:
    """Whether a file belongs to the packages of this repository."""
    path = Path(filename)
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("model", "pretrain", "data_pipeline")
