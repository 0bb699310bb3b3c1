"""What a pass of the mid block starts from, if not from the output of the pass before as it is.

    z(k) = H(0) + a * (H(k - 1) - H(0))    with `model.loop.decay`: a learned a in (0, 1) for every channel
    z(k) = norm(z(k))                      with `model.loop.norm`
    H(k) = mid(z(k))

Every pass adds to the hidden state, so its norm grows with k: beyond the passes of training, the tail gets states of a size that
it has never seen. With the decay, what a pass has added is multiplied by a in every later pass, so the sum is bounded. This is the
input injection of Parcae (arXiv 2604.12946), written such that the first pass, where H(k - 1) = H(0), starts from H(0). With the
norm, as in R-MDM (arXiv 2606.18022), a pass does not depend on the size of the state.
"""

import torch
from torch import Tensor, nn

from model.architecture import Architecture
from model.layers import ChannelWeight, RMSNorm, Sharding, transformer_config


class Decay(ChannelWeight):
    """H(0) + sigmoid(weight) * (H(k - 1) - H(0)); a weight of 1, the initial one, is a decay of 0.73."""

    def forward(self, hidden_states: Tensor, first: Tensor) -> Tensor:
        """H(k - 1) and H(0), each [s, b, h] -> [s, b, h]."""
        return torch.lerp(first, hidden_states, self.weight.sigmoid())


class Feedback(nn.Module):
    """z(k) from H(k - 1) and H(0); the weights are the same in all passes."""

    def __init__(self, architecture: Architecture, sharding: Sharding) -> None:
        super().__init__()
        size, loop, group = architecture.hidden_size, architecture.loop, sharding.norm_gradient_group
        config = transformer_config(architecture, sharding)
        self.decay = Decay(config, size, group) if loop.decay else None
        self.norm = RMSNorm(config, size, architecture.norm_eps, group) if loop.norm else None

    def forward(self, hidden_states: Tensor, first: Tensor) -> Tensor:
        """H(k - 1) and H(0), each [s, b, h] -> z(k) [s, b, h]."""
        if self.decay is not None:
            hidden_states = self.decay(hidden_states, first)
        return hidden_states if self.norm is None else self.norm(hidden_states)
