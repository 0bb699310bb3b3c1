"""FLOPs of the looped denoiser as a function of S. Does not import torch.

The convention for every figure that this project prints:

- a multiply-add is two FLOPs;
- matrix products and attention are counted; norms, RoPE, softmax and the embedding look-up are not;
- the LM head is counted on masked positions only, because it is computed only there;
- the backward pass costs twice the forward pass;
- recomputed activations are not counted: these are model FLOPs, as in MFU, not hardware FLOPs;
- attention within documents or to earlier tokens counts the same as attention to whole rows. SDPA computes all scores of a row
  and masks those that are not wanted; varlen flash attention, in bf16 on GPUs, skips those between documents, so there the
  figures and MFU are upper limits.
"""

from dataclasses import dataclass

from model.architecture import Architecture


@dataclass(frozen=True)
class FlopsModel:
    """FLOPs per token of one architecture.

    Attributes:
        architecture: its vocab_size must be set.
        seq_len: tokens per row; each token has seq_len scores.
        masked_fraction: expected fraction of masked tokens, which is the mean of t in training; 1 if autoregressive.
    """

    architecture: Architecture
    seq_len: int
    masked_fraction: float

    def layer(self) -> float:
        """Forward FLOPs of one layer, per token."""
        a = self.architecture
        projections = 2 * a.hidden_size * a.head_dim * (a.num_heads + a.kv_heads)
        attention = 2 * self.seq_len * a.head_dim * a.num_heads
        return 2.0 * (projections + attention + 3 * a.hidden_size * a.ffn_size)

    def embedding(self) -> float:
        """Forward FLOPs of the embedding look-up, per token: zero, because it only copies a row."""
        return 0.0

    def lm_head(self) -> float:
        """Forward FLOPs of the LM head, averaged over all tokens of a row, masked or not."""
        return 2.0 * self.architecture.hidden_size * self.architecture.padded_vocab_size * self.masked_fraction

    def forward(self, loops: int) -> float:
        """Forward FLOPs per token when S = `loops`."""
        return self.architecture.effective_depth(loops) * self.layer() + self.lm_head()

    def training(self, loops: int) -> float:
        """Forward and backward FLOPs per token when S = `loops`: F(S)."""
        return 3.0 * self.forward(loops)
