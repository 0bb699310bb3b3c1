"""What happens inside the looped block, pass by pass: how far the hidden state moves, and where masked tokens look.

For every pass k over the mid layers and several t, measured at the masked tokens of each row:

    attention to masked tokens   mean over mid layers, heads and masked queries i of  sum over masked j of A_ij
    relative change              mean over masked tokens of  |H(k) - H(k-1)| / |H(k)|
    change of direction          mean over masked tokens of  |H(k) / |H(k)| - H(k-1) / |H(k-1)||
    norm                         mean over masked tokens of  |H(k)|

The first is LoopMDM's "mask-to-mask" attention (arXiv 2605.26106, the analysis of attention); the paper gives no formula, so this
one is ours. Divided by its value for uniform attention, the share of masked tokens among those that a query sees, it is 1 for that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_pipeline.dataset.packed_dataset import PackedDataset
from model.attention import AttentionInputs, repeated
from model.denoiser import LoopedDenoiser
from model.noise import Stream, uniform
from model.rope import rotate
from pretrain.errors import UserError
from pretrain.evaluation.nelbo import NOISE_SEED

MEASURES = ("attention", "attention_over_share", "relative_change", "change_of_direction", "norm")


@dataclass
class Passes:
    """Figures of the rows of one forward pass; lists have one entry per pass.

    Attributes:
        masked: bool [b, s].
        uniform: what the mask-to-mask attention of each row is if attention is uniform, fp64 [b].
        attention: mask-to-mask attention of each row, one entry per pass and mid layer, fp64 [b].
        states: H(0), H(1), ..., [s, b, h].
    """

    masked: Tensor
    layers: int
    uniform: Tensor = field(init=False)
    attention: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def figures(self) -> dict[str, Tensor]:
        """Every measure, fp64 [passes, b]."""
        attention = torch.stack(self.attention).unflatten(0, (-1, self.layers)).mean(dim=1)
        states = torch.stack(self.states).double()  # [passes + 1, s, b, h]
        norms = states.norm(dim=-1, keepdim=True)
        steps, turns = states.diff(dim=0).norm(dim=-1), (states / norms).diff(dim=0).norm(dim=-1)
        norms = norms[1:].squeeze(-1)
        return {
            "attention": attention,
            "attention_over_share": attention / self.uniform,
            "relative_change": self._mean(steps / norms),
            "change_of_direction": self._mean(turns),
            "norm": self._mean(norms),
        }

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over masked tokens: [passes, s, b] -> [passes, b]."""
        masked = self.masked.t()
        return (values * masked).sum(dim=1) / masked.sum(dim=0)


@contextmanager
def watching(model: LoopedDenoiser, masked: Tensor) -> Iterator[Passes]:
    """Record the passes of the next forward pass of a model of one stage, without changing what it computes."""
    layers = list(model.mid.layers.values())
    passes = Passes(masked, len(layers))

    def before_attention(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        query, key, *_ = inputs
        given = keywords.get("attention_mask", inputs[3] if len(inputs) > 3 else None)
        passes.uniform = uniform_attention_to_masked(given, masked)
        passes.attention.append(attention_to_masked(query, key, given, masked))

    handles = [layer.self_attention.core_attention.register_forward_pre_hook(before_attention, with_kwargs=True)
               for layer in layers]  # fmt: skip
    handles.append(model.mid.register_forward_pre_hook(lambda _, inputs: passes.states.append(inputs[0])))
    handles.append(layers[-1].register_forward_hook(lambda _, __, output: passes.states.append(output[0])))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def attention_to_masked(query: Tensor, key: Tensor, given: AttentionInputs, masked: Tensor) -> Tensor:
    """The attention of masked queries that goes to masked keys: mean over heads and masked queries, fp64 [b].

    Args:
        query, key: not rotated, [s, b, n, d] and [s, b, kv heads, d].
        given: what the layer's attention gets.
        masked: bool [b, s], at least one token of each row.
    """
    query, key = (rotate(x.transpose(0, 1), given.rotation) for x in (query, key))
    key = repeated(key, query.shape[2])
    scores = torch.einsum("bind,bjnd->bnij", query, key) / query.shape[-1] ** 0.5
    if given.mask is not None:
        scores = scores + given.mask
    to_masked = (scores.softmax(dim=-1).double() * masked[:, None, None, :]).sum(dim=-1).mean(dim=1)  # [b, queries]
    return (to_masked * masked).sum(dim=1) / masked.sum(dim=1)


def uniform_attention_to_masked(given: AttentionInputs, masked: Tensor) -> Tensor:
    """What `attention_to_masked` is where every query attends equally to all tokens that it sees, fp64 [b]."""
    if given.mask is None:
        return masked.double().mean(dim=1)
    seen = given.mask.squeeze(1) == 0  # [b, queries, keys]
    shares = (seen & masked.unsqueeze(1)).sum(dim=2).double() / seen.sum(dim=2)
    return (shares * masked).sum(dim=1) / masked.sum(dim=1)


@torch.no_grad()
def probe(
    model: LoopedDenoiser, dataset: PackedDataset, timesteps: Sequence[float], loops: int, rows: int, batch_size: int,
    documents: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """Figures at each t: means over rows, with standard errors, for every pass.

    Each token of a row is masked if the row's random number at this place is below t, so the masked tokens at a small t are
    also masked at a larger one. A row with no masked token is left out.

    Args:
        loops: S.
        rows: rows to use, evenly spread over the split.
        documents: attention is within documents.
    """
    chosen = np.arange(min(rows, dataset.num_rows)) * dataset.num_rows // min(rows, dataset.num_rows)
    draws = np.stack([uniform(NOISE_SEED, Stream.EVALUATION, int(row), dataset.seq_len) for row in chosen])
    draws[np.arange(dataset.seq_len) >= dataset.lengths(chosen)[:, None]] = np.inf
    return [_at(model, dataset, chosen, draws < t, t, loops, batch_size, documents) for t in timesteps]


def _at(
    model: LoopedDenoiser, dataset: PackedDataset, rows: np.ndarray, masked: np.ndarray, t: float, loops: int, size: int,
    documents: bool,
) -> dict[str, Any]:  # fmt: skip
    kept = masked.any(axis=1)
    if kept.sum() < 2:
        raise UserError(
            f"--timesteps {t:g}: masks tokens in {kept.sum()} of {len(rows)} rows, and a standard error needs 2; raise it or --rows"
        )
    rows, masked = rows[kept], masked[kept]
    parts: list[dict[str, Tensor]] = []
    device = next(model.parameters()).device
    for part in (slice(i, i + size) for i in range(0, len(rows), size)):
        hidden = torch.from_numpy(masked[part]).to(device)
        tokens = torch.from_numpy(dataset.rows(rows[part])).to(device).masked_fill(hidden, model.architecture.mask_id)
        ids = torch.from_numpy(dataset.document_ids(rows[part])).to(device) if documents else None
        with watching(model, hidden) as passes:
            model(tokens, torch.zeros(1, dtype=torch.int64, device=device), loops, ids)
        parts.append(passes.figures())
    figures = {name: torch.cat([part[name] for part in parts], dim=1) for name in MEASURES}
    count = figures["norm"].shape[1]
    passes_of = {
        name: {"mean": values.mean(dim=1).tolist(), "standard_error": (values.std(dim=1) / count**0.5).tolist()}
        for name, values in figures.items()
    }
    share = float(masked.sum() / dataset.lengths(rows).sum())
    return {"t": t, "rows": count, "masked_share": share, **passes_of}
