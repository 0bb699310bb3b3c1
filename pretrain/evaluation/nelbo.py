"""Validation NELBO on frozen, stratified noise, with its standard error, at several numbers of loops.

The estimator is the any-order form of the same bound: with k uniform on 1..L and a random set of k masked tokens,

    NELBO = E_k E_set [ (L / k) * sum over the set of -log p(x_i | the rest) ],

equal to the integral over t in (0, 1] of the 1/t-weighted loss (Ou et al. 2024; LLaDA, Nie et al. 2025, equation 6), without
its unbounded weight at small t. k is stratified over all rows, and noise depends on the row alone: every checkpoint, every
number of loops and every layout is measured with the same masks.

Where attention is within documents, -log p of a token depends on its own document alone, and masked tokens are drawn alike in
all documents of a row. The integral is then linear in the documents: the row's figure is the sum of theirs, and noise stays
per row whatever `train.noise` is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.dataset.blend import Blend
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.manifest import SplitInfo
from model.denoiser import Inputs
from model.noise import Stream, stratified, uniform
from model.objective import masked_cross_entropy
from pretrain.config.settings import Scope
from pretrain.errors import UserError
from pretrain.parallel.world import World

NOISE_SEED = 0
"""Seed of the evaluation noise: the same for all runs, so that their figures can be compared row by row."""

Forward = Callable[[Sequence[Inputs], int], Sequence[Tensor | None]]
"""(micro-batches, loops) -> logits of each, as `LoopedDenoiser.forward`; None on a pipeline stage before the last."""


@dataclass(frozen=True)
class EvaluationSet:
    """Rows to evaluate.

    Attributes:
        name: in figures and files; "" where there is only one set.
        weight: share of the tokens that training draws from its corpus, not normalised.
    """

    name: str
    rows: PackedDataset
    weight: float


def evaluation_sets(blend: Blend, split: str) -> list[EvaluationSet]:
    """The split of every corpus that has it; a single corpus has no name.

    Raises:
        DataError: the only corpus has no such split. UserError: none of several has.
    """
    if len(blend.corpora) == 1:
        return [EvaluationSet("", PackedDataset(blend.corpora[0].path, split), 1.0)]
    named = [(f"{i}_{c.path.name}", c) for i, c in enumerate(blend.corpora, 1) if split in c.manifest.splits]
    if not named:
        raise UserError(f"no corpus of {blend.path} has a {split} split; evaluate another, or leave eval.every empty")
    return [EvaluationSet(name, PackedDataset(c.path, split), c.token_weight) for name, c in named]


@dataclass(frozen=True)
class FrozenNoise:
    """Rows to evaluate and their masks.

    Attributes:
        rows: row numbers, evenly spread over the split, int64 [n].
        lengths: L of each row, its real tokens, int64 [n]; what follows them is padding.
        masked_counts: k of each row, int64 [n].
        seq_len: places of a row.
        document_ids: document of each token within its row, int32 [n, seq_len]; None for attention to the whole row.
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


@dataclass(frozen=True)
class Estimate:
    """Mean over tokens with its standard error, in nats per token.

    Attributes:
        residuals: contribution of every row, fp64 [n]: their mean is the estimate, their spread its error.
    """

    loops: int
    nats_per_token: float
    standard_error: float
    residuals: np.ndarray


def freeze_noise(dataset: PackedDataset, wanted_rows: int, attention: Scope = "row") -> FrozenNoise:
    """Noise for `wanted_rows` of a split (all of them when there are fewer), and the documents that attention needs."""
    count = min(dataset.num_rows, wanted_rows)
    rows = np.arange(count) * dataset.num_rows // count
    lengths = dataset.lengths(rows)
    masked_counts = 1 + (stratified(NOISE_SEED, 0, count) * lengths).astype(np.int64)
    document_ids = dataset.document_ids(rows) if attention == "document" else None
    return FrozenNoise(rows, lengths, np.minimum(masked_counts, lengths), dataset.seq_len, document_ids)


@torch.no_grad()
def estimate_nelbo(
    forward: Forward,
    dataset: PackedDataset,
    noise: FrozenNoise,
    loops: int,
    mask_id: int,
    batch_size: int,
    world: World,
) -> Estimate:
    """NELBO at `loops` passes. Collective: every rank takes its share of the rows and all get the same figures."""
    per_row = torch.zeros(len(noise.rows), dtype=torch.float64)
    batches = [slice(i, i + batch_size) for i in range(0, len(noise.rows), batch_size)]
    rounds = -(-len(batches) // world.data_parallel_size)
    own = range(world.data_parallel_rank, rounds * world.data_parallel_size, world.data_parallel_size)
    together = world.shape.pipeline  # as many as keep a pipeline busy
    for start in range(0, len(own), together):
        indices = own[start : start + together]
        world.enter_phase(f"validation at {loops} loops")
        # A rank without a batch in the last round runs the first one again and drops the result: under ZeRO-3 a forward
        # pass is a collective that every rank must join.
        parts = [batches[i] if i < len(batches) else batches[0] for i in indices]
        nats = _nats_of_rows(forward, dataset, noise, parts, loops, mask_id, world.device)
        for index, part, values in zip(indices, parts, nats, strict=True):
            if index < len(batches) and values is not None and world.holds_loss:
                per_row[part] = values
    nats_per_row = world.sum(per_row).numpy()
    # A ratio of sums over rows, nats over tokens. Its error is that of the linearised rows (Cochran, section 6.3), which are
    # the rows' own estimates where all have one length.
    weights = noise.weights
    mean = float((weights * nats_per_row).mean())
    residuals = weights * nats_per_row - mean * (weights - 1)
    error = collapsed_strata_error(residuals, noise.masked_counts / noise.lengths)
    return Estimate(loops, mean, error, residuals)


def collapsed_strata_error(values: np.ndarray, strata: np.ndarray) -> float:
    """Standard error of the mean of one draw per stratum: neighbours in stratum order form pairs.

    Cochran, "Sampling Techniques" (1977), section 5A.12: the variance is estimated from differences inside pairs of
    neighbouring strata, so that the systematic change of the loss with the noise level is not counted as uncertainty,
    while the spread between rows and masks is. Slightly conservative.
    """
    ordered = values[np.argsort(strata, kind="stable")]
    differences = np.diff(ordered)
    # All neighbouring pairs instead of disjoint ones: each value serves in two, which halves the estimate's own noise.
    return float(math.sqrt((differences**2).sum() / (2 * max(1, len(differences)) * len(values))))


def unigram_entropy(dataset: PackedDataset) -> float:
    """Entropy of the split's own token frequencies in nats per token: what a model without context could reach."""
    counts = np.zeros(dataset.manifest.vocab_size, dtype=np.int64)
    for start in range(0, dataset.num_rows, 1024):
        indices = np.arange(start, min(start + 1024, dataset.num_rows))
        real = np.arange(dataset.seq_len) < dataset.lengths(indices)[:, None]
        counts += np.bincount(dataset.rows(indices)[real], minlength=len(counts))
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def bits_per_byte(nats_per_token: float, split: SplitInfo) -> float:
    """Nats per token -> bits per UTF-8 byte of the split's text; end-of-document tokens cost bits and add no bytes."""
    return nats_per_token / math.log(2) * split.tokens / split.bytes


def evaluate_loops(
    forward: Forward,
    dataset: PackedDataset,
    attention: Scope,
    loops: Sequence[int],
    rows: int,
    batch_size: int,
    world: World,
) -> dict[str, object]:
    """Figures of every number of loops, as written to `eval/*.json`, with the run's `train.attention`. Collective."""
    split = dataset.manifest.splits[dataset.split]
    noise = freeze_noise(dataset, rows, attention)
    mask_id = dataset.manifest.tokenizer.mask_id
    estimates = [estimate_nelbo(forward, dataset, noise, s, mask_id, batch_size, world) for s in loops]
    entropy = unigram_entropy(dataset)
    return {
        "split": dataset.split,
        "rows": len(noise.rows),
        "tokens": int(noise.lengths.sum()),
        "unigram_entropy": {"nats_per_token": entropy, "bits_per_byte": bits_per_byte(entropy, split)},
        "loops": [_figures(e, estimates[0], split) for e in estimates],
    }


def short_figures(figures: dict[str, Any]) -> str:
    """Nats per token at every S, in one line."""
    return ", ".join(f"S={f['loops']} {f['nats_per_token']:.4f}±{f['nats_per_token_se']:.4f}" for f in figures["loops"])


def mixed_figures(sets: Sequence[EvaluationSet], parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a mixture from those of its corpora, as `evaluate_loops` gave them.

    Means over tokens add up by share; so do the squares of their errors, since no row serves two corpora.
    """
    weights = np.array([one.weight for one in sets])
    shares = weights / weights.sum()
    rows = []
    for same in zip(*(part["loops"] for part in parts), strict=True):
        nats, errors = (np.array([row[key] for row in same]) for key in ("nats_per_token", "nats_per_token_se"))
        error = float(np.sqrt(((shares * errors) ** 2).sum()))
        rows.append({"loops": same[0]["loops"], "nats_per_token": float(shares @ nats), "nats_per_token_se": error})
    return {"corpora": [one.name for one in sets], "shares": shares.tolist(), "loops": rows}


def _figures(estimate: Estimate, first: Estimate, split: SplitInfo) -> dict[str, float]:
    difference = estimate.residuals - first.residuals
    return {
        "loops": estimate.loops,
        "nats_per_token": estimate.nats_per_token,
        "nats_per_token_se": estimate.standard_error,
        "bits_per_byte": bits_per_byte(estimate.nats_per_token, split),
        "bits_per_byte_se": bits_per_byte(estimate.standard_error, split),
        # The same rows and masks serve every S, so their difference is known far better than either figure.
        "change_from_first": float(difference.mean()),
        "change_from_first_se": float(difference.std(ddof=1) / math.sqrt(len(difference))),
    }


def _nats_of_rows(
    forward: Forward,
    dataset: PackedDataset,
    noise: FrozenNoise,
    parts: Sequence[slice],
    loops: int,
    mask_id: int,
    device: torch.device,
) -> list[Tensor | None]:
    """Estimates of the rows of each part in nats per token, fp64 [rows in part]: mean -log p over the masked tokens."""
    clean = [torch.from_numpy(dataset.rows(noise.rows[part])).to(device) for part in parts]
    masked = [torch.from_numpy(noise.masks(part)).to(device) for part in parts]
    owners = [None if noise.document_ids is None else torch.from_numpy(noise.document_ids[p]).to(device) for p in parts]
    inputs = [Inputs(c.masked_fill(m, mask_id), m, d) for c, m, d in zip(clean, masked, owners, strict=True)]
    logits = forward(inputs, loops)
    return [
        None if scores is None else _mean_nats(scores, c, m) for scores, c, m in zip(logits, clean, masked, strict=True)
    ]


def _mean_nats(logits: Tensor, clean: Tensor, masked: Tensor) -> Tensor:
    nats = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
    nats[masked] = masked_cross_entropy(logits, clean[masked]).double()
    return (nats.sum(dim=1) / masked.sum(dim=1)).cpu()
