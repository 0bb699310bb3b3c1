"""Norms of what an update does, where a sum in fp32 would be wrong."""

import math

import torch
from torch import nn

from pretrain.optimizer.exchange import Piece
from pretrain.optimizer.update_norms import CHANGE, GRADIENT, PARTS, WEIGHTS, UpdateNorms

NUMBERS = 1 << 25
"""One sum of so many equal squares in fp32 is wrong by 2%."""


def test_norms_of_large_tensors_on_a_cpu_are_right():
    weight = nn.Parameter(torch.full((NUMBERS,), 0.3))
    weight.grad = torch.full((NUMBERS,), 0.1)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    norms = UpdateNorms(optimizer, {weight: [Piece("embedding.weight", 0, 0, NUMBERS, 0)]})
    norms.armed = True
    optimizer.step()
    found = norms.take()[PARTS.index("embedding")].sqrt() / math.sqrt(NUMBERS)
    for which, each in ((GRADIENT, 0.1), (WEIGHTS, 0.3), (CHANGE, 0.1)):
        assert math.isclose(found[which], each, rel_tol=1e-5)
