"""Initial weights and tensor-parallel shards, both functions of a parameter's name.

Names are those of the whole model on every layout: `mid.layers.1.mlp.linear_fc1.weight` is the same weight everywhere.
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
    """How megatron-core cuts a weight over the tensor-parallel ranks.

    Attributes:
        dim: the dimension that is cut.
        blocks: equal blocks along it that are each cut: SwiGLU's first matrix holds gate and up projection, and every rank
            holds a share of both (megatron-core calls this number the stride).
    """

    dim: int
    blocks: int = 1

    def take(self, full: Tensor, rank: int, size: int) -> Tensor:
        """Full weight -> the shard of `rank`."""
        parts = [block.chunk(size, self.dim)[rank] for block in full.chunk(self.blocks, self.dim)]
        return torch.cat(parts, self.dim)

    def join(self, shards: Sequence[Tensor]) -> Tensor:
        """Shards in the order of ranks -> full weight."""
        cut = [shard.chunk(self.blocks, self.dim) for shard in shards]
        return torch.cat([pieces[block] for block in range(self.blocks) for pieces in cut], self.dim)


SHARDED = {
    "embedding.weight": Shards(0),
    "lm_head.weight": Shards(0),
    "linear_qkv.weight": Shards(0),  # rows are grouped by key-value head, so a cut along them keeps groups whole
    "linear_proj.weight": Shards(1),
    "linear_fc1.weight": Shards(0, blocks=2),
    "linear_fc2.weight": Shards(1),
}
"""Last parts of a name -> how it is cut; every other weight is whole on every tensor-parallel rank."""


def shards_of(name: str) -> Shards | None:
    """How a weight is cut, or None when every rank holds it whole."""
    return SHARDED.get(".".join(name.split(".")[-2:]))


@torch.no_grad()
def fill_weights(module: nn.Module, source: Callable[[str, torch.Size], Tensor], rank: int, size: int) -> None:
    """Copy this rank's part of every weight.

    Args:
        source: (name, shape of the full weight) -> the full weight.
        rank, size: of the tensor-parallel group.
    """
    for name, parameter in module.named_parameters():
        shards = shards_of(name)
        shape = list(parameter.shape)
        if shards is not None:
            shape[shards.dim] *= size
        full = source(name, torch.Size(shape))
        parameter.copy_(full if shards is None else shards.take(full, rank, size))


def initial_weights(architecture: Architecture, seed: int) -> Callable[[str, torch.Size], Tensor]:
    """Normal initial weights as a function of (seed, name), so that no layout and no build order matters.

    Matrices get init_std; the two projections that write to the residual stream get init_std / sqrt(2 num_layers)
    (Radford et al. 2019); norms are 1. The paper does not state its initialisation: this is our choice.
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
