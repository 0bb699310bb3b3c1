"""Ranks that hold the same numbers compare them when a save is taken: it writes one copy, but training goes on with all of them.

Their bits are equal because the same update follows an all-reduce:

- Norms, on all tensor-parallel ranks: what a rank computes apart (attention, its share of a matrix product) goes through an
  all-reduce, forward in `RowParallelLinear`, backward in `ColumnParallelLinear` and in the LM head, before it reaches a norm. With
  sequence parallelism every rank has other tokens, and the gradient of the weight is all-reduced (`RMSNorm.sum_gradients`).
- The mid block, on the stages that have a copy: `Engine.forward_backward` all-reduces its gradients over the copies.
- Everything, on all data-parallel ranks without ZeRO: DeepSpeed all-reduces the gradients.

Two things may round the copies differently. There the last bits may differ, and differences up to `ROUNDING` pass:

- One more sum, for each copy in a group of its own: of the gradient over the data-parallel ranks, or, without ZeRO, of the squared
  norm over the ranks of the model. Two numbers have the same sum in either order. The order of three or more depends with gloo on
  the place of a gradient in the buffer, which differs between stages, and with NCCL also on the group.
- On GPUs, kernels that are chosen in every process: `torch.compile` times several for a norm, whose gradient without sequence
  parallelism passes no all-reduce, and cuBLAS those of Muon.
"""

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.weights import shards_of
from pretrain.checkpoints.states import Held
from pretrain.parallel.attendance import name_ranks
from pretrain.parallel.world import World

ROUNDING = 0.01
"""Largest difference that passes where copies may differ in the last bits, as a share of the largest number of the tensor."""

AT_ONCE = 2**17
"""Numbers that are multiplied at a time, so that the products stay in a processor's cache."""


@dataclass(frozen=True)
class _Group:
    """Ranks that hold the same numbers of some weights.

    Attributes:
        exact: the same bits, too.
    """

    weights: list[str]
    ranks: dist.ProcessGroup
    exact: bool


class Copies:
    """What this rank and others hold alike: master weights, the optimizer's states and the moving average.

    Args:
        held: what is in this rank's memory.
    """

    def __init__(self, held: Held, world: World) -> None:
        self._held, self._world = held, world
        self._groups = list(self._find_groups())

    def difference(self) -> str | None:
        """Compare checksums of the bits, and where they differ the numbers; returns what is wrong, on all ranks. Collective."""
        sums = self._checksums(sorted({name for group in self._groups for name in group.weights}))
        problem = None
        for group in self._groups:
            problem = self._compare(group, sums) or problem
        return self._world.first(problem)

    def _find_groups(self) -> Iterator[_Group]:
        """In the same order on all ranks."""
        names, world, rows = self._held.names, self._world, self._world.data_parallel_size
        on_cpu = world.device.type == "cpu"
        if world.shape.tensor > 1:
            yield _Group([name for name in names if shards_of(name) is None], world.tensor_group, on_cpu and rows <= 2)
        if world.replica_group is not None:
            yield _Group([name for name in names if name.startswith("mid.")], world.replica_group, on_cpu and rows <= 2)
        if rows > 1 and not self._held.divided:
            yield _Group(names, world.data_parallel_group, on_cpu and world.size // rows <= 2)

    def _checksums(self, names: Sequence[str]) -> dict[str, Tensor]:
        """One int32 for each weight with its states, as this rank would hold them without ZeRO. Collective."""
        sums = dict.fromkeys(names, torch.zeros((), dtype=torch.int32, device=self._world.device))
        for piece, states in self._held.pieces():
            if piece.name in sums:
                parts = [checksum(states[tensor], piece.start) * (2 * i + 1) for i, tensor in enumerate(sorted(states))]
                sums[piece.name] = sums[piece.name] + torch.stack(parts).sum(dtype=torch.int32).to(self._world.device)
        if sums and self._held.divided:
            whole = torch.stack(list(sums.values()))
            dist.all_reduce(whole, group=self._world.data_parallel_group)
            sums = dict(zip(sums, whole, strict=True))
        return sums

    def _compare(self, group: _Group, sums: dict[str, Tensor]) -> str | None:
        """What is wrong with the first weight that differs, or None. Collective."""
        if not group.weights:
            return None
        own = torch.stack([sums[name] for name in group.weights])
        found = torch.cat([own, ~own])  # ~x is -x - 1: one reduction finds the largest and the smallest
        dist.all_reduce(found, dist.ReduceOp.MAX, group=group.ranks)
        differs = found[: len(own)] != ~found[len(own) :]
        suspects = [name for name, one in zip(group.weights, differs.tolist(), strict=True) if one]
        return next((problem for name in suspects if (problem := self._describe(name, group))), None)

    def _describe(self, name: str, group: _Group) -> str | None:
        """How the copies of a weight differ, or None if only by rounding. Collective."""
        own = (self._world.rank, socket.gethostname(), self._differences(name, group))
        (first, host, _), *others = _gathered(own, group.ranks)
        different = [other for other in others if other[2]]
        if not different:
            return None
        largest = {tensor: max(other[2].get(tensor, 0.0) for other in different) for tensor in different[0][2]}
        amounts = ", ".join(f"{tensor} by up to {amount:.3g}" for tensor, amount in largest.items())
        hosts = ", ".join(dict.fromkeys([host, *(host for _, host, _ in different)]))
        return (
            f"{name}: {name_ranks([rank for rank, *_ in different])} and rank {first} must hold the same numbers, but differ in "
            f"{amounts}. The memory or the arithmetic of one of them is at fault (on {hosts}). Run the same command again to "
            "resume from the checkpoint before, in which they agreed"
        )

    def _differences(self, name: str, group: _Group) -> dict[str, float]:
        """tensor -> largest difference from the group's first rank; without those that pass. Collective."""
        differences = {}
        for tensor in self._tensors(group):
            bits = self._whole(name, tensor)
            first_bits = bits.clone()
            dist.broadcast(first_bits, dist.get_process_group_ranks(group.ranks)[0], group=group.ranks)
            own, first = bits.view(torch.float32), first_bits.view(torch.float32)
            difference = float((own - first).abs().max())
            allowed = ROUNDING * min(float(own.abs().max()), float(first.abs().max()))
            if not torch.equal(bits, first_bits) and (group.exact or not difference <= allowed):  # may be NaN
                differences[tensor] = difference
        return differences

    def _tensors(self, group: _Group) -> list[str]:
        """Names of the tensors that weights have on any rank that takes part in a comparison. Collective."""
        names = {tensor for _, states in self._held.pieces() for tensor in states}
        for ranks in (group.ranks, self._world.data_parallel_group):
            names = set().union(*_gathered(names, ranks))
        return sorted(names)

    def _whole(self, name: str, tensor: str) -> Tensor:
        """The bits of a tensor as this rank would hold it without ZeRO, int32 [n]. Collective over the data-parallel ranks."""
        whole = torch.zeros(self._held.size(name), dtype=torch.int32, device=self._world.device)
        for piece, states in self._held.pieces():
            if piece.name == name and tensor in states:
                whole[piece.start : piece.start + piece.length] = states[tensor].view(torch.int32)
        if self._held.divided:
            dist.all_reduce(whole, group=self._world.data_parallel_group)
        return whole


def checksum(values: Tensor, start: int) -> Tensor:
    """Sum modulo 2^32 of the bits of fp32 numbers [n], each times an odd number that depends on its place: int32 [].

    A single changed number always changes it. The sums of the parts of a tensor add up to that of the whole, however it is cut.

    Args:
        start: place of the first number in the whole tensor.
    """
    bits, device = values.view(torch.int32), values.device
    places = torch.arange(min(len(bits), AT_ONCE), dtype=torch.int32, device=device)
    total = torch.zeros((), dtype=torch.int32, device=device)
    for begin in range(0, len(bits), AT_ONCE):
        part = bits[begin : begin + AT_ONCE]
        total += (_odd(places[: len(part)] + _wrapped(start + begin)).mul_(part)).sum(dtype=torch.int32)
    return total


def _odd(places: Tensor) -> Tensor:
    mixed = places.mul_(_wrapped(0x9E3779B1))
    return mixed.bitwise_xor_(mixed >> 15).mul_(_wrapped(0x85EBCA77)).bitwise_or_(1)


def _wrapped(number: int) -> int:
    """The int32 with the same last 32 bits."""
    return (number + 2**31) % 2**32 - 2**31


def _gathered(own: Any, ranks: dist.ProcessGroup) -> list[Any]:
    everyone = [own] * dist.get_world_size(ranks)
    dist.all_gather_object(everyone, own, group=ranks)
    return everyone
