"""Muon's direction for one weight: its momentum with all singular values moved near 1 (Jordan et al. 2024, "Muon: An optimizer
for hidden layers in neural networks"), scaled to the size of AdamW's updates (Liu et al. 2025, arXiv 2502.16982, equation 4).
"""

import math

import torch
from torch import Tensor

from model.architecture import Architecture

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the iteration X <- a X + b (X X^T) X + c (X X^T)^2 X, as in Jordan's post and in torch.optim.Muon."""
ITERATIONS = 5
SMALLEST_NORM = 1e-7
"""A matrix of a smaller norm is divided by this, so that zero stays zero."""
UPDATE_RMS = 0.2
"""Root mean square of AdamW's usual updates at lr 1, according to Liu et al. 2025, section 2.2."""


def muon_direction(name: str, momentum: Tensor, architecture: Architecture) -> Tensor:
    """What lr is multiplied with to update a weight: 0.2 sqrt(max(m, n)) orthogonalized(momentum) for each of its matrices.

    megatron-core fuses the projections to queries, keys and values into one weight, and gate and up projection of the
    SwiGLU into another. Each of them is orthogonalized by itself, as in models that store them separately.

    The iteration runs in fp32, also when training in bf16. It enlarges small singular values up to 485 times and the rounding
    errors with them: in bf16, layouts whose gradients first differed by 1e-7 differed by 0.1 of what 8 steps changed.

    Args:
        name: of the weight.
        momentum: of the whole weight, not of a tensor-parallel shard, fp32 [output, input].
    """
    direction = torch.empty_like(momentum)
    parts = (separate(name, tensor, architecture) for tensor in (momentum, direction))
    for part, out in zip(*parts, strict=True):
        matrix = part.reshape(-1, part.shape[-1])
        out.copy_(orthogonalized(matrix).view_as(part)).mul_(UPDATE_RMS * math.sqrt(max(matrix.shape)))
    return direction


def orthogonalized(matrix: Tensor) -> Tensor:
    """Newton-Schulz iteration: U S V^T -> U f(S) V^T, [m, n] -> [m, n], in the dtype of the matrix.

    With s the singular values divided by the norm of the matrix, f(s) lies between 0.68 and 1.21 where s > 0.002, and is
    485 s near 0. torch.optim.Muon computes the same in bf16.
    """
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def separate(name: str, weight: Tensor, architecture: Architecture) -> list[Tensor]:
    """Views of the matrices that one weight consists of; their last dimension is the input, the others together the output."""
    if name.endswith("linear_qkv.weight"):
        # Rows are grouped by key-value head: its queries, its key, its value.
        per_group = architecture.num_heads // architecture.kv_heads
        grouped = weight.view(architecture.kv_heads, per_group + 2, architecture.head_dim, weight.shape[-1])
        return list(grouped.split([per_group, 1, 1], dim=1))
    if name.endswith("linear_fc1.weight"):
        return list(weight.chunk(2))
    return [weight]
