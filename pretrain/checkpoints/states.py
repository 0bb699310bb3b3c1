"""Between a run's tensors and canonical ones: what this rank writes of each weight and its states, and how it fills them again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model.architecture import Architecture
from model.weights import shards_of
from pretrain.checkpoints.index import MASTER, VOCABULARY, Entry, Index, as_matrix, key_of
from pretrain.checkpoints.rectangles import Rectangle, Region, regions_of
from pretrain.checkpoints.tensor_file import TensorFile
from pretrain.optimizer.exchange import Piece
from pretrain.parallel.engine import Engine
from pretrain.parallel.world import World


class Source(Protocol):
    """Where canonical tensors come from."""

    index: Index

    def read(self, tensor: str, weight: str, rectangle: Rectangle) -> Tensor:
        """The values of a rectangle, fp32 [rows, columns]."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of what this rank owns, in CPU memory, which no later step changes. The next snapshot takes its place.

    Attributes:
        file: the content of the file.
        index: of the file, without checksums.
    """

    file: TensorFile
    index: Index


class Held:
    """The canonical parts of a run that are in this rank's memory.

    Args:
        engine: whose optimizer's states are saved and filled.
        architecture: for the vocabulary without padding.
    """

    def __init__(self, engine: Engine, architecture: Architecture, world: World) -> None:
        self._engine, self._architecture, self._world = engine, architecture, world
        self._shapes = engine.shard_shapes()
        self._file: TensorFile | None = None

    @property
    def names(self) -> list[str]:
        """The weights of this rank's stage, in the same order on all ranks that have them."""
        return list(self._shapes)

    @property
    def divided(self) -> bool:
        """Whether the data-parallel ranks divide the optimizer's tensors among themselves; otherwise each has all."""
        return self._engine.zero_stage > 0

    def size(self, name: str) -> int:
        """How many numbers of a weight this tensor-parallel rank would hold without ZeRO."""
        return self._shapes[name].numel()

    def pieces(self) -> Iterator[tuple[Piece, dict[str, Tensor]]]:
        """Every piece of a weight in this rank's memory, and its values in the master weight and its states, fp32 [n]."""
        for flat, pieces in self._engine.pieces().items():
            for piece in pieces:
                yield piece, {name: piece.of(state.detach()) for name, state in self._states(flat)[0].items()}

    def snapshot(self, file: str) -> Snapshot:
        """Copy what this rank owns. Of numbers that several ranks hold, one rank owns them.

        The copy stays in memory until the next one, which is several times faster than the first: the system does not have to
        find and clear the pages again, neither here nor in the next step, whose memory the copy would take otherwise.

        Args:
            file: that they will be written to.
        """
        present, scalars, entries = {}, {}, []
        for flat, pieces in self._engine.pieces().items():
            owned = [piece for piece in pieces if self._engine.owns(piece.name)]
            if not owned:
                continue
            states, numbers = self._states(flat)
            for piece in owned:
                scalars[piece.name] = numbers
                for region in self._regions(piece):
                    found = {name: _values(state.detach(), piece, region) for name, state in states.items()}
                    present |= {key_of(name, piece.name, region.rectangle): value for name, value in found.items()}
                    entries.append(Entry(piece.name, region.rectangle, file, dict.fromkeys(found, 0)))
        shapes = {entry.weight: self._whole_shape(entry.weight) for entry in entries}
        wanted = {key: value.shape for key, value in present.items()}
        if self._file is None or self._file.shapes != wanted:
            self._file = TensorFile(wanted)
        for key, value in present.items():
            self._file.tensors[key].copy_(value)
        return Snapshot(self._file, Index(shapes, {name: scalars[name] for name in shapes}, tuple(entries)))

    @torch.no_grad()
    def fill(self, source: Source) -> None:
        """Set weights and optimizer states of this rank to those of a checkpoint. Collective."""
        for group in self._engine.optimizer.param_groups:
            group.pop("step", None)  # apex counts the steps of a group
        for flat, pieces in self._engine.pieces().items():
            if pieces:
                self._fill_states(flat, pieces, source)
        self._engine.refresh_weights()

    def _fill_states(self, flat: Tensor, pieces: Sequence[Piece], source: Source) -> None:
        state = self._engine.optimizer.state[flat]
        for tensor in sorted(source.index.tensors(pieces[0].name)):
            target = flat if tensor == MASTER else state.setdefault(tensor, torch.zeros_like(flat))
            for piece in pieces:
                values = piece.of(target.detach())
                values.zero_()  # padding of the vocabulary stays zero
                for region in self._regions(piece):
                    part = values[region.start : region.start + region.rectangle.size]
                    part.copy_(source.read(tensor, piece.name, region.rectangle).flatten())
        for name, number in source.index.scalars[pieces[0].name].items():
            self._fill_scalar(flat, name, number)

    def _fill_scalar(self, flat: Tensor, name: str, number: float) -> None:
        """`step` as the optimizer keeps it: apex in the group, torch in a tensor on the CPU, or of a fused AdamW on its device."""
        state, group = self._engine.optimizer.state[flat], self._group(flat)
        if name != "step":
            state[name] = int(number)
        elif self._engine.counts_steps_by_group:
            group["step"] = int(number)
        else:
            state["step"] = torch.tensor(number, device=flat.device if group.get("fused") else "cpu")

    def _states(self, flat: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """(tensors of the size of `flat`, single numbers) that belong to a tensor that the optimizer steps."""
        tensors, numbers, group = {MASTER: flat}, {}, self._group(flat)
        counted = {"step": group["step"]} if "step" in group else {}
        values: dict[str, Any] = {**counted, **self._engine.optimizer.state[flat]}
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == flat.shape:
                tensors[name] = value
            else:
                numbers[name] = float(value)
        return tensors, numbers

    def _group(self, flat: Tensor) -> dict[str, Any]:
        """The optimizer's group of a tensor. ZeRO-3 has tensors in the groups only during a step: there, any group."""
        groups = self._engine.optimizer.param_groups
        return next((group for group in groups if any(one is flat for one in group["params"])), groups[0])

    def _regions(self, piece: Piece) -> list[Region]:
        rows, _ = as_matrix(self._whole_shape(piece.name))
        shape, size = as_matrix(tuple(self._shapes[piece.name])), self._world.shape.tensor
        return regions_of(piece.start, piece.length, shape, shards_of(piece.name), piece.shard, size, rows)

    def _whole_shape(self, name: str) -> tuple[int, ...]:
        shape, shards = list(self._shapes[name]), shards_of(name)
        if shards is not None:
            shape[shards.dim] *= self._world.shape.tensor
        if name in VOCABULARY:
            shape[0] = self._architecture.known_vocab_size
        return tuple(shape)


def _values(tensor: Tensor, piece: Piece, region: Region) -> Tensor:
    """The values of a region as a matrix, a view of the tensor that the piece is in."""
    rectangle = region.rectangle
    values = piece.of(tensor)[region.start : region.start + rectangle.size]
    return values.view(rectangle.rows, rectangle.columns)
