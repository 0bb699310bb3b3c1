"""Checks that all ranks of a run have the same settings, data and weights; otherwise the run stops before its first step.

A rank with another recipe, another copy of the corpus or other initial weights would train without any error, and the model
would be wrong. A fact is a named value, such as a setting, a library version or a checksum. Every rank contributes its facts;
where several ranks have a fact of the same name, its values must be equal.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.weights import shards_of
from pretrain.errors import UserError
from pretrain.parallel.attendance import name_ranks
from pretrain.parallel.world import World

MAX_SHOWN = 5
"""How many differences an error message lists."""


def require_identical_on_all_ranks(facts: Mapping[str, Any]) -> None:
    """Compare named values over all ranks. Collective.

    Raises:
        UserError: on every rank; lists the ranks in the minority, the names and both values.
    """
    facts_by_rank: list[Mapping[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(facts_by_rank, facts)
    differences = find_differences(facts_by_rank)
    if differences:
        more = f"\n  and {len(differences) - MAX_SHOWN} more" if len(differences) > MAX_SHOWN else ""
        raise UserError(
            "the ranks differ, so the run would train a wrong model; nothing was trained:\n  "
            + "\n  ".join(differences[:MAX_SHOWN])
            + more
            + "\nGive every rank the same recipe, overrides, prepared data and library versions"
        )


def find_differences(facts_by_rank: list[Mapping[str, Any]]) -> list[str]:
    """`rank 3: optim.lr is 0.1, but 0.2 on ranks 0, 1, 2` for every value that differs from that of most ranks."""
    differences = []
    for name in dict.fromkeys(name for facts in facts_by_rank for name in facts):
        ranks_by_value: dict[str, list[int]] = {}
        for rank, facts in enumerate(facts_by_rank):
            if name in facts:
                ranks_by_value.setdefault(str(facts[name]), []).append(rank)
        common = max(ranks_by_value, key=lambda value: len(ranks_by_value[value]))
        differences += [
            f"{name_ranks(ranks)}: {name} is {value}, but {common} on {name_ranks(ranks_by_value[common])}"
            for value, ranks in ranks_by_value.items()
            if value != common
        ]
    return differences


def weight_facts(model: nn.Module, world: World) -> dict[str, str]:
    """Checksums of the weights that are whole on this rank, see `weight_fact`."""
    facts = {}
    for name, weight in model.named_parameters():
        if weight.numel():  # not sharded by ZeRO-3: shards differ, and full weights were compared before
            facts |= weight_fact(name, weight, world)
    return facts


def weight_fact(name: str, weight: Tensor, world: World) -> dict[str, str]:
    """The checksum of one weight; each tensor-parallel shard of it has a name of its own."""
    sharded = shards_of(name) and world.shape.tensor > 1
    shard = f", shard {world.tensor_rank} of {world.shape.tensor}" if sharded else ""
    return {f"the checksum of {name}{shard}": checksum(weight)}


def checksum(tensor: Tensor) -> str:
    """CRC-32 of a tensor's bytes."""
    return f"{zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy()):08x}"
