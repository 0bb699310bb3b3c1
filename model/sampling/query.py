"""What a sampler asks of a network."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Query:
    """Rows of one forward pass, and where their logits are wanted.

    Attributes:
        tokens: x_t, int64 [b, s]. Only rows in which a position is wanted.
        positions: indices into the flattened [b * s] tokens, int64 [m], ascending, as from `model.denoiser.positions_of`.
        samples: number of each row's sample in the whole job, int64 [b]. Several rows may belong to one sample: they are
            possible continuations of it, with different tokens.
        time: t of each row: the share of its tokens that are [MASK], as in training, in (0, 1], float64 [b].
    """

    tokens: Tensor
    positions: Tensor
    samples: Tensor
    time: Tensor


Denoise = Callable[[Query], Tensor]
"""Query -> logits [m, v] of the wanted positions, the same on every rank; -inf for tokens that must not be drawn."""
