"""The oracle of the looped block's gradient: S separate copies of the block, each used once, whose gradients are summed.

torchrun --nproc-per-node=2 tests/distributed/tied_copies.py OUT CORPUS: compares under tensor parallelism, where every rank holds
shards; writes the largest relative error over ranks and weights, without and with sequence parallelism.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.dataset.blend import load_blend
from data_pipeline.dataset.samples import Samples
from data_pipeline.manifest import load_manifest
from model.architecture import Architecture
from model.denoiser import LoopedDenoiser
from model.layers import Sharding
from model.objective import masked_cross_entropy
from model.weights import fill_weights, initial_weights
from pretrain.config.load import load_settings
from pretrain.config.run_plan import RunPlan, make_run_plan
from pretrain.parallel.engine import use_bf16_weights
from pretrain.training.batches import Batches, MicroBatch
from tests.launching import ROOT

RECIPE = ROOT / "tests" / "tiny.yaml"
BF16_LOOPS = 12
MODEL = ("model.init_std=0.1", f"train.loops={BF16_LOOPS}", f"model.loop.max={BF16_LOOPS}", "train.precision=bf16")


def unroll(architecture: Architecture, loops: int) -> Architecture:
    """The model without a loop that computes what `loops` passes compute."""
    split = architecture.loop
    layers = split.head + split.mid * loops + split.tail
    return replace(architecture, num_layers=layers, loop=replace(split, mid=split.mid * loops))


def tied_name(name: str, mid: int) -> str:
    """The weight of the looped model that a weight of the unrolled one is a copy of."""
    if not name.startswith("mid.layers."):
        return name
    index, rest = name.removeprefix("mid.layers.").split(".", 1)
    return f"mid.layers.{int(index) % mid}.{rest}"


def gradients(model: nn.Module, batches: Iterable[MicroBatch], loops: int, mid: int) -> dict[str, Tensor]:
    """fp32 sum of the gradients over micro-batches, and over the copies of each weight of the looped model."""
    total: dict[str, Tensor] = {}
    for batch in batches:
        inputs = batch.inputs
        logits = model(inputs.tokens, inputs.logit_positions, loops, inputs.document_ids)
        model.zero_grad(set_to_none=True)
        torch.dot(inputs.loss_weights, masked_cross_entropy(logits, inputs.targets)).backward()
        for copy, weight in model.named_parameters():
            name = tied_name(copy, mid)
            total[name] = weight.grad.float() + total.get(name, 0.0)
    return total


def bf16_copies_gradient(corpus: Path, overrides: Sequence[str], sharding: Sharding | None = None) -> dict[str, Tensor]:
    """Gradient of the first step's global batch by S copies of the mid block in bf16, added in fp32."""
    plan, batches = first_step(corpus, overrides)
    architecture, seed = plan.settings.model, plan.settings.run.seed
    sharding = sharding or Sharding()
    copies = LoopedDenoiser(unroll(architecture, BF16_LOOPS), seed, sharding=sharding)
    drawn, mid = initial_weights(architecture, seed), architecture.loop.mid
    fill_weights(copies, lambda name, shape: drawn(tied_name(name, mid), shape), sharding.rank, sharding.tensor)
    use_bf16_weights(copies)  # one gradient each: nothing to sum, but norms compute theirs in fp32
    return gradients(copies, batches, 1, mid)


def first_step(corpus: Path, overrides: Sequence[str]) -> tuple[RunPlan, Sequence[MicroBatch]]:
    """The plan of a run of one rank, and the micro-batches of its first step."""
    settings = load_settings(str(RECIPE), [f"data.path={corpus}", *overrides])
    plan = make_run_plan(settings, load_manifest(corpus), 1)
    source = Samples.of(load_blend(corpus), settings.run.seed)
    return plan, Batches(plan, source, 0, torch.device("cpu"))[0]


def largest_error(corpus: Path, sharding: Sharding) -> float:
    """Relative error of a rank's shards, the largest over weights: the looped model against the copies."""
    plan, batches = first_step(corpus, MODEL)
    looped = LoopedDenoiser(plan.settings.model, plan.settings.run.seed, sharding=sharding)
    use_bf16_weights(looped)
    ours = gradients(looped, batches, BF16_LOOPS, plan.settings.model.loop.mid)
    theirs = bf16_copies_gradient(corpus, MODEL, sharding)
    assert ours.keys() == theirs.keys()
    # A rank's part of the vocabulary may have no gradient.
    return max(((ours[name] - g).norm() / g.norm().clamp_min(1e-30)).item() for name, g in theirs.items())


if __name__ == "__main__":
    from pretrain.config.run_plan import Shape
    from pretrain.parallel.launcher import read_launcher
    from pretrain.parallel.world import leave_world, start_world

    world = start_world(read_launcher(), Shape(tensor=2))
    worst = {}
    for sequence in (False, True):
        sharding = Sharding(tensor=2, rank=world.tensor_rank, sequence=sequence, group=world.tensor_group)
        error = torch.tensor(largest_error(Path(sys.argv[2]), sharding))
        dist.all_reduce(error, op=dist.ReduceOp.MAX)
        worst[f"sequence={sequence}"] = error.item()
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(worst))
    leave_world()
