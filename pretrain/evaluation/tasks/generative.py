"""Samples from nothing, judged by another model: its perplexity, and beside it what shows when that is low for bad reasons.

Perplexity under another model can be lowered without better text (arXiv 2606.08417): every figure stands beside that of
held-out texts of the same length, with entropy, repetition and a distance between the two distributions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.tokenizers.tokenizers import PreparedTokenizer
from pretrain.errors import UserError
from pretrain.evaluation.causal_lm import CausalLM
from pretrain.evaluation.distribution import kernel_distance, repetition, token_entropy
from pretrain.evaluation.statistics import mean_and_error, ratio_and_error, ratio_residuals
from pretrain.evaluation.tasks.rows import digest
from pretrain.evaluation.tasks.task import Record, TaskModel

LEAST_SAMPLES = 3
BETWEEN = "\n\n"
"""Stands for the end of a document in the text that is scored."""


@dataclass(frozen=True)
class GenerativeTask:
    """Samples of whole rows, and as many rows of the validation split.

    Attributes:
        scorer: folder of the model that judges.
        reference: the validation split.
        count: samples.
    """

    scorer: Path
    reference: PackedDataset
    count: int
    tokenizer: PreparedTokenizer
    name: str = "generative"
    metric: str = "nats_per_token"
    samples: bool = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Task`."""
        info = self.reference.manifest.splits[self.reference.split]
        reference = digest([info.model_dump(), self.reference.seq_len])
        return {"task": self.name, "scorer": str(self.scorer), "reference_sha256": reference}

    @property
    def sizes(self) -> Sequence[int]:
        """See `Task`."""
        return [self.reference.seq_len] * self.count

    def run(self, model: TaskModel, items: Sequence[int]) -> list[Record]:
        """See `Task`."""
        empty = [self.tokenizer.mask_id] * self.reference.seq_len
        samples = model.fill([empty] * len(items), items)
        return [
            {"item": item, "text": self._text(sample.tokens), "tokens": sample.tokens}
            for item, sample in zip(items, samples, strict=True)
        ]

    def figures(self, model: TaskModel, records: Sequence[Record]) -> dict[str, float | None]:
        """See `Task`. Figures of the held-out texts have `reference_` before their names.

        `kernel_distance` is that of samples and held-out texts; `reference_kernel_distance`, of every other one of the latter and
        the rest, shows how large it is without a difference.
        """
        numbers = np.arange(len(records)) * self.reference.num_rows // len(records)
        rows = self.reference.rows(numbers)
        lengths = self.reference.lengths(numbers).tolist()
        held_out = [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
        texts = [record["text"] for record in records]
        scored = self._scores(model, [*texts, *(self._text(tokens) for tokens in held_out)])
        own, other = scored[: len(records)], scored[len(records) :]
        figures = self._of_texts("", own, [record["tokens"] for record in records])
        figures["kernel_distance"], figures["kernel_distance_se"] = kernel_distance(own[:, 2:], other[:, 2:])
        figures |= self._of_texts("reference_", other, held_out)
        half = len(other) // 2
        if half >= LEAST_SAMPLES:
            # Packing may sort rows by the lengths of their documents: the first half differs from the second.
            floor = kernel_distance(other[0 : 2 * half : 2, 2:], other[1 : 2 * half : 2, 2:])
            figures["reference_kernel_distance"], figures["reference_kernel_distance_se"] = floor
        for record, (nats, tokens) in zip(records, own[:, :2].tolist(), strict=True):
            record |= {"nats": nats, "scored_tokens": tokens}
        return figures

    def values(self, records: Sequence[Record]) -> np.ndarray:
        """See `Task`; after `figures`, which scores the texts."""
        nats, tokens = (np.array([record[key] for record in records]) for key in ("nats", "scored_tokens"))
        return ratio_residuals(nats, tokens)

    def _of_texts(self, prefix: str, scored: np.ndarray, tokens: Sequence[Sequence[int]]) -> dict[str, float | None]:
        per_token, error = ratio_and_error(scored[:, 0], scored[:, 1])
        entropy = mean_and_error(np.array([token_entropy(one) for one in tokens]))
        repeated = mean_and_error(np.array([repetition(one) for one in tokens]))
        perplexity = math.exp(per_token)
        return {
            f"{prefix}nats_per_token": per_token, f"{prefix}nats_per_token_se": error,
            f"{prefix}perplexity": perplexity, f"{prefix}perplexity_se": error and perplexity * error,
            f"{prefix}entropy": entropy[0], f"{prefix}entropy_se": entropy[1],
            f"{prefix}repetition": repeated[0], f"{prefix}repetition_se": repeated[1],
        }  # fmt: skip

    def _scores(self, model: TaskModel, texts: Sequence[str]) -> np.ndarray:
        """Nats, tokens and features of each text, fp64 [texts, 2 + d]. Collective: the ranks share the texts."""
        world = model.world
        scorer, error = None, None
        try:
            scorer = CausalLM(self.scorer, world.device)
        except UserError as caught:
            error = caught
        world.raise_on_all_ranks(error)
        assert scorer is not None
        found = torch.zeros(len(texts), 2 + scorer.width, dtype=torch.float64)
        for number in range(world.rank, len(texts), world.size):
            one = scorer.score(texts[number])
            found[number] = torch.from_numpy(np.array([one.nats, one.tokens, *one.features]))
        return world.sum(found).numpy()

    def _text(self, tokens: Sequence[int]) -> str:
        """The text of a row, with an empty line where a document ends."""
        parts, part = [], []
        for token in tokens:
            if token == self.tokenizer.eod_id:
                parts, part = [*parts, part], []
            else:
                part.append(token)
        return BETWEEN.join(self.tokenizer.decode(one) for one in [*parts, part] if one)
