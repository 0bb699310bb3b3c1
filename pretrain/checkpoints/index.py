"""What a checkpoint contains: the entries of its files, and the JSON that lists them. Imports no torch.

`index.json`:

    {"format": 1,
     "shapes": {weight: [rows, columns] or [elements]},
     "scalars": {weight: {"step": 900.0, "ema_updates": 899}},
     "entries": [[weight, [row, column, rows, columns], file, {tensor: CRC-32}], ...]}

A tensor is `weight`, the fp32 master weight, or the name of an optimizer state: `exp_avg`, `exp_avg_sq`, `momentum_buffer`, `ema`.
In the file its key is `TENSOR:WEIGHT:ROW:COLUMN`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Self

from pretrain.checkpoints.rectangles import Rectangle
from pretrain.errors import UserError

FORMAT = 1
MASTER = "weight"
"""The tensor that holds the fp32 weights themselves."""

VOCABULARY = ("embedding.weight", "lm_head.weight")
"""Weights whose rows behind the vocabulary are padding, which a checkpoint leaves out."""

Scalars = Mapping[str, float]


class UnknownFormatError(UserError):
    """The index is of a format that this version does not read, as a later version may write it."""


@dataclass(frozen=True)
class Entry:
    """A rectangle of a weight and of all its states, in one file.

    Attributes:
        weight: its name.
        file: relative to the checkpoint.
        checksums: tensor -> CRC-32 of its bytes in the file.
    """

    weight: str
    rectangle: Rectangle
    file: str
    checksums: Mapping[str, int]

    def key(self, tensor: str) -> str:
        """Name of a tensor's values in the file."""
        return key_of(tensor, self.weight, self.rectangle)


@dataclass(frozen=True)
class Index:
    """Everything that a checkpoint's files contain.

    Attributes:
        shapes: of the whole weights, without padding of the vocabulary.
        scalars: states of a weight that are one number.
    """

    shapes: Mapping[str, tuple[int, ...]]
    scalars: Mapping[str, Scalars]
    entries: tuple[Entry, ...]
    _by_weight: Mapping[str, list[Entry]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_weight: dict[str, list[Entry]] = {name: [] for name in self.shapes}
        for entry in self.entries:
            by_weight[entry.weight].append(entry)
        object.__setattr__(self, "_by_weight", by_weight)

    def of(self, weight: str) -> list[Entry]:
        """The entries of one weight."""
        return self._by_weight[weight]

    def tensors(self, weight: str) -> set[str]:
        """The tensors that all entries of a weight have."""
        return set.intersection(*(set(entry.checksums) for entry in self.of(weight)))

    def to_json(self) -> str:
        """As in the file."""
        entries = [[e.weight, list(astuple(e.rectangle)), e.file, dict(e.checksums)] for e in self.entries]
        content = {"format": FORMAT, "shapes": dict(self.shapes), "scalars": dict(self.scalars), "entries": entries}
        return json.dumps(content, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises UnknownFormatError, ValueError, KeyError or TypeError for anything else."""
        content: dict[str, Any] = json.loads(text)
        if content["format"] != FORMAT:
            raise UnknownFormatError(f"format {content['format']}, this version reads {FORMAT}")
        shapes = {name: tuple(shape) for name, shape in content["shapes"].items()}
        entries = tuple(Entry(w, Rectangle(*r), file, checksums) for w, r, file, checksums in content["entries"])
        return cls(shapes, content["scalars"], entries)


def merged(parts: Iterable[Index]) -> Index:
    """The index of all ranks' files."""
    shapes: dict[str, tuple[int, ...]] = {}
    scalars: dict[str, Scalars] = {}
    entries: list[Entry] = []
    for part in parts:
        shapes |= part.shapes
        scalars |= part.scalars
        entries += part.entries
    return Index(shapes, scalars, tuple(entries))


def key_of(tensor: str, weight: str, rectangle: Rectangle) -> str:
    """Name of a tensor's values in a file."""
    return f"{tensor}:{weight}:{rectangle.row}:{rectangle.column}"


def missing_part(shape: tuple[int, ...], rectangles: Iterable[Rectangle]) -> str | None:
    """What is wrong with rectangles that should cover a weight exactly once; None if nothing is."""
    rows, columns = as_matrix(shape)
    whole, found = Rectangle(0, 0, rows, columns), list(rectangles)
    if any(one.overlap(whole) != one for one in found):
        return "a part lies outside"
    for i, one in enumerate(found):
        if any(one.overlap(other) for other in found[i + 1 :]):
            return "two parts overlap"
    if sum(one.size for one in found) != whole.size:
        return f"{whole.size - sum(one.size for one in found)} of {whole.size} numbers are missing"
    return None


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns: a vector is a matrix of one column."""
    rows, *columns = shape
    return rows, columns[0] if columns else 1
