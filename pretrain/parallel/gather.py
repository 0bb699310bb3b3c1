"""Gathers weights and logits from the ranks that share one copy of the model (tensor and pipeline parallelism)."""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from model.weights import shards_of
from pretrain.parallel.world import World


def gather_weight(world: World, name: str, stage: int, shard: Tensor | None) -> Tensor | None:
    """Gather a weight of one stage: the full weight on the CPU of the main rank, None on the others. Collective.

    Args:
        stage: the pipeline stage that owns the weight.
        shard: this rank's shard of it, fp32; None on other stages.
    """
    full = None
    if shard is not None and world.data_parallel_rank == 0:
        full = _join(name, shard)
    holder = parallel_state.get_tensor_model_parallel_rank() == 0 and world.data_parallel_rank == 0
    if stage > 0 and holder:
        full = _send_to_first_stage(world, stage, full)
    return full.cpu().clone() if world.is_main and full is not None else None


def all_gather_logits(world: World, logits: Tensor | None, rows: int, vocabulary: int) -> Tensor:
    """Gather the logits [rows, vocabulary] on every rank. Collective.

    Args:
        logits: this rank's shard of the vocabulary on the last stage; None on the other stages.
        rows, vocabulary: shape of the result.
    """
    if logits is None:
        whole = torch.empty(rows, vocabulary, device=world.device)
    else:
        whole = gather_from_tensor_model_parallel_region(logits).float().contiguous()
    if world.shape.pipeline > 1:
        group = parallel_state.get_pipeline_model_parallel_group()
        dist.broadcast(whole, dist.get_process_group_ranks(group)[-1], group=group)
    return whole


def all_agree(world: World, decision: Tensor) -> Tensor:
    """True where the decision (bool) is true on all tensor-parallel ranks. Collective."""
    if world.shape.tensor == 1:
        return decision
    votes = decision.int()
    dist.all_reduce(votes, dist.ReduceOp.MIN, group=world.tensor_group)
    return votes.bool()


def _join(name: str, shard: Tensor) -> Tensor | None:
    """Join the shards of a weight on every rank of its tensor-parallel group."""
    shards = shards_of(name)
    group = parallel_state.get_tensor_model_parallel_group()
    if shards is None or group.size() == 1:
        return shard
    parts = [torch.empty_like(shard) for _ in range(group.size())]
    dist.all_gather(parts, shard.contiguous(), group=group)
    return shards.join(parts)


def _send_to_first_stage(world: World, stage: int, full: Tensor | None) -> Tensor | None:
    """Send a full weight from its stage to the first stage; only the ranks that hold it take part."""
    group = parallel_state.get_pipeline_model_parallel_group()
    ranks = dist.get_process_group_ranks(group)
    if world.stage == stage:
        assert full is not None
        dist.send_object_list([tuple(full.shape)], ranks[0], group=group)
        dist.send(full.contiguous(), ranks[0], group=group)
    elif world.stage == 0:
        shape: list[tuple[int, ...]] = [()]
        dist.recv_object_list(shape, ranks[stage], group=group)
        received = torch.empty(shape[0], device=world.device)
        dist.recv(received, ranks[stage], group=group)
        return received
    return None
