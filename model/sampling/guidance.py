"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598; for masked diffusion: Nie et al. 2024, arXiv 2410.18514)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.sampling.query import Denoise, Query


@dataclass(frozen=True)
class Guidance:
    """Moves the logits away from those without the prompt: l + scale (l - l_without). The prompt is masked for l_without.

    It needs no special training and a second forward pass per step, with its own `denoise`: what one caches for a sample
    must not meet the other's tokens.
    """

    denoise: Denoise
    scale: float

    def apply(self, logits: Tensor, query: Query, given: Tensor, mask_id: int) -> Tensor:
        """The guided logits [m, v]; -inf stays -inf.

        Args:
            logits: of the query [m, v].
            given: the tokens of the prompt, bool [b, s].
        """
        tokens = query.tokens.masked_fill(given, mask_id)
        time = (tokens == mask_id).double().mean(dim=1)
        without = self.denoise(replace(query, tokens=tokens, time=time))
        possible = torch.isfinite(logits) & torch.isfinite(without)
        return torch.where(possible, logits + self.scale * (logits - without), logits)
