"""The pack plan: which segments of the token stream form each row, in files beside the tokens.

`concat` cuts the stream of documents, each with its end-of-document id, into rows and drops the last partial row. `best_fit`
keeps documents whole (`data_pipeline.packing.best_fit`). Both take the documents in shuffled order (`packing.shuffled`), or in
that of the inputs.

`SPLIT.pack.STRATEGY-SEQLEN[-shuffled].json` holds the counts, which is all of a `concat` plan in the order of the inputs. Others
have three arrays, 12 bytes per segment and 8 per row, which are memory-mapped. Plans are made from the `.idx` files only, so
that packing again does not tokenize again. Their names contain what decides the rows, so that a new plan does not overwrite one
in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.errors import DataError
from data_pipeline.indexed import Shard
from data_pipeline.manifest import TRAIN, Packing, RowFormat
from data_pipeline.packing.shuffled import write_best_fit, write_concat

ARRAYS = ("row_starts", "starts", "lengths")
# Far above what is trained; the time and memory to pack grow with it.
MAX_SEQ_LEN = 1 << 24
REPACK_HINT = "make it again with: loopmdm repack {folder}"


class PlanCounts(BaseModel):
    """What the rows hold: `tokens + dropped_tokens` is the whole split, `tokens + padded_tokens` is rows * seq_len."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Packing
    seq_len: int = Field(ge=1)
    shuffle: bool = False
    rows: int = Field(ge=0)
    tokens: int = Field(ge=0)
    dropped_tokens: int = Field(ge=0)
    padded_tokens: int = Field(ge=0)


@dataclass(frozen=True)
class RowSegments:
    """The segments of the token stream that form some rows, row after row; all int64 [segments].

    Attributes:
        rows: position of the segment's row among the rows asked for.
        columns: where the segment begins in the row.
        starts: where it begins in the stream.
        lengths: its number of tokens.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def require_seq_len(seq_len: int) -> None:
    """Raise DataError for a row length that cannot be used."""
    if seq_len < 2:
        raise DataError(f"--seq-len {seq_len}: a row needs at least 2 tokens")
    if seq_len > MAX_SEQ_LEN:
        raise DataError(f"--seq-len {seq_len}: a row may have at most {MAX_SEQ_LEN:,} tokens")


def plan_files(split: str, strategy: Packing, seq_len: int, shuffle: bool = False) -> list[str]:
    """File names of a plan, the counts first."""
    stem = f"{split}.pack.{strategy}-{seq_len}{'-shuffled' * shuffle}"
    return [f"{stem}.json", *(f"{stem}.{array}.npy" for array in ARRAYS if strategy == "best_fit" or shuffle)]


def write_plan(
    folder: Path, split: str, shards: Sequence[Shard], strategy: Packing, seq_len: int, shuffle: bool = False
) -> PlanCounts:
    """Plan the rows of a split from the `.idx` files of its shards, and write the plan; returns its counts.

    Raises:
        DataError: a shard's index is missing or damaged.
    """
    total = sum(shard.tokens for shard in shards)
    counts_file, *array_files = (folder / name for name in plan_files(split, strategy, seq_len, shuffle))
    form = RowFormat(strategy, seq_len, shuffle)
    if strategy == "concat":
        rows, dropped = divmod(total, seq_len)
        counts = _counts(form, rows, total - dropped, dropped)
        if shuffle:
            write_concat(folder, shards, seq_len, array_files)
    else:
        counts = _counts(form, write_best_fit(folder, shards, seq_len, shuffle, array_files), total, 0)
    counts_file.write_text(counts.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return counts


def lacks_text(split: str, tokens: int, form: RowFormat) -> bool:
    """Whether a split of so many tokens has no row, or the training split less text than one, which best_fit would fill with
    padding.
    """
    return tokens < (1 if form.packing == "best_fit" and split != TRAIN else form.seq_len)


def _counts(form: RowFormat, rows: int, tokens: int, dropped: int) -> PlanCounts:
    padded = rows * form.seq_len - tokens
    return PlanCounts(
        strategy=form.packing, seq_len=form.seq_len, shuffle=form.shuffle,
        rows=rows, tokens=tokens, dropped_tokens=dropped, padded_tokens=padded,
    )  # fmt: skip


class ConcatPlan:
    """In the order of the inputs, row i is one segment, from i * seq_len on; it may hold many documents."""

    one_document_per_segment = False

    def __init__(self, counts: PlanCounts) -> None:
        self.counts = counts

    def segments(self, indices: NDArray[np.int64]) -> RowSegments:
        """The segments of the rows `indices`, [n]."""
        seq_len = self.counts.seq_len
        n = indices.size
        return RowSegments(np.arange(n), np.zeros(n, np.int64), indices * seq_len, np.full(n, seq_len))


class SegmentPlan:
    """Rows of segments that each lie in one document."""

    one_document_per_segment = True

    def __init__(self, counts: PlanCounts, arrays: dict[str, NDArray]) -> None:
        self.counts = counts
        self._row_starts, self._starts, self._lengths = (arrays[name] for name in ARRAYS)

    @classmethod
    def load(cls, counts: PlanCounts, paths: Sequence[Path]) -> Self:
        """Map the arrays. Raises OSError or ValueError when one is missing or has the wrong size."""
        arrays = {name: np.load(path, mmap_mode="r") for name, path in zip(ARRAYS, paths, strict=True)}
        row_starts, starts, lengths = (arrays[name] for name in ARRAYS)
        if row_starts.size != counts.rows + 1 or not starts.size == lengths.size == row_starts[-1]:
            raise ValueError("the sizes of its arrays do not match its counts")
        return cls(counts, arrays)

    def segments(self, indices: NDArray[np.int64]) -> RowSegments:
        """The segments of the rows `indices`, [n]."""
        first = self._row_starts[indices]
        counts = self._row_starts[indices + 1] - first
        before = np.cumsum(counts) - counts
        chosen = np.arange(counts.sum()) + np.repeat(first - before, counts)
        lengths = self._lengths[chosen].astype(np.int64)
        columns = np.cumsum(lengths) - lengths
        columns -= np.repeat(columns[before], counts)
        return RowSegments(np.repeat(np.arange(indices.size), counts), columns, self._starts[chosen], lengths)


def load_plan(
    folder: Path, split: str, strategy: Packing, seq_len: int, shuffle: bool = False
) -> ConcatPlan | SegmentPlan:
    """Open a split's plan.

    Raises:
        DataError: one of its files is missing, broken, or of another strategy or length.
    """
    path, *arrays = (folder / name for name in plan_files(split, strategy, seq_len, shuffle))
    try:
        counts = PlanCounts.model_validate_json(path.read_bytes())
        if (counts.strategy, counts.seq_len, counts.shuffle) != (strategy, seq_len, shuffle):
            shuffled = "shuffled " * counts.shuffle
            raise ValueError(f"it is a plan of {shuffled}{counts.strategy} rows of {counts.seq_len} tokens")
        return ConcatPlan(counts) if not arrays else SegmentPlan.load(counts, arrays)
    except ValidationError as error:
        raise DataError(
            f"{path} is not a pack plan ({error.errors()[0]['msg']}); {REPACK_HINT.format(folder=folder)}"
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a pack plan ({error}); {REPACK_HINT.format(folder=folder)}") from error
