"""Builds several layouts and writes what each rank held meanwhile, and whether the weights are those of (seed, name).

torchrun ... built.py OUT RECIPE LAYOUTS.json: a file with a list of lists of key=value overrides. Every rank writes OUT.RANK, a
list with one `Built` per layout as JSON; rank 0 lists the weights that differ. Run it with the variables of `ALLOCATOR`.
"""

import gc
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.distributed.measured_memory import resident


@dataclass(frozen=True)
class Built:
    """One rank of one layout.

    Attributes:
        peak: bytes that the rank held at most while it made its weights, before DeepSpeed made the optimizer's states.
        sharded: bytes of the weights that it keeps.
        largest: bytes of the largest weight in fp32, as this tensor-parallel rank holds it without ZeRO-3.
        different: names of weights that are not the initial weights, bit for bit, rounded to bf16 where training is in bf16.
    """

    peak: int
    sharded: int
    largest: int
    different: list[str]


def kept_and_largest(engine: Any) -> tuple[int, int]:
    """`Built.sharded` and `Built.largest`."""
    weights = list(engine.model.parameters())
    parts = [getattr(weight, "ds_tensor", weight) for weight in weights]
    numbers = [getattr(weight, "ds_numel", weight.numel()) for weight in weights]
    return sum(part.numel() * part.element_size() for part in parts), 4 * max(numbers)


def different_weights(engine: Any, settings: Any) -> list[str]:
    """`Built.different`; empty on other ranks than the main one."""
    drawn = initial_weights(settings.model, settings.run.seed)
    dtype = torch.bfloat16 if settings.train.precision == "bf16" else torch.float32
    found = []
    for name, weight in engine.full_weights():
        if weight is not None and not torch.equal(weight, drawn(name, weight.shape).to(dtype).float()):
            found.append(name)
    return found


def build(overrides: list[str]) -> Built:
    """Build one layout and look at it."""
    settings = load_settings(sys.argv[2], overrides)
    plan = make_run_plan(settings, load_manifest(settings.data.path), read_launcher()[1])
    world = start_world(read_launcher(), plan.shape)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM)
    before, peaks = resident("VmRSS"), []

    def initialize(*arguments: Any) -> Any:
        peaks.append(resident("VmHWM") - before)
        return initialize_deepspeed(*arguments)

    parallelize.initialize_deepspeed = initialize
    engine = parallelize.parallelize(plan.settings.model, plan.settings.optim, plan, world)
    return Built(*peaks, *kept_and_largest(engine), different_weights(engine, plan.settings))


if __name__ == "__main__":
    import torch

    from data_pipeline.manifest import load_manifest
    from model.weights import initial_weights
    from pretrain.config.load import load_settings
    from pretrain.config.run_plan import make_run_plan
    from pretrain.machine.library_warnings import filter_library_warnings
    from pretrain.parallel.launcher import read_launcher

    filter_library_warnings()
    from pretrain.parallel import parallelize
    from pretrain.parallel.engine import initialize_deepspeed
    from pretrain.parallel.world import leave_world, start_world

    built = [asdict(build(overrides)) for overrides in json.loads(Path(sys.argv[3]).read_text())]
    Path(f"{sys.argv[1]}.{read_launcher()[0]}").write_text(json.dumps(built))
    leave_world()
