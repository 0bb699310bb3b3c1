"""The loop over denoising steps."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model.sampling.drawing import Drawing
from model.sampling.predictor import Predictor
from model.sampling.query import Denoise
from model.sampling.state import Sampler, State


@dataclass(frozen=True)
class SamplingPlan:
    """How samples are drawn.

    Attributes:
        sampler: what a step does.
        steps: number of denoising steps.
    """

    sampler: Sampler
    steps: int
    drawing: Drawing = field(default_factory=Drawing)


@torch.no_grad()
def generate(denoise: Denoise, tokens: Tensor, samples: Tensor, plan: SamplingPlan, mask_id: int, seed: int) -> Tensor:
    """Replace every [MASK] in `tokens` by a sampled token; the other tokens are the prompt and do not change.

    A row's result depends on its tokens, its sample's number, the plan and the seed, not on the other rows.

    Args:
        tokens: int64 [b, s].
        samples: number of each row's sample in the whole job, int64 [b].
        mask_id: token id of [MASK].
        seed: from 0 to 2^63 - 1.

    Returns:
        int64 [b, s], without any [MASK].
    """
    predict = Predictor(denoise, plan.drawing)
    steps = torch.full_like(samples, plan.steps)
    state = State(tokens, tokens == mask_id, samples, mask_id, 0, steps, steps, seed)
    for step in range(plan.steps):
        state = plan.sampler(replace(state, step=step, steps_left=steps - step), predict)
    return state.tokens
