"""Rows of the prepared data + noise -> micro-batches, as a function of the step."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data_pipeline.samples import Samples
from model.denoiser import Inputs
from model.noise import masks, stratified, timesteps
from model.objective import token_weights
from pretrain.derive import Plan


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass on one rank.

    Attributes:
        clean: x_0, int64 [b, s].
        masked: which tokens are [MASK] in x_t, bool [b, s].
        timesteps: t of each token, fp64 [b, s].
        batch_tokens: tokens of the global batch, padding not counted: what the loss is divided by.
        mask_id: id of [MASK].
        min_timestep: lower end of the timesteps' interval.
    """

    clean: Tensor
    masked: Tensor
    timesteps: Tensor
    batch_tokens: int
    mask_id: int
    min_timestep: float

    @cached_property
    def corrupted(self) -> Tensor:
        """x_t, int64 [b, s]."""
        return self.clean.masked_fill(self.masked, self.mask_id)

    @property
    def inputs(self) -> Inputs:
        """What the model is called with: x_t, and the masked tokens' logits are wanted."""
        return Inputs(self.corrupted, self.masked)

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
        moved = (x.to(device, non_blocking=True) for x in (self.clean, self.masked, self.timesteps))
        return MicroBatch(*moved, self.batch_tokens, self.mask_id, self.min_timestep)


class Batches:
    """This rank's micro-batches of any step.

    Sample i of step k has the global index k * global_batch_size + i. Row, timestep and mask follow from the seed and
    that index, so any split over ranks and micro-batches sees the same samples, and a resume needs only the step. Ranks
    that share a data-parallel rank (tensor, pipeline) compute the same noise; nobody sends it.
    """

    def __init__(self, plan: Plan, source: Samples | None, data_parallel_rank: int, device: torch.device) -> None:
        """`source` is None on a pipeline stage that neither embeds nor ends the model: it needs no rows."""
        self._plan, self._source, self._device = plan, source, device
        self._first = data_parallel_rank * plan.rows_per_rank

    def __getitem__(self, step: int) -> list[MicroBatch | None]:
        """Micro-batches of optimiser step `step`, which counts from 0, on the CPU."""
        plan, settings = self._plan, self._plan.settings
        if self._source is None:
            return [None] * plan.micro_batches
        train, seed = settings.train, settings.run.seed
        local = np.arange(self._first, self._first + plan.rows_per_rank)
        batch = step * train.global_batch_size + np.arange(train.global_batch_size)
        samples = batch[local]
        tokens = self._source.rows(samples)
        owners = self._source.documents(samples) if train.noise == "document" else np.zeros_like(tokens)
        t = timesteps(stratified(seed, step, train.global_batch_size)[local], owners, train.min_timestep)
        masked = masks(seed, samples, t)
        batch_tokens = plan.tokens_per_step
        if self._source.has_padding:
            lengths = self._source.lengths(batch)
            batch_tokens = int(lengths.sum())
            masked &= np.arange(plan.seq_len) < lengths[local, None]
        return [
            MicroBatch(
                *(torch.from_numpy(x[part]) for x in (tokens, masked, t)),
                batch_tokens,
                settings.model.mask_id,
                train.min_timestep,
            )
            for part in (slice(i, i + train.micro_batch_size) for i in range(0, len(local), train.micro_batch_size))
        ]

    def from_step(self, first: int) -> Iterator[list[MicroBatch | None]]:
        """Micro-batches of step `first` and all later ones, each made while the step before it computes."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            waiting: Future[list[MicroBatch | None]] = pool.submit(self.__getitem__, first)
            step = first
            while True:
                ready = waiting.result()
                step += 1
                waiting = pool.submit(self.__getitem__, step)
                yield [batch and batch.to(self._device) for batch in ready]
