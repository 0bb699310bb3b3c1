"""Shape of the looped denoiser: the `model` section of a run's configuration. Imports no torch."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Recompute = Literal["none", "full", "loop"]
"""Which activations the backward pass computes again: none, every layer's, or those inside each mid-block pass."""

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)
"""Settings refuse unknown keys; the string under a field is its help text."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class LoopSplit:
    """How the layers are divided into the three phases of the paper (arXiv 2605.26106, section 3)."""

    head: int = Field(1, ge=0)
    """Layers before the loop (n_h), run once."""
    mid: int = Field(2, ge=1)
    """Layers of the looped block (n_m), whose weights every pass shares."""
    tail: int = Field(9, ge=0)
    """Layers after the loop (n_o), run once."""
    max: int = Field(12, ge=1)
    """S_max: the largest number of passes in training. 1 makes a plain masked diffusion model."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Architecture:
    """A pre-RMSNorm transformer with RoPE, SwiGLU, bidirectional attention and untied embeddings."""

    num_layers: int = Field(12, ge=1)
    """Layers with weights of their own: head + mid + tail."""
    hidden_size: int = Field(768, ge=1)
    """Width of the hidden states."""
    num_heads: int = Field(12, ge=1)
    """Attention heads."""
    num_kv_heads: int | None = Field(None, ge=1)
    """Key and value heads (grouped-query attention); empty: as many as num_heads."""
    ffn_hidden_size: int | None = Field(None, ge=1)
    """Width inside the SwiGLU; empty: 8/3 of hidden_size, rounded up to a multiple of 64."""
    rope_base: float = Field(10_000.0, gt=0)
    """Base of the rotary position angles."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of every RMSNorm."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights; residual outputs use init_std / sqrt(2 num_layers)."""
    vocab_size: int | None = Field(None, ge=2)
    """All token ids with [MASK], the last one; empty: taken from the prepared data."""
    loop: LoopSplit = Field(default_factory=LoopSplit)
    """How the layers are split into head, looped block and tail."""

    @property
    def kv_heads(self) -> int:
        """Key and value heads after the default is filled in."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_size(self) -> int:
        """Width inside the SwiGLU after the default is filled in."""
        return self.ffn_hidden_size or -(-8 * self.hidden_size // (3 * 64)) * 64

    @property
    def mask_id(self) -> int:
        """Id of [MASK]: always the last one."""
        return self.known_vocab_size - 1

    @property
    def known_vocab_size(self) -> int:
        """`vocab_size`, once the data has settled it. Raises ValueError before."""
        if self.vocab_size is None:
            raise ValueError("model.vocab_size is not settled: give it, or take it from the data's manifest")
        return self.vocab_size

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the LM head: a multiple of 64, the alignment that matrix units want."""
        return -(-self.known_vocab_size // 64) * 64

    def effective_depth(self, loops: int) -> int:
        """Layers a hidden state passes through at `loops` passes: n_h + S n_m + n_o."""
        return self.loop.head + loops * self.loop.mid + self.loop.tail

    def parameters_per_layer(self) -> int:
        """Weights of one transformer layer: attention, SwiGLU, two norms."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.kv_heads)
        return attention + 3 * self.hidden_size * self.ffn_size + 2 * self.hidden_size

    def parameter_count(self) -> dict[str, int]:
        """Unique weights by part. Padding rows of the vocabulary are counted: they are allocated and stepped."""
        layer = self.parameters_per_layer()
        return {
            "embedding": self.padded_vocab_size * self.hidden_size,
            "head": self.loop.head * layer,
            "mid": self.loop.mid * layer,
            "tail": self.loop.tail * layer,
            "final_norm": self.hidden_size,
            "lm_head": self.padded_vocab_size * self.hidden_size,
        }

    def executed_parameters(self, loops: int) -> int:
        """Weights that a token passes through at `loops` passes: the looped block counts once per pass."""
        count = self.parameter_count()
        return sum(count.values()) + (loops - 1) * count["mid"]
