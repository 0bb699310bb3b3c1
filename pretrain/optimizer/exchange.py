"""Whole matrices from the pieces that the ranks hold: each goes to one rank, is changed there, and its pieces return.

ZeRO gives every rank a range of numbers, which may begin and end inside a matrix, and tensor parallelism a shard of every
matrix; Muon needs whole matrices. They are divided among all ranks that hold pieces, so that none is computed twice.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from model.weights import shards_of


@dataclass(frozen=True)
class Piece:
    """A range of a weight inside a tensor that the optimizer steps.

    Attributes:
        name: of the weight.
        shard: the tensor-parallel shard of the weight that the range belongs to, counted from 0.
        start, length: of the range in the flattened shard.
        offset: of the range in the flattened tensor.
    """

    name: str
    shard: int
    start: int
    length: int
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """The range as a view, [length]."""
        return tensor.view(-1)[self.offset : self.offset + self.length]


@dataclass(frozen=True)
class Sharing:
    """The ranks that hold the pieces of the same weights.

    Attributes:
        group: these ranks.
        shards: tensor-parallel size.
        shapes: of a shard of every weight, by name.
        device: where whole matrices are computed; pieces may be in CPU memory.
    """

    group: dist.ProcessGroup
    shards: int
    shapes: Mapping[str, torch.Size]
    device: torch.device


class Exchange:
    """Who computes which matrix, and what every rank sends for it. Collective: all ranks of the group build and call it.

    Args:
        pieces: that this rank holds.

    Raises:
        RuntimeError: the ranks do not hold a matrix exactly once.
    """

    def __init__(self, pieces: Sequence[Piece], sharing: Sharing) -> None:
        self._sharing = sharing
        rank, size = dist.get_rank(sharing.group), dist.get_world_size(sharing.group)
        everyone: list[Sequence[Piece]] = [[]] * size
        dist.all_gather_object(everyone, list(pieces), group=sharing.group)
        self._require_whole(piece for held in everyone for piece in held)
        owners = self._owners({piece.name for held in everyone for piece in held}, size)
        self._order = sorted(range(len(pieces)), key=lambda i: owners[pieces[i].name])
        self._lengths = [pieces[i].length for i in self._order]
        self._sent = [sum(piece.length for piece in pieces if owners[piece.name] == other) for other in range(size)]
        received = [[piece for piece in held if owners[piece.name] == rank] for held in everyone]
        self._received = [sum(piece.length for piece in held) for held in received]
        self._gathered = [piece for held in received for piece in held]

    def apply(self, change: Callable[[str, Tensor], Tensor], pieces: Sequence[Tensor]) -> None:
        """Replace the values of all pieces by those in `change(name, whole matrix)`, in place.

        Args:
            pieces: the values of this rank's pieces, in the order of the constructor's argument.
        """
        sent = torch.empty(sum(self._lengths), device=self._sharing.device)
        for index, slot in zip(self._order, sent.split(self._lengths), strict=True):
            slot.copy_(pieces[index])
        gathered = self._swap(sent, self._sent, self._received)
        self._change(change, gathered)
        returned = self._swap(gathered, self._received, self._sent)
        for index, slot in zip(self._order, returned.split(self._lengths), strict=True):
            pieces[index].copy_(slot)

    def _change(self, change: Callable[[str, Tensor], Tensor], gathered: Tensor) -> None:
        """Apply `change` to this rank's matrices, one after the other."""
        slots: dict[str, list[tuple[Piece, Tensor]]] = defaultdict(list)
        for piece, slot in zip(self._gathered, gathered.split([p.length for p in self._gathered]), strict=True):
            slots[piece.name].append((piece, slot))
        for name, parts in slots.items():
            shards = torch.empty(self._sharing.shards, *self._sharing.shapes[name], device=gathered.device)
            for piece, slot in parts:
                shards[piece.shard].view(-1)[piece.start : piece.start + piece.length] = slot
            self._split(name, change(name, self._join(name, shards)), shards)
            for piece, slot in parts:
                slot.copy_(shards[piece.shard].view(-1)[piece.start : piece.start + piece.length])

    def _join(self, name: str, shards: Tensor) -> Tensor:
        layout = shards_of(name)
        return shards[0] if layout is None else layout.join(list(shards))

    def _split(self, name: str, whole: Tensor, shards: Tensor) -> None:
        layout = shards_of(name)
        for rank, shard in enumerate(shards):
            shard.copy_(whole if layout is None else layout.take(whole, rank, len(shards)))

    def _swap(self, values: Tensor, out_of_here: list[int], to_here: list[int]) -> Tensor:
        if len(to_here) == 1:
            return values
        received = values.new_empty(sum(to_here))
        dist.all_to_all_single(received, values, to_here, out_of_here, group=self._sharing.group)
        return received

    def _owners(self, names: Iterable[str], ranks: int) -> dict[str, int]:
        """The rank that computes each matrix: the most expensive first, to the rank that has least to do."""
        costs = {name: prod(self._sharing.shapes[name]) * min(self._sharing.shapes[name]) for name in names}
        load, owners = [0] * ranks, {}
        for name in sorted(costs, key=lambda name: (-costs[name], name)):
            owners[name] = load.index(min(load))
            load[owners[name]] += costs[name]
        return owners

    def _require_whole(self, pieces: Iterable[Piece]) -> None:
        """Every number of every matrix must be held exactly once."""
        held: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        for piece in pieces:
            held[piece.name, piece.shard].append((piece.start, piece.start + piece.length))
        for (name, shard), ranges in held.items():
            ends = [0, *(end for _, end in sorted(ranges))]
            starts = [*(start for start, _ in sorted(ranges)), prod(self._sharing.shapes[name])]
            if starts != ends:
                raise RuntimeError(
                    f"shard {shard} of {name} is held in the ranges {sorted(ranges)}, which do not cover it once"
                )
