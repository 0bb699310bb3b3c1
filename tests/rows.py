"""What a micro-batch was made from, for tests that compute its loss in another way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.architecture import Architecture
from model.reference import Weights, reference_loss
from pretrain.training.batches import MicroBatch


def rows_of(batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor, Tensor]:
    """x_0 int64, which tokens are masked, and t, fp64 (1 where nothing is masked); each [b, s] over all micro-batches."""
    parts = []
    for batch in batches:
        shape, positions = batch.inputs.tokens.shape, batch.inputs.logit_positions
        clean = batch.inputs.tokens.flatten().index_copy(0, positions, batch.inputs.targets)
        masked = torch.zeros(clean.shape, dtype=torch.bool).index_fill(0, positions, True)
        t = torch.ones(clean.shape, dtype=torch.float64).index_copy(0, positions, batch.timesteps)
        parts.append([x.view(shape) for x in (clean, masked, t)])
    clean, masked, t = (torch.cat(column) for column in zip(*parts, strict=True))
    return clean, masked, t


def loss_in_plain_pytorch(
    weights: Weights,
    architecture: Architecture,
    batches: Sequence[MicroBatch],
    loops: int,
    min_timestep: float,
    batch_tokens: int,
) -> Tensor:
    """The loss of the step that consists of these micro-batches, by `reference_loss`.

    Args:
        batch_tokens: of the step, without padding.
    """
    clean, masked, t = rows_of(batches)
    has_documents = batches[0].inputs.document_ids is not None
    documents = torch.cat([batch.inputs.document_ids for batch in batches]) if has_documents else None
    loss = reference_loss(weights, architecture, clean, masked, t / (1 - min_timestep), loops, documents)
    return loss * clean.numel() / batch_tokens
