"""A tiny looped denoiser for tests of what samplers compute, with rows to fill and samplers that differ in what they ask."""

import torch
from torch import Tensor

from model.architecture import Architecture
from model.denoiser import LoopedDenoiser, positions_of
from model.sampling.drawing import Drawing
from model.sampling.generate import Generated, SamplingPlan, generate
from model.sampling.network import Compute, LoopedNetwork
from model.sampling.order import ORDERS, Ancestral, Ranked, Threshold
from model.sampling.query import Query
from model.sampling.revise import DraftAndVerify
from model.sampling.speculative import Speculative
from model.sampling.tally import Tally

PLANS = {
    "ancestral": SamplingPlan(Ancestral(), 6),
    "threshold": SamplingPlan(Threshold(0.3), drawing=Drawing(0.0)),
    "blocks": SamplingPlan(Ranked(ORDERS["confidence"], 2), block_length=5),
    "wino": SamplingPlan(DraftAndVerify(0.3, 0.6)),
    "speculative": SamplingPlan(Speculative(ORDERS["margin"], 3)),
}


def sharp_model(architecture: Architecture) -> LoopedDenoiser:
    """Weights so large that tokens matter for each other. Process groups must exist."""
    model = LoopedDenoiser(architecture, seed=3).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.mul_(8)
    return model


def prompts(mask_id: int, length: int = 13) -> Tensor:
    """8 rows: nothing given, a beginning, both ends, an end, tokens in between, all but one given."""
    rows = torch.full((8, length), mask_id)
    rows[1:4, :3] = torch.tensor([3, 1, 40])
    rows[3, -4:] = torch.tensor([1, 2, 5, 4])
    rows[4, -1] = 7
    rows[5, ::2] = 6
    rows[6, :-1] = 8
    rows[7, 5] = 30
    return rows


def query_of(rows: Tensor, mask_id: int) -> Query:
    """All masked positions of these rows."""
    masked = rows == mask_id
    return Query(rows, positions_of(masked), torch.arange(len(rows)), masked.double().mean(dim=1))


def fill(
    model: LoopedDenoiser, compute: Compute, plan: SamplingPlan, rows: Tensor, samples: Tensor
) -> tuple[Generated, Tally]:
    """Fill rows, and what that took."""
    network = LoopedNetwork(model, compute)
    return generate(network, rows, samples, plan, model.architecture.mask_id, 3), network.tally
