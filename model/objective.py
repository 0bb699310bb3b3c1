"""The masked-diffusion NELBO under the linear schedule, on masked positions only.

    L = E_t E_{x_t} [ 1/t * sum over masked i of -log p(x_0^i | x_t) ]       (MDLM, Sahoo et al. 2024, equation 10)

in nats, with t ~ U(0, 1] and every token masked with probability t. Where each document of a row has its own t, the bound
holds for each document with that t, and the row's is their sum.
"""

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor


def masked_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) per masked token, fp32 [m], in nats.

    Args:
        logits: [m, vocabulary of this tensor-parallel rank].
        targets: clean token ids, int64 [m].
    """
    # megatron-core's kernel works in place on fp32 logits; `.float()` copies only when they are not.
    return vocab_parallel_cross_entropy(logits.float(), targets)


def token_weights(timesteps: Tensor, masked: Tensor, min_timestep: float) -> Tensor:
    """Loss weight of each masked token, fp32 [m], in row-major order.

    1/t, times (1 - min_timestep): the inverse density of t drawn uniformly from [min_timestep, 1), so that the mean is
    an unbiased estimate of the integral over that interval.

    Args:
        timesteps: t of each token, float [b, s].
        masked: bool [b, s].
    """
    return ((1.0 - min_timestep) / timesteps[masked]).float()


def diffusion_loss(cross_entropy: Tensor, weights: Tensor, num_tokens: int) -> Tensor:
    """Share of the loss that these tokens carry, a scalar in nats per token.

    Args:
        cross_entropy: fp32 [m], as from `masked_cross_entropy`.
        weights: fp32 [m], as from `token_weights`.
        num_tokens: tokens of the GLOBAL batch, masked or not. Known before the step, so that the sum over micro-batches
            and ranks is the mean over the batch whatever the split.
    """
    return torch.dot(weights, cross_entropy) / num_tokens
