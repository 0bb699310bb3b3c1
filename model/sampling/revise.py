"""Samplers that may mask a revealed token again."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from model.sampling.order import sure_enough
from model.sampling.randomness import Use
from model.sampling.scores import confidence, highest
from model.sampling.state import Predict, State


@dataclass(frozen=True)
class Remasking:
    """The ancestral process with remasking, ReMDM (arXiv 2503.00307), with its capped schedule ("ReMDM-cap").

    In a step from t to s < t a revealed token is masked again with probability sigma = min(cap, s / (1 - t)), and a masked one is
    revealed with probability (t - s + sigma (1 - t)) / t. The share of masked tokens at every t is that of the ancestral
    process, and with cap = 0 it is that process. Logits are computed only for the tokens that a step reveals.
    """

    cap: float
    revises: ClassVar[bool] = True

    def __call__(self, state: State, predict: Predict) -> State:
        """See `Sampler`."""
        assert state.clock is not None
        left, steps = (values[:, None].double() for values in (state.clock.steps_left, state.clock.block_steps))
        t, s = left / steps, (left - 1) / steps
        tiny = torch.finfo(t.dtype).tiny  # at t = 1 nothing is revealed yet
        sigma = (s / (1 - t).clamp_min(tiny)).clamp_max(self.cap)
        reveal = state.masked & (state.uniform(Use.REVEAL) < (t - s + sigma * (1 - t)) / t)
        remask = state.block & (state.tokens != state.mask_id) & (state.uniform(Use.REMASK) < sigma)
        filled = state.fill(reveal, predict(state, reveal).tokens)
        return replace(filled, tokens=filled.tokens.masked_fill(remask, state.mask_id))


@dataclass(frozen=True)
class DraftAndVerify:
    """WINO (arXiv 2507.18578): reveals tokens at a low threshold, verifies those of the block, and masks doubtful ones again.

    A token is verified by its probability given all other tokens of the row. The paper computes it beside the draft, in a
    second copy of the block whose tokens do not attend to themselves; here each token to verify has a row of its own in the
    same forward pass, which needs no special attention but more rows. A step masks fewer tokens than it reveals (in the
    paper: than the step before revealed), so that every step makes progress.

    Attributes:
        draft: the least probability to reveal a token.
        verify: the least probability to keep it.
    """

    draft: float
    verify: float
    revises: ClassVar[bool] = True

    def __call__(self, state: State, predict: Predict) -> State:
        """See `Sampler`."""
        count = len(state.tokens)
        may_mask = state.masked.sum(dim=1, keepdim=True) > 1  # else at most one is revealed, and none masked again
        drafted = state.block & (state.tokens != state.mask_id) & ~state.after_stop & may_mask
        row, position = drafted.nonzero(as_tuple=True)
        extra = count + torch.arange(len(row), device=row.device)
        rows = torch.cat([torch.arange(count, device=row.device), row])
        tokens = state.tokens[rows]
        tokens[extra, position] = state.mask_id
        wanted, known = torch.zeros_like(tokens, dtype=torch.bool), torch.full_like(tokens, state.mask_id)
        wanted[:count] = state.masked
        wanted[extra, position] = True
        known[extra, position] = state.tokens[row, position]
        prediction = predict(state.alternatives(rows, tokens), wanted, confidence, known)
        reveal = sure_enough(type(prediction)(*(values[:count] for values in prediction)), state, self.draft)
        kept = torch.ones_like(state.given, dtype=torch.float64)
        kept[row, position] = prediction.scores[extra, position]
        remask = highest(-kept, drafted & (kept < self.verify), reveal.sum(dim=1) - 1)
        return replace(
            state, tokens=state.fill(reveal, prediction.tokens[:count]).tokens.masked_fill(remask, state.mask_id)
        )
