"""Shape of the looped denoiser: the `model` section of a run's configuration. Does not import torch."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Recompute = Literal["none", "full", "loop"]
"""Which activations the backward pass recomputes: none, those of every layer, or those inside each pass of the mid block."""

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)
"""Unknown keys are errors; the string below a field is its help text."""

LOGITS_PER_CHUNK = 2**26
"""Largest number of logits that training holds at a time on one rank: 256 MiB in fp32 (`model/lm_head.py`)."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class LoopSplit:
    """How the layers are divided into the three phases of LoopMDM (arXiv 2605.26106, section 3)."""

    head: int = Field(1, ge=0)
    """Layers before the looped block (n_h), run once."""
    mid: int = Field(2, ge=1)
    """Layers of the looped block (n_m), run S times with the same weights."""
    tail: int = Field(9, ge=0)
    """Layers after the looped block (n_o), run once."""
    max: int = Field(12, ge=1, le=100_000)
    """S_max: the largest number of passes in training. 1 trains a plain masked diffusion model."""
    norm: bool = False
    """Normalize H(k-1) before every pass k (RMSNorm; all passes have the same weight)."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Architecture:
    """A transformer with pre-RMSNorm, RoPE, SwiGLU, bidirectional attention and untied embeddings."""

    num_layers: int = Field(12, ge=1)
    """Layers with their own weights: head + mid + tail."""
    hidden_size: int = Field(768, ge=1)
    """Width of the hidden states."""
    num_heads: int = Field(12, ge=1)
    """Attention heads."""
    num_kv_heads: int | None = Field(None, ge=1)
    """Key and value heads (grouped-query attention); empty: the same as num_heads."""
    ffn_hidden_size: int | None = Field(None, ge=1)
    """Inner width of the SwiGLU; empty: 8/3 of hidden_size, rounded up to a multiple of 64."""
    rope_base: float = Field(10_000.0, gt=0)
    """Base of the rotary position embedding (RoPE)."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of every RMSNorm."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights; the projections into the residual stream use init_std / sqrt(2 num_layers)."""
    vocab_size: int | None = Field(None, ge=2)
    """Number of token ids, including [MASK], which is the last one; empty: taken from the prepared data."""
    loop: LoopSplit = Field(default_factory=LoopSplit)
    """How the layers are split into head, looped block and tail."""
    causal: bool = False
    """Autoregressive, to compare with: tokens attend to earlier ones of their row, and training predicts each token from those
    before it. The NELBO is then the exact negative log-likelihood. Such a model cannot be sampled from or exported."""

    @property
    def kv_heads(self) -> int:
        """Key and value heads, with the default filled in."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_size(self) -> int:
        """Inner width of the SwiGLU, with the default filled in."""
        return self.ffn_hidden_size or -(-8 * self.hidden_size // (3 * 64)) * 64

    @property
    def mask_id(self) -> int:
        """Token id of [MASK]: always the last one."""
        return self.known_vocab_size - 1

    @property
    def known_vocab_size(self) -> int:
        """`vocab_size`, once it is known. Raises ValueError if it has not been set."""
        if self.vocab_size is None:
            raise ValueError("model.vocab_size is not known yet: set it, or let the data's manifest fill it in")
        return self.vocab_size

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the LM head: `vocab_size` rounded up to a multiple of 64, for efficient matrix products."""
        return -(-self.known_vocab_size // 64) * 64

    def effective_depth(self, loops: int) -> int:
        """Layers applied to a hidden state when S = `loops`: n_h + S n_m + n_o."""
        return self.loop.head + loops * self.loop.mid + self.loop.tail

    def parameters_per_layer(self) -> int:
        """Number of weights in one transformer layer: attention, SwiGLU, two norms."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.kv_heads)
        return attention + 3 * self.hidden_size * self.ffn_size + 2 * self.hidden_size

    def parameter_count(self) -> dict[str, int]:
        """Number of unique weights by part, including the padding rows of the vocabulary, which are allocated and updated."""
        layer = self.parameters_per_layer()
        return {
            "embedding": self.padded_vocab_size * self.hidden_size,
            "head": self.loop.head * layer,
            "mid": self.loop.mid * layer + self.loop.norm * self.hidden_size,
            "tail": self.loop.tail * layer,
            "final_norm": self.hidden_size,
            "lm_head": self.padded_vocab_size * self.hidden_size,
        }

    def executed_parameters(self, loops: int) -> int:
        """Weights applied to a token when S = `loops`: the looped block counts once per pass."""
        count = self.parameter_count()
        return sum(count.values()) + (loops - 1) * count["mid"]
