"""What an update does to each part of the model: norms of its gradient, of its weights and of their change.

Every rank adds up the squares of the numbers that it owns, as for a checkpoint (`Engine.owns`); their sum over all ranks counts
each number of the model once, on every layout.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pretrain.optimizer.exchange import Piece

PARTS = ("embedding", "head", "mid", "tail", "final_norm", "lm_head")
"""The modules of `LoopedDenoiser` that have weights. The name of a weight begins with one of them."""

GRADIENT, WEIGHTS, CHANGE = range(3)
CHUNK = 1 << 12


class UpdateNorms:
    """Observes the steps of an optimizer, those for which it is `armed`. At the others it costs two calls that return at once.

    Gradients are those that the optimizer gets: averaged over the ranks, in fp32, after clipping. Weights are the fp32 master
    weights. While one of the optimizer's tensors is stepped, a copy of it is kept.

    Args:
        owned: the pieces of weights that this rank counts, in each tensor that the optimizer steps.

    Attributes:
        armed: whether the next update is measured.
    """

    def __init__(self, optimizer: Optimizer, owned: Mapping[Tensor, Sequence[Piece]]) -> None:
        self.armed, self._owned = False, owned
        self._norms: list[tuple[int, int, Tensor]] = []
        self._before: list[tuple[Tensor, Tensor]] = []
        self._hooks = [optimizer.register_step_pre_hook(self._begin), optimizer.register_step_post_hook(self._end)]

    def take(self) -> Tensor:
        """Sums of squares since the last call, over this rank's numbers: fp64 [parts, 3] on the CPU. Waits for the device."""
        squares = torch.zeros(len(PARTS), 3, dtype=torch.float64)
        norms, self._norms = self._norms, []
        if norms:
            values = torch.stack([norm for *_, norm in norms]).double().square().cpu()
            for (part, which, _), square in zip(norms, values, strict=True):
                squares[part, which] += square
        return squares

    def close(self) -> None:
        """Stop observing."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _begin(self, optimizer: Optimizer, *_: Any) -> None:
        # DeepSpeed calls the optimizer for one group, or a part of one, at a time, with the others empty.
        for tensor in _stepped(optimizer) if self.armed else ():
            if pieces := self._owned.get(tensor):
                self._add(GRADIENT, tensor.grad, pieces)
                self._add(WEIGHTS, tensor, pieces)
                self._before.append((tensor, tensor.detach().clone()))

    @torch.no_grad()
    def _end(self, *_: Any) -> None:
        for tensor, before in self._before:
            self._add(CHANGE, before.sub_(tensor), self._owned[tensor])
        self._before = []

    def _add(self, which: int, values: Tensor, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            part = PARTS.index(piece.name.partition(".")[0])
            self._norms.append((part, which, _norm(piece.of(values))))


def _norm(values: Tensor) -> Tensor:
    """Euclidean norm of a vector. On a CPU torch adds all squares in one fp32 sum, which for 6e7 numbers is wrong by up to 3%."""
    if values.device.type == "cpu":
        values = torch.stack([torch.linalg.vector_norm(chunk) for chunk in values.split(CHUNK)]).double()
    return torch.linalg.vector_norm(values)


def part_figures(squares: Tensor, grad_norm: float, clip_norm: float) -> dict[str, dict[str, float]]:
    """`grad_norm`, before clipping, and `update_ratio` of every part that has weights.

    The root of the sum of the squares of the parts' gradient norms is the global gradient norm.

    Args:
        squares: the sums of `UpdateNorms.take`, summed over all ranks.
        grad_norm: the global gradient norm before clipping.
        clip_norm: what it was clipped to; 0 for no clipping.
    """
    # DeepSpeed and torch divide by this: 1e-6 is theirs.
    clipped = max(1.0, (grad_norm + 1e-6) / clip_norm) if clip_norm else 1.0
    found = {}
    for part, (gradient, weights, change) in zip(PARTS, squares.sqrt().tolist(), strict=True):
        if weights:
            found[part] = {"grad_norm": gradient * clipped, "update_ratio": change / weights}
    return found


def _stepped(optimizer: Optimizer) -> Iterator[Tensor]:
    return (tensor for group in optimizer.param_groups for tensor in group["params"] if tensor.grad is not None)
