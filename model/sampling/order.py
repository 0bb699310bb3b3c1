"""Which masked tokens a step reveals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from model.sampling.randomness import Use
from model.sampling.scores import Score, confidence, highest, margin, negative_entropy
from model.sampling.state import Predict, Prediction, State


@dataclass(frozen=True)
class Ancestral:
    """The ancestral reverse process (MDLM, Sahoo et al. 2024, equation 7, with the linear schedule).

    Time runs from t = 1 to t = 0 in equal steps. In a step from t to s < t a masked token is revealed with probability
    (t - s) / t, which is 1 / (steps left), and then never changes. Which tokens a step reveals does not depend on the network,
    so logits are computed for those alone. This has the same effect as the cache of MDLM's `ddpm_cache` sampler.
    """

    revises: ClassVar[bool] = False

    def __call__(self, state: State, predict: Predict) -> State:
        """See `Sampler`."""
        assert state.clock is not None
        reveal = state.masked & (state.uniform(Use.REVEAL) < 1 / state.clock.steps_left[:, None].double())
        return state.fill(reveal, predict(state, reveal).tokens)


class Order(Protocol):
    """Which masked token comes first."""

    def choose(self, state: State, predict: Predict, count: Tensor, ahead: int = 0) -> tuple[Tensor, Prediction]:
        """The next `count` tokens of each row, bool [b, s], and a prediction of at least these.

        Args:
            count: int64 [b].
            ahead: predict as many more tokens that are likely to come next, with their scores.
        """


@dataclass(frozen=True)
class ByScore:
    """The tokens of which the network is surest. Needs logits at all masked tokens of the block."""

    score: Score

    def choose(self, state: State, predict: Predict, count: Tensor, ahead: int = 0) -> tuple[Tensor, Prediction]:
        """See `Order`."""
        prediction = predict(state, state.masked, self.score)
        return highest(prediction.scores, state.masked, count), prediction


@dataclass(frozen=True)
class ByPriority:
    """An order that is known without the network. Needs logits only at the tokens that it reveals.

    Attributes:
        priority: state -> float64 [b, s]; the highest comes first.
    """

    priority: Callable[[State], Tensor]

    def choose(self, state: State, predict: Predict, count: Tensor, ahead: int = 0) -> tuple[Tensor, Prediction]:
        """See `Order`."""
        priority = self.priority(state)
        wanted = highest(priority, state.masked, count + ahead)
        tokens = predict(state, wanted).tokens
        scores = priority.masked_fill(~wanted, float("-inf"))
        return highest(priority, state.masked, count), Prediction(tokens, scores)


def left_to_right(state: State) -> Tensor:
    """Priorities that fall from left to right."""
    return -torch.arange(state.tokens.shape[1], device=state.tokens.device).double().expand(state.tokens.shape)


def at_random(state: State) -> Tensor:
    """A random order of each sample."""
    return state.uniform(Use.ORDER, step=0)


ORDERS: dict[str, Order] = {
    "left_to_right": ByPriority(left_to_right),
    "random": ByPriority(at_random),
    "confidence": ByScore(confidence),
    "margin": ByScore(margin),
    "entropy": ByScore(negative_entropy),
}


@dataclass(frozen=True)
class Ranked:
    """Reveals a number of tokens per step, in an order.

    Attributes:
        tokens_per_step: None for equal shares of the steps that the clock has left (LLaDA, `get_num_transfer_tokens`).
    """

    order: Order
    tokens_per_step: int | None = 1
    revises: ClassVar[bool] = False

    def __call__(self, state: State, predict: Predict) -> State:
        """See `Sampler`."""
        masked = state.masked.sum(dim=1)
        if self.tokens_per_step is None:
            assert state.clock is not None
            count = -(-masked // state.clock.steps_left)
        else:
            count = masked.clamp_max(self.tokens_per_step)
        reveal, prediction = self.order.choose(state, predict, count)
        return state.fill(reveal, prediction.tokens)


@dataclass(frozen=True)
class Threshold:
    """Reveals all tokens of which the network is sure enough, and always the surest (Fast-dLLM, arXiv 2505.22618).

    Attributes:
        threshold: the least probability of a token.
    """

    threshold: float
    revises: ClassVar[bool] = False

    def __call__(self, state: State, predict: Predict) -> State:
        """See `Sampler`."""
        prediction = predict(state, state.masked, confidence)
        return state.fill(sure_enough(prediction, state, self.threshold), prediction.tokens)


def sure_enough(prediction: Prediction, state: State, threshold: float) -> Tensor:
    """The masked tokens with a probability of at least `threshold`, and the likeliest of each row, bool [b, s]."""
    one = torch.ones_like(state.samples)
    return (state.masked & (prediction.scores >= threshold)) | highest(prediction.scores, state.masked, one)


@dataclass(frozen=True)
class EntropyBound:
    """Reveals as many tokens, in the order of their entropies, as depend on each other by at most `bound` nats.

    The sum of their entropies without the largest bounds how far the product of their distributions is from their joint
    distribution (EB-Sampler, arXiv 2505.24857). At least one token.
    """

    bound: float
    revises: ClassVar[bool] = False

    def __call__(self, state: State, predict: Predict) -> State:
        """See `Sampler`."""
        prediction = predict(state, state.masked, negative_entropy)
        entropies = (-prediction.scores).masked_fill(~state.masked, float("inf")).sort(dim=1).values
        before = entropies.cumsum(dim=1) - entropies  # in ascending order the largest is the last
        count = (before <= self.bound).sum(dim=1).clamp_min(1)
        return state.fill(highest(prediction.scores, state.masked, count), prediction.tokens)
