"""`Denoise` by the model of a run, on any layout."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from model.denoiser import Inputs, LoopedDenoiser
from model.sampling.network import Compute, LoopedNetwork
from model.sampling.passes import LoopPolicy
from model.sampling.query import Denoise, Query
from model.sampling.tally import Tally
from pretrain.evaluation.scoring import Predict
from pretrain.parallel.gather import all_agree, all_gather_logits
from pretrain.parallel.pipeline import Pipeline
from pretrain.parallel.world import World


def sampling_network(model: LoopedDenoiser, world: World, compute: Compute, tally: Tally | None = None) -> Denoise:
    """The model for samplers. Its logits are [m, padded vocabulary].

    Args:
        model: in evaluation mode.
        compute: how much is computed. Several pipeline stages need a number of passes that is known before.
        tally: where the work is counted; None not to keep it.
    """
    tally = Tally() if tally is None else tally
    if world.shape.pipeline > 1:
        return PipelinedNetwork(model, world, compute.loops, tally)
    vocabulary = model.architecture.padded_vocab_size

    def gather(logits: Tensor) -> Tensor:
        return all_gather_logits(world, logits, len(logits), vocabulary)

    return LoopedNetwork(model, compute, gather, partial(all_agree, world), tally)


def predict_by(denoise: Denoise, world: World, mask_id: int) -> Predict:
    """Predictions by a network for samplers, which decides how many passes a row gets.

    It sees neither the tokens to predict nor anything of other rows, so the NELBO of these predictions is a bound as with a fixed
    S. The passes depend on which positions are asked for, too: likelihoods that ask for one token at a time (the chain rule)
    are of other predictions than the NELBO.
    """

    def predict(inputs: Sequence[Inputs]) -> list[Tensor]:
        found = []
        for one in inputs:
            rows = torch.arange(len(one.tokens), device=one.tokens.device)
            time = (one.tokens == mask_id).double().mean(dim=1)
            logits = denoise(Query(one.tokens, one.logit_positions, rows, time))
            found.append(logits.chunk(world.shape.tensor, dim=1)[world.tensor_rank])
        return found

    return predict


@dataclass
class PipelinedNetwork:
    """`Denoise` over several pipeline stages, where S of each row must be known before it enters the pipeline."""

    model: LoopedDenoiser
    world: World
    policy: LoopPolicy
    tally: Tally = field(default_factory=Tally)

    def __call__(self, query: Query) -> Tensor:
        """See `Denoise`. Rows with the same S go through the pipeline together."""
        architecture, length = self.model.architecture, query.tokens.shape[1]
        row, loops = query.positions // length, self.policy.limits(query.time)
        logits = torch.empty(len(row), architecture.padded_vocab_size, device=query.tokens.device)
        for number in loops.unique().tolist():
            among = loops == number
            here = among[row]
            positions = (among.cumsum(dim=0) - 1)[row[here]] * length + query.positions[here] % length
            pipeline = Pipeline(self.model, length, torch.float32)
            (shard,) = pipeline.logits([Inputs(query.tokens[among], positions)], number)
            logits[here] = all_gather_logits(self.world, shard, len(positions), logits.shape[1])
        whole = torch.full_like(loops, length)
        once, predicted = torch.ones_like(loops), row.bincount(minlength=len(loops))
        self.tally.add(architecture, length, whole, loops, predicted, once, query.samples)
        return logits
