"""What sampling costs: forward passes, passes of the looped block, FLOPs.

Tokens per forward pass alone flatter a looped model, whose forward passes take S passes of the looped block.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.architecture import Architecture
from model.flops import FlopsModel


@dataclass
class Tally:
    """Work of a job, counted per row: a forward pass of b rows counts as b.

    Attributes:
        forwards: forward passes.
        loops: the sum of their S.
        passes: passes of the looped block; a pass that computes a part of a row counts as that part.
        flops: as in `model/flops.py`.
    """

    forwards: float = 0.0
    loops: float = 0.0
    passes: float = 0.0
    flops: float = 0.0

    def add(
        self, architecture: Architecture, seq_len: int, computed: Tensor, loops: Tensor, predicted: Tensor, ends: Tensor
    ) -> None:
        """Count a forward pass.

        Args:
            seq_len: tokens of a row.
            computed: number of positions that are computed in each row, int64 [b].
            loops: S of each row, int64 [b].
            predicted: positions of each row at which logits are computed, int64 [b].
            ends: how often the tail and the LM head are computed, int64 [b].
        """
        costs = FlopsModel(architecture, seq_len, masked_fraction=1.0)
        split = architecture.loop
        layers = split.head + split.mid * loops.double() + split.tail * ends.double()
        self.forwards += len(loops)
        self.loops += float(loops.sum())
        self.passes += float((computed * loops).sum()) / seq_len
        self.flops += (
            float((computed * layers).sum()) * costs.layer() + float((predicted * ends).sum()) * costs.lm_head()
        )

    def values(self) -> Tensor:
        """The counts as float64 [4], to be summed over ranks that sample different rows."""
        return torch.tensor([self.forwards, self.loops, self.passes, self.flops], dtype=torch.float64)


def cost_report(values: Tensor, tokens: int, seconds: float) -> dict[str, Any]:
    """Figures of a job for its result file.

    Args:
        values: as from `Tally.values`.
        tokens: tokens that were filled in.
        seconds: wall-clock time.
    """
    forwards, loops, passes, flops = values.tolist()
    return {
        "tokens": tokens,
        "forwards": int(forwards),
        "tokens_per_forward": tokens / forwards,
        "loops_per_forward": loops / forwards,
        "block_passes_per_token": passes / tokens,
        "flops_per_token": flops / tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }
