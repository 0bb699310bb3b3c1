"""How many passes of the looped block a row gets: a fixed number, a schedule over the time, or until the block has settled.

Looping until the hidden state settles is LoopMDM's (arXiv 2605.26106); the paper states neither its criterion nor a threshold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.sampling.parts import parts_of

Criterion = Literal["direction", "state", "logit-lens", "prediction"]
"""What is compared at a position before and after pass k. With h the hidden state H(k), u = h / |h| and p the prediction:

- direction: |u_k - u_(k-1)|;
- state: |h_k - h_(k-1)| / |h_k|. The norm of the hidden state grows from pass to pass, so this falls whether or not the
  prediction still changes;
- logit-lens: KL(p_k || p_(k-1)) in nats, with the p that the LM head gives for h without the tail (nostalgebraist 2020). It
  costs the LM head in every pass;
- prediction: KL(p_k || p_(k-1)) in nats. It costs the tail and the LM head in every pass. If the model is calibrated, this is
  what the pass takes from the expected loss.
"""

OF_PREDICTIONS: tuple[Criterion, ...] = ("logit-lens", "prediction")
"""The criteria that compare predictions."""


@dataclass(frozen=True)
class Settling:
    """A row has settled when a pass changes less than `threshold`, as a mean over its wanted positions.

    Attributes:
        threshold: 0 never stops a row.
        minimum: passes that a row gets at least.
    """

    threshold: float
    criterion: Criterion
    minimum: int = 1


@dataclass(frozen=True)
class LoopPolicy:
    """The number of passes S of a row.

    Attributes:
        loops: S at equally spaced times from t = 1 to t = 0, where t is the masked share of the row; between them it is
            interpolated and rounded. A single number holds for all times. S may exceed the largest value in training.
        settling: stop a row earlier; None to run all S passes.
    """

    loops: tuple[int, ...]
    settling: Settling | None = None

    def limits(self, time: Tensor) -> Tensor:
        """S of each row, int64 [b]; the most, if rows may stop earlier.

        Args:
            time: t of each row, in [0, 1], float64 [b].
        """
        values = torch.tensor([*self.loops, self.loops[-1]], dtype=torch.float64, device=time.device)
        place = (1 - time) * (len(self.loops) - 1)
        before = place.floor().long()
        return (values[before] + (place - before) * (values[before + 1] - values[before]) + 0.5).floor().long()


class Looped(NamedTuple):
    """After the looped block.

    Attributes:
        states: H(S) of each row [s, b, h].
        loops: S of each row, int64 [b].
    """

    states: Tensor
    loops: Tensor


OnePass = Callable[[Tensor, int, Tensor], Tensor]
"""(H(k - 1) of n rows [s, n, h], k, numbers of the rows [n]) -> H(k) [s, n, h]."""

Settled = Callable[[Tensor, Tensor, int, Tensor], Tensor]
"""(H(k - 1) and H(k) of n rows [s, n, h], k, numbers of the rows [n]) -> which rows have settled, bool [n].

Called after each pass, with the rows that have passes left.
"""


def run_passes(one_pass: OnePass, states: Tensor, limits: Tensor, settled: Settled | None = None) -> Looped:
    """Pass after pass, until every row has had its number or has settled. Finished rows leave the batch.

    On a GPU this waits for the device after every pass, to learn which rows go on.

    Args:
        states: H(0) [s, b, h].
        limits: the most passes of each row, int64 [b], at least 1.
    """
    rows, loops = torch.arange(len(limits), device=limits.device), torch.zeros_like(limits)
    finished = torch.empty(0)
    for number in count(1):
        before, states = states, one_pass(states, number, rows)
        done = limits[rows] <= number
        if settled is not None and not done.all():
            going = ~done
            done[going] = settled(before[:, going], states[:, going], number, rows[going])
        if not done.any():
            continue
        loops[rows[done]] = number
        if not finished.numel():
            if done.all():
                return Looped(states, loops)
            finished = torch.empty_like(states)
        finished[:, rows[done]] = states[:, done]
        states, rows = states[:, ~done], rows[~done]
        if not len(rows):
            break
    return Looped(finished, loops)


class Predicted(NamedTuple):
    """What the network has predicted after a pass.

    Attributes:
        logits: of the wanted positions, row by row [m, v].
        rows: number of the row of each, int64 [m].
    """

    logits: Tensor
    rows: Tensor


class Judge:
    """`Settled` by a criterion.

    Args:
        wanted: positions that must settle, bool [s, b], at least one per row.
        predict: (H(k) of n rows [s, n, h], numbers of the rows) -> logits of their wanted positions, row by row [m, v]; called
            for the criteria of predictions only.
        agree: makes a decision (bool [n]) the same on all tensor-parallel ranks.
    """

    def __init__(
        self,
        settling: Settling,
        wanted: Tensor,
        predict: Callable[[Tensor, Tensor], Tensor],
        agree: Callable[[Tensor], Tensor],
    ) -> None:
        self._settling, self._wanted, self._predict, self._agree = settling, wanted, predict, agree
        self._predicted = Predicted(torch.empty(0), torch.empty(0))  # after the previous pass

    def __call__(self, before: Tensor, after: Tensor, number: int, rows: Tensor) -> Tensor:
        """See `Settled`."""
        change = self.change(before, after, number, rows)
        return self._agree((change < self._settling.threshold) & (number >= self._settling.minimum))

    def change(self, before: Tensor, after: Tensor, number: int, rows: Tensor) -> Tensor:
        """What pass k has changed in each row, as a mean over its wanted positions, float64 [n]. Arguments as of `Settled`."""
        wanted = self._wanted[:, rows]
        if self._settling.criterion in OF_PREDICTIONS:
            change = self._change_of_prediction(after, wanted, number, rows)
        else:
            change = change_of_state(self._settling.criterion, before, after)
        return change.double().masked_fill(~wanted, 0).sum(dim=0) / wanted.sum(dim=0)

    def _change_of_prediction(self, after: Tensor, wanted: Tensor, number: int, rows: Tensor) -> Tensor:
        """KL(p_k || p_(k-1)) of the wanted positions of these rows [s, n]; infinite after the first pass."""
        logits, before = self._predict(after, rows), self._predicted
        row, column = wanted.t().nonzero(as_tuple=True)
        change = torch.full(wanted.shape, float("inf"), dtype=torch.float64, device=wanted.device)
        if number > 1:
            same = torch.isin(before.rows, rows).nonzero().squeeze(1)  # positions of rows that are still in the batch
            found = [divergence(logits[part], before.logits[same[part]]) for part in parts_of(logits)]
            change[column, row] = torch.cat(found)
        self._predicted = Predicted(logits, rows[row])
        return change


def divergence(after: Tensor, before: Tensor) -> Tensor:
    """KL(p || q) of the predictions of logits [m, v] after and before a pass, float64 [m]."""
    log_p, log_q = (logits.double().log_softmax(dim=-1) for logits in (after, before))
    difference = torch.where(log_p.isfinite(), log_p - log_q, 0)  # [MASK] is impossible in both
    return (log_p.exp() * difference).sum(dim=-1)


def change_of_state(criterion: Criterion, before: Tensor, after: Tensor) -> Tensor:
    """The change of the hidden state at every position: [s, n, h] -> [s, n]."""
    if criterion == "direction":
        return (F.normalize(after, dim=-1) - F.normalize(before, dim=-1)).norm(dim=-1)
    return (after - before).norm(dim=-1) / after.norm(dim=-1)
