"""Rows of a prepared split, by memory map."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.indexed import IndexedReader
from data_pipeline.manifest import check_files, load_manifest
from data_pipeline.packing import load_plan


class PackedDataset:
    """One split of a prepared folder as rows of token ids.

    Attributes:
        manifest: the folder's `Manifest`.
        seq_len: tokens per row.
        num_rows: rows in the split.

    Args:
        folder: what `loopmdm prepare --output` wrote.
        split: a name from the manifest, "train" or "validation".

    Raises:
        DataError: the folder fails `check_files`, lacks the split, or the split has no row.
    """

    def __init__(self, folder: Path, split: str) -> None:
        folder = Path(folder)
        self.manifest = load_manifest(folder)
        self.split, self.seq_len = split, self.manifest.seq_len
        if split not in self.manifest.splits:
            known = ", ".join(sorted(self.manifest.splits))
            raise DataError(f"{folder} has no split {split!r}; it has: {known}")
        check_files(folder, self.manifest)
        self._plan = load_plan(folder / f"{split}.pack.json")
        self._tokens = np.concatenate(
            [IndexedReader(folder / stem).tokens for stem in self.manifest.splits[split].shards]
        )
        self.num_rows = self._plan.num_rows
        if self.num_rows == 0:
            raise DataError(
                f"split {split!r} of {folder} has no row of {self.seq_len} tokens; "
                "prepare it again with more text or a smaller --seq-len"
            )

    def __len__(self) -> int:
        return self.num_rows

    def rows(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Token ids of the rows `indices` [n] (any order, repeats allowed), int64 [n, seq_len]."""
        return self._plan.rows(self._tokens, indices)
