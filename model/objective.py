"""The masked-diffusion NELBO with the linear noise schedule, computed on masked positions only.

    L = E_t E_{x_t} [ 1/t * sum over masked i of -log p(x_0^i | x_t) ]       (MDLM, Sahoo et al. 2024, equation 10)

in nats, with t ~ U(0, 1] and each token masked with probability t. If each document of a row has its own t, the bound holds
for each document separately, and the bound of the row is their sum.
"""

from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor


def masked_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) of each masked token in nats, fp32 [m].

    Args:
        logits: [m, v], where v is this tensor-parallel rank's share of the vocabulary.
        targets: clean token ids, int64 [m].
    """
    # megatron-core's function overwrites its fp32 input. `.float()` makes a copy only if the logits are not fp32 already.
    return vocab_parallel_cross_entropy(logits.float(), targets)


def token_weights(timesteps: Tensor, min_timestep: float, num_tokens: int) -> Tensor:
    """Loss weight of each masked token, fp32 [m]: the loss is the sum of weights * cross-entropy, in nats per token.

    The weight is (1 - min_timestep) / t / num_tokens. The first factor is the inverse density of t, which is uniform on
    [min_timestep, 1), so that the mean is an unbiased estimate of the integral over that interval.

    Args:
        timesteps: t of each masked token, float [m].
        num_tokens: tokens of the GLOBAL batch, masked or not, without padding. It is known before the step, so the sum
            over micro-batches and ranks is the mean over the batch, however the batch is split.
    """
    return ((1.0 - min_timestep) / timesteps / num_tokens).float()
