"""Self-speculative decoding: the same text as one token per step, in fewer forward passes (SSD, arXiv 2510.04147)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from model.sampling.order import Order
from model.sampling.state import Predict, Prediction, State


@dataclass(frozen=True)
class Speculative:
    """Guesses the next tokens of each row from the last prediction, and verifies them in one forward pass of more rows.

    A step looks at the row as it is and with the first 1, 2, ... `draft` guesses filled in. From each of these rows follows the
    token that one token per step would reveal next. Guesses are accepted while they are this token, and the first other one is
    revealed instead of its guess: 1 to `draft` + 1 tokens per step. Draws use the same noise in every step, so guesses are
    often right at any temperature, and the output is that of `Ranked(order)`.
    """

    order: Order
    draft: int
    revises: ClassVar[bool] = False

    def __call__(self, state: State, predict: Predict) -> State:
        """See `Sampler`."""
        position, token, valid = self._guesses(state)
        contexts = _contexts(state, position, token)
        active = state.masked.any(dim=1, keepdim=True)
        row, number = (F.pad(valid, (1, 0), value=True) & active).nonzero(as_tuple=True)
        rows = state.alternatives(row, contexts[row, number])
        reveal, prediction = self.order.choose(rows, predict, torch.ones_like(row), ahead=self.draft)
        next_position = torch.where(reveal.any(dim=1), reveal.long().argmax(dim=1), -1)
        next_token = prediction.tokens.gather(1, next_position.clamp_min(0)[:, None]).squeeze(1)
        # Where each context is among the rows; 0 for contexts of guesses that do not exist, which are never accepted.
        place = torch.zeros(contexts.shape[:2], dtype=torch.int64, device=row.device)
        place[row, number] = torch.arange(len(row), device=row.device)
        guessed_from = place[:, :-1]
        right = valid & (next_position[guessed_from] == position) & (next_token[guessed_from] == token)
        accepted = right.long().cumprod(dim=1).sum(dim=1)
        last = place.gather(1, accepted[:, None]).squeeze(1)
        tokens = torch.where(reveal, prediction.tokens, rows.tokens)[last]
        carried = Prediction(prediction.tokens[last], prediction.scores[last])
        return replace(state, tokens=torch.where(active, tokens, state.tokens), carried=carried)

    def _guesses(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Position, token and existence of the guesses of each row, [b, draft], the surest first."""
        if state.carried is None:
            nothing = state.samples.new_zeros(len(state.samples), 0)
            return nothing, nothing, nothing.bool()
        scores = state.carried.scores.masked_fill(~state.masked, float("-inf"))
        position = scores.argsort(dim=1, descending=True, stable=True)[:, : self.draft]
        return position, state.carried.tokens.gather(1, position), scores.gather(1, position) > float("-inf")


def _contexts(state: State, position: Tensor, token: Tensor) -> Tensor:
    """Each row with its first 0, 1, ... d guesses filled in, int64 [b, d + 1, s]."""
    contexts = state.tokens[:, None].repeat(1, position.shape[1] + 1, 1)
    for guess in range(position.shape[1]):
        later = contexts[:, guess + 1 :]
        index = position[:, guess, None, None].expand(-1, later.shape[1], 1)
        later.scatter_(2, index, token[:, guess, None, None].expand_as(index))
    return contexts
