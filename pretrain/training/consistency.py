"""Ranks that must hold the same settings, data and weights hold them, or the run stops before its first step.

A rank with another recipe, another copy of the corpus or other initial weights trains without any error and spoils the
model. Every rank tells its facts under keys; ranks that tell the same key must tell the same value.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.dataset.blend import Blend
from model.weights import shards_of
from pretrain.config.load import flatten
from pretrain.config.run_plan import RunPlan
from pretrain.errors import UserError
from pretrain.machine.versions import package_version
from pretrain.parallel.world import World
from pretrain.training.batches import MicroBatch

SHOWN = 5
"""Disagreements that a message lists."""


def require_identical_on_all_ranks(facts: Mapping[str, Any]) -> None:
    """Compare facts over all ranks. Collective.

    Raises:
        UserError: on every rank, naming the ranks that stand against most others, the keys and both values.
    """
    everyone: list[Mapping[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, facts)
    told = disagreements(everyone)
    if told:
        more = f"\n  and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        raise UserError(
            "the ranks do not agree, and the run would train nonsense; nothing was trained:\n  "
            + "\n  ".join(told[:SHOWN])
            + more
            + "\nGive every rank the same recipe, words, prepared data and versions"
        )


def disagreements(everyone: list[Mapping[str, Any]]) -> list[str]:
    """`rank 3: optim.lr is 0.1, but 0.2 on ranks 0, 1, 2` for every key that ranks disagree about."""
    told = []
    for key in dict.fromkeys(key for facts in everyone for key in facts):
        holders: dict[str, list[int]] = {}
        for rank, facts in enumerate(everyone):
            if key in facts:
                holders.setdefault(str(facts[key]), []).append(rank)
        most = max(holders, key=lambda value: len(holders[value]))
        told += [
            f"{_ranks(ranks)}: {key} is {value}, but {most} on {_ranks(holders[most])}"
            for value, ranks in holders.items()
            if value != most
        ]
    return told


def run_facts(plan: RunPlan, blend: Blend) -> dict[str, Any]:
    """Settings, prepared data and library versions; the data's path may differ from node to node."""
    settings = {key: value for key, value in flatten(plan.settings).items() if key != "data.path"}
    data = {f"the sha256 of the data's {name}": value for name, value in blend.identity().items()}
    versions = {f"the version of {name}": package_version(name) for name in ("torch", "deepspeed", "megatron-core")}
    return settings | data | versions


def weight_facts(model: nn.Module, world: World) -> dict[str, str]:
    """Checksum of every weight that this rank holds; shards of one weight are facts of their own."""
    facts = {}
    for name, weight in model.named_parameters():
        if not weight.numel():  # ZeRO-3 has taken it away: its shards differ, and their sources were compared before
            continue
        shard = (
            f", shard {world.tensor_rank} of {world.shape.tensor}" if shards_of(name) and world.shape.tensor > 1 else ""
        )
        facts[f"the checksum of {name}{shard}"] = checksum(weight)
    return facts


def batch_facts(batches: list[MicroBatch | None], world: World) -> dict[str, str]:
    """Checksum of the rows, masks and documents of a step; ranks of one data-parallel share must see the same."""
    there = [batch for batch in batches if batch is not None]
    parts = {
        "rows": [batch.clean for batch in there],
        "masks": [batch.masked for batch in there],
        "documents": [batch.document_ids for batch in there if batch.document_ids is not None],
    }
    share = f"data-parallel share {world.data_parallel_rank}"
    return {
        f"the checksum of the {name} of {share}": "".join(map(checksum, tensors))
        for name, tensors in parts.items()
        if tensors
    }


def checksum(tensor: Tensor) -> str:
    """CRC-32 of a tensor's bytes."""
    return f"{zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy()):08x}"


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
