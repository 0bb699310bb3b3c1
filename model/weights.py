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
        if size == 1:
            return full
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


Source = Callable[[str, torch.Size], Tensor]
"""(name, shape of the full weight) -> the full weight, on the CPU."""

OnWeight = Callable[[str, nn.Module], None]
"""Called with the name of a weight that has just been created, and the module that it is the weight of."""


@torch.no_grad()
def fill_weights(module: nn.Module, source: Source, rank: int, size: int) -> None:
    """Set every parameter of `module` to this rank's shard of the full weight.

    Args:
        rank, size: rank in the tensor-parallel group, and its size.
    """
    for name, parameter in module.named_parameters():
        parameter.copy_(_shard(name, parameter.shape, source, rank, size))


def create_weights(module: nn.Module, source: Source, rank: int, size: int, on_weight: OnWeight | None = None) -> None:
    """Replace the parameters of a module on the meta device by this rank's shards of the full weights, one at a time.

    Args:
        rank, size: as for `fill_weights`.
        on_weight: may move, cast or shard the weight, so that only one is whole and on the CPU at a time.
    """
    for name, parameter in list(module.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        holder = module.get_submodule(owner)
        setattr(holder, attribute, nn.Parameter(_shard(name, parameter.shape, source, rank, size)))
        if on_weight is not None:
            on_weight(name, holder)


def _shard(name: str, shape: torch.Size, source: Source, rank: int, size: int) -> Tensor:
    """This rank's shard, which has the given shape, of the full weight."""
    shards = shards_of(name)
    if shards is None:
        return source(name, shape)
    whole = list(shape)
    whole[shards.dim] *= size
    return shards.take(source(name, torch.Size(whole)), rank, size)


def initial_weights(architecture: Architecture, seed: int) -> Source:
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
        return torch.randn(shape, generator=generator).mul_(std)  # in place: a weight may be large

    return draw


def _name_seed(seed: int, name: str) -> int:
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
