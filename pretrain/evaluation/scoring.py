"""-log p of chosen tokens of partly masked rows, shared by the ranks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.denoiser import Inputs, positions_of
from model.objective import masked_cross_entropy
from pretrain.errors import UserError
from pretrain.parallel.world import World

NOT_NUMBERS = "the model's logits are not numbers (NaN): its weights are damaged; use an earlier checkpoint"


Predict = Callable[[Sequence[Inputs]], Sequence[Tensor | None]]
"""Micro-batches -> logits of each, as `LoopedDenoiser.forward`; None on a pipeline stage before the last."""


class MaskedRow(NamedTuple):
    """A row as the network sees it.

    Attributes:
        tokens: clean ids, int64 [s].
        masked: which of them are [MASK], bool [s].
        wanted: whose -log p is asked for; all of them are masked, bool [s].
    """

    tokens: np.ndarray
    masked: np.ndarray
    wanted: np.ndarray


@dataclass(frozen=True)
class TokenScorer:
    """Scores tokens with a model. A row's figures do not depend on the other rows.

    Attributes:
        predict: the model, with a number of loops or a policy for it.
        world: the ranks; copies of the model share the rows.
        mask_id: token id of [MASK].
        batch_size: rows per forward pass.
    """

    predict: Predict
    world: World
    mask_id: int
    batch_size: int

    @torch.no_grad()
    def nats(self, rows: Sequence[MaskedRow]) -> list[np.ndarray]:
        """-log p of the wanted tokens of each row in nats, fp64 [wanted], left to right. Collective.

        Raises:
            UserError: the model's logits are not numbers.
        """
        edges = np.cumsum([0, *(int(row.wanted.sum()) for row in rows)])
        found = torch.zeros(int(edges[-1]), dtype=torch.float64)
        for together in self._own_batches([len(row.tokens) for row in rows]):
            parts = [[rows[i] for i in batch] for batch in together]
            for batch, values in zip(together, self._nats_of_batches(parts), strict=True):
                if values is not None and self.world.holds_loss:
                    place = np.concatenate([np.arange(edges[i], edges[i + 1]) for i in batch])
                    found[torch.from_numpy(place)] = values
        summed = self.world.sum(found).numpy()
        if np.isnan(summed).any():
            raise UserError(NOT_NUMBERS)
        return [summed[start:stop] for start, stop in pairwise(edges)]

    def _own_batches(self, lengths: Sequence[int]) -> Iterator[list[list[int]]]:
        """This rank's batches of rows of the same length, as many at once as keep all pipeline stages busy."""
        world = self.world
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        batches: list[list[int]] = []
        for _, same in groupby(order, key=lengths.__getitem__):
            numbers = list(same)
            batches += (numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size))
        own = batches[world.data_parallel_rank :: world.data_parallel_size]
        for _, same_length in groupby(own, key=lambda batch: lengths[batch[0]]):
            waiting = list(same_length)
            for i in range(0, len(waiting), world.shape.pipeline):
                yield waiting[i : i + world.shape.pipeline]

    def _nats_of_batches(self, parts: Sequence[Sequence[MaskedRow]]) -> list[Tensor | None]:
        """Of the wanted tokens of each batch of rows, fp64 on the CPU; None on stages that have no logits."""
        device = self.world.device
        clean = [torch.from_numpy(np.stack([row.tokens for row in part])).to(device) for part in parts]
        masked = [torch.from_numpy(np.stack([row.masked for row in part])).to(device) for part in parts]
        wanted = [positions_of(torch.from_numpy(np.stack([row.wanted for row in part])).to(device)) for part in parts]
        inputs = [Inputs(c.masked_fill(m, self.mask_id), p) for c, m, p in zip(clean, masked, wanted, strict=True)]
        logits = self.predict(inputs)
        return [
            None if one is None else masked_cross_entropy(one, c.flatten()[p]).double().cpu()
            for one, c, p in zip(logits, clean, wanted, strict=True)
        ]
