"""Asks the network about the positions that a sampler wants, and draws from its logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.sampling.drawing import Drawing
from model.sampling.guidance import Guidance
from model.sampling.parts import parts_of
from model.sampling.query import Denoise, Query
from model.sampling.randomness import Use, uniform
from model.sampling.scores import Score, rounded
from model.sampling.state import Prediction, State


@dataclass(frozen=True)
class Predictor:
    """`Predict` by a network."""

    denoise: Denoise
    drawing: Drawing
    guidance: Guidance | None = None

    def __call__(
        self, state: State, wanted: Tensor, score: Score | None = None, known: Tensor | None = None
    ) -> Prediction:
        """See `Predict`. A call in which nothing is wanted does not reach the network.

        Raises:
            FloatingPointError: the logits are not numbers.
        """
        tokens = torch.full_like(state.tokens, state.mask_id) if known is None else known.clone()
        scores = torch.full(tokens.shape, float("-inf"), dtype=torch.float64, device=tokens.device)
        row, position = wanted.nonzero(as_tuple=True)
        if not len(row):
            return Prediction(tokens, scores)
        logits = self._logits(state, wanted)
        drawn, sureness = [], []
        for part in parts_of(logits):
            keys = (state.samples[row[part]], position[part])
            fixed = tokens[row[part], position[part]]
            drawn.append(torch.where(fixed == state.mask_id, self._draw(state, keys, logits[part]), fixed))
            if score is not None:
                sureness.append(rounded(score(logits[part].double().log_softmax(dim=-1), drawn[-1])))
        tokens[row, position] = torch.cat(drawn)
        if sureness:
            scores[row, position] = torch.cat(sureness)
        return Prediction(tokens, scores)

    def _logits(self, state: State, wanted: Tensor) -> Tensor:
        """Logits [m, v] of the wanted positions (bool [b, s]), from a query without the other rows."""
        rows = wanted.any(dim=1)
        tokens = state.tokens[rows]
        time = (tokens == state.mask_id).double().mean(dim=1)
        query = Query(tokens, wanted[rows].flatten().nonzero().squeeze(1), state.samples[rows], time)
        logits = self.denoise(query)
        if self.guidance is not None:
            logits = self.guidance.apply(logits, query, state.given[rows], state.mask_id)
        if logits.isnan().any():
            raise FloatingPointError(
                "the model's logits are not numbers (NaN): its weights are damaged; use an earlier checkpoint"
            )
        return logits

    def _draw(self, state: State, keys: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
        """A token int64 [m] of each (sample, position), both int64 [m], from its logits [m, v]."""
        if self.drawing.temperature == 0:
            return self.drawing.draw(logits, None)
        vocabulary = torch.arange(logits.shape[-1], device=logits.device)
        number = torch.full_like(vocabulary[:1], state.draw)
        return self.drawing.draw(
            logits, uniform(state.seed, Use.TOKEN, *(key[:, None] for key in keys), number, vocabulary)
        )
