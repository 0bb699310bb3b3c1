"""Which masked tokens a step reveals."""

from dataclasses import dataclass

from model.sampling.randomness import Use
from model.sampling.state import Predict, State


@dataclass(frozen=True)
class Ancestral:
    """The ancestral reverse process (MDLM, Sahoo et al. 2024, equation 7, with the linear schedule).

    Time runs from t = 1 to t = 0 in equal steps. In a step from t to s < t a masked token is revealed with probability
    (t - s) / t, which is 1 / (steps left), and then never changes. Which tokens a step reveals does not depend on the network,
    so logits are computed for those alone. This has the same effect as the cache of MDLM's `ddpm_cache` sampler.
    """

    def __call__(self, state: State, predict: Predict) -> State:
        """See `Sampler`."""
        assert state.steps_left is not None
        reveal = state.masked & (state.uniform(Use.REVEAL) < 1 / state.steps_left[:, None].double())
        return state.fill(reveal, predict(state, reveal).tokens)
