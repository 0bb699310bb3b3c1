"""The looped denoiser: head once, mid S times with the same weights, tail once, LM head on the masked positions.

    H(0) = head(x_t),   H(k) = mid(H(k - 1)),   p^S = softmax(lm_head(norm(tail(H(S)))))

LoopMDM, arXiv 2605.26106, section 3. Only the hidden state is fed back.
"""

from collections.abc import Callable
from typing import Literal

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.architecture import Architecture
from model.layers import RMSNorm, build_layer, initialize_weights, rotary_angles, transformer_config

Recompute = Literal["none", "full", "loop"]
"""Which activations the backward pass computes again: none, every layer's, or those inside each mid-block pass."""

Observer = Callable[[int, Tensor], None]
"""Called after pass k of the mid block (from 1) with its hidden states [s, b, h]."""


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run `function` now and again in the backward pass instead of keeping its activations.

    Non-reentrant on purpose: the reentrant form breaks under ZeRO-2/3 with shared weights (DeepSpeed issue 2103).
    There is no dropout, so no random state has to be restored.
    """
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class LayerStack(nn.Module):
    """Consecutive transformer layers."""

    def __init__(self, config: TransformerConfig, first: int, count: int, recompute_layers: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(build_layer(config, first + i + 1) for i in range(count))
        self.recompute_layers = recompute_layers

    def forward(self, hidden_states: Tensor, angles: Tensor) -> Tensor:
        """[s, b, h] -> [s, b, h]; `angles` as from `rotary_angles`."""
        for layer in self.layers:

            def run(states: Tensor, angles: Tensor, layer: nn.Module = layer) -> Tensor:
                return layer(states, attention_mask=None, rotary_pos_emb=angles)[0]

            if self.recompute_layers and torch.is_grad_enabled():
                hidden_states = recomputed(run, hidden_states, angles)
            else:
                hidden_states = run(hidden_states, angles)
        return hidden_states


class LoopedDenoiser(nn.Module):
    """p(x_0 | x_t) at the positions asked for, after S passes of the mid block. Needs initialised process groups."""

    def __init__(self, architecture: Architecture, seed: int = 0, recompute: Recompute = "none") -> None:
        super().__init__()
        config = transformer_config(architecture)
        vocab, hidden, split = architecture.padded_vocab_size, architecture.hidden_size, architecture.loop
        full = recompute == "full"
        self.architecture, self.recompute_pass = architecture, recompute == "loop"
        self.embedding = VocabParallelEmbedding(vocab, hidden, init_method=nn.init.normal_, config=config)
        self.head = LayerStack(config, 0, split.head, full)
        self.mid = LayerStack(config, split.head, split.mid, full)
        self.tail = LayerStack(config, split.head + split.mid, split.tail, full)
        self.final_norm = RMSNorm(config, hidden, architecture.norm_eps)
        self.lm_head = ColumnParallelLinear(
            hidden, vocab, config=config, init_method=nn.init.normal_, bias=False, gather_output=False
        )
        initialize_weights(self, architecture, seed)

    def forward(self, tokens: Tensor, selected: Tensor, loops: int, observe: Observer | None = None) -> Tensor:
        """Logits where `selected` is true, in row-major order of (b, s).

        Args:
            tokens: x_t, int64 [b, s].
            selected: bool [b, s]; the LM head is computed on these positions only.
            loops: S, passes of the mid block; may exceed the S_max of training.
            observe: sees the hidden states after every pass.

        Returns:
            Logits [number selected, padded vocabulary]; -inf for [MASK] and for padding rows: a clean token is
            never [MASK] (SUBS parameterisation, Sahoo et al. 2024, section 3.2.3).
        """
        hidden_states = self.hidden_states(tokens, loops, observe)
        rows = self.final_norm(hidden_states.transpose(0, 1)[selected])
        logits, _ = self.lm_head(rows.unsqueeze(1))
        logits = logits.squeeze(1)
        impossible = torch.arange(logits.shape[-1], device=logits.device) >= self.architecture.mask_id
        return logits.masked_fill(impossible, float("-inf"))

    def hidden_states(self, tokens: Tensor, loops: int, observe: Observer | None = None) -> Tensor:
        """x_t [b, s] -> hidden states [s, b, h] that enter the final norm."""
        architecture = self.architecture
        angles = rotary_angles(tokens.shape[1], architecture.head_dim, architecture.rope_base, tokens.device)
        hidden_states = self.embedding(tokens).transpose(0, 1).contiguous()
        hidden_states = self.head(hidden_states, angles)
        hidden_states = self.loop(hidden_states, angles, loops, observe)
        return self.tail(hidden_states, angles)

    def loop(self, hidden_states: Tensor, angles: Tensor, loops: int, observe: Observer | None = None) -> Tensor:
        """S passes of the mid block, the only place where they happen: [s, b, h] -> [s, b, h]."""
        for loop in range(1, loops + 1):
            if self.recompute_pass and torch.is_grad_enabled():
                hidden_states = recomputed(self.mid, hidden_states, angles)
            else:
                hidden_states = self.mid(hidden_states, angles)
            if observe is not None:
                observe(loop, hidden_states)
        return hidden_states
