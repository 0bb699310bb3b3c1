"""The order in which training visits the rows of a split: a keyed permutation, evaluated per index.

There is no shuffle file and no start-up pass: the row of any sample index, in any epoch, takes about a hundred integer
operations. A run therefore resumes from one integer, the number of samples consumed.
"""

import numpy as np
from numpy.typing import NDArray

from data_pipeline.permutation import GOLDEN, Permutation, key_of, mix


class SampleOrder:
    """A keyed permutation of ``0 .. num_rows - 1`` for every epoch.

    Args:
        seed: any integer; the run's seed.
        num_rows: rows in the split, at least 1.
    """

    def __init__(self, seed: int, num_rows: int) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {num_rows}")
        self.seed = seed
        self.num_rows = num_rows
        self._permutation = Permutation(num_rows)
        self._seed_key = key_of(f"sample order {seed}")

    def rows(self, sample_indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of the split for each global sample index.

        Args:
            sample_indices: int64 of any shape, each >= 0; epoch = index // num_rows.

        Returns:
            int64 of the same shape, each in [0, num_rows).
        """
        indices = np.asarray(sample_indices, dtype=np.int64)
        if indices.size and indices.min() < 0:
            raise ValueError(f"sample indices must not be negative, got {indices.min()}")
        epoch, position = np.divmod(indices.ravel(), self.num_rows)
        keys = mix(self._seed_key + epoch.astype(np.uint64) * np.uint64(GOLDEN))
        return self._permutation(position, keys).reshape(indices.shape)
