"""The interface between the loop over steps and a sampler."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.sampling.blocks import Clock
from model.sampling.randomness import Use, uniform
from model.sampling.scores import Score


class Prediction(NamedTuple):
    """What the network predicts at the wanted positions.

    Attributes:
        tokens: a token drawn for each wanted position, int64 [b, s]; [MASK] elsewhere.
        scores: how sure the network is of this token, as from `rounded`, float64 [b, s]; -inf elsewhere, and everywhere if not
            asked for.
    """

    tokens: Tensor
    scores: Tensor


@dataclass(frozen=True)
class State:
    """What a sampler knows before a step, for b rows of s tokens.

    Attributes:
        tokens: x_t, int64 [b, s].
        given: the tokens of the prompt, which never change, bool [b, s].
        blocks: as from `number_blocks`, int64 [b, s].
        samples: number of each row's sample in the whole job, int64 [b].
        mask_id: token id of [MASK].
        stop_id: a row ends at the first such token after all given ones; None to fill all rows to their ends.
        seed: of the random numbers.
        step: number of this step, from 0.
        draw: number that goes into the draws of tokens. It is `step` if a token may be masked again, and else 0: then a position
            has the same noise in every step. With new noise in every step, confident positions first, a position would be drawn
            until a likely token comes, which acts like a lower temperature.
        clock: where each row is; None if the number of steps is not fixed.
        carried: what the sampler keeps for its next step.
    """

    tokens: Tensor
    given: Tensor
    blocks: Tensor
    samples: Tensor
    mask_id: int
    stop_id: int | None
    seed: int
    step: int = 0
    draw: int = 0
    clock: Clock | None = None
    carried: Prediction | None = None

    @cached_property
    def is_open(self) -> Tensor:
        """The [MASK] tokens that have to be revealed, in this block or later, bool [b, s]."""
        masked = self.tokens == self.mask_id
        return masked if self.stop_id is None else masked & ~self.after_stop

    @cached_property
    def stops(self) -> Tensor:
        """The first stop token of each row after all given ones, bool [b, s]; all False where there is none."""
        if self.stop_id is None:
            return torch.zeros_like(self.given)
        given_later = self.given.flip(1).cumsum(dim=1).flip(1) > 0
        found = (self.tokens == self.stop_id) & ~given_later
        return found & (found.cumsum(dim=1) == 1)

    @cached_property
    def after_stop(self) -> Tensor:
        """The tokens after the end of a row, bool [b, s]."""
        return self.stops.cumsum(dim=1) > self.stops.long()

    @cached_property
    def block(self) -> Tensor:
        """The tokens of each row's current block, masked or not, bool [b, s]: the clock's, or the first that is not full."""
        if self.clock is not None:
            return self.blocks == self.clock.block[:, None]
        last = self.tokens.shape[1]
        return self.blocks == self.blocks.masked_fill(~self.is_open, last).amin(dim=1, keepdim=True)

    @cached_property
    def masked(self) -> Tensor:
        """The [MASK] tokens that may be revealed in this step, bool [b, s]."""
        return self.block & self.is_open

    def uniform(self, use: Use, step: int | None = None) -> Tensor:
        """A random number in (0, 1) of every (sample, position, step), float64 [b, s]. The default is this step."""
        positions = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        number = torch.full_like(positions[:1], self.step if step is None else step)
        return uniform(self.seed, use, self.samples[:, None], positions, number)

    def fill(self, reveal: Tensor, drawn: Tensor) -> "State":
        """The state with the tokens of `reveal` (bool [b, s]) replaced by those of `drawn` (int64 [b, s])."""
        return replace(self, tokens=torch.where(reveal, drawn, self.tokens))

    def alternatives(self, rows: Tensor, tokens: Tensor) -> "State":
        """A state of n other rows: `tokens` (int64 [n, s]) as continuations of these rows (int64 [n])."""
        clock = None if self.clock is None else Clock(*(values[rows] for values in self.clock))
        given, blocks, samples = self.given[rows], self.blocks[rows], self.samples[rows]
        return replace(self, tokens=tokens, given=given, blocks=blocks, samples=samples, clock=clock, carried=None)


class Predict(Protocol):
    """Asks the network about the wanted positions, and draws a token for each."""

    def __call__(
        self, state: State, wanted: Tensor, score: Score | None = None, known: Tensor | None = None
    ) -> Prediction:
        """Rows without a wanted position do not go through the network.

        Args:
            wanted: bool [b, s].
            score: the score to compute.
            known: tokens to score instead of drawn ones, int64 [b, s]; [MASK] where one is to be drawn.
        """


class Sampler(Protocol):
    """One step of a sampler. It takes random numbers from `State.uniform` and `Predict` only, and each row alone.

    Attributes:
        revises: whether a revealed token may be masked again.
    """

    revises: bool

    def __call__(self, state: State, predict: Predict) -> State:
        """The state after the step. Without a clock, a row with open tokens must have fewer [MASK] tokens than before."""
