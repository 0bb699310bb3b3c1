"""The masked-diffusion NELBO with the linear noise schedule, computed on masked positions only.

    L = E_t E_{x_t} [ 1/t * sum over masked i of -log p(x_0^i | x_t) ]       (MDLM, Sahoo et al. 2024, equation 10)

in nats, with t ~ U(0, 1] and each token masked with probability t. If each document of a row has its own t, the bound holds
for each document separately, and the bound of the row is their sum.

An autoregressive model has -sum over i of log p(x_0^i | x_0^1..i-1) instead, which is exact.
"""

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from model.noise import BELL, LossWeight, TimestepDistribution


def masked_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) of each masked token in nats, fp32 [m].

    Args:
        logits: [m, v], where v is this tensor-parallel rank's share of the vocabulary.
        targets: clean token ids, int64 [m].
    """
    # megatron-core's function overwrites its fp32 input. `.float()` makes a copy only if the logits are not fp32 already.
    return vocab_parallel_cross_entropy(logits.float(), targets)


def previous_tokens(tokens: Tensor, first: int) -> Tensor:
    """Input of an autoregressive model (`model.causal`), which predicts `tokens` from it: shifted by one, int64 [b, s].

    Args:
        first: id that stands before the first token: [MASK].
    """
    return torch.cat([torch.full_like(tokens[:, :1], first), tokens[:, :-1]], dim=1)


def token_weights(
    timesteps: Tensor,
    min_timestep: float,
    num_tokens: int,
    weight: LossWeight = "nelbo",
    distribution: TimestepDistribution = "uniform",
) -> Tensor:
    """Loss weight of each masked token, fp32 [m]: the loss is the sum of weights * cross-entropy, in nats per token.

    The weight is w(t) / p(t) / num_tokens, where p is the density of t. So the loss is an unbiased estimate of the integral of
    w(t) * (sum of cross-entropies at t) over [min_timestep, 1), whatever p is. "nelbo": w(t) = 1/t. "uniform": w is constant, and
    the loss is the mean cross-entropy of a masked token ("low variance" in arXiv 2602.15014); it is not a bound.

    Args:
        timesteps: t of each masked token, float [m].
        num_tokens: tokens of the GLOBAL batch, masked or not, without padding. It is known before the step, so the sum
            over micro-batches and ranks is the mean over the batch, however the batch is split.
    """
    width = 1.0 - min_timestep
    masked_share = (1.0 + min_timestep) / 2
    weights = width / timesteps if weight == "nelbo" else torch.full_like(timesteps, 1 / masked_share)
    if distribution == "bell":
        u = (timesteps - min_timestep) / width
        weights = weights / (1 - BELL + 6 * BELL * u * (1 - u))
    return (weights / num_tokens).float()
