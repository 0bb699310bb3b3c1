"""What a task is, and the model that it is put to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data_pipeline.tokenizers.tokenizers import PreparedTokenizer
from model.sampling.query import Denoise
from model.sampling.tally import Tally
from pretrain.evaluation.sampler_settings import SamplerSettings
from pretrain.evaluation.sampling import Sample, fill_rows, require_steps
from pretrain.evaluation.scoring import TokenScorer
from pretrain.parallel.world import World

Record = dict[str, Any]
"""What was found for an item: JSON values, with its number as `item`."""


@dataclass
class Work:
    """What sampling has cost so far.

    Attributes:
        tally: of this rank.
        tokens: filled in by all ranks.
    """

    tally: Tally = field(default_factory=Tally)
    tokens: int = 0

    def total(self, world: World) -> Tensor:
        """The counts of the tally over all ranks, and the tokens, fp64 [5]. Collective."""
        counts = world.sum(self.tally.values() * world.holds_loss)
        return torch.cat([counts, torch.tensor([self.tokens], dtype=torch.float64)])


@dataclass(frozen=True)
class TaskModel:
    """A model, with what it computes and the options of sampling.

    Attributes:
        scorer: for likelihoods.
        loops: S; or the policy where S varies, such as "adaptive:1-12".
        network: makes the network of a sampler.
        sampler: how samples are drawn.
        tokenizer: that of the run.
        seq_len: tokens of the longest row.
        work: counts what `network` computes and `fill` fills in.
        seed: of the random numbers. Those of an item depend on its number, not on the other items.
    """

    scorer: TokenScorer
    loops: int | str
    network: Callable[[], Denoise]
    sampler: SamplerSettings
    tokenizer: PreparedTokenizer
    seq_len: int
    seed: int
    work: Work = field(default_factory=Work)

    @property
    def world(self) -> World:
        """The ranks that share the items."""
        return self.scorer.world

    def fill(self, rows: Sequence[Sequence[int]], items: Sequence[int]) -> list[Sample]:
        """Fill the [MASK] tokens of rows, one of each item. Collective: every rank gets all samples.

        Raises:
            UserError: fewer steps than blocks, or logits that are not numbers.
        """
        for row, item in zip(rows, items, strict=True):
            require_steps(self.sampler, row.count(self.tokenizer.mask_id), f"item {item}")
        plan = self.sampler.plan(self.network, self.tokenizer.eod_id)
        size, mask_id = self.scorer.batch_size, self.tokenizer.mask_id
        samples = fill_rows(self.world, self.network(), rows, items, plan, mask_id, self.seed, size)
        self.work.tokens += sum(len(sample.steps) - sample.steps.count(-1) for sample in samples)
        return samples


class Task(Protocol):
    """Items of one kind.

    Attributes:
        name: in messages and file names.
        metric: name of the main figure.
        samples: whether items are answered by sampling; otherwise by likelihoods.
        settings: what distinguishes its results from others, its items included, as JSON values.
        sizes: tokens of the row of each item.
    """

    name: str
    metric: str
    samples: bool

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def sizes(self) -> Sequence[int]: ...

    def run(self, model: TaskModel, items: Sequence[int]) -> list[Record]:
        """Put these items to the model. Collective: every rank gets the records."""

    def figures(self, model: TaskModel, records: Sequence[Record]) -> dict[str, float | None]:
        """Figures of all items, each with a standard error under its name with `_se`, a proportion also with the ends of its 95%
        interval under `_low` and `_high`. Collective: on every rank.
        """

    def values(self, records: Sequence[Record]) -> np.ndarray:
        """What each item contributes to the main figure, which is their mean, fp64 [records]."""
