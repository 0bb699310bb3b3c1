"""The loop over denoising steps."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from model.sampling.blocks import Schedule, number_blocks
from model.sampling.drawing import Drawing
from model.sampling.guidance import Guidance
from model.sampling.predictor import Predictor
from model.sampling.query import Denoise
from model.sampling.state import Sampler, State


@dataclass(frozen=True)
class SamplingPlan:
    """How samples are drawn.

    Attributes:
        sampler: what a step does.
        steps: number of steps; None if it follows from the sampler.
        drawing: how tokens are drawn.
        block_length: tokens to fill per block; None for one block.
        guidance: None to draw from the model's own logits.
        stop_id: a row ends at the first such token after all given ones; None to fill rows to their ends.
    """

    sampler: Sampler
    steps: int | None = None
    drawing: Drawing = field(default_factory=Drawing)
    block_length: int | None = None
    guidance: Guidance | None = None
    stop_id: int | None = None


class Generated(NamedTuple):
    """Filled rows.

    Attributes:
        tokens: int64 [b, s], without any [MASK]. Everything after the end of a row is its stop token.
        steps: number of the step that revealed each token, from 0; -1 for given tokens and those after the end, int64 [b, s].
        lengths: tokens of each row before its stop token, s if it has none, int64 [b].
    """

    tokens: Tensor
    steps: Tensor
    lengths: Tensor


@torch.no_grad()
def generate(
    denoise: Denoise, tokens: Tensor, samples: Tensor, plan: SamplingPlan, mask_id: int, seed: int
) -> Generated:
    """Replace every [MASK] in `tokens` by a sampled token; the other tokens are the prompt and do not change.

    A row's result depends on its tokens, its sample's number, the plan and the seed, not on the other rows.

    Args:
        tokens: int64 [b, s].
        samples: number of each row's sample in the whole job, int64 [b].
        mask_id: token id of [MASK].
        seed: from 0 to 2^63 - 1.

    Raises:
        ValueError: fewer steps than blocks.
        FloatingPointError: the logits are not numbers.
    """
    predict = Predictor(denoise, plan.drawing, plan.guidance)
    given = tokens != mask_id
    blocks = number_blocks(~given, plan.block_length)
    schedule = None if plan.steps is None else Schedule.of(plan.steps, blocks)
    state = State(tokens, given, blocks, samples, mask_id, plan.stop_id, seed)
    revealed = torch.full_like(tokens, -1)
    # Without a number of steps every step reveals at least one token of a row.
    for step in range(plan.steps or tokens.shape[1]):
        if schedule is None and not state.is_open.any():
            break
        clock = schedule and schedule.at(step)
        after = plan.sampler(replace(state, step=step, draw=step if plan.sampler.revises else 0, clock=clock), predict)
        revealed[after.tokens != state.tokens] = step
        state = after
    assert not state.is_open.any(), "the sampler left open tokens"
    lengths = torch.where(state.stops.any(dim=1), state.stops.long().argmax(dim=1), tokens.shape[1])
    if plan.stop_id is None:
        return Generated(state.tokens, revealed, lengths)
    filled = state.tokens.masked_fill(state.after_stop, plan.stop_id)
    return Generated(filled, revealed.masked_fill(state.after_stop, -1), lengths)
