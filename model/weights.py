"""Initial weights and tensor-parallel shards, both determined by a parameter's name.

A parameter has the same name on every parallel layout: `mid.layers.1.mlp.linear_fc1.weight` is always the same weight.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor, nn

from model.architecture import Architecture


@dataclass(frozen=True)
class Shards:
    """How megatron-core splits a weight over the tensor-parallel ranks.

    Attributes:
        dim: the dimension that is split.
        blocks: number of equal blocks along `dim` that are split separately. The first matrix of SwiGLU holds the gate and
            the up projection, and every rank holds a share of both (megatron-core calls this number the stride).
    """

    dim: int
    blocks: int = 1

    def take(self, full: Tensor, rank: int, size: int) -> Tensor:
        """Full weight -> the shard of `rank` out of `size`."""
        parts = [block.chunk(size, self.dim)[rank] for block in full.chunk(self.blocks, self.dim)]
        return torch.cat(parts, self.dim)

    def join(self, shards: Sequence[Tensor]) -> Tensor:
        """Shards in rank order -> full weight."""
        by_rank = [shard.chunk(self.blocks, self.dim) for shard in shards]
        return torch.cat([blocks[i] for i in range(self.blocks) for blocks in by_rank], self.dim)


SHARDED = {
    "embedding.weight": Shards(0),
    "lm_head.weight": Shards(0),
    "linear_qkv.weight": Shards(0),  # rows are grouped by key-value head: no group is split
    "linear_proj.weight": Shards(1),
    "linear_fc1.weight": Shards(0, blocks=2),
    "linear_fc2.weight": Shards(1),
}
"""The last two parts of a name -> how the weight is split. Every rank holds all other weights in full."""


def shards_of(name: str) -> Shards | None:
    """How a weight is split, or None if every rank holds it in full."""
    return SHARDED.get(".".join(name.split(".")[-2:]))


@torch.no_grad()
def fill_weights(module: nn.Module, source: Callable[[str, torch.Size], Tensor], rank: int, size: int) -> None:
    """Set every parameter of `module` to this rank's shard of the full weight.

    Args:
        source: (name, shape of the full weight) -> the full weight.
        rank, size: rank in the tensor-parallel group, and its size.
    """
    for name, parameter in module.named_parameters():
        shards = shards_of(name)
        shape = list(parameter.shape)
        if shards is not None:
            shape[shards.dim] *= size
        full = source(name, torch.Size(shape))
        parameter.copy_(full if shards is None else shards.take(full, rank, size))


def initial_weights(architecture: Architecture, seed: int) -> Callable[[str, torch.Size], Tensor]:
    """Initial weights as a function of (seed, name): independent of the parallel layout and of the order of construction.

    Matrices are normal with standard deviation init_std, or init_std / sqrt(2 num_layers) for the two projections of each
    layer that write to the residual stream (as in GPT-2, Radford et al. 2019). Norm weights are 1. The LoopMDM paper does not
    state its initialization; this is our choice.
    """
    residual_std = architecture.init_std / math.sqrt(2 * architecture.num_layers)

    def draw(name: str, shape: torch.Size) -> Tensor:
        if len(shape) < 2:
            return torch.ones(shape)
        std = residual_std if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else architecture.init_std
        generator = torch.Generator().manual_seed(_name_seed(seed, name))
        return torch.randn(shape, generator=generator) * std

    return draw


def _name_seed(seed: int, name: str) -> int:
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
