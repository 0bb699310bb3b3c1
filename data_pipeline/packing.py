"""The pack plan: how a split's documents become rows of equal length.

A plan is small and lies beside the tokens (`SPLIT.pack.json`); the tokens are never copied. `concat` cuts the stream
of documents, each closed by its end-of-document id, into rows and drops the last partial one. Another strategy is
another class with `num_rows`, `dropped_tokens`, `rows` and its own fields in the file, and a name in `plan_rows` and
`load_plan`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError

Strategy = Literal["concat"]


class PackPlan(Protocol):
    """What a split's reader needs to know about its rows."""

    @property
    def num_rows(self) -> int:
        """Rows in the split."""

    @property
    def dropped_tokens(self) -> int:
        """Tokens of the split that are in no row."""

    def rows(self, tokens: NDArray[np.integer], indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Ids of the rows `indices` [n] of the stream `tokens`, int64 [n, seq_len]."""

    def save(self, path: Path) -> None:
        """Write the plan."""


@dataclass(frozen=True)
class ConcatPlan:
    """Row i is tokens[i*seq_len : (i+1)*seq_len] of the stream."""

    seq_len: int
    num_rows: int
    dropped_tokens: int

    @classmethod
    def of(cls, num_tokens: int, seq_len: int) -> Self:
        """The plan for a stream of `num_tokens`."""
        num_rows, dropped_tokens = divmod(num_tokens, seq_len)
        return cls(seq_len, num_rows, dropped_tokens)

    def rows(self, tokens: NDArray[np.integer], indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """See `PackPlan.rows`. An index outside 0 .. num_rows-1 raises IndexError."""
        grid = tokens[: self.num_rows * self.seq_len].reshape(self.num_rows, self.seq_len)
        if np.any(np.asarray(indices) < 0):
            raise IndexError(f"row indices must not be negative, got {np.min(indices)}")
        return grid[indices].astype(np.int64)

    def save(self, path: Path) -> None:
        """Write the plan as one JSON object."""
        path.write_text(json.dumps({"strategy": "concat", **asdict(self)}, indent=2) + "\n", encoding="utf-8")


def plan_rows(strategy: Strategy, lengths: NDArray[np.integer], seq_len: int) -> PackPlan:
    """Plan rows of `seq_len` for documents of `lengths` tokens, [documents], with the strategy named."""
    match strategy:
        case "concat":
            return ConcatPlan.of(int(lengths.sum(dtype=np.int64)), seq_len)


def load_plan(path: Path) -> PackPlan:
    """Read a plan.

    Raises:
        DataError: the file is missing, broken, or of a strategy that this version does not know.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        strategy = fields.pop("strategy")
        if strategy == "concat":
            return ConcatPlan(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a pack plan ({error}); prepare the data again with --overwrite") from error
    raise DataError(f"{path} has the packing strategy {strategy!r}, this version knows concat; prepare the data again")
