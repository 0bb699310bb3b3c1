"""Where DeepSpeed has put the weights: which range of which weight each tensor holds that the optimizer steps.

DeepSpeed has no public function for it. The attributes read here are those of DeepSpeed 0.19.8; `Exchange` refuses pieces that
do not make up whole matrices.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.optimizer.exchange import Piece, Sharing
from pretrain.parallel.world import World

Pieces = Mapping[Tensor, Sequence[Piece]]


def pieces_of(model: nn.Module, optimizer: Optimizer, zero_optimizer: Any, zero_stage: int, world: World) -> Pieces:
    """The pieces in each tensor of the optimizer's groups on this rank, by that tensor.

    Args:
        optimizer: whose groups DeepSpeed has filled.
        zero_optimizer: DeepSpeed's, which calls `optimizer`.
    """
    found: dict[Tensor, list[Piece]] = defaultdict(list)
    names = {weight: name for name, weight in model.named_parameters()}
    shard = world.tensor_rank
    if zero_stage == 0:
        return {weight: [Piece(name, shard, 0, weight.numel(), 0)] for weight, name in names.items()}
    if zero_stage == 3:
        for weights, flat in zip(zero_optimizer.fp16_groups, zero_optimizer.fp32_partitioned_groups_flat, strict=True):
            offset = 0
            for weight in weights:
                share = weight.partition_numel()  # the same on every rank: the last ones may be padding
                start = min(world.data_parallel_rank * share, weight.ds_numel)
                found[flat].append(Piece(names[weight], shard, start, min(share, weight.ds_numel - start), offset))
                offset += share
        return found
    for group in optimizer.param_groups:
        found[group["params"][0]] = []  # also of a rank that holds nothing but padding
    for weight, name in names.items():
        if (held := weight._hp_mapping) is not None:
            (flat,) = optimizer.param_groups[held.param_group_index]["params"]
            start, length = held.lp_fragment_address.start, held.lp_fragment_address.numel
            found[flat].append(Piece(name, shard, start, length, held.hp_fragment_address.start))
    return found


def sharing_of(model: nn.Module, zero_stage: int, world: World) -> Sharing:
    """The ranks that hold the pieces: those of this stage, or, without ZeRO, the tensor-parallel group, as each holds all."""
    shapes = {name: getattr(weight, "ds_shape", weight.shape) for name, weight in model.named_parameters()}
    group = world.stage_group if zero_stage else world.tensor_group
    return Sharing(group, world.shape.tensor, shapes, world.device)
