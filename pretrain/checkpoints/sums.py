"""Numbers of a piece of a weight that add up to that of the whole weight, however it is cut: what copies are compared by."""

import torch
from torch import Tensor

from pretrain.checkpoints.index import MASTER

AT_ONCE = 2**17
"""Numbers that are multiplied at a time, so that the products stay in a processor's cache."""


def checksum_of_states(states: dict[str, Tensor], start: int) -> Tensor:
    """Of a piece of a weight with its states, int32 []."""
    parts = [checksum(states[tensor], start) * (2 * i + 1) for i, tensor in enumerate(sorted(states))]
    return torch.stack(parts).sum(dtype=torch.int32)


def squares_of_master(states: dict[str, Tensor], _: int) -> Tensor:
    """Of a piece of a weight, fp64 []: not of its moments, which average few steps, so that rounding shows more in them."""
    return torch.stack([part.double().square().sum() for part in states[MASTER].split(AT_ONCE)]).sum()


def checksum(values: Tensor, start: int) -> Tensor:
    """Sum modulo 2^32 of the bits of fp32 numbers [n], each times an odd number that depends on its place: int32 [].

    A single changed number always changes it. The sums of the parts of a tensor add up to that of the whole, however it is cut.

    Args:
        start: place of the first number in the whole tensor.
    """
    bits, device = values.view(torch.int32), values.device
    places = torch.arange(min(len(bits), AT_ONCE), dtype=torch.int32, device=device)
    total = torch.zeros((), dtype=torch.int32, device=device)
    for begin in range(0, len(bits), AT_ONCE):
        part = bits[begin : begin + AT_ONCE]
        total += (_odd(places[: len(part)] + _wrapped(start + begin)).mul_(part)).sum(dtype=torch.int32)
    return total


def _odd(places: Tensor) -> Tensor:
    mixed = places.mul_(_wrapped(0x9E3779B1))
    return mixed.bitwise_xor_(mixed >> 15).mul_(_wrapped(0x85EBCA77)).bitwise_or_(1)


def _wrapped(number: int) -> int:
    """The int32 with the same last 32 bits."""
    return (number + 2**31) % 2**32 - 2**31
