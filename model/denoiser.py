"""The looped denoiser: head once, mid S times with the same weights, tail once, LM head at the masked positions.

    H(0) = head(embedding(x_t)),   H(k) = mid(H(k - 1)) for k = 1..S,   p^S = softmax(lm_head(norm(tail(H(S)))))

LoopMDM (arXiv 2605.26106), section 3. Only the hidden state is fed back: there is no re-injection of the input, no loop
embedding and no gate. With `model.loop.norm`, H(k) = mid(norm(H(k - 1))).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from megatron.core.tensor_parallel import VocabParallelEmbedding, gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.architecture import Architecture, Recompute
from model.attention import AttentionInputs, causal_mask, document_boundaries, document_mask, missing_varlen
from model.layers import RMSNorm, Sharding, build_layer, transformer_config
from model.lm_head import LanguageModelHead
from model.placement import Chunk, Stage, whole
from model.rope import rotation
from model.weights import OnWeight, create_weights, initial_weights


class Inputs(NamedTuple):
    """Inputs of the model for one micro-batch.

    Attributes:
        tokens: x_t, int64 [b, s].
        logit_positions: where logits are computed: indices into the flattened [b * s] tokens, int64 [m], as from
            `positions_of`; in training, the masked positions.
        document_ids: document of each token within its row, int [b, s], for attention within documents; None for attention
            over the whole row.
        document_boundaries: the same as boundaries, int32 [k + 1], as from `model.attention.document_boundaries`. A GPU
            that needs them waits for the device if they are None.
        targets: in training, x_0 at `logit_positions`, int64 [m].
        loss_weights: in training, the weight of each target in the loss, fp32 [m], as from `model.objective.token_weights`.
    """

    tokens: Tensor
    logit_positions: Tensor
    document_ids: Tensor | None = None
    document_boundaries: Tensor | None = None
    targets: Tensor | None = None
    loss_weights: Tensor | None = None


Output = Tensor | tuple[Tensor, Tensor]
"""Logits, or with targets the loss and the cross-entropies, as from `model.lm_head.LanguageModelHead`."""


def positions_of(selected: Tensor) -> Tensor:
    """bool [b, s] -> indices of the selected tokens in the flattened [b * s], int64 [m], ascending.

    On a GPU this waits for the device, because m is not known before. Training computes it on the CPU.
    """
    return selected.flatten().nonzero().squeeze(1)


LayerBuilder = Callable[[int], nn.Module]
"""(number of the layer in the whole model, counted from 1) -> the layer."""


def recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Run `function` without keeping its activations; the backward pass runs it again.

    Non-reentrant checkpointing, because the reentrant form fails with shared weights under ZeRO-2 and ZeRO-3 (DeepSpeed
    issue 2103). There is no dropout, so no random state has to be restored.
    """
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class LayerStack(nn.Module):
    """The transformer layers of one phase (head, mid or tail) that this pipeline stage holds.

    Args:
        build: builds a layer.
        first: number of layers in the model before this phase.
        held: which layers of the phase this stage holds, counted from 0; also their names in the state dict.
        recompute_layers: recompute the activations of every layer in the backward pass.
    """

    def __init__(self, build: LayerBuilder, first: int, held: Iterable[int], recompute_layers: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(i): build(first + i + 1) for i in held})
        self.recompute_layers = recompute_layers

    def forward(self, hidden_states: Tensor, attention: AttentionInputs, layer_numbers: range) -> Tensor:
        """Apply these layers once: [s, b, h] -> [s, b, h].

        Args:
            layer_numbers: numbers within the phase, counted from 0.
        """
        return self.run_layers(hidden_states, attention, layer_numbers)

    def run_layers(self, hidden_states: Tensor, attention: AttentionInputs, layer_numbers: Iterable[int]) -> Tensor:
        """The same as `forward`, but without the hooks of a module call."""
        for number in layer_numbers:

            def run(states: Tensor, attention: AttentionInputs, layer: nn.Module = self.layers[str(number)]) -> Tensor:
                return layer(states, attention_mask=attention)[0]

            if self.recompute_layers and torch.is_grad_enabled():
                hidden_states = recomputed(run, hidden_states, attention)
            else:
                hidden_states = run(hidden_states, attention)
        return hidden_states


class LoopedBlock(LayerStack):
    """The mid block: applies the same layers once per pass.

    All passes happen in one module call, so that ZeRO-3 gathers the shared weights only once
    (`pretrain/parallel/parallelize.py`). A forward hook on the last layer is called after every pass, with H(k).

    Args:
        norm: applied to H(k - 1) before every pass; None for no norm, or if this stage does not hold the first layer of the
            block. Every pass adds to the hidden state, so its norm grows with k, beyond what the block has seen in training. After
            a norm, what a pass computes does not depend on the size of the state.
    """

    def __init__(
        self, build: LayerBuilder, first: int, held: range, recompute: Recompute, norm: RMSNorm | None
    ) -> None:
        super().__init__(build, first, held, recompute == "full")
        self.held, self.recompute_pass, self.norm = held, recompute == "loop", norm

    def forward(self, hidden_states: Tensor, attention: AttentionInputs, passes: range) -> Tensor:
        """H(k) = mid(H(k - 1)) for every k in `passes`: [s, b, h] -> [s, b, h]. The only loop over the mid block.

        Args:
            passes: numbers k of the passes, counted from 1.
        """
        for _ in passes:
            if self.recompute_pass and torch.is_grad_enabled():
                hidden_states = recomputed(self._run_pass, hidden_states, attention)
            else:
                hidden_states = self._run_pass(hidden_states, attention)
        return hidden_states

    def _run_pass(self, hidden_states: Tensor, attention: AttentionInputs) -> Tensor:
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        return self.run_layers(hidden_states, attention, self.held)


class LoopedDenoiser(nn.Module):
    """p(x_0 | x_t) at selected positions, after S passes of the mid block.

    Holds the layers of one pipeline stage; the default is the whole model. A parameter has the same name on every layout.
    megatron-core's process groups must be initialized.

    Args:
        seed: of the initial weights.
        recompute: which activations the backward pass recomputes.
        stage: the layers to hold, as from `model.placement.place`; None for the whole model.
        sharding: this rank's place in the tensor-parallel group; None for a single rank.
        on_weight: called after each weight is created, see `create_weights`; None leaves all on the CPU in fp32.
    """

    def __init__(
        self,
        architecture: Architecture,
        seed: int = 0,
        recompute: Recompute = "none",
        stage: Stage | None = None,
        sharding: Sharding | None = None,
        on_weight: OnWeight | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.stage = architecture, stage or whole(architecture.loop)
        self.sharding = sharding or Sharding()
        with torch.device("meta"):  # no memory yet: a rank may have room for its part of a weight only
            self._build(recompute)
        source = initial_weights(architecture, seed)
        create_weights(self, source, self.sharding.rank, self.sharding.tensor, on_weight)
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.sum_gradients()

    def _build(self, recompute: Recompute) -> None:
        split = self.architecture.loop
        config = transformer_config(self.architecture, self.sharding)
        build = partial(build_layer, config, self.sharding)
        full = recompute == "full"
        if self.stage.first:
            self._build_embedding(config)
        self.head = LayerStack(build, 0, chain(*self.stage.head), full)
        norm = None
        if split.norm and self.stage.begins_pass:
            group = self.sharding.norm_gradient_group
            norm = RMSNorm(config, self.architecture.hidden_size, self.architecture.norm_eps, group)
        self.mid = LoopedBlock(build, split.head, self.stage.mid, recompute, norm)
        self.tail = LayerStack(build, split.head + split.mid, chain(*self.stage.tail), full)
        if self.stage.last:
            self._build_output()

    def forward(
        self,
        tokens: Tensor,
        logit_positions: Tensor,
        loops: int,
        document_ids: Tensor | None = None,
        document_boundaries: Tensor | None = None,
        targets: Tensor | None = None,
        loss_weights: Tensor | None = None,
    ) -> Output:
        """Logits at the selected positions in their order, or the loss if targets are given. Only for one pipeline stage.

        Args:
            tokens, logit_positions, document_ids, document_boundaries, targets, loss_weights: see `Inputs`. The LM head is
                computed at `logit_positions` only.
            loops: S, the number of passes of the mid block; may exceed the S_max of training.

        Returns:
            As `LanguageModelHead.forward`.
        """
        (chunk,) = self.stage.chunks(loops)
        hidden_states = self.run_chunk(chunk, tokens, None, tokens.shape[1], document_ids, document_boundaries)
        return self.output(hidden_states, logit_positions, targets, loss_weights)

    def embed_and_head(self, tokens: Tensor, attention: AttentionInputs) -> Tensor:
        """H(0) = head(embedding(x_t)): int64 [b, s] -> [s, b, h].

        This, `one_pass`, `run_tail` and `output` in this order are `forward` without targets. Only for one pipeline stage.
        """
        return self.head(self._embed(tokens), attention, self.stage.head[0])

    def one_pass(self, hidden_states: Tensor, attention: AttentionInputs) -> Tensor:
        """H(k) = mid(H(k - 1)): [s, b, h] -> [s, b, h]."""
        return self.mid(hidden_states, attention, range(1))

    def run_tail(self, hidden_states: Tensor, attention: AttentionInputs) -> Tensor:
        """tail(H(S)): [s, b, h] -> [s, b, h]."""
        return self.tail(hidden_states, attention, self.stage.tail[0])

    def run_chunk(
        self,
        chunk: Chunk,
        tokens: Tensor | None,
        hidden_states: Tensor | None,
        seq_len: int,
        document_ids: Tensor | None = None,
        document_boundaries: Tensor | None = None,
    ) -> Tensor:
        """Run the embedding and the layers of a chunk: hidden states [s, b, h] -> [s, b, h].

        The final norm and the LM head, which the last chunk also has, are in `output`.

        Args:
            tokens: x_t, int64 [b, s]; needed if the chunk has the embedding.
            hidden_states: output of the previous chunk [s, b, h]; needed otherwise.
            seq_len: tokens per row. With sequence parallelism it differs from the first size of `hidden_states`.
            document_ids, document_boundaries: see `Inputs`; needed for every chunk.
        """
        if chunk.embed:
            assert tokens is not None
            hidden_states = self._embed(tokens)
        assert hidden_states is not None
        attention = self._attention_inputs(hidden_states, seq_len, document_ids, document_boundaries)
        if chunk.head:
            hidden_states = self.head(hidden_states, attention, chunk.head)
        if chunk.passes:
            hidden_states = self.mid(hidden_states, attention, chunk.passes)
        return self.tail(hidden_states, attention, chunk.tail) if chunk.tail else hidden_states

    def output(
        self,
        hidden_states: Tensor,
        logit_positions: Tensor,
        targets: Tensor | None = None,
        loss_weights: Tensor | None = None,
    ) -> Output:
        """Hidden states after the last layer [s, b, h] -> what `forward` returns."""
        if self.sharding.sequence:
            # From here on every rank needs whole rows. The LM head sums the gradient of its input over the group itself.
            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        seq_len, batch_size, hidden_size = hidden_states.shape
        in_memory = logit_positions % seq_len * batch_size + logit_positions // seq_len  # [b, s] -> [s, b]
        rows = self.final_norm(hidden_states.reshape(-1, hidden_size).index_select(0, in_memory))
        return self.lm_head(rows, targets, loss_weights)

    def _attention_inputs(
        self, hidden_states: Tensor, seq_len: int, document_ids: Tensor | None, boundaries: Tensor | None
    ) -> AttentionInputs:
        """For all layers of a chunk, with the documents in the form that this device's kernel needs."""
        device, dtype, width = hidden_states.device, hidden_states.dtype, self.architecture.head_dim
        rotary = rotation(seq_len, width, self.architecture.rope_base, device, dtype)
        if self.architecture.causal:
            return AttentionInputs(rotary, mask=causal_mask(seq_len, device, dtype))
        if document_ids is None:
            return AttentionInputs(rotary)
        if missing_varlen(device, dtype, width):
            return AttentionInputs(rotary, mask=document_mask(document_ids, dtype))
        return AttentionInputs(
            rotary, boundaries=document_boundaries(document_ids) if boundaries is None else boundaries
        )

    def _build_embedding(self, config: TransformerConfig) -> None:
        self.embedding = VocabParallelEmbedding(
            self.architecture.padded_vocab_size,
            self.architecture.hidden_size,
            init_method=nn.init.normal_,
            reduce_scatter_embeddings=self.sharding.sequence,
            config=config,
        )

    def _build_output(self) -> None:
        """Norm and LM head without sequence parallelism: they work on selected positions, not on equal shares of a row."""
        architecture = self.architecture
        config = transformer_config(architecture, replace(self.sharding, sequence=False))
        self.final_norm = RMSNorm(config, architecture.hidden_size, architecture.norm_eps)
        self.lm_head = LanguageModelHead(architecture, self.sharding)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Tokens [b, s] -> hidden states [s, b, h]. With sequence parallelism the embedding already transposes its output."""
        embedded = self.embedding(tokens)
        return embedded if self.sharding.sequence else embedded.transpose(0, 1).contiguous()
