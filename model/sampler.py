"""The ancestral reverse process of the masked diffusion model.

From t = 1 to 0 in equal steps: between t and s < t a masked token is revealed with probability (t - s) / t and stays
masked with probability s / t; revealed tokens are frozen (MDLM, Sahoo et al. 2024, equation 7, linear schedule).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t int64 [b, s], selected bool [b, s]) -> logits [selected, vocabulary]; -inf where a token is impossible."""


@torch.no_grad()
def ancestral_sample(
    denoise: Denoise, tokens: Tensor, mask_id: int, denoising_steps: int, generator: torch.Generator
) -> Tensor:
    """Fill every [MASK] of `tokens`; the other tokens are the prompt and stay.

    Which tokens a step reveals does not depend on the network, so the LM head runs on those only, and a step that
    reveals none calls no network: x_t has not changed (the effect of MDLM's cache).

    Args:
        tokens: x_1, int64 [b, s].
        denoising_steps: steps from t = 1 to t = 0.
        generator: of the device of `tokens`.

    Returns:
        x_0, int64 [b, s], without any [MASK].
    """
    tokens = tokens.clone()
    for remaining in range(denoising_steps, 0, -1):
        # (t - s) / t with t = remaining / denoising_steps: exactly 1 in the last step, so nothing stays masked.
        reveal = (
            torch.rand(tokens.shape, generator=generator, device=tokens.device, dtype=torch.float64) < 1 / remaining
        )
        reveal &= tokens == mask_id
        if reveal.any():
            tokens[reveal] = sample_categorical(denoise(tokens, reveal), generator)
    return tokens


def sample_categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One draw per row by the Gumbel-max trick in fp64: [m, v] -> int64 [m].

    In fp32 the largest Gumbel draw is cut off near 17, which lowers the temperature and the diversity of samples
    (Zheng et al. 2024, "Masked diffusion models are secretly time-agnostic masked models", section 4).
    """
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
    return (logits.double() + gumbel).argmax(dim=-1)
