"""Rows of the prepared data and noise -> micro-batches, as a function of the step."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.dataset.samples import Samples
from model.attention import document_boundaries
from model.denoiser import Inputs, positions_of
from model.noise import complement, masks, stratified, timesteps
from model.objective import previous_tokens, token_weights
from pretrain.config.run_plan import RunPlan
from pretrain.config.settings import Train

TIMESTEP_BINS = 10
"""Equal bins of t in which the loss is reported."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass on one rank, with x_t made from x_0 and everything that the loss needs.

    It is complete on the CPU: what is selected by the mask has a size that depends on the data, and selecting on a GPU
    would make the host wait for the device.

    Attributes:
        inputs: x_t, the m masked tokens with their targets and loss weights, and the documents (-1 for padding).
        timesteps: t of the masked tokens, fp64 [m].
    """

    inputs: Inputs
    timesteps: Tensor

    def to(self, device: torch.device) -> "MicroBatch":
        """The same rows on a device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or device.type == "cpu":
                return tensor
            return tensor.pin_memory().to(device, non_blocking=True)

        return MicroBatch(Inputs(*map(moved, self.inputs)), moved(self.timesteps))


def corrupt(
    clean: Tensor,
    masked: Tensor,
    timesteps: Tensor,
    document_ids: Tensor | None,
    batch_tokens: int,
    train: Train,
    mask_id: int,
) -> MicroBatch:
    """x_0 int64, masked bool, t fp64 and document ids int32, all [b, s] -> the micro-batch that trains on them."""
    positions = positions_of(masked)
    boundaries = None if document_ids is None else document_boundaries(document_ids)
    t = timesteps.flatten()[positions]
    weights = token_weights(t, train.min_timestep, batch_tokens, train.loss_weight, train.timesteps)
    noisy = clean.masked_fill(masked, mask_id)
    inputs = Inputs(noisy, positions, document_ids, boundaries, clean.flatten()[positions], weights)
    return MicroBatch(inputs, t)


def predict_next(clean: Tensor, counted: Tensor, batch_tokens: int, mask_id: int) -> MicroBatch:
    """The micro-batch of an autoregressive model: x_0 int64 [b, s] and the tokens that are not padding, bool [b, s]."""
    positions = positions_of(counted)
    weights = torch.full((len(positions),), 1 / batch_tokens)
    targets = clean.flatten()[positions]
    inputs = Inputs(previous_tokens(clean, mask_id), positions, targets=targets, loss_weights=weights)
    return MicroBatch(inputs, torch.ones(len(positions), dtype=torch.float64))


class Batches:
    """This rank's micro-batches of any step.

    Sample i of step k has the global index k * samples_per_step + i. Row, timestep and mask follow from the seed and
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
        parts = (
            (None if x is None else torch.from_numpy(x[i : i + size]) for x in arrays)
            for i in range(0, plan.rows_per_rank, size)
        )
        if settings.model.causal:
            return [predict_next(clean, counted, batch_tokens, settings.model.mask_id) for clean, counted, *_ in parts]
        return [corrupt(*part, batch_tokens, settings.train, settings.model.mask_id) for part in parts]

    def _rows(self, step: int) -> tuple[tuple[np.ndarray | None, ...], int]:
        """(clean, masked, timesteps, document ids) of this rank's rows, and the global batch's tokens without padding.

        An autoregressive model predicts all tokens: all count as masked.
        """
        plan, source, train, seed = self._plan, self._source, self._plan.settings.train, self._plan.settings.run.seed
        rows = np.arange(train.global_batch_size)
        # With complementary masks, rows 2 i and 2 i + 1 are the i-th sample of the step.
        order = rows // 2 if train.complementary_masks else rows
        batch = step * plan.samples_per_step + order
        local = slice(self._first, self._first + plan.rows_per_rank)
        samples = batch[local]
        tokens = source.rows(samples)
        document_ids = source.document_ids(samples) if "document" in (train.attention, train.noise) else None
        owners = document_ids if train.noise == "document" else np.zeros_like(tokens)
        values = stratified(seed, step, plan.samples_per_step)[order[local]]
        t, second = timesteps(values, owners, train.min_timestep, train.timesteps), None
        if train.complementary_masks:
            second = rows[local] % 2 == 1
            t[second] = complement(t[second], train.min_timestep)
        masked = np.ones_like(tokens, dtype=bool) if plan.settings.model.causal else masks(seed, samples, t, second)
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
