"""One rank that trains several layouts and writes its peak resident memory beside the planner's figure.

[torchrun ...] measured_memory.py OUT RECIPE LAYOUTS.json: a file with a list of lists of key=value overrides. Every rank writes
OUT.RANK, a list of [measured bytes, planned bytes]. Measured is the peak of resident memory during the second step, minus
what was resident before the model was built; small models are trained first so that every library is loaded by then. glibc
must map each large allocation separately, so that freed memory is returned to the system (`ALLOCATOR`).
"""

import gc
import json
import sys
from pathlib import Path

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}
"""Environment variables of glibc that make resident memory follow allocations."""

SMALL = ("model.hidden_size=64", "model.num_heads=2", "train.global_batch_size=8", "train.micro_batch_size=2")


def resident(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the peak), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak_of_steps(overrides: list[str]) -> tuple[int, float]:
    """(measured, planned) bytes of this rank for one layout."""
    settings = load_settings(sys.argv[2], overrides)
    blend = load_blend(settings.data.path)
    plan = make_run_plan(settings, blend.manifest, read_launcher()[1])
    world = start_world(read_launcher(), plan.shape)
    gc.collect()
    before = resident("VmRSS")
    run = build_run(plan, blend, world)
    for step in range(2):
        run.progress.step = step
        train_step(run, run.batches[step])
        gc.collect()
        if step == 0:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM)
    return resident("VmHWM") - before, memory_of(plan, plan.placement[world.stage], "cpu").total


if __name__ == "__main__":
    from data_pipeline.dataset.blend import load_blend
    from pretrain.config.load import load_settings
    from pretrain.config.run_plan import make_run_plan
    from pretrain.machine.library_warnings import filter_library_warnings
    from pretrain.parallel.launcher import read_launcher
    from pretrain.planning.memory import memory_of

    filter_library_warnings()
    from pretrain.parallel.world import leave_world, start_world
    from pretrain.training.start import build_run
    from pretrain.training.step import train_step

    layouts = json.loads(Path(sys.argv[3]).read_text())
    for overrides in layouts[:: max(1, len(layouts) // 3)]:
        peak_of_steps([*overrides, *SMALL])
    pairs = [peak_of_steps(overrides) for overrides in layouts]
    Path(f"{sys.argv[1]}.{read_launcher()[0]}").write_text(json.dumps(pairs))
    leave_world()
