"""Ranks that hold the same numbers compare them when a save is taken: it writes one copy, but training goes on with all of them.

Their bits are equal because the same update follows an all-reduce:

- Norms, on all tensor-parallel ranks: what a rank computes apart (attention, its share of a matrix product) goes through an
  all-reduce, forward in `RowParallelLinear`, backward in `ColumnParallelLinear` and in the LM head, before it reaches a norm. With
  sequence parallelism every rank has other tokens, and the gradient of the weight is all-reduced (`RMSNorm.sum_gradients`).
- The mid block, on the stages that have a copy: `Engine.forward_backward` all-reduces its gradients over the copies.
- Everything, on all data-parallel ranks without ZeRO: DeepSpeed all-reduces the gradients.

Three things may round the copies differently. There only the norms of the master weights are compared, up to `ROUNDING`:

- One more sum, for each copy in a group of its own: of the gradient over the data-parallel ranks, or, without ZeRO, of the squared
  norm over the ranks of the model. Two numbers have the same sum in either order. The order of three or more depends with gloo on
  the place of a gradient in the buffer, which differs between stages, and with NCCL also on the group. (`train.deterministic`
  makes the summands equal.)
- Ranks on several hosts: another processor may have other instructions.
- On GPUs, kernels that are chosen in every process: `torch.compile` times several for a norm, whose gradient without sequence
  parallelism passes no all-reduce, and cuBLAS those of Muon.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.weights import shards_of
from pretrain.checkpoints.states import Held
from pretrain.checkpoints.sums import checksum_of_states, squares_of_master
from pretrain.parallel.attendance import name_ranks
from pretrain.parallel.world import World

ROUNDING = 0.01
"""By how much the norms of copies may differ where they are rounded differently, as a share of the smallest one."""


@dataclass(frozen=True)
class _Group:
    """Ranks that hold the same numbers of some weights.

    Attributes:
        exact: the same bits, too. Alike for all groups of a kind, because data-parallel ranks add up their sums together.
    """

    weights: list[str]
    ranks: dist.ProcessGroup
    exact: bool


class Copies:
    """What this rank and others hold alike: master weights, the optimizer's states and the moving average. Collective.

    Args:
        held: what is in this rank's memory.
    """

    def __init__(self, held: Held, world: World) -> None:
        self._held, self._world = held, world
        self._hosts: list[str] = _gathered(socket.gethostname())
        self._groups = list(self._find_groups())

    def difference(self) -> str | None:
        """What is wrong with the first weight whose copies differ, on all ranks; None if they agree. Collective."""
        checksums = self._sums([group for group in self._groups if group.exact], checksum_of_states, torch.int32)
        squares = self._sums([group for group in self._groups if not group.exact], squares_of_master, torch.float64)
        tensors = sorted(set().union(*_gathered({tensor for _, states in self._held.pieces() for tensor in states})))
        problem = None
        for group in self._groups:
            if group.weights and group.exact:
                problem = self._compare_bits(group, checksums, tensors) or problem
            elif group.weights:
                problem = self._compare_norms(group, squares) or problem
        return self._world.first(problem)

    def _find_groups(self) -> Iterator[_Group]:
        """In the same order on all ranks."""
        names, world, rows = self._held.names, self._world, self._world.data_parallel_size
        alike = world.device.type == "cpu" and len(set(self._hosts)) == 1
        if world.shape.tensor > 1:
            yield _Group([name for name in names if shards_of(name) is None], world.tensor_group, alike and rows <= 2)
        if world.replica_group is not None:
            yield _Group([name for name in names if name.startswith("mid.")], world.replica_group, alike and rows <= 2)
        if rows > 1 and not self._held.divided:
            yield _Group(names, world.data_parallel_group, alike and world.size // rows <= 2)

    def _sums(self, groups: list[_Group], of: Callable[..., Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """A number [] for each weight of the groups, the sum of those of its pieces on the ranks that divide it. Collective."""
        names = sorted({name for group in groups for name in group.weights})
        sums = dict(zip(names, torch.zeros(len(names), dtype=dtype, device=self._world.device), strict=True))
        for piece, states in self._held.pieces():
            if piece.name in sums:
                sums[piece.name] += of(states, piece.start).to(self._world.device)
        if sums and self._held.divided:
            whole = torch.stack(list(sums.values()))
            dist.all_reduce(whole, group=self._world.data_parallel_group)
            sums = dict(zip(names, whole, strict=True))
        return sums

    def _compare_norms(self, group: _Group, squares: dict[str, Tensor]) -> str | None:
        own = torch.stack([squares[name] for name in group.weights]).sqrt()
        own = torch.where(own.isfinite(), own, torch.inf)
        for name, least, most in zip(group.weights, *_range(own, group), strict=True):
            if most > least * (1 + ROUNDING):
                ranks = dist.get_process_group_ranks(group.ranks)
                what = f"must be equal but for rounding, but their norms are from {least:.6g} to {most:.6g}"
                return f"{name}: its copies on {name_ranks(ranks)} {what}. {self._advice(ranks)}"
        return None

    def _compare_bits(self, group: _Group, checksums: dict[str, Tensor], tensors: list[str]) -> str | None:
        own = torch.stack([checksums[name] for name in group.weights]).long()
        suspects = [name for name, low, high in zip(group.weights, *_range(own, group), strict=True) if low != high]
        return next((problem for name in suspects if (problem := self._describe(name, group, tensors))), None)

    def _describe(self, name: str, group: _Group, tensors: list[str]) -> str | None:
        """How the bits of the copies differ from the group's first rank, or None if they do not.

        Collective, with ZeRO also over the data-parallel ranks: they have the same checksums, so all ask for the same weights.
        """
        ranks = dist.get_process_group_ranks(group.ranks)
        differences = {tensor: self._difference(name, tensor, group) for tensor in tensors}
        own = {tensor: amount for tensor, amount in differences.items() if amount is not None}
        found = {rank: one for rank, one in zip(ranks, _gathered(own, group.ranks), strict=True) if one}
        if not found:
            return None
        largest = {tensor: max(one.get(tensor, 0.0) for one in found.values()) for tensor in tensors}
        differ = sorted(set().union(*found.values()))
        what = ", ".join(f"{tensor} by up to {largest[tensor]:.3g}" for tensor in differ)
        alike = f"{name_ranks(list(found))} and rank {ranks[0]} must hold the same numbers"
        return f"{name}: {alike}, but differ in {what}. {self._advice([ranks[0], *found])}"

    def _difference(self, name: str, tensor: str, group: _Group) -> float | None:
        """The largest difference from the group's first rank, None if the bits are the same. Collective."""
        bits = self._whole(name, tensor)
        first_bits = bits.clone()
        dist.broadcast(first_bits, dist.get_process_group_ranks(group.ranks)[0], group=group.ranks)
        if torch.equal(bits, first_bits):
            return None
        return float((bits.view(torch.float32) - first_bits.view(torch.float32)).abs().max())

    def _whole(self, name: str, tensor: str) -> Tensor:
        """The bits of a tensor as this rank would hold it without ZeRO, int32 [n]. Collective over the data-parallel ranks."""
        whole = torch.zeros(self._held.size(name), dtype=torch.int32, device=self._world.device)
        for piece, states in self._held.pieces():
            if piece.name == name and tensor in states:
                whole[piece.start : piece.start + piece.length] = states[tensor].view(torch.int32)
        if self._held.divided:
            dist.all_reduce(whole, group=self._world.data_parallel_group)
        return whole

    def _advice(self, ranks: Sequence[int]) -> str:
        hosts = ", ".join(dict.fromkeys(self._hosts[rank] for rank in ranks))
        at_fault = f"The memory or the arithmetic of one of them is at fault (on {hosts})"
        return f"{at_fault}. Run the same command again: it goes on from the last checkpoint, if there is one"


def _range(own: Tensor, group: _Group) -> tuple[list[float], list[float]]:
    """The smallest and the largest of the group's numbers. Collective."""
    found = torch.stack([-own, own])
    dist.all_reduce(found, dist.ReduceOp.MAX, group=group.ranks)
    return (-found[0]).tolist(), found[1].tolist()


def _gathered(own: Any, ranks: dist.ProcessGroup | None = None) -> list[Any]:
    """What all ranks of a group, or of the run, have. Collective."""
    everyone = [own] * dist.get_world_size(ranks)
    dist.all_gather_object(everyone, own, group=ranks)
    return everyone
