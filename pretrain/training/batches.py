"""Rows of the prepared data and noise -> micro-batches, as a function of the step."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data_pipeline.dataset.samples import Samples
from model.denoiser import Inputs
from model.noise import masks, stratified, timesteps
from model.objective import token_weights
from pretrain.config.run_plan import RunPlan


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass on one rank.

    Attributes:
        clean: x_0, int64 [b, s].
        masked: which tokens are [MASK] in x_t, bool [b, s].
        timesteps: t of each token, fp64 [b, s].
        document_ids: document of each token within its row, -1 for padding, int32 [b, s]; None if attention is to the
            whole row.
        batch_tokens: tokens of the global batch without padding, by which the loss is divided.
        mask_id: id of [MASK].
        min_timestep: lower end of the timesteps' interval.
    """

    clean: Tensor
    masked: Tensor
    timesteps: Tensor
    document_ids: Tensor | None
    batch_tokens: int
    mask_id: int
    min_timestep: float

    @cached_property
    def corrupted(self) -> Tensor:
        """x_t, int64 [b, s]."""
        return self.clean.masked_fill(self.masked, self.mask_id)

    @property
    def inputs(self) -> Inputs:
        """What the model is called with: x_t; logits are computed at the masked positions."""
        return Inputs(self.corrupted, self.masked, self.document_ids)

    @cached_property
    def targets(self) -> Tensor:
        """Clean ids of the masked tokens, int64 [m], row-major."""
        return self.clean[self.masked]

    @cached_property
    def weights(self) -> Tensor:
        """Loss weight of each masked token, fp32 [m], row-major."""
        return token_weights(self.timesteps, self.masked, self.min_timestep)

    @cached_property
    def target_timesteps(self) -> Tensor:
        """t of each masked token, fp64 [m], row-major."""
        return self.timesteps[self.masked]

    def to(self, device: torch.device) -> "MicroBatch":
        """The same rows on a device."""
        tensors = (self.clean, self.masked, self.timesteps, self.document_ids)
        moved = (None if x is None else x.to(device, non_blocking=True) for x in tensors)
        return MicroBatch(*moved, self.batch_tokens, self.mask_id, self.min_timestep)


class Batches:
    """This rank's micro-batches of any step.

    Sample i of step k has the global index k * global_batch_size + i. Row, timestep and mask follow from the seed and
    that index, so any split over ranks and micro-batches sees the same samples, and a resume needs only the step. Tensor
    and pipeline ranks of one data-parallel share compute the same rows and noise instead of sending them.
    """

    def __init__(self, plan: RunPlan, source: Samples, data_parallel_rank: int, device: torch.device) -> None:
        self._plan, self._source, self._device = plan, source, device
        self._first = data_parallel_rank * plan.rows_per_rank

    def __getitem__(self, step: int) -> list[MicroBatch]:
        """Micro-batches of optimizer step `step`, which counts from 0, on the CPU."""
        plan, settings = self._plan, self._plan.settings
        arrays, batch_tokens = self._rows(step)
        size = settings.train.micro_batch_size
        return [
            MicroBatch(
                *(None if x is None else torch.from_numpy(x[i : i + size]) for x in arrays),
                batch_tokens,
                settings.model.mask_id,
                settings.train.min_timestep,
            )
            for i in range(0, plan.rows_per_rank, size)
        ]

    def _rows(self, step: int) -> tuple[tuple[np.ndarray | None, ...], int]:
        """(clean, masked, timesteps, document ids) of this rank's rows, and the global batch's tokens without padding."""
        plan, source, train, seed = self._plan, self._source, self._plan.settings.train, self._plan.settings.run.seed
        batch = step * train.global_batch_size + np.arange(train.global_batch_size)
        local = slice(self._first, self._first + plan.rows_per_rank)
        samples = batch[local]
        tokens = source.rows(samples)
        document_ids = source.document_ids(samples) if "document" in (train.attention, train.noise) else None
        owners = document_ids if train.noise == "document" else np.zeros_like(tokens)
        t = timesteps(stratified(seed, step, train.global_batch_size)[local], owners, train.min_timestep)
        masked = masks(seed, samples, t)
        batch_tokens = plan.tokens_per_step
        if source.has_padding:
            lengths = source.lengths(batch)
            batch_tokens = int(lengths.sum())
            masked &= np.arange(plan.seq_len) < lengths[local, None]
        return (tokens, masked, t, document_ids if train.attention == "document" else None), batch_tokens

    def from_step(self, first: int) -> Iterator[list[MicroBatch]]:
        """Micro-batches of step `first` and all later ones; a thread prepares each during the step before it."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            waiting: Future[list[MicroBatch]] = pool.submit(self.__getitem__, first)
            step = first
            while True:
                ready = waiting.result()
                step += 1
                waiting = pool.submit(self.__getitem__, step)
                yield [batch.to(self._device) for batch in ready]
