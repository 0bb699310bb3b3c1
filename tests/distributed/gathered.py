"""Counts the bytes that ZeRO-3 gathers in a step, of several runs: torchrun ... gathered.py OUT RECIPE RUNS.json

RUNS.json is a list of lists of key=value overrides. Rank 0 writes OUT, a list of {"S": bytes gathered} for S = 1 and 6, over the
micro-batches of one step.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

LOOPS = (1, 6)


def count_gathers(seen: list[int]) -> None:
    """Append the bytes of every all-gather's result to `seen`. Call before DeepSpeed is imported, which binds the function."""
    original = dist.all_gather_into_tensor

    def counted(output_tensor: Tensor, input_tensor: Tensor, *arguments: object, **keywords: object) -> object:
        seen.append(output_tensor.numel() * output_tensor.element_size())
        return original(output_tensor, input_tensor, *arguments, **keywords)

    dist.all_gather_into_tensor = counted


if __name__ == "__main__":
    from data_pipeline.dataset.blend import load_blend
    from pretrain.config.load import load_settings
    from pretrain.config.run_plan import make_run_plan
    from pretrain.machine.library_warnings import filter_library_warnings
    from pretrain.parallel.launcher import read_launcher

    filter_library_warnings()
    seen: list[int] = []
    count_gathers(seen)
    from pretrain.parallel.world import leave_world, start_world
    from pretrain.training.start import build_run

    gathered: list[dict[int, int]] = []
    for overrides in json.loads(Path(sys.argv[3]).read_text()):
        settings = load_settings(sys.argv[2], overrides)
        blend = load_blend(settings.data.path)
        plan = make_run_plan(settings, blend.manifest, read_launcher()[1])
        world = start_world(read_launcher(), plan.shape)
        run = build_run(plan, blend, world)
        gathered.append({})
        for step, loops in enumerate((LOOPS[0], *LOOPS)):  # the first step traces the order of modules and is repeated
            batches = run.batches[step]
            seen.clear()
            run.engine.forward_backward([b.inputs for b in batches], loops, lambda *_: None)
            gathered[-1][loops] = sum(seen)
            run.engine.step(0.0)
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(gathered))
    leave_world()
