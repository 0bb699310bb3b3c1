"""The interface between the loop over steps and a sampler."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.sampling.drawing import Score
from model.sampling.randomness import Use, uniform


@dataclass(frozen=True)
class State:
    """What a sampler knows before a step. b rows of s tokens.

    Attributes:
        tokens: x_t, int64 [b, s].
        block: the tokens of each row that may change in this step, masked or filled, bool [b, s].
        samples: number of each row's sample in the whole job, int64 [b].
        mask_id: token id of [MASK].
        step: number of this step, from 0.
        steps_left: steps of the row's block, this one included, int64 [b]; None if their number is not given.
        block_steps: steps of the row's block in total, int64 [b]; None likewise.
        seed: of the random numbers.
    """

    tokens: Tensor
    block: Tensor
    samples: Tensor
    mask_id: int
    step: int
    steps_left: Tensor | None
    block_steps: Tensor | None
    seed: int

    @cached_property
    def masked(self) -> Tensor:
        """The [MASK] tokens that may be revealed in this step, bool [b, s]."""
        return self.block & (self.tokens == self.mask_id)

    def uniform(self, use: Use) -> Tensor:
        """A random number of every (sample, position, step), float64 [b, s]."""
        positions = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return uniform(self.seed, use, self.samples[:, None], positions, torch.full_like(positions[:1], self.step))

    def fill(self, reveal: Tensor, drawn: Tensor) -> "State":
        """The state with the tokens of `reveal` (bool [b, s]) replaced by those of `drawn` (int64 [b, s])."""
        return replace(self, tokens=torch.where(reveal, drawn, self.tokens))


class Prediction(NamedTuple):
    """What the network predicts at the wanted positions.

    Attributes:
        tokens: a token drawn for each wanted position, int64 [b, s].
        scores: how sure the network is of it, float64 [b, s]; -inf at other positions, and everywhere if not asked for.
    """

    tokens: Tensor
    scores: Tensor


class Predict(Protocol):
    """Asks the network about the wanted positions, and draws a token for each."""

    def __call__(self, state: State, wanted: Tensor, score: Score | None = None) -> Prediction:
        """Rows without a wanted position (bool [b, s]) do not go through the network."""


class Sampler(Protocol):
    """One step of a sampler: state before -> state after."""

    def __call__(self, state: State, predict: Predict) -> State:
        """Fill some of `state.masked`."""
