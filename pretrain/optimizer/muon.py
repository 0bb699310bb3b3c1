"""Muon for the matrices of the layers, AdamW for everything else, on whatever pieces of the weights this rank holds.

Momentum and weight decay act on single numbers, so every rank keeps them for its own numbers, like the moments of AdamW. Only
the orthogonalization needs whole matrices (`exchange.py`). It runs inside `step`, after DeepSpeed has summed and clipped the
gradients, so that every layout computes the same update.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from model.weights import shards_of
from pretrain.optimizer.exchange import Exchange, Piece, Sharing

Direction = Callable[[str, Tensor], Tensor]
"""(name, momentum of the whole weight) -> what lr is multiplied with."""


class Muon(Optimizer):
    """One optimizer of two groups: the matrices of the layers, and the group of an AdamW.

        B <- mu B + (1 - mu) G,   W <- (1 - lr decay) W - lr direction((1 - mu) G + mu B)

    as in torch.optim.Muon with Nesterov momentum. `locate` must be called before the first step.

    Args:
        hidden: the matrices.
        decay: their weight decay.
        adamw: over one group, whose `weight_decay` is 0, and whose `matrix_decay` is that of its matrices.
        direction: of the update of one of `hidden`.
        momentum: mu.

    Attributes:
        adamw: the optimizer of the other weights.
    """

    def __init__(
        self, hidden: Sequence[Tensor], decay: float, adamw: Optimizer, direction: Direction, momentum: float
    ) -> None:
        (others,) = adamw.param_groups
        own = {"params": list(hidden), "lr": others["lr"], "momentum": momentum, "weight_decay": decay}
        super().__init__([own, others], {})
        self.adamw, self._direction = adamw, direction
        self._pieces: Mapping[Tensor, Sequence[Piece]] = {}
        self._sharing: Sharing | None = None
        self._exchanges: dict[tuple[Tensor, ...], Exchange] = {}

    def locate(self, pieces: Mapping[Tensor, Sequence[Piece]], sharing: Sharing) -> None:
        """Say which pieces of the weights are in the tensors that will be stepped, and who holds the others."""
        self._pieces, self._sharing, self._exchanges = pieces, sharing, {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the tensors in `param_groups` that have a gradient. Overwrites the gradients of hidden matrices.

        Collective over the ranks of `locate`. DeepSpeed calls it for one group, or a part of one, at a time.
        """
        for group in self.param_groups:
            stepped = tuple(tensor for tensor in group["params"] if tensor.grad is not None)
            if "momentum" not in group:
                self._decay_matrices(stepped, group["lr"] * group["matrix_decay"])
            elif stepped:
                self._step_hidden(stepped, group)
        # AdamW steps our groups and keeps its states among ours, so that a checkpoint holds them.
        self.adamw.param_groups = [group for group in self.param_groups if "momentum" not in group]
        self.adamw.state = self.state
        self.adamw.step()

    def _decay_matrices(self, stepped: tuple[Tensor, ...], rate: float) -> None:
        """Decoupled weight decay, like AdamW's, of the matrices in tensors that also hold norms."""
        for tensor in stepped:
            for piece in self._pieces[tensor]:
                if shards_of(piece.name) is not None:
                    piece.of(tensor).mul_(1 - rate)

    def _step_hidden(self, stepped: tuple[Tensor, ...], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for tensor in stepped:
            state = self.state[tensor]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(tensor)
            state["momentum_buffer"].lerp_(tensor.grad, 1 - momentum)
            tensor.grad.lerp_(state["momentum_buffer"], momentum)
        pieces = [piece.of(tensor.grad) for tensor in stepped for piece in self._pieces[tensor]]
        self._exchange_of(stepped).apply(self._direction, pieces)
        for tensor in stepped:
            tensor.mul_(1 - lr * group["weight_decay"]).add_(tensor.grad, alpha=-lr)

    def _exchange_of(self, stepped: tuple[Tensor, ...]) -> Exchange:
        """The exchange of these tensors' pieces, built at their first step."""
        if stepped not in self._exchanges:
            assert self._sharing is not None, "locate was not called"
            pieces = [piece for tensor in stepped for piece in self._pieces[tensor]]
            self._exchanges[stepped] = Exchange(pieces, self._sharing)
        return self._exchanges[stepped]
