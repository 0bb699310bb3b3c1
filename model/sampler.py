"""The ancestral reverse process of the masked diffusion model.

Time runs from t = 1 to t = 0 in equal steps. In a step from t to s < t a masked token is revealed with probability
(t - s) / t and stays masked with probability s / t; a revealed token does not change any more (MDLM, Sahoo et al. 2024,
equation 7, with the linear schedule).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t, int64 [b, s]; logit_positions, bool [b, s]) -> logits [m, vocabulary] of the m selected positions, in row-major
order; -inf for tokens that must not be drawn."""


@torch.no_grad()
def ancestral_sample(
    denoise: Denoise, tokens: Tensor, mask_id: int, denoising_steps: int, generator: torch.Generator
) -> Tensor:
    """Replace every [MASK] in `tokens` by a sampled token; the other tokens are the prompt and do not change.

    Which tokens a step reveals does not depend on the network, so logits are computed only for those, and a step that
    reveals no token does not call the network. This has the same effect as the cache of MDLM's `ddpm_cache` sampler.

    Args:
        tokens: x_1, int64 [b, s].
        mask_id: token id of [MASK].
        denoising_steps: number of steps from t = 1 to t = 0.
        generator: on the device of `tokens`.

    Returns:
        x_0, int64 [b, s], without any [MASK].
    """
    tokens = tokens.clone()
    for remaining in range(denoising_steps, 0, -1):
        # (t - s) / t = 1 / remaining, because t = remaining / denoising_steps. It is 1 in the last step: nothing stays masked.
        reveal = (
            torch.rand(tokens.shape, generator=generator, device=tokens.device, dtype=torch.float64) < 1 / remaining
        )
        reveal &= tokens == mask_id
        if reveal.any():
            tokens[reveal] = sample_categorical(denoise(tokens, reveal), generator)
    return tokens


def sample_categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token per row with the Gumbel-max trick in fp64: logits [m, v] -> int64 [m].

    In fp32 Gumbel noise cannot exceed about 17, which lowers the effective temperature and the diversity of the samples
    (Zheng et al. 2024, "Masked diffusion models are secretly time-agnostic masked models", section 4).
    """
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
    return (logits.double() + gumbel).argmax(dim=-1)
