"""Logits a part at a time: bounds the memory of their float64 copies."""

import torch
from torch import Tensor

ELEMENTS = 2**20
"""Logits of a part."""


def parts_of(logits: Tensor) -> tuple[Tensor, ...]:
    """The positions of logits [m, v], in parts: int64, together 0 to m - 1."""
    return torch.arange(len(logits), device=logits.device).split(max(1, ELEMENTS // logits.shape[-1]))
