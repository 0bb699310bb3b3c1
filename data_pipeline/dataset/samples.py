"""Training samples by their global index: the blend selects a corpus, the corpus's order a row."""

from collections.abc import Callable, Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.blend import Blend
from data_pipeline.dataset.blend_schedule import BlendSchedule
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.dataset.shuffle import SampleOrder
from data_pipeline.manifest import TRAIN


class Rows(Protocol):
    """The rows of a corpus; `PackedDataset` describes the members."""

    num_rows: int
    seq_len: int
    has_padding: bool

    def rows(self, indices: NDArray[np.integer]) -> NDArray[np.int64]: ...
    def lengths(self, indices: NDArray[np.integer]) -> NDArray[np.int64]: ...
    def document_ids(self, indices: NDArray[np.integer]) -> NDArray[np.int32]: ...


class Samples:
    """Random access to the samples of a run, so that a resume does not replay any.

    The n-th sample that the schedule takes from a corpus is the n-th row of that corpus's own shuffled epochs.

    Attributes:
        has_padding: whether any corpus has padding.

    Args:
        corpora: rows of each corpus.
        schedule: which corpus each sample comes from.
        seed: the seed of the run.
    """

    def __init__(self, corpora: Sequence[Rows], schedule: BlendSchedule, seed: int) -> None:
        self._corpora, self._schedule = corpora, schedule
        self._orders = [SampleOrder(seed, corpus.num_rows) for corpus in corpora]
        self._seq_len = corpora[0].seq_len
        self.has_padding = any(corpus.has_padding for corpus in corpora)

    @classmethod
    def of(cls, blend: Blend, seed: int) -> Self:
        """Open the training split of every corpus of a blend whose files were checked, once for all ranks, by `Blend.check`."""
        corpora = [PackedDataset(c.path, TRAIN, c.manifest, check=False) for c in blend.corpora]
        return cls(corpora, blend.schedule, seed)

    def locate(self, samples: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Corpus, and row of that corpus, of the samples [n]; int64 [n] each."""
        corpus, rows = self._schedule.locate(samples)
        for k in np.unique(corpus):
            rows[corpus == k] = self._orders[k].rows(rows[corpus == k])
        return corpus, rows

    def rows(self, samples: NDArray[np.integer]) -> NDArray[np.int64]:
        """Token ids of the samples [n], int64 [n, seq_len]."""
        out = np.empty((len(samples), self._seq_len), np.int64)
        return self._gather(samples, out, lambda corpus, rows: corpus.rows(rows))

    def lengths(self, samples: NDArray[np.integer]) -> NDArray[np.int64]:
        """Tokens without padding of the samples [n], int64 [n]."""
        return self._gather(samples, np.empty(len(samples), np.int64), lambda corpus, rows: corpus.lengths(rows))

    def document_ids(self, samples: NDArray[np.integer]) -> NDArray[np.int32]:
        """Document of each token within its row, -1 for padding, int32 [n, seq_len]."""
        out = np.empty((len(samples), self._seq_len), np.int32)
        return self._gather(samples, out, lambda corpus, rows: corpus.document_ids(rows))

    def _gather(self, samples: NDArray[np.integer], out: NDArray, read: Callable[[Rows, NDArray], NDArray]) -> NDArray:
        corpus, rows = self.locate(samples)
        for k in np.unique(corpus):
            out[corpus == k] = read(self._corpora[k], rows[corpus == k])
        return out
