"""Noise as a function, not a state: timesteps and masks from (seed, step, sample index, position).

Nothing here holds a generator between calls, so the same numbers come out under every layout and after every resume.
The draws are numpy's Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a counter-based
generator: key = (seed, stream), counter = index. Raw 64-bit words are used because numpy guarantees their stability.
"""

from enum import IntEnum

import numpy as np

MASK_64 = 2**64 - 1
GOLDEN_RATIO_CONJUGATE = (5**0.5 - 1) / 2


class Stream(IntEnum):
    """Independent streams under one seed. The values are part of every run's identity: never renumber them."""

    TIMESTEP_OFFSET = 1
    TIMESTEP_ORDER = 2
    MASK = 3
    LOOPS = 4
    EVALUATION = 5
    SAMPLER = 6


def uniform(seed: int, stream: Stream, index: int, size: int) -> np.ndarray:
    """The first `size` uniforms of [0, 1), float64 [size], of (seed, stream, index): 53 random bits each."""
    # The index stands in the third word, so 2**129 draws of one index come before those of the next.
    bits = np.random.Philox(
        key=np.array([seed & MASK_64, stream], np.uint64), counter=np.array([0, 0, index, 0], np.uint64)
    )
    return (bits.random_raw(size) >> np.uint64(11)) * 2.0**-53


def stratified(seed: int, step: int, size: int) -> np.ndarray:
    """One uniform in each of `size` equal strata, in random order: (pi(i) + u) / size, float64 [size].

    One shared offset u and one permutation pi per step, both keyed by the step: the low-discrepancy sampling of Kingma
    et al. 2021, "Variational diffusion models", appendix I.1, over the whole global batch instead of one device's.
    """
    offset = uniform(seed, Stream.TIMESTEP_OFFSET, step, 1)
    order = np.argsort(uniform(seed, Stream.TIMESTEP_ORDER, step, size), kind="stable")
    return (order + offset) / size


def timesteps(row_values: np.ndarray, document_ids: np.ndarray, min_timestep: float) -> np.ndarray:
    """t of every token in [min_timestep, 1), the same throughout a document, float64 [n, s].

    Document j of a row with the value u gets frac(u + j * golden ratio conjugate). Every document's t is uniform, because a
    rotation keeps the uniform distribution. The j-th documents of a global batch have one value in each stratum, because
    all are rotated alike. The documents of one row are spread evenly whatever their number: frac(j * golden ratio) is a
    low-discrepancy sequence. Document 0 has the row's own t.

    Args:
        row_values: u of each row in [0, 1), as from `stratified`, float [n].
        document_ids: document of each token, counted from 0 within its row; all 0 where the row has one t, int [n, s].
            Padding, -1, gets some t, which nothing uses.
    """
    values = (row_values[:, None] + document_ids * GOLDEN_RATIO_CONJUGATE) % 1.0
    return min_timestep + (1.0 - min_timestep) * values


def masks(seed: int, sample_indices: np.ndarray, timestep: np.ndarray) -> np.ndarray:
    """Which tokens become [MASK]: each with probability t (linear schedule, alpha_t = 1 - t).

    Args:
        sample_indices: global sample indices (position in the training stream), int [n].
        timestep: t of each token, float [n, s].

    Returns:
        bool [n, s].
    """
    draws = np.stack([uniform(seed, Stream.MASK, int(index), timestep.shape[1]) for index in sample_indices])
    return draws < timestep
