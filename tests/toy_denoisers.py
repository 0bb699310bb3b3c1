"""Networks of samplers' tests: exact integer arithmetic, so that a row's logits do not depend on its batch."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from model.sampling.query import Query
from model.sampling.randomness import Use, uniform


class HashedDenoiser:
    """Logits in [0, `spread`) that are a hash of (row's tokens, position, token): every token matters for all others.

    Attributes:
        queries: all that was asked.
    """

    def __init__(self, vocabulary: int, spread: float = 8.0) -> None:
        self.vocabulary, self.spread, self.queries = vocabulary, spread, []

    def __call__(self, query: Query) -> Tensor:
        self.queries.append(query)
        length = query.tokens.shape[1]
        row, position = query.positions // length, query.positions % length
        content = (query.tokens * torch.arange(3, 3 + length) ** 3).sum(dim=1) % 1_000_003
        tokens = torch.arange(self.vocabulary)
        return self.spread * uniform(1, Use.ORDER, content[row, None], position[:, None], tokens)


class JointDenoiser:
    """The exact conditionals log p(x_i | revealed tokens) of a joint distribution of short rows; token `size` is [MASK]."""

    def __init__(self, joint: Tensor) -> None:
        self.size, self.length = joint.shape[0], joint.dim()
        self.joint, self.queries = joint.double() / joint.double().sum(), []
        self.sequences = torch.tensor(list(itertools.product(range(self.size), repeat=self.length)))

    def __call__(self, query: Query) -> Tensor:
        self.queries.append(query)
        rows = query.tokens[:, None, :]
        agrees = ((rows == self.size) | (rows == self.sequences[None])).all(dim=-1)
        posterior = agrees * self.joint.flatten()
        one_hot = F.one_hot(self.sequences, self.size).double()
        conditionals = torch.einsum("bn,nlv->blv", posterior / posterior.sum(dim=1, keepdim=True), one_hot)
        return conditionals.log().flatten(0, 1)[query.positions]

    def counts(self, rows: Tensor) -> Tensor:
        """How often each sequence occurs, in the shape of the joint distribution."""
        place = (rows * self.size ** torch.arange(self.length - 1, -1, -1)).sum(dim=1)
        return torch.bincount(place, minlength=self.joint.numel()).view(self.joint.shape)


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """Of Pearson's chi-square test of these counts; 0 if something impossible occurs."""
    expected = probabilities.flatten() * counts.sum()
    possible = expected > 0
    if counts.flatten()[~possible].any():
        return 0.0
    if possible.sum() == 1:
        return 1.0
    statistic = ((counts.flatten() - expected)[possible] ** 2 / expected[possible]).sum()
    degrees = torch.tensor((int(possible.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, statistic / 2))
