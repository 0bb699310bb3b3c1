"""FLOPs of the looped denoiser, from the loops actually run. Imports no torch.

Convention, for every figure this project prints: a multiply-add is two FLOPs; matrix products and attention are counted,
norms, RoPE and softmax are not; the look-up costs nothing; the LM head is counted on masked positions only,
because it is computed on those only; the backward pass costs twice the forward pass; recomputed activations are not
counted (model FLOPs, as MFU wants them, not hardware FLOPs). Attention within documents counts like attention to whole rows:
SDPA computes all scores of a row and masks those across documents.
"""

from dataclasses import dataclass

from model.architecture import Architecture


@dataclass(frozen=True)
class FlopsModel:
    """Counts for one architecture.

    Attributes:
        architecture: with vocab_size settled.
        seq_len: tokens of a row; attention is bidirectional and full, so every token has seq_len scores.
        masked_fraction: expected share of masked tokens: the mean of t in training.
    """

    architecture: Architecture
    seq_len: int
    masked_fraction: float

    def layer(self) -> float:
        """Forward FLOPs of one token in one layer."""
        a = self.architecture
        projections = 2 * a.hidden_size * a.head_dim * (a.num_heads + a.kv_heads)
        attention = 2 * self.seq_len * a.head_dim * a.num_heads
        return 2.0 * (projections + attention + 3 * a.hidden_size * a.ffn_size)

    def embedding(self) -> float:
        """Forward FLOPs of one look-up: it copies a row and multiplies nothing."""
        return 0.0

    def lm_head(self) -> float:
        """Forward FLOPs of the LM head per token of the row, masked or not."""
        return 2.0 * self.architecture.hidden_size * self.architecture.padded_vocab_size * self.masked_fraction

    def forward(self, loops: int) -> float:
        """Forward FLOPs of one token at `loops` passes."""
        return self.architecture.effective_depth(loops) * self.layer() + self.lm_head()

    def training(self, loops: int) -> float:
        """Forward and backward FLOPs of one token at `loops` passes."""
        return 3.0 * self.forward(loops)
