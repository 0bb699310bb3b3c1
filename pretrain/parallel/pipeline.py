"""megatron-core's pipeline schedules over the looped model. Written against megatron-core 0.16.1 to 0.19.2.

Looped split: the interleaved 1F1B schedule over the chunks [head] + [mid] * rounds + [tail] of every stage, where all mid
chunks of a stage are the same module. S, and with it the number of chunks, changes from step to step. Contiguous split: plain
1F1B over one chunk per stage. The schedules are called through their public functions; this file adapts the model to them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.pipeline_parallel import schedules
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from model.denoiser import Inputs, LoopedDenoiser, Output
from model.layers import transformer_config
from model.placement import Chunk, group_size

Finish = Callable[[int, Output], Tensor]
"""(index of the micro-batch, output of the model) -> the loss to differentiate; in forward-only runs, the tensor to return."""


class ModelChunk(nn.Module):
    """A chunk with the interface that the schedules expect of a model. It owns no weights."""

    def __init__(self, model: LoopedDenoiser, chunk: Chunk, config: TransformerConfig, seq_len: int) -> None:
        super().__init__()
        self.config, self.model_type = config, ModelType.encoder_or_decoder
        self._chunk, self._seq_len = chunk, seq_len
        self._run_chunk, self._output = model.run_chunk, model.output
        self._received: Tensor | None = None

    def set_input_tensor(self, received: Tensor | list[Tensor]) -> None:
        """Take the hidden states that the previous stage sent; None for the chunk that embeds."""
        self._received = received[0] if isinstance(received, list) else received

    def forward(self, inputs: Inputs) -> Output:
        """Hidden states, or the output of the model if the chunk ends it."""
        tokens, logit_positions, document_ids, boundaries, targets, loss_weights = inputs
        received, seq_len = self._received, self._seq_len
        hidden_states = self._run_chunk(self._chunk, tokens, received, seq_len, document_ids, boundaries)
        return (
            self._output(hidden_states, logit_positions, targets, loss_weights) if self._chunk.logits else hidden_states
        )


class Pipeline:
    """Runs micro-batches through the stages of one pipeline."""

    def __init__(self, model: LoopedDenoiser, seq_len: int, dtype: torch.dtype) -> None:
        self._stage, self._model, self._seq_len = model.stage, model, seq_len
        self._config = transformer_config(model.architecture, model.sharding)
        self._config.pipeline_model_parallel_size = model.stage.count
        self._config.pipeline_dtype = dtype
        # The loss is already a share of the global mean: the schedule must not divide it by the number of micro-batches.
        self._config.calculate_per_token_loss = True
        self._config.batch_p2p_comm = self._config.overlap_p2p_comm = False

    def run(self, inputs: Sequence[Inputs], loops: int, finish: Finish, backward: bool) -> list[Tensor]:
        """Take every micro-batch through all stages; returns what `finish` returned, on the last stage.

        Args:
            inputs: at least as many as there are stages, the same number on each stage, all with the same number of rows.
            backward: differentiate what `finish` returns, which must then be a scalar.
        """
        chunks = [ModelChunk(self._model, c, self._config, self._seq_len) for c in self._stage.chunks(loops)]
        kept: list[Tensor] = []

        def step(numbers: Iterator[int], chunk: ModelChunk) -> tuple[Output, Callable[[Output], Any]]:
            number = next(numbers)

            def last(output: Output) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                kept.append(finish(number, output))
                return kept[-1], torch.zeros((), dtype=torch.int, device=kept[-1].device), {}

            return chunk(inputs[number]), last

        schedule = self._schedule(len(chunks), len(inputs))
        schedule(
            forward_step_func=step,
            data_iterator=[iter(range(len(inputs))) for _ in chunks],
            model=chunks,
            num_microbatches=len(inputs),
            seq_length=self._seq_len,
            micro_batch_size=len(inputs[0].tokens),
            forward_only=not backward,
        )
        return kept

    def logits(self, inputs: Sequence[Inputs], loops: int) -> list[Tensor | None]:
        """Forward only: logits at every micro-batch's `logit_positions` on the last stage, None on the others.

        The schedules require equal micro-batches, at least one per stage. Missing rows and micro-batches are filled with ones
        that have no logit positions; a row added this way is a single document. They take no extra time: the pipeline would
        be idle otherwise.
        """
        if self._stage.count == 1:
            return [self._model(one.tokens, one.logit_positions, loops, *one[2:]) for one in inputs]
        rows = max(len(one.tokens) for one in inputs)
        filled = [_with_rows(one, rows) for one in inputs]
        idle = filled[0]._replace(logit_positions=filled[0].logit_positions[:0])
        filled += [idle] * (self._stage.count - len(inputs))
        kept = self.run(filled, loops, lambda _, logits: logits, backward=False)
        return list(kept[: len(inputs)]) if self._stage.last else [None] * len(inputs)

    def _schedule(self, chunks: int, micro_batches: int) -> Callable[..., Any]:
        config = self._config
        if chunks == 1:
            config.virtual_pipeline_model_parallel_size = None
            return schedules.forward_backward_pipelining_without_interleaving
        config.virtual_pipeline_model_parallel_size = chunks
        config.microbatch_group_size_per_vp_stage = group_size(micro_batches, self._stage.count)
        return schedules.forward_backward_pipelining_with_interleaving


def _with_rows(inputs: Inputs, rows: int) -> Inputs:
    """The same inputs followed by rows of zeros; the positions of logits stay where they are."""
    padding = (0, 0, 0, rows - len(inputs.tokens))
    ids = inputs.document_ids
    return inputs._replace(
        tokens=F.pad(inputs.tokens, padding),
        document_ids=None if ids is None else F.pad(ids, padding),
        document_boundaries=None,
    )
