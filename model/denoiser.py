"""The looped denoiser: head once, mid S times with the same weights, tail once, LM head on the masked positions.

    H(0) = head(x_t),   H(k) = mid(H(k - 1)),   p^S = softmax(lm_head(norm(tail(H(S)))))

LoopMDM, arXiv 2605.26106, section 3. Only the hidden state is fed back.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    VocabParallelEmbedding,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.architecture import Architecture, Recompute
from model.layers import RMSNorm, Sharding, build_layer, document_mask, rotary_angles, transformer_config
from model.placement import Chunk, Stage, whole
from model.weights import fill_weights, initial_weights


class Inputs(NamedTuple):
    """What the model is called with, for one micro-batch.

    Attributes:
        tokens: x_t, int64 [b, s].
        logit_positions: positions whose logits are wanted, bool [b, s].
        document_ids: document of each token within its row, int [b, s], for attention within documents; None for attention
            to the whole row.
    """

    tokens: Tensor
    logit_positions: Tensor
    document_ids: Tensor | None = None


Observer = Callable[[int, Tensor], None]
"""Called after pass k of the mid block (from 1) with its hidden states [s, b, h]."""

LayerBuilder = Callable[[int], nn.Module]
"""Layer number in the whole model, counted from 1 -> the layer."""


def recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Run `function` now and again in the backward pass instead of keeping its activations.

    Non-reentrant on purpose: the reentrant form breaks under ZeRO-2/3 with shared weights (DeepSpeed issue 2103).
    There is no dropout, so no random state has to be restored.
    """
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class LayerStack(nn.Module):
    """Consecutive transformer layers: those of one phase that this pipeline stage holds, under their global numbers."""

    def __init__(self, build: LayerBuilder, first: int, held: Iterable[int], recompute_layers: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(i): build(first + i + 1) for i in held})
        self.recompute_layers = recompute_layers

    def forward(self, hidden_states: Tensor, angles: Tensor, mask: Tensor | None, numbers: range) -> Tensor:
        """The layers of these numbers, once: [s, b, h] -> [s, b, h].

        Args:
            angles: as from `rotary_angles`.
            mask: as from `document_mask`; None for attention to the whole row.
        """
        return self.run_layers(hidden_states, angles, mask, numbers)

    def run_layers(self, hidden_states: Tensor, angles: Tensor, mask: Tensor | None, numbers: Iterable[int]) -> Tensor:
        """What `forward` does, without the hooks of a module call."""
        for number in numbers:

            def run(
                states: Tensor, angles: Tensor, mask: Tensor | None, layer: nn.Module = self.layers[str(number)]
            ) -> Tensor:
                return layer(states, attention_mask=mask, rotary_pos_emb=angles)[0]

            if self.recompute_layers and torch.is_grad_enabled():
                hidden_states = recomputed(run, hidden_states, angles, mask)
            else:
                hidden_states = run(hidden_states, angles, mask)
        return hidden_states


class LoopedBlock(LayerStack):
    """The mid block: the same layers, as many times as asked for.

    One module call makes all passes, so that ZeRO-3 gathers the shared weights once for them (`pretrain/parallel/engine.py`).
    """

    def __init__(self, build: LayerBuilder, first: int, held: range, recompute: Recompute) -> None:
        super().__init__(build, first, held, recompute == "full")
        self.held, self.recompute_pass = held, recompute == "loop"

    def forward(
        self,
        hidden_states: Tensor,
        angles: Tensor,
        mask: Tensor | None,
        passes: range,
        observe: Observer | None = None,
    ) -> Tensor:
        """The passes of these numbers, the only place where they happen: [s, b, h] -> [s, b, h]."""
        for number in passes:
            if self.recompute_pass and torch.is_grad_enabled():
                hidden_states = recomputed(self.run_layers, hidden_states, angles, mask, self.held)
            else:
                hidden_states = self.run_layers(hidden_states, angles, mask, self.held)
            if observe is not None:
                observe(number, hidden_states)
        return hidden_states


class LoopedDenoiser(nn.Module):
    """p(x_0 | x_t) at the positions asked for, after S passes of the mid block. Needs initialised process groups.

    Holds what its pipeline stage needs; the default stage is the whole model. Parameters have the same names everywhere.
    """

    def __init__(
        self,
        architecture: Architecture,
        seed: int = 0,
        recompute: Recompute = "none",
        stage: Stage | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        super().__init__()
        split = architecture.loop
        self.architecture, self.stage = architecture, stage or whole(split)
        self.sharding = sharding or Sharding()
        config = transformer_config(architecture, self.sharding)
        build = partial(build_layer, config, self.sharding)
        full = recompute == "full"
        if self.stage.first:
            self._build_embedding(config)
        self.head = LayerStack(build, 0, chain(*self.stage.head), full)
        self.mid = LoopedBlock(build, split.head, self.stage.mid, recompute)
        self.tail = LayerStack(build, split.head + split.mid, chain(*self.stage.tail), full)
        if self.stage.last:
            self._build_output()
        fill_weights(self, initial_weights(architecture, seed), self.sharding.rank, self.sharding.tensor)

    def forward(
        self,
        tokens: Tensor,
        logit_positions: Tensor,
        loops: int,
        document_ids: Tensor | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Logits where `logit_positions` is true, in row-major order of (b, s). For a model that is one stage.

        Args:
            tokens: x_t, int64 [b, s].
            logit_positions: bool [b, s]; the LM head is computed on these positions only.
            loops: S, passes of the mid block; may exceed the S_max of training.
            document_ids: see `Inputs`.
            observe: sees the hidden states after every pass.

        Returns:
            Logits [number selected, padded vocabulary]; -inf for [MASK] and for padding rows: a clean token is
            never [MASK] (SUBS parameterisation, Sahoo et al. 2024, section 3.2.3). Under tensor parallelism each rank has
            its share of the vocabulary.
        """
        (chunk,) = self.stage.chunks(loops)
        return self.logits(self.run_chunk(chunk, tokens, None, tokens.shape[1], document_ids, observe), logit_positions)

    def run_chunk(
        self,
        chunk: Chunk,
        tokens: Tensor | None,
        hidden_states: Tensor | None,
        seq_len: int,
        document_ids: Tensor | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Run a chunk up to its last layer: hidden states [s, b, h] -> [s, b, h].

        Args:
            tokens: x_t, int64 [b, s], for a chunk that embeds.
            hidden_states: of the stage before, for every other chunk.
            seq_len: tokens of a row.
            document_ids: see `Inputs`; on every stage, whichever chunk it runs.
        """
        if chunk.embed:
            assert tokens is not None
            hidden_states = self._embed(tokens)
        assert hidden_states is not None
        architecture = self.architecture
        angles = rotary_angles(seq_len, architecture.head_dim, architecture.rope_base, hidden_states.device)
        mask = None if document_ids is None else document_mask(document_ids, hidden_states.dtype)
        if chunk.head:
            hidden_states = self.head(hidden_states, angles, mask, chunk.head)
        if chunk.passes:
            hidden_states = self.mid(hidden_states, angles, mask, chunk.passes, observe)
        return self.tail(hidden_states, angles, mask, chunk.tail) if chunk.tail else hidden_states

    def logits(self, hidden_states: Tensor, logit_positions: Tensor) -> Tensor:
        """Hidden states [s, b, h] of the last layer -> logits of the selected positions, as `forward` returns them."""
        if self.sharding.sequence:
            # Every rank needs every row from here on; the LM head sums its input's gradients over the group itself.
            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        rows = self.final_norm(hidden_states.transpose(0, 1)[logit_positions])
        logits, _ = self.lm_head(rows.unsqueeze(1))
        logits = logits.squeeze(1)
        ids = torch.arange(logits.shape[-1], device=logits.device) + self.sharding.rank * logits.shape[-1]
        return logits.masked_fill(ids >= self.architecture.mask_id, float("-inf"))

    def _build_embedding(self, config: TransformerConfig) -> None:
        self.embedding = VocabParallelEmbedding(
            self.architecture.padded_vocab_size,
            self.architecture.hidden_size,
            init_method=nn.init.normal_,
            reduce_scatter_embeddings=self.sharding.sequence,
            config=config,
        )

    def _build_output(self) -> None:
        """Norm and LM head work on selected positions, which no sequence-parallel share fits: they see whole rows."""
        architecture = self.architecture
        config = transformer_config(architecture, replace(self.sharding, sequence=False))
        hidden, vocab = architecture.hidden_size, architecture.padded_vocab_size
        self.final_norm = RMSNorm(config, hidden, architecture.norm_eps)
        self.lm_head = ColumnParallelLinear(
            hidden, vocab, config=config, init_method=nn.init.normal_, bias=False, gather_output=False
        )

    def _embed(self, tokens: Tensor) -> Tensor:
        """Tokens [b, s] -> hidden states [s, b, h]; the sequence-parallel look-up transposes by itself."""
        embedded = self.embedding(tokens)
        return embedded if self.sharding.sequence else embedded.transpose(0, 1).contiguous()
