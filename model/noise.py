"""Noise as a function, not a state: timesteps and masks from (seed, step, sample index, position).

Nothing here holds a generator between calls, so the same numbers come out under every layout and after every resume.
The draws are numpy's Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a counter-based
generator: key = (seed, stream), counter = index. Raw 64-bit words are used because numpy guarantees their stability.
"""

from enum import IntEnum

import numpy as np

MASK_64 = 2**64 - 1


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


def timesteps(seed: int, step: int, global_batch_size: int, min_timestep: float) -> np.ndarray:
    """t of every sample of a step's global batch, stratified over [min_timestep, 1), float64 [global_batch_size]."""
    return min_timestep + (1.0 - min_timestep) * stratified(seed, step, global_batch_size)


def masks(seed: int, sample_indices: np.ndarray, timestep: np.ndarray, seq_len: int) -> np.ndarray:
    """Which tokens become [MASK]: each with probability t (linear schedule, alpha_t = 1 - t).

    Args:
        sample_indices: global sample indices (position in the training stream), int [n].
        timestep: t of each sample, float [n].

    Returns:
        bool [n, seq_len].
    """
    draws = np.stack([uniform(seed, Stream.MASK, int(index), seq_len) for index in sample_indices])
    return draws < timestep[:, None]
