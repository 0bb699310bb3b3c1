"""Validation NELBO on frozen, stratified noise, with its standard error, at several numbers of loops.

The estimator is the any-order form of the same bound: with k uniform on 1..L and a random set of k masked tokens,

    NELBO = E_k E_set [ (L / k) * sum over the set of -log p(x_i | the rest) ],

equal to the integral over t in (0, 1] of the 1/t-weighted loss (Ou et al. 2024; LLaDA, Nie et al. 2025, equation 6), without
its unbounded weight at small t. k is stratified over all rows, and noise depends on the row alone: every checkpoint, every
number of loops and every layout is measured with the same masks.

If attention is within documents, -log p of a token depends on its own document alone, and masked tokens are drawn in the same
way in all documents of a row. The integral is then linear in the documents: the row's figure is the sum of theirs, and the
noise is per row whatever `train.noise` is.

An autoregressive model (`model.causal`) has no noise: all tokens are predicted, each from those before it, and the figure is exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.dataset.packed_dataset import PackedDataset
from model.denoiser import Inputs, positions_of
from model.noise import Stream, stratified, uniform
from model.objective import masked_cross_entropy, previous_tokens
from pretrain.config.settings import Scope
from pretrain.evaluation.statistics import Estimate, estimate_from_rows
from pretrain.parallel.world import World

NOISE_SEED = 0
"""Seed of the evaluation noise. It is the same for all runs, so that their figures can be compared row by row."""

Forward = Callable[[Sequence[Inputs], int], Sequence[Tensor | None]]
"""(micro-batches, loops) -> logits of each, as `LoopedDenoiser.forward`; None on a pipeline stage before the last."""


class EvaluationStopped(Exception):  # noqa: N818 - not an error
    """The evaluation was stopped before its end, see `Evaluator.stop`."""


@dataclass(frozen=True)
class FrozenNoise:
    """Rows to evaluate and their masks.

    Attributes:
        rows: row numbers, evenly spread over the split, int64 [n].
        lengths: L of each row, its tokens without padding, int64 [n]; padding follows them.
        masked_counts: k of each row, int64 [n].
        seq_len: tokens of a row, with padding.
        document_ids: document of each token within its row, int32 [n, seq_len]; None if attention is to the
            whole row.
    """

    rows: np.ndarray
    lengths: np.ndarray
    masked_counts: np.ndarray
    seq_len: int
    document_ids: np.ndarray | None = None

    @property
    def weights(self) -> np.ndarray:
        """Weight of each row in the mean over tokens, fp64 [n], 1 on average: its length."""
        return self.lengths / self.lengths.mean()

    def masks(self, part: slice) -> np.ndarray:
        """bool [rows in part, seq_len]: the k real positions with the smallest draws of that row."""
        draws = np.stack([uniform(NOISE_SEED, Stream.EVALUATION, int(row), self.seq_len) for row in self.rows[part]])
        draws[np.arange(self.seq_len) >= self.lengths[part, None]] = np.inf
        ranks = draws.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        return ranks < self.masked_counts[part, None]


def freeze_noise(
    dataset: PackedDataset, wanted_rows: int, attention: Scope = "row", causal: bool = False
) -> FrozenNoise:
    """Noise for `wanted_rows` rows of a split (all of them if there are fewer), and the document ids that attention needs.

    Args:
        causal: for an autoregressive model: all tokens of a row are predicted.
    """
    count = min(dataset.num_rows, wanted_rows)
    rows = np.arange(count) * dataset.num_rows // count
    lengths = dataset.lengths(rows)
    masked_counts = lengths if causal else 1 + (stratified(NOISE_SEED, 0, count) * lengths).astype(np.int64)
    document_ids = dataset.document_ids(rows) if attention == "document" else None
    return FrozenNoise(rows, lengths, np.minimum(masked_counts, lengths), dataset.seq_len, document_ids)


@dataclass(frozen=True)
class Evaluator:
    """How a model is evaluated.

    Attributes:
        forward: the model.
        world: the ranks that share the rows.
        attention: `train.attention` of the run.
        max_rows: rows to use of each set.
        batch_size: rows per forward pass.
        stop: this rank is to stop; asked before every forward pass. None: the evaluation is never stopped.
        causal: `model.causal` of the run.
    """

    forward: Forward
    world: World
    attention: Scope
    max_rows: int
    batch_size: int
    stop: Callable[[], bool] | None = None
    causal: bool = False

    def noise(self, dataset: PackedDataset) -> FrozenNoise:
        """Rows and masks of a set."""
        return freeze_noise(dataset, self.max_rows, self.attention, self.causal)

    def estimates(self, dataset: PackedDataset, loops: Sequence[int]) -> list[Estimate]:
        """NELBO of a set at each number of loops. Collective: ranks share the rows, and all get the same figures.

        Raises:
            EvaluationStopped: on all ranks, when one is to stop.
        """
        noise = self.noise(dataset)
        return [self._estimate(dataset, noise, s) for s in loops]

    @torch.no_grad()
    def _estimate(self, dataset: PackedDataset, noise: FrozenNoise, loops: int) -> Estimate:
        world = self.world
        per_row = torch.zeros(len(noise.rows), dtype=torch.float64)
        batches = [slice(i, i + self.batch_size) for i in range(0, len(noise.rows), self.batch_size)]
        rounds = -(-len(batches) // world.data_parallel_size)
        own = range(world.data_parallel_rank, rounds * world.data_parallel_size, world.data_parallel_size)
        at_once = world.shape.pipeline  # as many micro-batches as keep all stages busy
        for start in range(0, len(own), at_once):
            indices = own[start : start + at_once]
            world.enter_phase(f"validation at {loops} loops")
            if self.stop is not None and world.any(self.stop()):
                raise EvaluationStopped
            # A rank without a batch in the last round repeats the first one and drops the result: under ZeRO-3 a forward
            # pass is a collective that every rank must join.
            parts = [batches[i] if i < len(batches) else batches[0] for i in indices]
            nats = self.nats_of_rows(dataset, noise, parts, loops)
            for index, part, values in zip(indices, parts, nats, strict=True):
                if index < len(batches) and values is not None and world.holds_loss:
                    per_row[part] = values
        nats_per_row = world.sum(per_row).numpy()
        return estimate_from_rows(loops, nats_per_row, noise.weights, noise.masked_counts / noise.lengths)

    def nats_of_rows(
        self, dataset: PackedDataset, noise: FrozenNoise, parts: Sequence[slice], loops: int
    ) -> list[Tensor | None]:
        """Mean -log p over the masked tokens of each row of each part, in nats per token, fp64 [rows in part]."""
        device, mask_id = self.world.device, dataset.manifest.tokenizer.mask_id
        clean = [torch.from_numpy(dataset.rows(noise.rows[part])).to(device) for part in parts]
        masked = [torch.from_numpy(noise.masks(part)).to(device) for part in parts]
        ids = [
            None if noise.document_ids is None else torch.from_numpy(noise.document_ids[p]).to(device) for p in parts
        ]
        seen = [
            previous_tokens(c, mask_id) if self.causal else c.masked_fill(m, mask_id)
            for c, m in zip(clean, masked, strict=True)
        ]
        inputs = [Inputs(x, positions_of(m), d) for x, m, d in zip(seen, masked, ids, strict=True)]
        logits = self.forward(inputs, loops)
        return [None if one is None else _mean_nats(one, c, m) for one, c, m in zip(logits, clean, masked, strict=True)]


def _mean_nats(logits: Tensor, clean: Tensor, masked: Tensor) -> Tensor:
    nats = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
    nats[masked] = masked_cross_entropy(logits, clean[masked]).double()
    return (nats.sum(dim=1) / masked.sum(dim=1)).cpu()
