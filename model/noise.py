"""Timesteps and masks as pure functions of (seed, step, sample index, position). Does not import torch.

No generator is kept between calls, so the numbers are the same on every parallel layout and after every resume. They come
from numpy's Philox4x64-10, a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
with key = (seed, stream) and counter = index. We use its raw 64-bit words, which numpy guarantees not to change.
"""

from enum import IntEnum
from typing import Literal

import numpy as np

MASK_64 = 2**64 - 1
GOLDEN_RATIO_CONJUGATE = (5**0.5 - 1) / 2


TimestepDistribution = Literal["uniform", "bell"]
"""How t is drawn. "bell": more often in the middle of the interval, as proposed by arXiv 2605.13026, whose density is not ours."""

LossWeight = Literal["nelbo", "uniform"]
"""How much the cross-entropies at time t count: 1/t, or the same at every t."""

BELL = 0.7
"""Share of 6 u (1 - u) in the density of "bell"; the rest is uniform, so that no inverse density exceeds 1 / 0.3."""


class Stream(IntEnum):
    """Independent random streams of one seed. Never change the values: that would change the numbers of every run."""

    TIMESTEP_OFFSET = 1
    TIMESTEP_ORDER = 2
    MASK = 3
    LOOPS = 4
    EVALUATION = 5
    SAMPLER = 6


def uniform(seed: int, stream: Stream, index: int, size: int) -> np.ndarray:
    """The first `size` uniform numbers in [0, 1) of (seed, stream, index), float64 [size], with 53 random bits each."""
    # The index is the third word of the counter, so each index has 2**128 counter values, of four draws each, to itself.
    bits = np.random.Philox(
        key=np.array([seed & MASK_64, stream], np.uint64), counter=np.array([0, 0, index, 0], np.uint64)
    )
    return (bits.random_raw(size) >> np.uint64(11)) * 2.0**-53


def stratified(seed: int, step: int, size: int) -> np.ndarray:
    """One number in each of `size` equal intervals of [0, 1), in random order: (pi(i) + u) / size, float64 [size].

    The offset u, shared by the whole batch, and the permutation pi are functions of (seed, step). This is the
    low-discrepancy sampler of Kingma et al. 2021, "Variational diffusion models", appendix I.1, applied to the global
    batch instead of the batch of one device.
    """
    offset = uniform(seed, Stream.TIMESTEP_OFFSET, step, 1)
    order = np.argsort(uniform(seed, Stream.TIMESTEP_ORDER, step, size), kind="stable")
    return (order + offset) / size


def quantile(distribution: TimestepDistribution, values: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) -> numbers in [0, 1) with the density of a distribution."""
    if distribution == "uniform":
        return values
    # The cumulative distribution at 1/2 + v is 1/2 + (1 + BELL / 2) v - 2 BELL v**3: the root of a cubic near 0.
    p, q = (1 + BELL / 2) / (2 * BELL), (values - 0.5) / (2 * BELL)
    angle = np.arcsin(1.5 * q / p * np.sqrt(3 / p)) / 3
    return 0.5 + 2 * np.sqrt(p / 3) * np.sin(angle)


def timesteps(
    row_values: np.ndarray,
    document_ids: np.ndarray,
    min_timestep: float,
    distribution: TimestepDistribution = "uniform",
) -> np.ndarray:
    """t of every token in [min_timestep, 1), the same throughout a document, float64 [n, s].

    Document j of a row with value u gets frac(u + j * golden ratio conjugate), or the quantile of `distribution` there. Then

    - that number is uniform for every document, because adding a constant modulo 1 preserves the uniform distribution;
    - the j-th documents of a global batch are stratified, because the same constant is added in every row;
    - the documents of a row are spread evenly over the interval, for any number of them, because frac(j * golden ratio) is
      a low-discrepancy sequence;
    - document 0 has the t that the whole row would have.

    Args:
        row_values: u of each row in [0, 1), as from `stratified`, float [n].
        document_ids: document of each token, counted from 0 within its row, int [n, s]. All 0 for one t per row. Padding
            (-1) gets a value too, which is not used.
        min_timestep: lower end of the interval of t.
    """
    values = (row_values[:, None] + document_ids * GOLDEN_RATIO_CONJUGATE) % 1.0
    return min_timestep + (1.0 - min_timestep) * quantile(distribution, values)


def masks(
    seed: int, sample_indices: np.ndarray, timestep: np.ndarray, complements: np.ndarray | None = None
) -> np.ndarray:
    """Which tokens become [MASK]: each independently with probability t (linear schedule, alpha_t = 1 - t).

    Args:
        sample_indices: global index of each row's sample, its position in the training stream, int [n].
        timestep: t of each token, float [n, s].
        complements: rows that get the complement of the mask that another row of the same sample gets at `complement` of
            this t, but for a share of tokens equal to the smallest t, which is masked in both; bool [n]. None: no row.

    Returns:
        bool [n, s].
    """
    draws = np.stack([uniform(seed, Stream.MASK, int(index), timestep.shape[1]) for index in sample_indices])
    if complements is not None:
        draws[complements] = 1 - draws[complements]
    return draws < timestep


def complement(timestep: np.ndarray, min_timestep: float) -> np.ndarray:
    """t mirrored in the middle of its interval [min_timestep, 1)."""
    return 1 + min_timestep - timestep
