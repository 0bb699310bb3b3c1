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


def locate_weights(
    model: nn.Module, optimizer: Optimizer, zero_optimizer: Any, zero_stage: int, world: World
) -> tuple[Pieces, Sharing]:
    """The pieces of weights in each tensor that the optimizer steps on this rank, and the ranks that hold the others.

    Args:
        optimizer: whose groups DeepSpeed has filled.
        zero_optimizer: DeepSpeed's, which calls `optimizer`.
    """
    shapes = {name: getattr(weight, "ds_shape", weight.shape) for name, weight in model.named_parameters()}
    group = world.stage_group if zero_stage else world.tensor_group  # without ZeRO, every data-parallel rank holds all
    sharing = Sharing(group, world.shape.tensor, shapes, world.device)
    names = {weight: name for name, weight in model.named_parameters()}
    if zero_stage == 3:
        return _in_parts_of_weights(names, zero_optimizer, world), sharing
    if zero_stage:
        return _in_parts_of_groups(names, optimizer, world), sharing
    return {weight: [Piece(name, world.tensor_rank, 0, weight.numel(), 0)] for weight, name in names.items()}, sharing


def _in_parts_of_groups(names: Mapping[Tensor, str], optimizer: Optimizer, world: World) -> Pieces:
    """ZeRO-1 and 2: the weights of a group follow each other, and every rank has a range of the whole."""
    found: dict[Tensor, list[Piece]] = {group["params"][0]: [] for group in optimizer.param_groups}
    for weight, name in names.items():
        if (held := weight._hp_mapping) is not None:
            (flat,) = optimizer.param_groups[held.param_group_index]["params"]
            start, length = held.lp_fragment_address.start, held.lp_fragment_address.numel
            found[flat].append(Piece(name, world.tensor_rank, start, length, held.hp_fragment_address.start))
    return found


def _in_parts_of_weights(names: Mapping[Tensor, str], zero_optimizer: Any, world: World) -> Pieces:
    """ZeRO-3: every rank has a range of each weight; the last ranges may be padding, in part or altogether."""
    found: dict[Tensor, list[Piece]] = defaultdict(list)
    for weights, flat in zip(zero_optimizer.fp16_groups, zero_optimizer.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for weight in weights:
            share = weight.partition_numel()
            start = min(world.data_parallel_rank * share, weight.ds_numel)
            length = min(share, weight.ds_numel - start)
            found[flat].append(Piece(names[weight], world.tensor_rank, start, length, offset))
            offset += share
    return found
