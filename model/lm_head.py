"""The LM head and, computed with it, the loss: no logits are kept for the backward pass.

The loss is linear in the cross-entropy of each token, and its weights are known before the forward pass. So the gradient of a chunk
of tokens is computed right after its logits, and only one chunk of logits exists at a time.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.architecture import LOGITS_PER_CHUNK, Architecture
from model.layers import Sharding

ROWS_MULTIPLE = 256
"""A chunk's memory is allocated for a multiple of this number of tokens, so that the same few sizes recur at every step."""


class LanguageModelHead(nn.Module):
    """Hidden states to logits, or to the loss; its weight [v / tensor-parallel size, h] is split over the vocabulary.

    [MASK] and the padding of the vocabulary have probability 0, because a clean token is never [MASK] (SUBS parameterization,
    Sahoo et al. 2024, section 3.2.3).
    """

    def __init__(self, architecture: Architecture, sharding: Sharding) -> None:
        super().__init__()
        share = architecture.padded_vocab_size // sharding.tensor
        self.weight = nn.Parameter(torch.empty(share, architecture.hidden_size))
        self.first_id = sharding.rank * share
        self.clean_ids = min(max(architecture.mask_id - self.first_id, 0), share)
        self.split = sharding.tensor > 1

    def forward(
        self, hidden_states: Tensor, targets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalized hidden states [m, h] -> logits, or the loss if targets are given.

        Args:
            targets: clean token ids, int64 [m].
            weights: loss weight of each token, fp32 [m].

        Returns:
            Without targets, this rank's logits [m, v / tensor-parallel size], with -inf for [MASK] and padding. With targets, the
            loss, sum of weights * cross-entropy, an fp32 scalar, and the cross-entropy of each token in nats, fp32 [m], which
            carries no gradient.
        """
        if self.split:
            hidden_states = copy_to_tensor_model_parallel_region(hidden_states)  # sums the gradient over the group
        if targets is None:
            logits = F.linear(hidden_states, self.weight)
            ids = torch.arange(len(self.weight), device=logits.device)
            return logits.masked_fill(ids >= self.clean_ids, float("-inf"))
        return _WeightedCrossEntropy.apply(
            hidden_states, self.weight, targets - self.first_id, weights, self.clean_ids, self.split
        )


class _WeightedCrossEntropy(torch.autograd.Function):
    """Sum of weights * cross-entropy, whose forward pass also computes the gradients, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden_states: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, clean_ids: int, split: bool
    ) -> tuple[Tensor, Tensor]:
        """`targets` are relative to this rank's first id; the other arguments are as in `LanguageModelHead`."""
        size = max(1, min(LOGITS_PER_CHUNK // len(weight), -(-len(targets) // ROWS_MULTIPLE) * ROWS_MULTIPLE))
        logits = hidden_states.new_empty(size, len(weight))
        probabilities = logits.float()  # the same memory in fp32
        hidden_gradient = torch.empty_like(hidden_states)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        cross_entropy = torch.empty_like(weights)
        for start in range(0, len(targets), size):
            rows = slice(start, min(start + size, len(targets)))
            chunk, scores = hidden_states[rows], logits[: rows.stop - rows.start]
            torch.mm(chunk, weight.t(), out=scores)
            gradient = probabilities[: len(scores)].copy_(scores)
            gradient[:, clean_ids:] = float("-inf")
            cross_entropy[rows] = _cross_entropy_to_gradient(gradient, targets[rows], weights[rows], split)
            scores.copy_(gradient)
            torch.mm(scores, weight, out=hidden_gradient[rows])
            if weight.dtype == torch.float32:
                weight_gradient.addmm_(scores.t(), chunk)
            else:
                weight_gradient += scores.t() @ chunk
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(cross_entropy)
        return torch.dot(weights, cross_entropy), cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        # In place: a copy would be as large as the fp32 gradient of the LM head. There is no second backward pass.
        return hidden_gradient.mul_(upstream), weight_gradient.mul_(upstream), None, None, None, None


def _cross_entropy_to_gradient(logits: Tensor, targets: Tensor, weights: Tensor, split: bool) -> Tensor:
    """Cross-entropy of each row of fp32 logits, fp32 [m]; overwrites the logits with the gradient of weights * cross-entropy.

    Args:
        targets: column of the target; outside the columns if another tensor-parallel rank has it.
        split: the vocabulary is split over the tensor-parallel group.
    """
    here = (targets >= 0) & (targets < logits.shape[1])
    column = targets.clamp(0, logits.shape[1] - 1).unsqueeze(1)
    maximum = _over_group(logits.amax(dim=1), dist.ReduceOp.MAX, split)
    logits.sub_(maximum.unsqueeze(1))
    target_logit = logits.gather(1, column).squeeze(1).masked_fill(~here, 0.0)
    total = logits.exp_().sum(dim=1)
    total, target_logit = _over_group(torch.stack([total, target_logit]), dist.ReduceOp.SUM, split)
    logits.mul_((weights / total).unsqueeze(1))
    logits.scatter_(1, column, logits.gather(1, column) - (weights * here).unsqueeze(1))
    return total.log() - target_logit


def _over_group(values: Tensor, operation: dist.ReduceOp.RedOpType, split: bool) -> Tensor:
    if split:
        dist.all_reduce(values, operation, group=parallel_state.get_tensor_model_parallel_group())
    return values
