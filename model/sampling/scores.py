"""How sure the network is of a position: scores by which samplers choose what to reveal first.

They are those of the model's own distribution, whatever temperature, top-k and top-p are drawn with.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
"""(log-probabilities float64 [m, v], a token of each position int64 [m]) -> float64 [m]; higher is surer."""


def confidence(log_probabilities: Tensor, tokens: Tensor) -> Tensor:
    """Probability of the token (LLaDA, Nie et al. 2025, "low-confidence remasking")."""
    return log_probabilities.gather(1, tokens[:, None]).squeeze(1).exp()


def margin(log_probabilities: Tensor, tokens: Tensor) -> Tensor:
    """Probability of the likeliest token minus that of the second (Kim et al. 2025, arXiv 2502.06768)."""
    best = log_probabilities.topk(2, dim=1).values.exp()
    return best[:, 0] - best[:, 1]


def negative_entropy(log_probabilities: Tensor, tokens: Tensor) -> Tensor:
    """Minus the entropy of the position, in nats (Dream 7B, Ye et al. 2025, "entropy")."""
    return -torch.special.entr(log_probabilities.exp()).sum(dim=1)


def rounded(scores: Tensor) -> Tensor:
    """Scores with 12 significant bits, so that those which only rounding errors of the network tell apart are equal.

    In a row of [MASK] alone every position has the same distribution: attention with relative positions over equal tokens is
    the same everywhere. Without this, the layout or the batch would decide which position comes first.
    """
    mantissa, exponent = torch.frexp(scores)
    return (mantissa * 2**12).round() * 2.0 ** (exponent - 12).double()


def highest(scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """The `count` allowed positions of each row with the highest scores, bool [b, s]; of equal ones the leftmost.

    Args:
        scores: float64 [b, s].
        allowed: bool [b, s].
        count: int64 [b].
    """
    ranked = scores.masked_fill(~allowed, float("-inf")).argsort(dim=1, descending=True, stable=True)
    return allowed & (ranked.argsort(dim=1) < count[:, None])
