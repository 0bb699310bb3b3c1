"""Turns a sampler's wish for predictions into a query of the network, and its logits into drawn tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.sampling.drawing import Drawing, Score
from model.sampling.query import Denoise, Query
from model.sampling.randomness import Use, uniform
from model.sampling.state import Prediction, State

ELEMENTS = 2**22
"""Logits that are drawn from at once: bounds the memory that their float64 copies need."""


@dataclass(frozen=True)
class Predictor:
    """`Predict` by a network."""

    denoise: Denoise
    drawing: Drawing

    def __call__(self, state: State, wanted: Tensor, score: Score | None = None) -> Prediction:
        """See `Predict`. A call in which nothing is wanted does not reach the network."""
        tokens = torch.full_like(state.tokens, state.mask_id)
        scores = torch.full(tokens.shape, float("-inf"), dtype=torch.float64, device=tokens.device)
        rows = wanted.any(dim=1).nonzero().squeeze(1)
        if len(rows):
            tokens[wanted], scores[wanted] = self._draw(state, rows, wanted, score)
        return Prediction(tokens, scores)

    def _draw(self, state: State, rows: Tensor, wanted: Tensor, score: Score | None) -> tuple[Tensor, Tensor]:
        """Drawn token int64 [m] and score float64 [m] of each wanted position."""
        asked, samples = state.tokens[rows], state.samples[rows]
        row, position = wanted[rows].nonzero(as_tuple=True)
        time = (asked == state.mask_id).double().mean(dim=1)
        logits = self.denoise(Query(asked, row * asked.shape[1] + position, samples, time))
        vocabulary = torch.arange(logits.shape[-1], device=logits.device)
        step = torch.full_like(row, state.step)
        drawn, scores = [], []
        count = max(1, ELEMENTS // len(vocabulary))
        for part, sample, place, number in zip(
            *(values.split(count) for values in (logits, samples[row], position, step)), strict=True
        ):
            keys = (key[:, None] for key in (sample, place, number))
            drawn.append(self.drawing.draw(part, uniform(state.seed, Use.TOKEN, *keys, vocabulary)))
            if score is not None:
                scores.append(score(part.double().log_softmax(dim=-1), drawn[-1]))
        tokens = torch.cat(drawn)
        return tokens, torch.cat(scores) if scores else torch.full_like(tokens, float("-inf"), dtype=torch.float64)
