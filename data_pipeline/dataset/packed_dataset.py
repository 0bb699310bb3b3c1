"""Rows of a prepared split, by memory map."""

import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.token_stream import TokenStream
from data_pipeline.errors import DataError
from data_pipeline.in_use import hold
from data_pipeline.manifest import Manifest, check_files
from data_pipeline.packing.pack_plan import RowSegments, load_plan


class PackedDataset:
    """One split of a prepared folder as rows of token ids.

    The tokens of a row come first, followed by padding where the packing leaves room.

    Attributes:
        manifest: the folder's `Manifest`.
        seq_len: tokens per row.
        num_rows: number of rows.
        has_padding: whether any row has padding.

    Args:
        folder: what `loopmdm prepare --output` wrote.
        split: a name from the manifest, "train" or "validation".
        expected: the manifest that was read before, if any, and on which other decisions rest.
        check: check the files of the folder; not needed where another process has just done so.

    Raises:
        DataError: the folder fails the check, has no such split, or the split has no row; or it has been replaced since `expected`
            was read.
    """

    def __init__(self, folder: Path, split: str, expected: Manifest | None = None, check: bool = True) -> None:
        folder = Path(folder)
        # Held as long as the dataset exists, so that the files are not removed from under the map.
        self.manifest, held = hold(folder)
        if held is not None:
            weakref.finalize(self, held.close)
        if expected is not None and self.manifest != expected:
            raise DataError(f"{folder} was prepared again or repacked while this command started; run it again")
        self.split, self.seq_len = split, self.manifest.seq_len
        if split not in self.manifest.splits:
            known = ", ".join(sorted(self.manifest.splits))
            raise DataError(
                f"{folder} has no split {split!r}; it has: {known}. `loopmdm prepare` makes a validation split unless its "
                "--validation-fraction is 0"
            )
        if check:
            check_files(folder, self.manifest)
        self._plan = load_plan(folder, split, *self.manifest.row_format)
        self._stream = TokenStream(folder, self.manifest.shards(split))
        self.num_rows = self._plan.counts.rows
        self.has_padding = self._plan.counts.padded_tokens > 0
        if self.num_rows == 0:
            raise DataError(
                f"split {split!r} of {folder} has no row of {self.seq_len} tokens; "
                "prepare it again with more text or a smaller --seq-len"
            )

    def __len__(self) -> int:
        return self.num_rows

    def rows(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Token ids of the rows `indices` [n] (any order, repeats allowed), int64 [n, seq_len]; padding has the pad id.

        Raises:
            IndexError: an index is outside 0 .. num_rows - 1.
        """
        out = np.full((len(indices), self.seq_len), self.manifest.tokenizer.pad_id, np.int64)
        segments = self.segments(indices)
        for row, column, start, length in zip(
            segments.rows.tolist(),
            segments.columns.tolist(),
            segments.starts.tolist(),
            segments.lengths.tolist(),
            strict=True,
        ):
            self._stream.read(start, out[row, column : column + length])
        return out

    def lengths(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Tokens without padding of the rows `indices` [n], int64 [n]; reads the plan only. Raises as `rows`."""
        segments = self.segments(indices)
        # Sums of floats are exact up to 2**53.
        return np.bincount(segments.rows, segments.lengths, minlength=len(indices)).astype(np.int64)

    def document_ids(self, indices: NDArray[np.integer]) -> NDArray[np.int32]:
        """Document of each token of the rows `indices` [n], int32 [n, seq_len]. Raises as `rows`.

        Documents are counted from 0 within the row; padding has -1. The first may begin in an earlier row, and the last may
        continue in a later one.
        """
        out = np.full((len(indices), self.seq_len), -1, np.int32)
        segments = self.segments(indices)
        if self._plan.one_document_per_segment:
            first = np.searchsorted(segments.rows, segments.rows)  # of the segment's row
            numbers = np.arange(segments.rows.size) - first
            ends = np.arange(self.seq_len) < self.lengths(indices)[:, None]
            out[ends] = np.repeat(numbers, segments.lengths)
            return out
        for row, start, length in zip(
            segments.rows.tolist(), segments.starts.tolist(), segments.lengths.tolist(), strict=True
        ):
            out[row, :length] = self._stream.document_ids(start, length)
        return out

    def segments(self, indices: NDArray[np.integer]) -> RowSegments:
        """The segments of the token stream that form the rows `indices` [n]. Raises as `rows`."""
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.num_rows:
            raise IndexError(f"row indices must be 0 to {self.num_rows - 1}, got {indices.min()} to {indices.max()}")
        return self._plan.segments(indices)
