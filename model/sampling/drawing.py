"""Draws tokens from logits: temperature, top-k, top-p."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Drawing:
    """How a token is drawn from its logits. The default draws from the model's own distribution.

    Attributes:
        temperature: the logits are divided by it; 0 takes the likeliest token, without random numbers.
        top_k: draw among the k likeliest tokens only.
        top_p: draw among the likeliest tokens only, as few as together have this probability, after temperature and top-k
            ("nucleus sampling", Holtzman et al. 2020, arXiv 1904.09751).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def draw(self, logits: Tensor, uniform: Tensor | None) -> Tensor:
        """Draw one token per row by the Gumbel-max trick: logits [m, v] -> int64 [m].

        The noise is float64, because in float32 it cannot exceed about 17, which acts like a lower temperature (Zheng et al.
        2024, "Masked diffusion models are secretly time-agnostic masked models", section 4).

        Args:
            uniform: in (0, 1), float64 [m, v]; not needed at temperature 0.
        """
        logits = logits.double()
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        assert uniform is not None
        return (self._kept(logits / self.temperature) - torch.log(-torch.log(uniform))).argmax(dim=-1)

    def _kept(self, logits: Tensor) -> Tensor:
        """-inf for the tokens that top-k and top-p leave out. Tokens as likely as the last one kept are kept too."""
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None and self.top_p < 1:
            ordered = logits.sort(dim=-1, descending=True).values
            before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
            # The likeliest token always stays: nothing comes before it.
            least = ordered.masked_fill(before >= self.top_p, float("inf")).amin(dim=-1, keepdim=True)
            logits = logits.masked_fill(logits < least, float("-inf"))
        return logits
