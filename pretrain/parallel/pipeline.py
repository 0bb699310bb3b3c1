"""megatron-core's pipeline schedules over the looped model. Written against megatron-core 0.16.1.

Looped split: the interleaved 1F1B schedule over the chunks [head] + [mid] * trips + [tail] of every stage, where each
stage's mid chunks are one module. S, and with it the number of chunks, changes from step to step. Contiguous split: plain
1F1B over one chunk per stage. Both are called through their public functions; what they need beside that is here.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.pipeline_parallel import schedules
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from model.denoiser import Inputs, LoopedDenoiser
from model.layers import transformer_config
from model.placement import Chunk, group_size

LossFunction = Callable[[int, Tensor], Tensor]
"""(number of the micro-batch, its logits) -> the loss to differentiate, or what to keep when nothing is."""


class ModelChunk(nn.Module):
    """A chunk in the clothes that the schedules expect of a model; it owns no weights."""

    def __init__(self, model: LoopedDenoiser, chunk: Chunk, config: TransformerConfig, seq_len: int) -> None:
        super().__init__()
        self.config, self.model_type = config, ModelType.encoder_or_decoder
        self._chunk, self._seq_len = chunk, seq_len
        self._run_chunk, self._logits = model.run_chunk, model.logits
        self._received: Tensor | None = None

    def set_input_tensor(self, received: Tensor | list[Tensor]) -> None:
        """What the stage before sent; None for the chunk that embeds."""
        self._received = received[0] if isinstance(received, list) else received

    def forward(self, inputs: Inputs | None) -> Tensor:
        """Hidden states, or logits of the selected positions where the chunk ends the model."""
        tokens, logit_positions, document_ids = inputs or (None, None, None)
        hidden_states = self._run_chunk(self._chunk, tokens, self._received, self._seq_len, document_ids)
        return self._logits(hidden_states, logit_positions) if self._chunk.logits else hidden_states


class Pipeline:
    """Runs micro-batches through the stages of one pipeline."""

    def __init__(self, model: LoopedDenoiser, seq_len: int, dtype: torch.dtype) -> None:
        self._stage, self._model, self._seq_len = model.stage, model, seq_len
        self._config = transformer_config(model.architecture, model.sharding)
        self._config.pipeline_model_parallel_size = model.stage.count
        self._config.pipeline_dtype = dtype
        # The loss is a share of the global mean already: the schedule must not divide it by the micro-batches.
        self._config.calculate_per_token_loss = True
        self._config.batch_p2p_comm = self._config.overlap_p2p_comm = False

    def run(
        self, inputs: Sequence[Inputs | None], rows: int, loops: int, consume: LossFunction, backward: bool
    ) -> list[Tensor]:
        """Take every micro-batch through all stages; returns what `consume` gave, on the last stage.

        Args:
            inputs: at least as many as there are stages, as many on each; None where the stage neither embeds nor ends
                the model and attention is to whole rows.
            rows: of every micro-batch.
            backward: differentiate what `consume` returns, which then is a scalar.
        """
        visits = [ModelChunk(self._model, c, self._config, self._seq_len) for c in self._stage.chunks(loops)]
        kept: list[Tensor] = []

        def step(numbers: Iterator[int], visit: ModelChunk) -> tuple[Tensor, Callable[[Tensor], Any]]:
            number = next(numbers)

            def finish(logits: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                kept.append(consume(number, logits))
                return kept[-1], torch.zeros((), dtype=torch.int, device=logits.device), {}

            return visit(inputs[number]), finish

        schedule = self._schedule(len(visits), len(inputs))
        schedule(
            forward_step_func=step,
            data_iterator=[iter(range(len(inputs))) for _ in visits],
            model=visits,
            num_microbatches=len(inputs),
            seq_length=self._seq_len,
            micro_batch_size=rows,
            forward_only=not backward,
        )
        return kept

    def logits(self, inputs: Sequence[Inputs], loops: int) -> list[Tensor | None]:
        """Forward only: logits of every micro-batch's selected positions on the last stage, None on the others.

        The schedules want equal micro-batches, at least one per stage: rows and micro-batches are filled up with ones that
        select nothing; a row so added is one document. They cost no time that the pipeline would not stand still for.
        """
        if self._stage.count == 1:
            return [self._model(one.tokens, one.logit_positions, loops, one.document_ids) for one in inputs]
        rows = max(len(one.tokens) for one in inputs)
        filled = [Inputs(*(None if x is None else F.pad(x, (0, 0, 0, rows - len(x))) for x in one)) for one in inputs]
        idle = filled[0]._replace(logit_positions=torch.zeros_like(filled[0].logit_positions))
        filled += [idle] * (self._stage.count - len(inputs))
        kept = self.run(filled, rows, loops, lambda _, logits: logits, backward=False)
        return list(kept[: len(inputs)]) if self._stage.last else [None] * len(inputs)

    def _schedule(self, chunks: int, micro_batches: int) -> Callable[..., Any]:
        config = self._config
        if chunks == 1:
            config.virtual_pipeline_model_parallel_size = None
            return schedules.forward_backward_pipelining_without_interleaving
        config.virtual_pipeline_model_parallel_size = chunks
        config.microbatch_group_size_per_vp_stage = group_size(micro_batches, self._stage.count)
        return schedules.forward_backward_pipelining_with_interleaving
