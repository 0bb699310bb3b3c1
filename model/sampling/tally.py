"""What sampling costs: forward passes, passes of the looped block, FLOPs.

Tokens per forward pass alone flatter a looped model, whose forward passes take S passes of the looped block.
"""

from dataclasses import asdict, dataclass, field
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
        of_samples: number of a sample -> its forward passes, loops and passes; of those whose numbers were given.
    """

    forwards: float = 0.0
    loops: float = 0.0
    passes: float = 0.0
    flops: float = 0.0
    of_samples: dict[int, tuple[float, float, float]] = field(default_factory=dict)

    def add(
        self,
        architecture: Architecture,
        seq_len: int,
        computed: Tensor,
        loops: Tensor,
        predicted: Tensor,
        tails: Tensor,
        samples: Tensor | None = None,
    ) -> None:
        """Count a forward pass.

        Args:
            seq_len: tokens of a row.
            computed: number of positions that are computed in each row, int64 [b].
            loops: S of each row, int64 [b].
            predicted: logits that are computed of each row, int64 [b]: positions, times how often.
            tails: how often the tail is computed, int64 [b].
            samples: number of each row's sample, int64 [b].
        """
        costs = FlopsModel(architecture, seq_len, masked_fraction=1.0)
        split = architecture.loop
        layers = split.head + split.mid * loops.double() + split.tail * tails.double()
        self.forwards += len(loops)
        self.loops += float(loops.sum())
        passes = (computed * loops).double() / seq_len
        self.passes += float(passes.sum())
        self.flops += float((computed * layers).sum()) * costs.layer() + float(predicted.sum()) * costs.lm_head()

        if samples is not None:
            for number, *more in zip(samples.tolist(), loops.tolist(), passes.tolist(), strict=True):
                before = self.of_samples.get(number, (0.0, 0.0, 0.0))
                self.of_samples[number] = (before[0] + 1, before[1] + more[0], before[2] + more[1])

    def values(self) -> Tensor:
        """The counts as float64 [4], to be summed over ranks that sample different rows."""
        return torch.tensor([self.forwards, self.loops, self.passes, self.flops], dtype=torch.float64)


@dataclass(frozen=True)
class Cost:
    """Figures of a job. Those per token are None if it filled in no token.

    Attributes:
        tokens: tokens that were filled in.
        forwards: forward passes, counted per row.
        block_passes: passes of the looped block, see `Tally`.
        tokens_per_forward: the speed-up over one token per forward pass.
        loops_per_forward: mean S.
        block_passes_per_token, flops_per_token: see `Tally`.
        seconds: wall-clock time.
    """

    tokens: int
    forwards: int
    block_passes: float
    tokens_per_forward: float | None
    loops_per_forward: float | None
    block_passes_per_token: float | None
    flops_per_token: float | None
    seconds: float
    tokens_per_second: float

    @classmethod
    def of(cls, work: Tensor, tokens: int, seconds: float) -> "Cost":
        """The figures of this work, as from `Tally.values`."""
        forwards, loops, passes, flops = work.tolist()

        def ratio(value: float, by: float) -> float | None:
            return value / by if by else None

        per_token = (ratio(passes, tokens), ratio(flops, tokens))
        per_forward = (ratio(tokens, forwards), ratio(loops, forwards))
        return cls(tokens, int(forwards), passes, *per_forward, *per_token, seconds, tokens / seconds)

    def record(self) -> dict[str, Any]:
        """For result files."""
        return asdict(self)

    def describe(self) -> str:
        """One line for the console."""
        if not self.tokens and self.forwards:
            return f"{self.forwards} forward passes in {self.seconds:.1f} s, {self.loops_per_forward:.2f} loops each"
        speed = f"{self.tokens} tokens in {self.seconds:.1f} s ({self.tokens_per_second:.1f} tokens/s)"
        if not self.tokens:
            return speed
        return (
            f"{speed}, {self.tokens_per_forward:.2f} tokens per forward pass, {self.loops_per_forward:.2f} loops, "
            f"{self.block_passes_per_token:.2f} block passes and {self.flops_per_token / 1e6:.3g} MFLOPs per token"
        )
