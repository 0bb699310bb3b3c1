"""The pack plan: which stretches of the token stream form each row, in files of its own beside the tokens.

`SPLIT.pack.STRATEGY-SEQLEN.json` holds the counts. That is all of a `concat` plan; `best_fit` adds three arrays, twelve bytes
a piece and eight a row, which are mapped, not read. Plans are made from the `.idx` files alone: packing again at another
length tokenises nothing. Names carry the strategy and the length, so that a new plan never overwrites one in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.errors import DataError
from data_pipeline.indexed import Index
from data_pipeline.manifest import Packing
from data_pipeline.packing.best_fit import best_fit

ARRAYS = ("row_starts", "starts", "lengths")
MEND = "pack the folder again: loopmdm prepare --repack {folder}"


class PlanCounts(BaseModel):
    """What the rows hold. `tokens + dropped_tokens` are those of the split, `tokens + padded_tokens` fill the rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Packing
    seq_len: int = Field(ge=1)
    rows: int = Field(ge=0)
    tokens: int = Field(ge=0)
    dropped_tokens: int = Field(ge=0)
    padded_tokens: int = Field(ge=0)


@dataclass(frozen=True)
class Pieces:
    """Stretches of the stream that form some rows, row after row; all int64 [pieces].

    Attributes:
        rows: place of the piece's row in the request.
        columns: where in the row the piece begins.
        starts: where in the stream it begins.
        lengths: its tokens.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def plan_files(split: str, strategy: Packing, seq_len: int) -> list[str]:
    """Names of a plan's files, the counts first."""
    stem = f"{split}.pack.{strategy}-{seq_len}"
    return [f"{stem}.json", *(f"{stem}.{array}.npy" for array in ARRAYS if strategy == "best_fit")]


def write_plan(folder: Path, split: str, shards: Sequence[str], strategy: Packing, seq_len: int) -> PlanCounts:
    """Plan the rows of a split from the `.idx` files of its shards, and write the plan; returns its counts.

    Raises:
        DataError: a shard's index is missing or damaged.
    """
    indices = [Index(folder / shard) for shard in shards]
    total = sum(index.num_tokens for index in indices)
    counts_file, *array_files = (folder / name for name in plan_files(split, strategy, seq_len))
    if strategy == "concat":
        rows, dropped = divmod(total, seq_len)
        counts = _counts(strategy, seq_len, rows, total - dropped, dropped)
    else:
        packed = best_fit(np.concatenate([np.zeros(0, np.int32), *(index.lengths for index in indices)]), seq_len)
        counts = _counts(strategy, seq_len, packed.row_starts.size - 1, total, 0)
        for path, name in zip(array_files, ARRAYS, strict=True):
            np.save(path, getattr(packed, name))
    counts_file.write_text(counts.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return counts


def _counts(strategy: Packing, seq_len: int, rows: int, tokens: int, dropped: int) -> PlanCounts:
    padded = rows * seq_len - tokens
    return PlanCounts(
        strategy=strategy, seq_len=seq_len, rows=rows, tokens=tokens, dropped_tokens=dropped, padded_tokens=padded
    )


class ConcatPlan:
    """Row i is the stretch from i * seq_len on; it may hold many documents."""

    one_document_a_piece = False

    def __init__(self, counts: PlanCounts) -> None:
        self.counts = counts

    def pieces(self, indices: NDArray[np.int64]) -> Pieces:
        """The stretches of the rows `indices`, [n]."""
        seq_len = self.counts.seq_len
        n = indices.size
        return Pieces(np.arange(n), np.zeros(n, np.int64), indices * seq_len, np.full(n, seq_len))


class BestFitPlan:
    """Rows of pieces that each lie in one document."""

    one_document_a_piece = True

    def __init__(self, counts: PlanCounts, arrays: dict[str, NDArray]) -> None:
        self.counts = counts
        self._row_starts, self._starts, self._lengths = (arrays[name] for name in ARRAYS)

    @classmethod
    def load(cls, counts: PlanCounts, paths: Sequence[Path]) -> Self:
        """Map the arrays. Raises OSError or ValueError when one is missing or no array of the size it must have."""
        arrays = {name: np.load(path, mmap_mode="r") for name, path in zip(ARRAYS, paths, strict=True)}
        row_starts, starts, lengths = (arrays[name] for name in ARRAYS)
        if row_starts.size != counts.rows + 1 or not starts.size == lengths.size == row_starts[-1]:
            raise ValueError("its arrays do not have the size that its counts describe")
        return cls(counts, arrays)

    def pieces(self, indices: NDArray[np.int64]) -> Pieces:
        """The stretches of the rows `indices`, [n]."""
        first = self._row_starts[indices]
        counts = self._row_starts[indices + 1] - first
        before = np.cumsum(counts) - counts
        chosen = np.arange(counts.sum()) + np.repeat(first - before, counts)
        lengths = self._lengths[chosen].astype(np.int64)
        columns = np.cumsum(lengths) - lengths
        columns -= np.repeat(columns[before], counts)
        return Pieces(np.repeat(np.arange(indices.size), counts), columns, self._starts[chosen], lengths)


def load_plan(folder: Path, split: str, strategy: Packing, seq_len: int) -> ConcatPlan | BestFitPlan:
    """Open a split's plan.

    Raises:
        DataError: a file of it is missing, broken, or not of this strategy and length.
    """
    path, *arrays = (folder / name for name in plan_files(split, strategy, seq_len))
    try:
        counts = PlanCounts.model_validate_json(path.read_bytes())
        if (counts.strategy, counts.seq_len) != (strategy, seq_len):
            raise ValueError(f"it is a plan of {counts.strategy} rows of {counts.seq_len}")
        return ConcatPlan(counts) if strategy == "concat" else BestFitPlan.load(counts, arrays)
    except ValidationError as error:
        raise DataError(
            f"{path} is not a pack plan ({error.errors()[0]['msg']}); {MEND.format(folder=folder)}"
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a pack plan ({error}); {MEND.format(folder=folder)}") from error
