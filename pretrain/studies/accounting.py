"""Training FLOPs of a run in the conventions that are in use, from what the run has counted.

The budget of a study and all axes of its page use this project's convention, `model/flops.py`. Papers count differently: whether
the LM head and the embedding are counted changes how much cheaper a plain model is than a looped one (LoopMDM does not state
its convention; the replication looped-UDLM counts the embedding as a matrix product).
"""

from dataclasses import dataclass

from model.flops import FlopsModel

CONVENTIONS = {
    "masked_head": "layers, LM head at masked positions (model/flops.py)",
    "blocks": "layers alone",
    "full_head": "layers, LM head at all positions",
    "head_and_embedding": "layers, LM head at all positions, embedding as a matrix product (looped-UDLM)",
}
"""Name of a convention -> what it counts."""


@dataclass(frozen=True)
class Work:
    """What a training has done.

    Attributes:
        tokens: of all steps, padding included.
        passes: sum over the tokens of the loops that they went through.
    """

    tokens: float
    passes: float

    @classmethod
    def of(cls, model: FlopsModel, tokens: float, flops: float) -> "Work":
        """From the tokens and FLOPs of a run, `metrics.jsonl`: FLOPs are linear in the loops."""
        once, more = model.training(1), model.training(2) - model.training(1)
        return cls(tokens, tokens + (flops - tokens * once) / more)

    def flops(self, model: FlopsModel, convention: str) -> float:
        """Training FLOPs in a convention."""
        loop, a = model.architecture.loop, model.architecture
        layers = model.layer() * (self.tokens * (loop.head + loop.tail) + self.passes * loop.mid)
        matrix = 2.0 * a.hidden_size * a.padded_vocab_size * self.tokens
        outside = {
            "masked_head": matrix * model.masked_fraction,
            "blocks": 0.0,
            "full_head": matrix,
            "head_and_embedding": 2 * matrix,
        }
        return 3.0 * (layers + outside[convention])
