"""Starts the looped block near where it ended in the previous denoising step, so that fewer passes are needed.

The loop of a token that has not changed starts from H(0) + SHARE (H(S) - H(0)), where H(S) - H(0) is what all passes of the
previous step added, and H(0) on its own is the head's output in this step. A changed token starts from H(0).

Fixed-point masked diffusion models start their solver from the previous state (CoFRe, arXiv 2605.31215). Our block is no solver of
a fixed point: every pass adds to the hidden state, which would grow from step to step if all of it were carried over.
"""

from torch import Tensor

from model.sampling.cache import SampleMemory, Slots

SHARE = 0.5
"""Of what the passes of the previous step added."""


class WarmStart:
    """What the passes of each sample's last step added at each position [capacity, s + 1, h]; the last one is not used."""

    def __init__(self, memory: SampleMemory, like: Tensor) -> None:
        self._memory = memory
        self._added = like.new_zeros(memory.capacity, memory.seq_len + 1, like.shape[-1])

    def start(self, slots: Slots, columns: Tensor, tokens: Tensor, states: Tensor) -> Tensor:
        """Where the loop starts [a, n, h].

        Args:
            columns: positions that are computed, int64 [n, a], s for places that are only filled up.
            tokens: their tokens, int64 [n, a].
            states: H(0) [a, n, h].
        """
        places = slots.number[:, None]
        before = self._memory.tokens[places, columns.clamp_max(self._memory.seq_len - 1)]
        added = self._added[places, columns].masked_fill_((before != tokens)[..., None], 0)
        return states + SHARE * added.transpose(0, 1)

    def keep(self, slots: Slots, columns: Tensor, added: Tensor) -> None:
        """Keep H(S) - H(0) [a, n, h] of these positions."""
        kept = slots.writes
        self._added[slots.number[kept, None], columns[kept]] = added.transpose(0, 1)[kept]
