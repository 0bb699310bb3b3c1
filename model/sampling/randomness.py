"""Random numbers of a sampler: a pure function of (seed, use, sample, position, step, token).

No generator state is kept, so a sample does not depend on the batch it is in, on how many samples are drawn, or on the
layout. The generator is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), in
integer arithmetic of torch, which gives the same bits on CPUs and GPUs. Every index splits the generator: number i of the
parent's stream is the seed of child i.
"""

from enum import IntEnum

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Use(IntEnum):
    """Independent streams of one seed. Never change the values: that would change every sample."""

    REVEAL = 1
    TOKEN = 2
    REMASK = 3
    ORDER = 4


def uniform(seed: int, use: Use, *indices: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) with 52 random bits each, float64, of the shape to which `indices` broadcast.

    Args:
        seed: from 0 to 2^63 - 1.
        indices: int64, such as sample, position and step, each at least 0.
    """
    state = torch.tensor(seed, device=indices[0].device)
    for index in (torch.tensor(int(use), device=state.device), *indices):
        state = _mix(state + (index + 1) * _signed(GAMMA))
    # The middle of one of 2^52 equal intervals: exact in float64, and never 0 or 1.
    return _shift(state, 12).double().add_(0.5).mul_(2.0**-52)


def _mix(state: Tensor) -> Tensor:
    """The output function of SplitMix64, a bijection of 64-bit words, in place; int64 products wrap around as unsigned ones."""
    state.bitwise_xor_(_shift(state, 30)).mul_(_signed(MIX_1))
    state.bitwise_xor_(_shift(state, 27)).mul_(_signed(MIX_2))
    return state.bitwise_xor_(_shift(state, 31))


def _shift(words: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned words: torch's shift repeats the sign bit."""
    return (words >> bits).bitwise_and_(2 ** (64 - bits) - 1)


def _signed(word: int) -> int:
    """The signed integer with the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word
