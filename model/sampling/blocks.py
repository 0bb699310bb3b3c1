"""Semi-autoregressive blocks: the tokens to fill are filled block by block, from left to right (LLaDA, Nie et al. 2025)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


def number_blocks(unknown: Tensor, length: int | None) -> Tensor:
    """Number of the block of each token to fill, from 0; -1 for the other tokens, int64 [b, s].

    A block is `length` tokens to fill, in the order of the row, whatever is given between them. The last block of a row has
    the rest. After a prompt at the beginning of the row the blocks are those of LLaDA.

    Args:
        unknown: the tokens to fill, bool [b, s].
        length: tokens per block; None for a single block.
    """
    before = unknown.cumsum(dim=1) - 1
    numbers = torch.zeros_like(before) if length is None else before // length
    return numbers.masked_fill(~unknown, -1)


class Clock(NamedTuple):
    """Where each row is in a fixed number of steps.

    Attributes:
        block: number of the current block, int64 [b].
        steps_left: steps of this block that are left, the coming one included, int64 [b].
        block_steps: steps of this block in total, int64 [b].
    """

    block: Tensor
    steps_left: Tensor
    block_steps: Tensor


@dataclass(frozen=True)
class Schedule:
    """A fixed number of steps, shared out to the blocks of each row; what cannot be shared goes to the first blocks."""

    steps: int
    blocks: Tensor

    @classmethod
    def of(cls, steps: int, numbers: Tensor) -> "Schedule":
        """The schedule of rows whose tokens have these block numbers.

        Raises:
            ValueError: a row has more blocks than there are steps.
        """
        blocks = (numbers.amax(dim=1) + 1).clamp_min(1)
        if (most := int(blocks.max())) > steps:
            raise ValueError(f"{steps} steps are too few for the {most} blocks of a row, which need at least one each")
        return cls(steps, blocks)

    def at(self, step: int) -> Clock:
        """The clock before step `step`, counted from 0."""
        least, more = self.steps // self.blocks, self.steps % self.blocks
        longer = more * (least + 1)  # steps of the first blocks, which have one more
        first = step < longer
        block_steps = least + first.long()
        passed = torch.where(first, step, step - longer)
        block = torch.where(first, 0, more) + passed // block_steps
        return Clock(block, block_steps - passed % block_steps, block_steps)
