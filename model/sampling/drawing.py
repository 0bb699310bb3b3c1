"""Draws tokens from logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
"""(log-probabilities [m, v], drawn tokens int64 [m]) -> how sure the network is of each position, float64 [m]."""


@dataclass(frozen=True)
class Drawing:
    """How a token is drawn from its logits: temperature 1 draws from the model's distribution.

    Gumbel noise is float64, because in float32 it cannot exceed about 17, which acts like a lower temperature (Zheng et al.
    2024, "Masked diffusion models are secretly time-agnostic masked models", section 4).
    """

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Draw one token per row by the Gumbel-max trick: logits [m, v], uniform float64 [m, v] -> int64 [m]."""
        return (logits.double() - torch.log(-torch.log(uniform))).argmax(dim=-1)
