"""Rotary position embedding (RoPE, Su et al. 2021).

megatron-core 0.16 and 0.19 compute the cosine and sine of the angles for the queries and the keys of every layer;
`rotary_pos_cos` and `rotary_pos_sin` of its layers are for inference only. Here both are computed once per micro-batch.
The layers get no `rotary_pos_emb`; `BidirectionalAttention` rotates instead.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Rotation(NamedTuple):
    """Cosine and sine of the RoPE angles of a row, for `rotate`.

    Attributes:
        cos: [s, 1, d], or [b, s, 1, d] if the rows have tokens at different positions.
        sin: likewise, negative in the first half of d.
    """

    cos: Tensor
    sin: Tensor

    def at(self, positions: Tensor) -> "Rotation":
        """The rotation of the tokens at these positions of each row, int64 [b, a]."""
        return Rotation(self.cos[positions], self.sin[positions])

    def of_rows(self, rows: Tensor) -> "Rotation":
        """The rotation of some rows, int64 [n]."""
        return self if self.cos.dim() == 3 else Rotation(self.cos[rows], self.sin[rows])


def rotation(seq_len: int, head_dim: int, base: float, device: torch.device, dtype: torch.dtype) -> Rotation:
    """The rotation of positions 0 to `seq_len` - 1 (equation 34), computed in fp32. Element i is rotated with i + d / 2."""
    frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.outer(torch.arange(seq_len, dtype=torch.float32, device=device), frequencies)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return Rotation(torch.cat([cos, cos], dim=-1)[:, None], torch.cat([-sin, sin], dim=-1)[:, None])


def rotate(states: Tensor, by: Rotation) -> Tensor:
    """Queries or keys [b, s, n, d] -> the same, rotated, contiguous."""
    return _Rotate.apply(states, by.cos, by.sin)


class _Rotate(torch.autograd.Function):
    """With its own backward pass, which rotates back: autograd's would take more passes over memory."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(states, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat([second, first], dim=-1).mul_(sin).add_(states * cos)
